"""A layer with LoRA multiplies with one merged weight inside a rollout, and with its own two products outside."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lupi_trainer.speculative import AdapterDisabled, skd_rollout
from lupi_trainer.speculative.runners import merged_lora as merged
from lupi_trainer.speculative.runners import packed_weights as packed
from tests.speculative.reference import reference_rollout
from tests.speculative.runners.test_support import INFORMED, QUERIES
from tests.speculative.toy_models import toy


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    monkeypatch.setattr(packed, "_SMALLEST", 0)


def with_adapter(dtype=torch.float32, **options):
    """A toy model whose adapter does what a trained one does."""
    torch.manual_seed(3)
    config = LoraConfig(r=4, lora_alpha=16, target_modules="all-linear", **options)
    model = get_peft_model(toy("llama").to(dtype), config).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def layers(model):
    return [module for module in model.modules() if "merged_lora" in vars(module)]


@pytest.fixture
def products(monkeypatch):
    """Of which layers a small product was computed."""
    seen, before = [], nn.Linear.forward

    def counting(self, x):
        seen.append(self)
        return before(self, x)

    monkeypatch.setattr(nn.Linear, "forward", counting)
    return seen


IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


@torch.no_grad()
def test_logits_are_the_adapters_and_without_it_the_bases(products):
    model = with_adapter(lora_dropout=0.5, use_rslora=True)
    expected = model(IDS).logits
    with model.disable_adapter():
        base = model(IDS).logits
    assert (expected - base).abs().max() > 0.05
    products.clear()
    with packed.packed_weights({"student": model}):
        assert len(layers(model)) == 14  # of two blocks
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-4, rtol=1e-4)
        assert not products
        with model.disable_adapter():
            torch.testing.assert_close(model(IDS).logits, base, atol=1e-4, rtol=1e-4)
        assert not products
    assert not layers(model) and torch.equal(model(IDS).logits, expected)


@torch.no_grad()
def test_what_was_learned_since_the_last_rollout_is_merged():
    model = with_adapter()
    for _ in range(2):
        expected = model(IDS).logits
        with packed.packed_weights({"student": model}):
            torch.testing.assert_close(model(IDS).logits, expected, atol=1e-4, rtol=1e-4)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.mul_(1.5)
        assert (model(IDS).logits - expected).abs().max() > 0.05


@torch.no_grad()
def test_several_active_adapters_are_all_added():
    model = with_adapter()
    model.add_adapter("second", LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    model.base_model.set_adapter(["default", "second"])
    expected = model(IDS).logits
    with packed.packed_weights({"student": model}):
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed")
@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True, "target_modules": ["q_proj"]}])
def test_what_is_more_than_a_product_is_not_merged(options):
    torch.manual_seed(3)
    model = get_peft_model(toy("llama"), LoraConfig(r=4, init_lora_weights=False, **options)).eval()
    expected = model(IDS).logits
    with packed.packed_weights({"student": model}):
        assert not layers(model)
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-4, rtol=1e-4)


def test_nothing_is_merged_where_nothing_is_packed():
    model = with_adapter()
    with packed.packed_weights({"student": model}, False):
        assert not layers(model)
    with model.disable_adapter(), packed.packed_weights({"teacher": model}):
        assert not layers(model)


@torch.no_grad()
@pytest.mark.parametrize("moment", ["merging", "releasing"])
def test_what_an_interruption_leaves_behind_has_no_effect(monkeypatch, moment):
    model, calls = with_adapter(), []
    before = {"merging": merged._merge, "releasing": merged._release}[moment]

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        before(*args)

    expected = model(IDS).logits
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(merged, {"merging": "_merge", "releasing": "_release"}[moment], interrupted)
        with packed.packed_weights({"student": model}):
            pass
    assert torch.equal(model(IDS).logits, expected)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.mul_(1.5)
    expected = model(IDS).logits
    with packed.packed_weights({"student": model}):
        assert len(layers(model)) == 14
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.grid(2)
def test_a_student_that_teaches_itself_writes_the_same(tracing, compile):
    student = with_adapter()
    teacher = AdapterDisabled(student)
    expected = reference_rollout(student, teacher, QUERIES, INFORMED, max_new_tokens=12)
    options = {"gamma": 3, "pack_weights": True, "compile": compile}
    rollout = skd_rollout(student, teacher, QUERIES, INFORMED, max_new_tokens=12, **options)
    assert (rollout.completion_ids, rollout.from_teacher) == tuple(expected[:2])
    assert 0 < sum(map(sum, rollout.from_teacher))
