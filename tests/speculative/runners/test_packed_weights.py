"""Packed weights: the same products up to rounding, and the same weights afterwards, bit for bit."""

import os
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import IA3Config, LoHaConfig, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from lupi_trainer.speculative import AdapterDisabled, skd_rollout
from lupi_trainer.speculative.runners import packed_weights as packed
from lupi_trainer.speculative.runners.private import packed_types
from tests import forks
from tests.speculative.reference import reference_rollout
from tests.speculative.runners.test_support import INFORMED, QUERIES, with_lora
from tests.speculative.toy_models import FAMILIES, toy


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    monkeypatch.setattr(packed, "_SMALLEST", 0)


def packing(*models, setting="auto"):
    return packed.packed_weights({str(number): model for number, model in enumerate(models)}, setting)


def packed_names(model):
    return {f"{name}.weight" for name, layer in model.named_modules() if "packed_weight" in vars(layer)}


def number_packed(model):
    """How many weights, each of one layer or several."""
    return len({id(vars(m)["packed_weight"]) for m in model.modules() if "packed_weight" in vars(m)})


def test_products_are_equal_and_the_layers_are_as_before():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(48, 96), nn.Linear(96, 17, bias=False))
    x = torch.randn(3, 5, 48)
    before = [p.detach().clone() for p in model.parameters()]
    lies = [p.untyped_storage()._cdata for p in model.parameters()]
    with torch.no_grad():
        expected = model(x)
        with packing(model):
            assert packed_names(model) == {"0.weight", "1.weight"}
            torch.testing.assert_close(model(x[:1, :1]), expected[:1, :1], atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
            with packing(model):
                torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
            assert model[0].weight.isnan().all() and model[0].weight.shape == (96, 48)
    assert not number_packed(model) and not any("forward" in vars(layer) for layer in model)
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before))
    assert [p.untyped_storage()._cdata for p in model.parameters()] == lies, "they lie where they lay"
    with torch.no_grad():
        assert torch.equal(model(x), expected)


def test_it_is_the_packed_weight_that_multiplies():
    layer, x = nn.Linear(32, 16), torch.randn(4, 32)
    with torch.no_grad(), packing(layer):
        layer.packed_weight.packed = torch.ops.mkldnn._reorder_linear_weight(torch.zeros(16, 32))
        torch.testing.assert_close(layer(x), layer.bias.expand(4, 16))


def test_weights_that_change_between_rollouts_are_packed_anew():
    layer, x = nn.Linear(32, 32), torch.randn(4, 32)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    for _ in range(3):
        expected = layer(x).detach()
        with torch.no_grad(), packing(layer):
            torch.testing.assert_close(layer(x), expected)
        layer(x).square().sum().backward()
        optimizer.step()
        assert (layer(x) - expected).abs().max() > 0.05


def test_weights_of_a_file_and_weights_with_numbers_that_are_not_finite(tmp_path):
    weight = torch.randn(24, 40)
    weight[3, 4], weight[5, 6], weight[7, 8] = torch.nan, torch.inf, -0.0
    save_file({"weight": weight}, tmp_path / "weights.safetensors")
    layer = nn.Linear(40, 24, bias=False)
    layer.weight = nn.Parameter(load_file(tmp_path / "weights.safetensors")["weight"])
    with packing(layer):
        assert number_packed(layer) == 1
    assert layer.weight.detach().numpy().tobytes() == weight.numpy().tobytes()


def test_under_a_precision_of_its_own_a_layer_multiplies_with_the_numbers_themselves():
    layer, x = nn.Linear(32, 16), torch.randn(4, 32)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            expected = layer(x)
        with packing(layer), torch.autocast("cpu", torch.bfloat16):
            ours = layer(x)
    assert ours.dtype == torch.bfloat16 and torch.equal(ours, expected)


@pytest.mark.skipif(torch.bfloat16 not in packed_types(), reason="this processor packs float32 alone")
def test_bfloat16_is_packed_where_the_processor_multiplies_in_it():
    layer, x = nn.Linear(32, 16, dtype=torch.bfloat16), torch.randn(4, 32, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight[0, :3] = torch.tensor([torch.nan, torch.inf, -0.0])
        before, expected = layer.weight.detach().view(torch.int16).clone(), layer(x)
        with packing(layer):
            assert number_packed(layer) == 1 and layer.packed_weight.packed.dtype == torch.bfloat16
            assert layer(x).dtype == torch.bfloat16 and layer.weight.dtype == torch.bfloat16
            torch.testing.assert_close(layer(x)[:, 1:], expected[:, 1:])
    assert torch.equal(layer.weight.view(torch.int16), before)


def test_a_processor_without_it_packs_float32_alone(monkeypatch):
    monkeypatch.setattr(packed, "packed_types", lambda: (torch.float32,))
    model = nn.ModuleList([nn.Linear(32, 16, dtype=torch.bfloat16), nn.Linear(32, 16)])
    with packing(model):
        assert packed_names(model) == {"1.weight"}


def test_a_weight_that_something_else_reads_stays():
    head, embedding, twin = nn.Linear(16, 50, bias=False), nn.Embedding(50, 16), nn.Linear(16, 50, bias=False)
    head.weight = embedding.weight
    flat = torch.randn(2 * 16 * 50)
    twin.weight = nn.Parameter(flat[:800].view(50, 16))  # a part of a larger buffer
    several = nn.ModuleList([head, embedding, twin])
    with packing(several):
        assert not number_packed(several) and not embedding.weight.isnan().any()
    one, other = nn.Linear(16, 50), nn.Linear(16, 50)
    other.weight = one.weight
    x = torch.randn(3, 16)
    with torch.no_grad():
        expected = one(x), other(x)
        with packing(nn.ModuleList([one, other])):
            assert number_packed(nn.ModuleList([one, other])) == 1
            torch.testing.assert_close((one(x), other(x)), expected)


def test_small_weights_are_left_alone(monkeypatch):
    monkeypatch.undo()
    model = nn.ModuleList([nn.Linear(256, 256), nn.Linear(512, 256)])
    with packing(model):
        assert packed_names(model) == {"1.weight"}


def test_what_is_no_plain_layer_of_a_known_type_is_left_alone():
    class Own(nn.Linear):
        pass

    replaced = nn.Linear(8, 8)
    replaced.forward = lambda x: x + 1
    model = nn.ModuleList([nn.Linear(8, 8, dtype=torch.float16), Own(8, 8), replaced, nn.Embedding(8, 8)])
    with packing(model):
        assert not number_packed(model) and torch.equal(replaced(torch.ones(8)), torch.full((8,), 2.0))
    assert "forward" in vars(replaced)
    layer = nn.Linear(8, 8)
    with torch.autocast("cpu", torch.bfloat16), packing(layer):
        assert not number_packed(layer)
    AcceleratorState._reset_state(reset_partial_state=True)  # another test's may have another precision
    try:
        student = Accelerator(cpu=True, mixed_precision="bf16").prepare_model(with_lora(toy("llama")))
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    for model in (student, AdapterDisabled(student)):
        with packing(model):
            assert not number_packed(student)


def numbers(model):
    return [p.detach().clone() for p in model.parameters()]


def as_before(model, before):
    """Bit for bit, NaN and signed zeros too, and without a trace on the layers."""
    same = [p.detach().numpy().tobytes() == b.numpy().tobytes() for p, b in zip(model.parameters(), before)]
    return all(same) and not any({"forward", "packed_weight"} & set(vars(layer)) for layer in model.modules())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_an_error_inside_puts_everything_back(error):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    with torch.no_grad():
        model[0].weight[:2, 0] = torch.tensor([torch.nan, -0.0])
    before = numbers(model)
    with pytest.raises(error), packing(model):
        assert number_packed(model) == 2
        raise error("mine")
    assert as_before(model, before)


def test_a_generator_that_is_closed_puts_everything_back():
    model = nn.Linear(8, 8)
    before = numbers(model)

    def rows():
        with packing(model):
            while True:
                yield number_packed(model)

    generator = rows()
    assert next(generator) == 1
    generator.close()
    assert as_before(model, before)


def test_a_layer_that_cannot_be_packed_puts_those_before_it_back(monkeypatch):
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
    before, pack, made = numbers(model), packed._PackedWeight.pack, []

    def failing(one, use):
        made.append(one)
        if len(made) == 3:
            raise MemoryError("no memory")
        pack(one, use)

    monkeypatch.setattr(packed._PackedWeight, "pack", failing)
    with pytest.raises(MemoryError, match="no memory"), packing(model):
        raise AssertionError("it was packed")
    assert as_before(model, before)


def test_an_interruption_while_packing_loses_nothing(monkeypatch):
    """Ctrl-C at every line of the second layer's packing in turn."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    before, pack = numbers(model), packed._PackedWeight.pack

    def interrupted_at(line: int) -> bool:
        seen = []

        def trace(frame, event, argument):
            if frame.f_code is pack.__code__ and event == "line" and frame.f_locals["self"].weight is model[1].weight:
                seen.append(frame.f_lineno)
                if len(seen) == line:
                    raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            with packing(model):
                sys.settrace(None)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False

    line = 1
    while interrupted_at(line):
        assert as_before(model, before)
        line += 1
    assert line > 10


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
def test_an_interruption_while_weights_are_put_back_waits_for_the_last(error):
    """It comes at every line of the middle one's return in turn."""
    release, model = packed._PackedWeight.release, nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
    before = numbers(model)

    def interrupted_at(line: int) -> bool:
        seen = []

        def trace(frame, event, argument):
            if frame.f_code is release.__code__ and event == "line" and frame.f_locals["self"].weight is middle:
                seen.append(frame.f_lineno)
                if len(seen) == line:
                    raise error
            return trace

        middle = model[1].weight
        try:
            with packing(model):
                sys.settrace(trace)
        except error:
            return True
        finally:
            sys.settrace(None)
        return False

    line = 1
    while interrupted_at(line):
        assert as_before(model, before)
        line += 1
    assert line > 10


def test_a_weight_that_cannot_be_put_back_does_not_keep_the_others_away(monkeypatch):
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(3)))
    before, release = numbers(model), packed._PackedWeight.release

    def failing(one, use):
        if one.weight is model[1].weight:
            raise MemoryError("no memory")
        release(one, use)

    monkeypatch.setattr(packed._PackedWeight, "release", failing)
    with pytest.raises(MemoryError, match="no memory"), packing(model):
        pass
    assert [torch.equal(p, b) for p, b in zip(model.parameters(), before)] == [True, True, False, True, True, True]


MEMORY = """
import torch
from tests.speculative.toy_models import toy, prompts
from lupi_trainer.speculative import skd_rollout

def now(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) * 1024

torch.set_num_threads(1)
small = toy("qwen3", layers=2, hidden=64, vocab=64)
large = toy("qwen3", layers=4, hidden=2048, vocab=64)
queries = prompts(2, 4, 4, vocab=64)
skd_rollout(small, small, queries, queries, max_new_tokens=4)  # libraries load their parts
open("/proc/self/clear_refs", "w").write("5")  # the peak from here on
before = now("VmRSS")
skd_rollout(small, large, queries, queries, max_new_tokens=8)
print(now("VmHWM") - before, sum(p.numel() for p in large.parameters()) * 4)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="Linux counts the peak")
@pytest.mark.slow
def test_weights_are_there_once():
    """The process's own memory, since oneDNN's is none of torch's; blocks above 32 MiB, which malloc gives back."""
    peak, weights = map(int, forks.run("-c", MEMORY, cwd=Path(__file__).parents[3]).stdout.split())
    assert weights > 350e6 and peak < 0.3 * weights


@pytest.mark.parametrize(
    "adapter",
    [LoraConfig(r=4, use_dora=True), IA3Config(feedforward_modules=["down_proj"]), LoHaConfig(r=4)],
    ids=["DoRA", "IA3", "LoHa"],
)
def test_layers_whose_weight_an_adapter_may_read_are_left_alone(adapter):
    adapter.target_modules = {"q_proj", "down_proj"}
    student, teacher = get_peft_model(toy("llama"), adapter), toy("llama", seed=1)
    with packing(student):
        names = packed_names(student)
    assert names and not any("q_proj" in name or "down_proj" in name for name in names)
    expected = reference_rollout(student, teacher, QUERIES, INFORMED, max_new_tokens=6)
    rollout = skd_rollout(student, teacher, QUERIES, INFORMED, max_new_tokens=6, gamma=3)
    assert (rollout.completion_ids, rollout.broken) == (expected[0], {})


@pytest.mark.parametrize("family", FAMILIES)
def test_rollouts_with_packed_weights_write_the_same(family):
    student, teacher = toy(family), toy(family, seed=1)
    expected = reference_rollout(student, teacher, QUERIES, INFORMED, max_new_tokens=12)
    with packing(student, teacher):
        assert number_packed(student) and number_packed(teacher)
        rollout = skd_rollout(student, teacher, QUERIES, INFORMED, max_new_tokens=12, gamma=4)
    assert (rollout.completion_ids, rollout.from_teacher) == tuple(expected[:2])


def test_an_adapter_is_packed_with_its_base():
    student = with_lora(toy("llama"))
    with packing(student):
        names = {name.split(".")[-2] for name in packed_names(student)}
    assert {"base_layer", "default", "lm_head"} <= names
