"""What the teacher's own reading of a batch holds on a GPU, counted on one that is not there."""

import pytest
import torch

from lupi_trainer.models.backbone import completion_states_by_rows
from tests.fake_cuda.device import UNABLE, fake_cuda
from tests.fake_cuda.rollout import model_on
from tests.fake_cuda.shapes import qwen3


pytestmark = pytest.mark.skipif(UNABLE is not None, reason=str(UNABLE))


def test_rows_at_a_time_hold_their_share_and_the_result():
    batch, prompt, completion, held = 8, 60, 20, {}
    with fake_cuda() as counted, torch.no_grad():
        config = qwen3(2)
        model = model_on("cuda:1", config)
        ids = [torch.ones(batch, n, dtype=torch.long, device="cuda:1") for n in (prompt, completion)]
        given = ids[0], ids[0], ids[1], ids[1]
        # what is logged in the first call of all keeps frames, and what they hold: here it is left out
        for rows in (1, batch, 1):
            before = counted.live["cuda:1"]
            counted.phase_peak.clear()
            with counted.within(f"{rows} rows"):
                states = completion_states_by_rows(model, rows, *given)
            assert states.shape == (batch, completion, config.hidden_size)
            del states
            held[rows] = counted.phase_peak[f"{rows} rows", "cuda:1"] - before
    result = batch * completion * config.hidden_size * 2  # bytes of bfloat16
    assert held[1] - result < (held[batch] - result) / batch + 64 * 512, "and the blocks of an allocator"
