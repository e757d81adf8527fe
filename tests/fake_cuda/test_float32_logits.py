"""On a GPU the logits of a rollout are not rounded to half precision."""

import pytest
import torch
from transformers import Gemma3TextConfig

from lupi_trainer.speculative.runners.float32_logits import float32_logits
from tests.fake_cuda.device import UNABLE, fake_cuda
from tests.fake_cuda.rollout import model_on
from tests.fake_cuda.shapes import qwen3


pytestmark = pytest.mark.skipif(UNABLE is not None, reason=str(UNABLE))
CAPPED = Gemma3TextConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    final_logit_softcapping=30.0,
)


@pytest.mark.parametrize(
    ("config", "dtype"),
    [(qwen3(1), torch.bfloat16), (CAPPED, torch.float16)],
    ids=["bfloat16", "float16, capped"],
)
def test_the_sum_is_kept_as_it_is(config, dtype):
    with fake_cuda() as counted, torch.no_grad():
        model = model_on("cuda:0", config, dtype)
        tokens = torch.zeros(2, 3, dtype=torch.long, device="cuda:0")
        with float32_logits(model), counted.within("inside"):
            logits = model(input_ids=tokens).logits
        assert logits.dtype == torch.float32 and logits.shape == (2, 3, config.vocab_size)
        assert model(input_ids=tokens).logits.dtype == dtype  # and it is put back
    products = [name for phase, name in counted.launches if phase == "inside" and name == "mm"]
    assert products  # a single one, not one and a conversion


def test_a_layer_that_is_no_plain_one_in_half_precision_is_left_alone(monkeypatch):
    with fake_cuda(), torch.no_grad():
        whole, mixed = (model_on("cuda:0", qwen3(1), dtype) for dtype in (torch.float32, torch.bfloat16))
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
        with float32_logits(mixed):
            assert "forward" not in vars(mixed.lm_head)
        monkeypatch.undo()
        with float32_logits(whole, mixed):
            assert ["forward" in vars(model.lm_head) for model in (whole, mixed)] == [False, True]
    cpu = torch.nn.Linear(4, 4, dtype=torch.bfloat16)
    cpu.get_output_embeddings = lambda: cpu
    with float32_logits(cpu):
        assert "forward" not in vars(cpu)
