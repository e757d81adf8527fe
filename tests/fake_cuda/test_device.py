"""What is counted on devices that are not there."""

import pytest
import torch

from tests.fake_cuda.device import UNABLE, fake_cuda
from tests.fake_cuda.rollout import rolled
from tests.fake_cuda.shapes import PROMPTS, qwen3


pytestmark = pytest.mark.skipif(UNABLE is not None, reason=str(UNABLE))


def test_bytes_launches_questions_and_copies():
    with fake_cuda() as counted:
        with counted.within("made"):
            one = torch.zeros(1024, device="cuda:1")
            row = one.view(2, 512)[0]
        with counted.within("asked"):
            assert one.sum().tolist() == 0
            one.cpu()
            with pytest.raises(RuntimeError, match="_local_scalar_dense"):
                one.sum().item()
        with counted.within("copied"):
            index = torch.tensor([1, 2], device="cuda:1")
            one[index], one[[1, 2]], one[torch.tensor([1, 2])]
        del one, row, index
    # [1024] float32; beside it a sum, and an index with what it looks up twice
    assert [counted.phase_peak[phase, "cuda:1"] for phase in ("made", "asked", "copied")] == [4096, 4608, 6144]
    assert counted.peak == {"cuda:1": 6144} and counted.live == {"cuda:1": 0}
    assert counted.launched("made") == 1 and counted.launches["asked", "sum"] == 2
    assert [operation for _, operation, _ in counted.questions] == ["tolist", "_to_copy", "_local_scalar_dense"]
    assert {phase for phase, _, _ in counted.uploads} == {"copied"} and counted.uploads.total() == 3


def test_devices_are_not_mixed_and_are_gone_afterwards():
    with fake_cuda():
        one, two = (torch.ones(3, device=f"cuda:{i}") for i in range(2))
        with pytest.raises(RuntimeError, match="add at outside mixes cuda:0 and cuda:1"):
            one + two
        with pytest.raises(RuntimeError, match="index at outside mixes"):
            one[torch.zeros(1, dtype=torch.long, device="cuda:1")]
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError)):
            torch.ones(3, device="cuda:0")


def test_a_rollout_follows_its_script():
    out, counted = rolled(qwen3(1), qwen3(1), *PROMPTS, lengths=[9, 4, 1], accepted=2)
    assert [len(text) for text in out.completion_ids] == [9, 4, 1]
    assert (out.stats.rounds, out.stats.committed, out.stats.accepted) == (3, 14, 10)
    assert {phase for phase, _ in counted.launches} >= {"load", "prefill", "draft", "verify", "commit"}
