"""Packed weights: the same products up to rounding, and nothing left of them afterwards."""

import pytest
import torch
from torch import nn

from lupi_trainer.speculative import packed, skd_rollout
from lupi_trainer.speculative.packed import packed_weights

from .reference import reference_rollout
from .test_models import INFORMED, QUERIES, with_lora
from .toy_models import FAMILIES, toy


def test_products_are_equal_and_the_layers_are_as_before():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 96), nn.Linear(96, 17, bias=False))
    x = torch.randn(3, 5, 48)
    with torch.no_grad():
        expected = model(x)
        with packed_weights(model):
            assert len(packed._packs) == 2
            torch.testing.assert_close(model(x[:1, :1]), expected[:1, :1], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    assert not packed._packs and not any("forward" in vars(layer) for layer in model)
    with torch.no_grad():
        assert torch.equal(model(x), expected)


def test_it_is_the_packed_weight_that_multiplies():
    layer, x = nn.Linear(32, 16), torch.randn(4, 32)
    with torch.no_grad(), packed_weights(layer):
        packed._packs[layer.weight.data_ptr()] = torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 32))
        torch.testing.assert_close(layer(x), layer.bias.expand(4, 16))


def test_weights_that_change_between_rollouts_are_packed_anew():
    layer, x = nn.Linear(32, 32), torch.randn(4, 32)
    with torch.no_grad():
        for _ in range(2):
            with packed_weights(layer):
                torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
            layer.weight.add_(1)


def test_what_is_no_plain_layer_in_float32_is_left_alone():
    class Own(nn.Linear):
        pass

    replaced = nn.Linear(8, 8)
    replaced.forward = lambda x: x + 1
    model = nn.ModuleList([nn.Linear(8, 8, dtype=torch.bfloat16), Own(8, 8), replaced, nn.Embedding(8, 8)])
    with packed_weights(model):
        assert not packed._packs and torch.equal(replaced(torch.ones(8)), torch.full((8,), 2.0))
    assert "forward" in vars(replaced)
    with torch.autocast("cpu", torch.bfloat16), packed_weights(nn.Linear(8, 8)):
        assert not packed._packs


def test_an_error_inside_puts_everything_back():
    layer = nn.Linear(8, 8)
    with pytest.raises(RuntimeError, match="mine"), packed_weights(layer):
        raise RuntimeError("mine")
    assert not packed._packs and "forward" not in vars(layer)


@pytest.mark.parametrize("family", FAMILIES)
def test_rollouts_with_packed_weights_write_the_same(family):
    student, teacher = toy(family), toy(family, seed=1)
    expected = reference_rollout(student, teacher, QUERIES, INFORMED, max_new_tokens=12)
    with packed_weights(student, teacher):
        assert packed._packs or family == "gpt2"  # whose layers are of another kind, but for the tied head
        rollout = skd_rollout(student, teacher, QUERIES, INFORMED, max_new_tokens=12, gamma=4)
    assert (rollout.completion_ids, rollout.from_teacher) == tuple(expected[:2])


def test_an_adapter_is_packed_with_its_base():
    student = with_lora(toy("llama"))
    with packed_weights(student):
        names = {name.split(".")[-2] for name, p in student.named_parameters() if p.data_ptr() in packed._packs}
    assert {"base_layer", "default", "lm_head"} <= names
