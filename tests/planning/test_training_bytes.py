"""The bytes that a plan gives a training step, beside those of forward, loss and backward of tensors without numbers.

These are on the CPU's side: torch's autograd wants real devices for others, and bytes are the same.
"""

from unittest.mock import patch

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface
from trl.kernels import chunked_divergence

from lupi_trainer.models.backbone import completion_states
from lupi_trainer.models.private import set_attn_implementation
from lupi_trainer.planning.run import STUDENT, TEACHER, Run
from lupi_trainer.planning.sizes import size_of
from lupi_trainer.planning.training import training_moments
from tests.fake_cuda import device as devices
from tests.fake_cuda.device import Counted
from tests.planning.shapes import qwen3_06b, qwen3_4b


PROMPT = 47


def bytes_of_a_step(config, teacher, rows, completion, checkpointing, dtype, monkeypatch) -> tuple[int, int]:
    """(bytes before the step, the most that forward, loss and backward take beside them)."""
    monkeypatch.setattr(devices, "_device", lambda tensor: "gpu")
    # what TRL's kernels do in the tiles and sums that they are given
    monkeypatch.setattr(chunked_divergence, "_project", lambda tile, *args: tile.zero_())
    monkeypatch.setattr(chunked_divergence, "_addmm_fp32", lambda *args: None)
    for name in ("_stats_tile", "_backward_tile"):
        monkeypatch.setattr(chunked_divergence, name, lambda *args, **kwargs: None)
    # a fused attention, which is given no mask where there is no padding
    AttentionInterface.register("fused", sdpa_attention_forward)
    AttentionMaskInterface.register("fused", lambda *args, **kwargs: None)
    counted = Counted()
    with FakeTensorMode(), counted:
        with patch.object(PreTrainedModel, "init_weights", lambda model: model.tie_weights()):
            model = AutoModelForCausalLM.from_config(config, dtype=dtype).train()
        set_attn_implementation(model.config, "fused")
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        states = torch.empty(rows, completion, teacher.hidden_size, dtype=torch.bfloat16)
        head = torch.empty(teacher.vocab_size, teacher.hidden_size, dtype=torch.bfloat16)
        ids = [torch.ones(rows, length, dtype=torch.long) for length in (PROMPT, PROMPT, completion, completion)]
        valid = torch.arange(rows * completion)
        before = counted.live["gpu"]
        counted.peak.clear()
        with torch.autocast("cpu", torch.bfloat16):
            mine = completion_states(model, *ids).flatten(0, 1)[valid]
            # the last of each group: softcap
            options = 0.0, 1.0, 1.0, None, 1.0, None
            given = mine, model.lm_head.weight, None, states.flatten(0, 1)[valid], head, None
            loss = chunked_divergence.ChunkedDivergenceFunction.apply(*given, *options)[0].sum()
        del mine, given
        loss.backward()
    return before, counted.peak["gpu"] - before


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize(
    "config, rows, completion", [(qwen3_06b(2), 4, 1024), (qwen3_4b(2), 4, 4096)], ids=["0.6B", "4B"]
)
@pytest.mark.grid(2)
def test_a_step_takes_the_bytes_that_are_planned(config, rows, completion, checkpointing, monkeypatch):
    teacher = qwen3_4b(1)
    given = config, teacher, rows, completion, checkpointing, torch.bfloat16
    before, taken = bytes_of_a_step(*given, monkeypatch)
    student = size_of(config, "student", torch.bfloat16, trains=True, mixed=torch.bfloat16)
    run = Run(
        student, size_of(teacher, "teacher", torch.bfloat16), TEACHER, False, False, rows, 1, rows, PROMPT, 2460, 0,
        completion, 20, checkpointing=checkpointing,
    )  # fmt: skip
    moments = training_moments(run)[STUDENT]
    held = ("weights", "teacher's lm_head", "states kept")
    assert sum(moments[0].items[item] for item in held) == pytest.approx(before, rel=0.01)
    of_step = [sum(moment.items.get(item, 0) for item in ("gradients", "activations", "loss")) for moment in moments]
    assert max(of_step) == pytest.approx(taken, rel=0.1)
    assert student.kept > 0
