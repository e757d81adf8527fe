"""What a mixture's rollouts log apart for records with knowledge and base records, and the counts of each row."""

from dataclasses import asdict, fields
from types import SimpleNamespace

import pytest

from lupi_trainer.evaluation import AcceptanceCounts
from lupi_trainer.inspection.words import METRICS
from lupi_trainer.lab import load_lab_records
from lupi_trainer.lupi_skd.metrics import KINDS, RolloutTotals, rollout_metrics
from lupi_trainer.speculative import AcceptNone, TopK, skd_rollout
from lupi_trainer.speculative.loops.results import RowCounts
from tests.lupi_skd.training import make_trainer


NEW, OLD = load_lab_records("lab:new")[:3], [r | {"knowledge": None} for r in load_lab_records("lab:common")[:2]]
RECORDS = [NEW[0], OLD[0], NEW[1], NEW[2], OLD[1]]
TOLD = [record["knowledge"] is not None for record in RECORDS]
PLACES = {"knowledge": [0, 2, 3], "base": [1, 4]}


@pytest.fixture
def prompts(tokenizer) -> list[list[int]]:
    asked = [[{"role": "user", "content": record["query"]}] for record in RECORDS]
    return tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]


def write(student, teacher, prompts, rows, **changes):
    """A rollout of some of the rows, each with its own noise."""
    settings = {"max_new_tokens": 12, "gamma": 4, "eos_token_id": [2], "acceptance": TopK(3, 0.2), **changes}
    chosen = [prompts[row] for row in rows]
    return skd_rollout(student, teacher, chosen, chosen, row_ids=list(rows), **settings)


@pytest.mark.parametrize("changes", [{}, {"max_slots": 2, "gamma": 3}, {"acceptance": AcceptNone()}], ids=str)
def test_a_row_s_counts_are_those_of_the_row_alone(student, teacher, prompts, changes):
    stats = write(student, teacher, prompts, range(5), **changes).stats
    names = [field.name for field in fields(RowCounts)][:5]
    for row in range(5):
        alone, its = write(student, teacher, prompts, [row], **changes).stats, stats.rows[row]
        assert [getattr(its, name) for name in names] == [getattr(alone, name) for name in names]
        assert its.gammas == sum(alone.gamma_history) and its.seconds > 0
    for name in names:
        assert sum(getattr(row, name) for row in stats.rows.values()) == getattr(stats, name)
    assert (stats.accepted == 0) == ("acceptance" in changes)


def test_counts_of_texts_that_a_model_writes_by_generate(student, teacher, prompts, monkeypatch):
    """They are those of the engine's own loop, a token a round."""
    wanted = write(student, teacher, prompts, range(5), acceptance=AcceptNone())
    monkeypatch.setattr("lupi_trainer.speculative.loops.rollout.can_draft", lambda model: False)
    found = write(student, teacher, prompts, range(5), acceptance=AcceptNone())
    assert found.completion_ids == wanted.completion_ids
    for row, ids in enumerate(found.completion_ids):
        counts = asdict(found.stats.rows[row])
        assert counts.pop("seconds") > 0 and counts.pop("blocks") == len(ids) and not any(counts.values())


def told(row_numbers) -> list[dict]:
    return [{"privileged_context": "Known." if TOLD[row] else None} for row in row_numbers]


ONE = SimpleNamespace(num_processes=1)
NAMES = [f"acc_rate/{name}" for name in ("mean", "first_token", "full_match")] + ["tokens/teacher_share"]


def test_both_kinds_are_reported_apart(student, teacher, prompts):
    """As if each had been rolled out alone; and as long as a run had but one kind, not at all."""
    whole = write(student, teacher, prompts, range(5))
    found = rollout_metrics(whole, told(range(5)), 1.0, RolloutTotals(), ONE)
    for kind, rows in PLACES.items():
        alone = write(student, teacher, prompts, rows)
        counts = AcceptanceCounts.of(alone)
        assert {name: found[f"{name}_{kind}"] for name in NAMES} == pytest.approx(counts.rates())
        blocks = [alone.stats.rows[i] for i in range(len(rows))]
        assert found[f"gamma/mean_{kind}"] == sum(b.gammas for b in blocks) / counts.blocks
        seconds = sum(whole.stats.rows[row].seconds for row in rows)
        assert found[f"rollout/tokens_per_second_{kind}"] == pytest.approx(counts.written / seconds)
    assert found["acc_rate/mean_knowledge"] != found["acc_rate/mean_base"]
    apart = {name for name in found if name.endswith(KINDS)}
    assert len(apart) == 12 and apart <= METRICS.keys()

    totals = RolloutTotals()
    for rows, kinds in (([0, 2], ()), ([3], ()), ([1, 4], ["base"]), ([0], ["knowledge"])):
        found = rollout_metrics(write(student, teacher, prompts, rows), told(rows), 1.0, totals, ONE)
        assert {name for name in found if name.endswith(KINDS)} == {n for n in apart if n.endswith(tuple(kinds))}
    assert (totals.knowledge, totals.base) == (4, 2)


def test_processes_are_summed(student, teacher, prompts):
    """Two processes, of which the second has no base record, say what one with all rows says."""
    sums = []

    def process(rows):
        def reduce(tensor, reduction):
            sums.append(tensor)
            return sum(sums)

        two = SimpleNamespace(num_processes=2, device="cpu", reduce=reduce, gather=lambda tensor: tensor)
        rollout = write(student, teacher, prompts, rows)
        return rollout, rollout_metrics(rollout, told(rows), 1.0, RolloutTotals(), two)

    (first, _), (second, found) = process([0, 1, 4]), process([2, 3])
    wanted = rollout_metrics(write(student, teacher, prompts, range(5)), told(range(5)), 1.0, RolloutTotals(), ONE)
    names = [f"{name}_{kind}" for name in (*NAMES, "gamma/mean") for kind in KINDS]
    assert {name: found[name] for name in names} == pytest.approx({name: wanted[name] for name in names})
    texts = [first.completion_ids[i] for i in (1, 2)]
    seconds = sum(first.stats.rows[i].seconds for i in (1, 2)) / 2  # a process, on average
    assert found["rollout/tokens_per_second_base"] == pytest.approx(sum(map(len, texts)) / seconds)
    assert len(second.completion_ids) == 2


def test_a_mixture_logs_them_and_goes_on_after_a_resume(tmp_path):
    trainer, losses = make_trainer(
        tmp_path, train_dataset=RECORDS, config_max_steps=1, config_save_strategy="steps", config_save_steps=1
    )
    trainer.train()
    assert all(0 <= losses.logs[0][f"acc_rate/mean_{kind}"] <= 1 for kind in KINDS)
    again, _ = make_trainer(tmp_path, train_dataset=RECORDS, config_max_steps=2)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-1"))
    totals = again._rollout_totals["train"]
    assert totals.knowledge + totals.base == 8 and totals.base > 0  # of both steps
    plain, losses = make_trainer(tmp_path / "plain", train_dataset=NEW + NEW, config_max_steps=1)
    plain.train()
    assert not [name for name in losses.logs[0] if name.endswith(KINDS)]
