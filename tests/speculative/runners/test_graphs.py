"""Rollouts whose forwards are recorded and replayed, on a recorder that does to CPU tensors what a CUDA graph does.

It notes every operation with the memory that it read and wrote, and a replay repeats them on that memory alone: Python
is not run again, so a number that was read from the host, or a tensor that was made outside, stays what it was. What
a GPU refuses while it records (to answer the host, to make shapes from values) is refused here.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lupi_trainer.speculative import AdapterDisabled, JensenShannon, skd_rollout, speculative_generate
from lupi_trainer.speculative.runners import graphs, kernels
from lupi_trainer.speculative.runners import runner as runner
from lupi_trainer.speculative.runners import steps as compiled
from tests.speculative.reference import reference_rollout
from tests.speculative.runners.test_kernels import on_cpu  # noqa: F401
from tests.speculative.runners.test_support import INFORMED, QUERIES, with_lora
from tests.speculative.scene import RULE, Scene
from tests.speculative.toy_models import FAMILIES, perturbed, prompts, toy


aten = torch.ops.aten
ASKS_THE_DEVICE = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.masked_select,
    aten.equal,
    aten.is_nonzero,
    aten.lift_fresh,
    aten._unique2,
    aten.unique_dim,
}


class Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.steps = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        masks = function.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        if function.overloadpacket in ASKS_THE_DEVICE or masks:
            raise RuntimeError(f"{function} is not permitted when a stream is capturing")
        out = function(*args, **kwargs)
        written = [
            o
            for o, returned in zip(out if isinstance(out, tuple | list) else [out], function._schema.returns)
            if isinstance(o, torch.Tensor) and returned.alias_info is None
        ]
        if isinstance(out, list):  # of one schema entry: chunks, views of their source
            written = []
        changes = any(a.alias_info is not None and a.alias_info.is_write for a in function._schema.arguments)
        if written or changes:
            self.steps.append((function, args, kwargs, written))
        return out

    def replay(self):
        for function, args, kwargs, written in self.steps:
            out = function(*args, **kwargs)
            new = [o for o in (out if isinstance(out, tuple | list) else [out]) if isinstance(o, torch.Tensor)]
            for mine, other in zip(written, new):
                mine.copy_(other)


class TapeRecorder:
    recordings = 0

    def record(self, function):
        function()
        with Tape() as tape:
            outputs = function()
        TapeRecorder.recordings += 1
        for output in tree_leaves(outputs):  # a capture computes nothing
            if isinstance(output, torch.Tensor):
                output.fill_(torch.nan if output.is_floating_point() else 0)
        return tape.replay, outputs


@pytest.fixture
def replayed(monkeypatch):
    """Compiled rollouts, without the compilation, whose forwards are recorded; the `Graphs` that did it."""
    made = []

    def new_graphs(recorder):
        made.append(graphs.Graphs(recorder))
        return made[-1]

    monkeypatch.setattr(runner, "recorder_for", lambda model: TapeRecorder())
    monkeypatch.setattr(runner, "Graphs", new_graphs)
    monkeypatch.setattr(compiled, "_compiled", lambda function: function)
    TapeRecorder.recordings = 0
    return made


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.grid(2)
def test_replayed_rollouts_equal_the_reference(family, replayed):
    scene = Scene(family)
    scene.check(scene.roll(gamma=4, max_slots=5, compile=True, max_new_tokens=20))
    student, teacher = replayed
    assert student.replays > 10 and teacher.replays >= 2
    assert TapeRecorder.recordings == 2, "one shape of the student's step, one of the verification"
    turned = list(range(7, -1, -1))
    scene.check(scene.roll(turned, gamma=4, max_slots=3, compile=True), turned)


def test_recorded_attention_looks_at_parts_of_a_long_cache(replayed, monkeypatch):
    """A recording looks at the slots that it was made with: few parts, since each is another recording."""
    monkeypatch.setattr(runner, "_UNDIVIDED", 0)
    scene = Scene("gemma3", rows=3, longest=90)
    scene.check(scene.roll(gamma=4, compile=True))
    spans = {kind[1] for model in replayed for kind, *_ in model._calls}
    assert 1 < len(spans) < 5


def test_hidden_states_and_lengths_that_a_policy_chooses(replayed):
    scene = Scene("llama")
    rollout = scene.roll(gamma=6, gamma_policy="adaptive", compile=True, return_teacher_hidden=True)
    scene.check(rollout)
    for ours, theirs in zip(rollout.teacher_hidden, scene.hidden):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_token_by_token_verification_keeps_what_was_read_before(replayed):
    scene = Scene("qwen3")
    scene.check(scene.roll(gamma=4, verification="sequential", compile=True, return_teacher_hidden=True))
    assert replayed[1].replays > 10


def test_rules_that_read_the_students_logits(replayed):
    scene = Scene("llama", rule=JensenShannon(0.3))
    scene.check(scene.roll(gamma=5, compile=True, trace_rows=[0, 2]))


def test_adapters_and_their_base(replayed):
    student = with_lora(toy("llama"))
    expected = reference_rollout(student, toy("llama"), QUERIES, INFORMED, max_new_tokens=8, acceptance=RULE)
    rollout = skd_rollout(
        student, AdapterDisabled(student), QUERIES, INFORMED, max_new_tokens=8, acceptance=RULE, gamma=2, compile=True
    )
    assert (rollout.completion_ids, rollout.from_teacher) == tuple(expected[:2])
    assert all(made.replays for made in replayed)


def test_attention_by_lengths(replayed, on_cpu):  # noqa: F811
    on_cpu[:] = [kernels.masked]  # asks the device for nothing, as a kernel does
    scene = Scene("gemma3")
    scene.check(scene.roll(gamma=4, compile=True))
    assert replayed[0].replays > 5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_lossless_decoding(temperature, replayed):
    target = toy("qwen3")
    given = target, perturbed(target, 0.1), prompts(4, 2, 12, seed=5)
    options = {"max_new_tokens": 24, "temperature": temperature, "max_slots": 3, "num_draft_tokens": 4}
    plain = speculative_generate(*given, **options)
    assert speculative_generate(*given, **options, compile=True).completion_ids == plain.completion_ids
    assert all(made.replays for made in replayed[2:]) and len(replayed) == 4


def test_a_forward_that_asks_the_device_is_not_recorded(replayed, monkeypatch):
    scene = Scene("llama")
    forward = scene.student.forward

    def asking(**inputs):
        assert inputs["input_ids"].max().item() < 61
        return forward(**inputs)

    monkeypatch.setattr(scene.student, "forward", asking)
    with pytest.warns(RuntimeWarning, match=r"goes on without CUDA graphs.*_local_scalar_dense.* not permitted"):
        scene.check(scene.roll(gamma=4, compile=True))
    assert replayed[0].replays == 0 and replayed[1].replays > 0


def test_a_number_from_the_host_would_stay_as_it_was():
    """The negative control: what the recorder of these tests is there to find."""
    made, place = graphs.Graphs(TapeRecorder()), [0]

    def function(x):
        return (x + place[0],)

    seen = []
    for i in range(4):
        place[0] = i
        seen.append(made(function, "same", torch.tensor([10]))[0].item())
    assert seen == [10, 11, 11, 11]


def test_results_are_the_callers_own():
    made = graphs.Graphs(TapeRecorder())
    results = [made(lambda x: (x * 2, None), "twice", torch.tensor([float(i)]))[0] for i in range(5)]
    assert [r.item() for r in results] == [0, 2, 4, 6, 8] and made.replays == 4


def test_what_is_recorded_where(monkeypatch):
    model = toy("llama")
    assert graphs.recorder_for(model) is None, "not on the CPU"
    monkeypatch.setattr(graphs, "CUDARecorder", lambda device: device)

    class OnAGPU(torch.nn.Module):
        def __init__(self, *devices):
            super().__init__()
            self.devices = devices

        def parameters(self):
            return [type("Parameter", (), {"device": torch.device(d)}) for d in self.devices]

    assert graphs.recorder_for(OnAGPU("cuda:1")) == torch.device("cuda:1")
    assert graphs.recorder_for(OnAGPU("cuda:0", "cuda:1")) is None
    offloaded = OnAGPU("cuda:1")
    offloaded._hf_hook = None
    assert graphs.recorder_for(offloaded) is None
    rollout = Scene("llama", rows=2)
    assert rollout.roll(compile=False).completion_ids == rollout.tokens
