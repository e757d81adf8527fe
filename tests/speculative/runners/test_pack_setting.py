"""`pack_weights`: what it does in each of its values, what it refuses, and how several uses go together."""

import threading
import types

import pytest
import torch
from torch import nn

from lupi_trainer.speculative import skd_rollout, speculative_generate
from lupi_trainer.speculative.runners import packed_weights as packed
from tests.speculative.reference import reference_rollout
from tests.speculative.runners.test_packed_weights import (
    as_before,
    number_packed,
    numbers,
    packed_names,
    packing,
    small_ones_too,  # noqa: F401
)
from tests.speculative.runners.test_support import INFORMED, QUERIES
from tests.speculative.toy_models import toy


def test_uses_that_overlap_share_what_is_packed_and_the_last_to_end_puts_it_back():
    model, more = nn.Linear(8, 8), nn.Linear(8, 8)
    both = nn.ModuleList([model, more])
    before, x = numbers(both), torch.randn(3, 8)
    with torch.no_grad():
        expected = model(x)
        first, second = packing(model), packing(model, more)
        first.__enter__()
        of_the_first = model.packed_weight
        second.__enter__()
        assert model.packed_weight is of_the_first and number_packed(both) == 2
        first.__exit__(None, None, None)
        assert packed_names(both) == {"0.weight", "1.weight"}
        torch.testing.assert_close(model(x), expected)
        second.__exit__(None, None, None)
    assert as_before(both, before)


def test_an_error_in_an_inner_use_leaves_the_outer_one_packed():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    before = numbers(model)
    with packing(model):
        with pytest.raises(KeyError), packing(model, setting=True):
            raise KeyError
        assert number_packed(model) == 2
        with pytest.raises(ValueError, match="pack_weights=False: .* inside of which"), packing(model, setting=False):
            pass
        assert number_packed(model) == 2
    assert as_before(model, before)


@pytest.mark.parametrize("setting", [*packed.SETTINGS])
def test_a_model_that_another_thread_has_packed_is_refused(setting):
    model, said = nn.Linear(8, 8), []

    def other():
        with pytest.raises(RuntimeError, match="another thread .* a model of its own") as refused:
            with packing(model, setting=setting):
                pass
        said.append(refused)

    before = numbers(model)
    with packing(model):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert said and number_packed(model) == 1
    assert as_before(model, before)


def test_of_two_threads_that_pack_at_the_same_time_one_is_refused(monkeypatch):
    """The other one packs after this one has chosen its layers, and before it claims the first."""
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    before, init, packs, ends = numbers(model), packed._PackedWeight.__init__, threading.Event(), threading.Event()

    def other():
        with packing(model):
            packs.set()
            ends.wait()

    thread = threading.Thread(target=other)

    def late(one, weight, layers):
        init(one, weight, layers)
        if threading.current_thread() is not thread and not packs.is_set():
            thread.start()
            assert packs.wait(60)

    monkeypatch.setattr(packed._PackedWeight, "__init__", late)
    try:
        with pytest.raises(RuntimeError, match="another thread"), packing(model):
            pass
        assert number_packed(model) == 2, "the other one's"
    finally:
        ends.set()
        thread.join()
    assert as_before(model, before)


def test_nothing_is_kept_in_the_module():
    constant = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type, int, str, tuple)
    for name, value in vars(packed).items():
        hint = type(value).__module__ in ("typing", "__future__")
        assert name.startswith("__") or hint or isinstance(value, constant), name


@pytest.mark.parametrize("value, setting", [("auto", "auto"), (True, True), ("true", True), ("False", False)])
def test_settings_may_be_text(value, setting):
    assert packed.pack_setting(value) is setting


@pytest.mark.parametrize("value", [1, 0, None, "yes", ""])
def test_other_settings_are_refused(value):
    with pytest.raises(ValueError, match="pack_weights must be one of auto, true, false, got"):
        packed.pack_setting(value)


def without_onednn(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    return toy("llama")


def prepared(monkeypatch):
    model = toy("llama")
    model._original_forward = model.forward  # as accelerate leaves it in mixed precision
    return model


def with_small_layers(monkeypatch):
    monkeypatch.setattr(packed, "_SMALLEST", 1 << 17)
    return toy("llama")


REFUSED = [
    (lambda _: toy("llama").to("meta"), "its weights are on meta, and only a CPU"),
    (lambda _: toy("llama").to(torch.float16), "its weights are torch.float16, and packed ones are torch."),
    (without_onednn, "this torch comes without oneDNN"),
    (prepared, "it runs in mixed precision"),
    (with_small_layers, "it has no linear layer of 131072 numbers or more"),
]


@pytest.mark.parametrize("make, reason", REFUSED)
def test_what_cannot_be_packed_is_refused_where_that_is_asked_for_and_left_alone_else(monkeypatch, make, reason):
    model = make(monkeypatch)
    for setting in ("auto", False):
        with packed.packed_weights({"teacher": model}, setting):
            assert not number_packed(model)
    message = f"pack_weights=True: the teacher LlamaForCausalLM cannot be packed: {reason}"
    with pytest.raises(ValueError, match=message), packed.packed_weights({"teacher": model}, True):
        pass


def test_of_two_models_each_must_have_something_to_pack():
    student, teacher = toy("llama"), toy("llama").to(torch.float16)
    with pytest.raises(ValueError, match="the teacher .* torch.float16"):
        skd_rollout(student, teacher, QUERIES, INFORMED, max_new_tokens=4, pack_weights=True)
    assert not number_packed(student)
    with pytest.raises(ValueError, match="the draft .* torch.float16"):
        speculative_generate(student, teacher, QUERIES, max_new_tokens=4, pack_weights=True)


@pytest.mark.parametrize("setting", ["auto", True, False])
def test_texts_are_the_same_under_every_setting(setting):
    student, teacher = toy("llama"), toy("llama", seed=1)
    before = [numbers(student), numbers(teacher)]
    counts = set()
    expected = reference_rollout(student, teacher, QUERIES, INFORMED, max_new_tokens=12)
    rollout = skd_rollout(
        student,
        teacher,
        QUERIES,
        INFORMED,
        max_new_tokens=12,
        gamma=4,
        pack_weights=setting,
        on_round=lambda _: counts.add((number_packed(student) > 0, number_packed(teacher) > 0)),
    )
    assert (rollout.completion_ids, rollout.from_teacher) == tuple(expected[:2])
    greedy = reference_rollout(
        teacher, teacher, QUERIES, QUERIES, max_new_tokens=12, student_temperature=0, teacher_temperature=0
    )[0]
    output = speculative_generate(
        teacher,
        student,
        QUERIES,
        max_new_tokens=12,
        pack_weights=setting,
        on_tokens=lambda *_: counts.add((number_packed(student) > 0, number_packed(teacher) > 0)),
    )
    assert output.completion_ids == greedy
    assert counts == {(setting is not False,) * 2}
    assert as_before(student, before[0]) and as_before(teacher, before[1])
