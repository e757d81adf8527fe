"""`bf16` computes in bfloat16: the losses do not pass through the forward that accelerate wraps."""

import math
from functools import partial

import pytest
import torch

from tests.kd_lora.training import make_kd_trainer
from tests.lupi_skd.training import make_trainer
from tests.wmtp.training import ALGORITHMS, make_wmtp_trainer


MAKERS = {"kd-lora": make_kd_trainer, "lupi-skd": make_trainer}
MAKERS |= {name: partial(make_wmtp_trainer, algorithm=name) for name in ALGORITHMS}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("method", MAKERS)
@pytest.mark.grid(3)
def test_a_float32_student_computes_in_bfloat16(tmp_path, method, device):
    trainer, losses = MAKERS[method](tmp_path, config_bf16=True, config_max_steps=1, config_use_cpu=device == "cpu")
    computed = set()
    (up_proj,) = (m for name, m in trainer.model.named_modules() if name.endswith("layers.0.mlp.up_proj"))
    up_proj.register_forward_hook(lambda module, _, out: out.requires_grad and computed.add(out.dtype))
    trainer.train()
    assert computed == {torch.bfloat16} and up_proj.weight.dtype == torch.float32
    assert up_proj.weight.device.type == device and math.isfinite(losses.losses[0])
    value_head = getattr(trainer, "value_head", None)
    if value_head is not None:
        hidden = torch.randn(1, 3, value_head.hidden_size, dtype=torch.bfloat16, device=device)
        with torch.autocast(device, torch.bfloat16):
            assert value_head(hidden).dtype == torch.float32
