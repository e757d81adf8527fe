"""Compiled rollouts equal the reference.

Most tests run the captured graphs as they are (`tracing`): whether there is one graph, and when another is made, is
decided before any code is generated. Code is generated for the family whose graphs hold the most.
"""

import warnings

import pytest
import torch

from lupi_trainer.speculative import AdapterDisabled, JensenShannon, skd_rollout
from lupi_trainer.speculative.runners import packed_weights as packed
from lupi_trainer.speculative.runners import runner as runner
from lupi_trainer.speculative.runners import steps as module
from tests.speculative.reference import reference_rollout
from tests.speculative.runners.test_support import INFORMED, QUERIES, with_lora
from tests.speculative.scene import RULE, Scene
from tests.speculative.toy_models import perturbed, toy


@pytest.mark.slow
def test_generated_code_writes_the_same(compiling):
    """Sliding windows, a buffer that is written in place, and hidden states kept."""
    scene = Scene("gemma3", rows=3)
    rollout = scene.roll(gamma=2, compile=True, return_teacher_hidden=True)
    scene.check(rollout)
    for ours, theirs in zip(rollout.teacher_hidden, scene.hidden):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "gpt2"])  # the others: below
def test_compiled_rollouts_are_equal_and_compile_nothing_twice(tracing, monkeypatch, family):
    if family == "qwen3":  # with packed weights
        monkeypatch.setattr(packed, "_SMALLEST", 0)
    scene = Scene(family)
    scene.check(scene.roll(gamma=4, max_slots=5, compile=True))
    with torch._dynamo.config.patch(error_on_recompile=True):
        scene.check(scene.roll(gamma=4, max_slots=5, compile=True))
        turned = list(range(7, -1, -1))
        scene.check(scene.roll(turned, gamma=4, max_slots=5, compile=True), turned)


@pytest.mark.slow
def test_one_graph_serves_all_spans_of_attention(tracing, monkeypatch):
    monkeypatch.setattr(runner, "_BUCKET", 8)
    spans, visible = set(), runner.Runner._visible
    monkeypatch.setattr(
        runner.Runner, "_visible", lambda r, needed: spans.add(visible(r, needed)) or visible(r, needed)
    )
    scene = Scene("gemma3", rows=3, longest=40)
    with torch._dynamo.config.patch(error_on_recompile=True):
        scene.check(scene.roll(gamma=2, compile=True))
    assert len(spans) > 4 and not module._refused


@pytest.mark.slow
def test_one_graph_serves_all_draft_lengths_and_keeps_hidden_states(tracing):
    scene = Scene("llama")
    with torch._dynamo.config.patch(error_on_recompile=True):
        rollout = scene.roll(gamma=6, gamma_policy="adaptive", compile=True, return_teacher_hidden=True)
    scene.check(rollout)
    assert len(set(rollout.stats.gamma_history)) >= 3
    for ours, theirs in zip(rollout.teacher_hidden, scene.hidden):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_one_graph_serves_all_batches_from_two_rows_on(tracing, monkeypatch):
    sizes, reads = [], runner.Runner.read
    monkeypatch.setattr(
        runner.Runner, "read", lambda r, tokens, *given: sizes.append(len(tokens)) or reads(r, tokens, *given)
    )
    scene = Scene("qwen3")
    with torch._dynamo.config.patch(error_on_recompile=True):
        scene.check(scene.roll(gamma=2, compile=True))
    assert sizes[0] == 8 and sizes[-1] == 2 and len(set(sizes)) >= 4 and sizes == sorted(sizes, reverse=True)


@pytest.mark.slow
def test_prompts_of_one_token_and_a_rule_that_reads_the_students_logits(tracing):
    """Nothing is read before the first draft, so nothing has made the cache's buffers."""
    teacher = toy("llama")
    pair, queries = (perturbed(teacher, 0.1), teacher), [[3], [9], [30]]
    rule = JensenShannon(0.1)
    expected, by_teacher, _ = reference_rollout(*pair, queries, queries, max_new_tokens=10, acceptance=rule)
    with torch._dynamo.config.patch(error_on_recompile=True):
        rollout = skd_rollout(
            *pair, queries, queries, max_new_tokens=10, gamma=3, acceptance=rule, compile=True, trace_rows=[1]
        )
    assert (rollout.completion_ids, rollout.from_teacher) == (expected, by_teacher)
    assert 0 < sum(map(sum, by_teacher)) < sum(map(len, expected)) and rollout.traces


@pytest.mark.slow
def test_a_compiled_model_can_teach_its_own_adapter(tracing):
    student = with_lora(toy("llama"))
    expected = reference_rollout(student, toy("llama"), QUERIES, INFORMED, max_new_tokens=8, acceptance=RULE)
    rollout = skd_rollout(
        student, AdapterDisabled(student), QUERIES, INFORMED, max_new_tokens=8, acceptance=RULE, gamma=4, compile=True
    )
    assert (rollout.completion_ids, rollout.from_teacher) == tuple(expected[:2])


@pytest.mark.slow
def test_compiled_positions_end_where_the_model_ends(tracing):
    teacher = toy("gpt2", positions=24)
    queries, informed = [[3, 4, 5, 6], [9]], [[*range(10, 20), 3, 4, 5, 6], [*range(10, 20), 9]]
    pair = perturbed(teacher, 0.1), teacher
    expected, _, _ = reference_rollout(*pair, queries, informed, max_new_tokens=10)
    rollout = skd_rollout(*pair, queries, informed, max_new_tokens=10, gamma=7, compile=True)
    assert rollout.completion_ids == expected


@pytest.mark.slow
def test_without_a_compiler_the_rollout_says_so_and_goes_on(compiling):
    scene = Scene("llama", layers=1)
    without = {"cpp.cxx": ("/nowhere/c++",), "fx_graph_cache": False}
    with torch._inductor.config.patch(without), torch._inductor.utils.fresh_inductor_cache():
        with pytest.warns(RuntimeWarning, match="compile=True: LlamaForCausalLM") as said:
            scene.check(scene.roll(gamma=2, compile=True))
    messages = [str(w.message) for w in said if "compile=True" in str(w.message)]
    assert ["in single compiled steps" in message for message in messages] == [True, False, False], "first the loop"
    assert all("runs without compilation" in message for message in messages[1:]), "its single step, and the teacher"
    scene.check(scene.roll(gamma=2, compile=True))  # and not again


def test_caches_of_an_entire_training_have_few_sizes():
    """Past `_GRAPHS` shapes, a model would run without compilation for good."""
    sizes = {size: runner.compiled_size(size) for size in range(1, 8193)}
    assert all(size <= slots <= max(1.5 * size, size + 63) for size, slots in sizes.items())
    gamma_history = 4
    assert gamma_history * len(set(sizes.values())) < module._GRAPHS


def test_a_model_is_tried_once(monkeypatch):
    tried = []

    def failing(*args):
        tried.append(args)
        raise torch._dynamo.exc.TorchDynamoException("no such thing\nwith details")

    monkeypatch.setattr(module, "_compiled", lambda function: failing)
    scene = Scene("gpt2")
    with pytest.warns(RuntimeWarning, match=r"\(TorchDynamoException: no such thing\)"):
        scene.check(scene.roll(gamma=2, compile=True))
    assert len(tried) == 3, "the student's loop and its single step, and the teacher"


@pytest.mark.slow
def test_a_loop_that_cannot_be_one_graph_is_compiled_step_by_step(tracing, monkeypatch):
    def refusing(*args):
        raise torch._dynamo.exc.TorchDynamoException("no loops here")

    monkeypatch.setattr(module, "_loop", refusing)
    scene = Scene("llama")
    with warnings.catch_warnings(record=True) as said, torch._dynamo.config.patch(error_on_recompile=True):
        warnings.simplefilter("always")
        scene.check(scene.roll(gamma=2, compile=True))
    messages = [str(w.message) for w in said if "compile=True" in str(w.message)]
    assert len(messages) == 1 and "drafts in single compiled steps from here on" in messages[0]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2, "a step and a verification"


def test_other_errors_are_not_taken_for_a_missing_compiler(monkeypatch):
    def broken(*args):
        raise KeyError("a bug")

    monkeypatch.setattr(module, "_compiled", lambda function: broken)
    with pytest.raises(KeyError, match="a bug"):
        Scene("gpt2").roll(compile=True)
