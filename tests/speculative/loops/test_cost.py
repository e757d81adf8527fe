"""What a rollout costs besides arithmetic: questions to the device, forwards, memory."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from lupi_trainer.speculative import AdaptiveTopK, JensenShannon, TopK, skd_rollout
from lupi_trainer.speculative.runners import runner
from tests.speculative.scene import Scene
from tests.speculative.scripted import scripted_lengths
from tests.speculative.toy_models import prompts, toy


class HostReads(TorchDispatchMode):
    """Counts the operators that make the host wait for a value of the device."""

    WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"}

    def __init__(self, monkeypatch):
        super().__init__()
        self.count = 0
        tolist = torch.Tensor.tolist  # reads the memory without an operator

        def counted(tensor):
            self.count += 1
            return tolist(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", counted)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        by_mask = func._schema.name == "aten::index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        self.count += by_mask or func._schema.name in self.WAITS
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def scene():
    return Scene("gemma3")


@pytest.mark.parametrize(
    "gamma, rows, policy",
    [(1, 8, "adaptive"), (3, 1, "goodput"), (3, 8, "fixed"), (20, 8, "goodput"), (20, 8, "adaptive")],
)
@pytest.mark.grid(3)
def test_at_most_two_host_reads_a_round(scene, gamma, rows, policy, monkeypatch):
    with HostReads(monkeypatch) as reads:
        rollout = scene.roll(list(range(rows)), gamma=gamma, gamma_policy=policy, max_slots=3)
    assert 0 < reads.count - 2 <= 2 * rollout.stats.rounds  # two more for the finished texts


@pytest.mark.parametrize(
    "rule", [JensenShannon(0.3), AdaptiveTopK(k=8, k_max=20)], ids=lambda rule: type(rule).__name__
)
def test_rules_with_a_state_or_the_students_logits_read_no_more(scene, rule, monkeypatch):
    """All rows have a slot of their own."""
    with HostReads(monkeypatch) as reads:
        rollout = scene.roll(gamma=3, acceptance=rule)
    assert 0 < reads.count - 2 <= 2 * rollout.stats.rounds


def test_the_counter_of_host_reads_counts(monkeypatch):
    with HostReads(monkeypatch) as reads:
        x = torch.arange(3)
        x.tolist(), x[0].item(), bool(x[1] > 0), x[x > 1]
    assert reads.count == 4


def test_forwards_are_gamma_of_the_student_and_one_of_the_teacher_a_round(scene):
    stats = scene.roll(gamma=4).stats
    assert stats.teacher_forwards == stats.rounds == len(stats.gamma_history)
    assert stats.student_forwards == sum(stats.gamma_history)


def test_sequential_verification_stops_at_the_last_first_rejection(scene):
    stats = scene.roll([0], gamma=8, verification="sequential", eos_token_id=None).stats
    assert stats.teacher_forwards == stats.accepted + stats.blocks - stats.full_match
    assert stats.teacher_forwards < stats.student_forwards


def test_waiting_rows_take_the_slots_of_rows_that_have_ended():
    """With refill, rounds follow the work; without it, every batch would wait for its longest row."""
    model = toy("llama")
    queries = prompts(12, 3, 3)
    lengths = [2, 30, 3, 2, 2, 29, 2, 3, 2, 28, 2, 2]

    def rounds(rows, slots):
        columns = [[queries[i] for i in rows]] * 2
        options = {"max_new_tokens": 30, "acceptance": TopK(61, 0.0), "gamma": 1, "max_slots": slots}
        with scripted_lengths([lengths[i] for i in rows]):
            return skd_rollout(model, model, *columns, **options).stats.rounds

    together = rounds(range(12), 4)
    apart = sum(rounds(range(i, i + 4), 4) for i in (0, 4, 8))
    assert apart == 30 + 29 + 28
    assert together < 0.75 * apart


def peak_bytes(run) -> int:
    """The most memory that `run` held at a time beyond what was there before, as the allocator saw it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
        run()
    held = peak = 0
    for event in p.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def test_peak_memory_is_weights_the_two_caches_and_the_states(monkeypatch):
    """Nothing else of size, and nothing of these twice: a tenth more is less than another pair of caches."""
    queries, limit = prompts(8, 20, 20, vocab=2048), 600
    monkeypatch.setattr(runner, "_PAGE", limit)  # as long as the longest texts
    informed = [k + q for k, q in zip(prompts(8, 100, 100, seed=1), queries)]
    models = []

    def run():  # the models are made here, since a rollout puts weights aside: only what is seen made is seen freed
        models.append(toy("qwen3", layers=2, hidden=128, vocab=2048, positions=2048))
        models.append(toy("qwen3", layers=6, hidden=512, vocab=2048, positions=2048))
        with scripted_lengths([20] * 8):
            skd_rollout(*models, queries, informed, max_new_tokens=limit, gamma=6, return_teacher_hidden=True)

    peak = peak_bytes(run)
    weights = sum(p.numel() * p.element_size() for m in models for p in m.parameters())
    caches = 8 * 4 * 2 * 2 * 16 * (2 * (20 + limit) + 6 * (120 + limit))  # rows, bytes, k and v, heads, dim, slots
    needed = weights + caches + 8 * 4 * 512 * (limit + 1)
    assert caches > 0.1 * needed
    assert needed < peak < 1.1 * needed
