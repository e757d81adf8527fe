"""Numbers that go wrong are counted and left out, or stop the run at a record's name; never trained on."""

import copy
import logging
import types

import pytest
import torch

from lupi_trainer.data.prompts import encode
from lupi_trainer.lab import load_lab_records
from lupi_trainer.lupi_skd.health import rollout_health
from lupi_trainer.lupi_skd.metrics import RolloutTotals
from lupi_trainer.scripts import run
from lupi_trainer.speculative import Rollout
from lupi_trainer.speculative.loops.results import RolloutStats
from tests.lupi_skd.training import make_trainer


NAN = float("nan")


@pytest.fixture
def records(tokenizer):
    """Four records, and a token that only the knowledge of the third holds."""
    rows, ids = [], []
    for number, record in enumerate(load_lab_records("lab:new")[::23]):
        row = {"id": record["id"], "query": record["query"], "knowledge": record["knowledge"], "row_id": number}
        rows.append(row)
        ids.append(set(encode(tokenizer, [[{"role": "user", "content": row["query"] + row["knowledge"]}]])[0]))
    for i, own in enumerate(ids):
        query = set(encode(tokenizer, [[{"role": "user", "content": rows[i]["query"]}]])[0])
        others = [j for j in range(len(rows)) if j != i and rows[j]["id"] != rows[i]["id"]]
        only = own - query - set().union(*(ids[j] for j in others[:3]))
        if only:
            chosen = [rows[others[0]], rows[others[1]], rows[i], rows[others[2]]]
            return chosen, min(only)
    pytest.fail("no record of the lab has a token of its own")


def with_nan_at(teacher, token):
    teacher = copy.deepcopy(teacher)
    if teacher.config.tie_word_embeddings:
        teacher.config.tie_word_embeddings = False
        teacher.lm_head.weight = torch.nn.Parameter(teacher.lm_head.weight.detach().clone())
    with torch.no_grad():
        teacher.get_input_embeddings().weight[token] = NAN
    return teacher


@pytest.mark.parametrize("reuse", [True, False])
def test_a_record_that_the_teacher_breaks_is_left_out(tmp_path, teacher, records, caplog, reuse):
    """The step is that of the other records alone."""
    records, token = records
    settings = {"config_shuffle_dataset": False, "config_max_steps": 2, "config_reuse_verification": reuse}
    ours, losses = make_trainer(
        tmp_path / "a", teacher_model=with_nan_at(teacher, token), train_dataset=records, **settings
    )
    with caplog.at_level(logging.WARNING):
        ours.train()
    assert f"NaN or infinite at record {records[2]['id']!r}: left out" in caplog.text
    assert [log["rollout/broken_rows"] for log in losses.logs] == [1, 2]
    theirs, expected = make_trainer(
        tmp_path / "b",
        teacher_model=teacher,
        train_dataset=[*records[:2], records[3]],
        config_per_device_train_batch_size=3,
        **settings,
    )
    theirs.train()
    assert losses.losses == pytest.approx(expected.losses, abs=1e-5) and losses.losses[0] > 0
    for name, weight in ours.model.named_parameters():
        torch.testing.assert_close(weight, dict(theirs.model.named_parameters())[name], atol=1e-4, rtol=1e-3)


def test_a_teacher_without_any_numbers_stops_the_run(tmp_path, teacher):
    with torch.no_grad():
        teacher.model.norm.weight[0] = NAN
    records = load_lab_records("lab:new")[:8]
    trainer, _ = make_trainer(tmp_path, teacher_model=teacher, train_dataset=records, config_shuffle_dataset=False)
    with pytest.raises(FloatingPointError, match=f"every record of the batch .*{records[0]['id']}.*teacher_dtype"):
        trainer.train()


def test_a_student_without_numbers_stops_the_run_in_a_line(tmp_path, student, capsys):
    with torch.no_grad():
        student.model.layers[1].mlp.up_proj.weight[0] = float("inf")
    records = load_lab_records("lab:new")[:4]
    trainer, _ = make_trainer(tmp_path, model=student, train_dataset=records, config_shuffle_dataset=False)
    assert run(lambda: trainer.train() and None) == 2
    error = capsys.readouterr().err
    assert f"error: the student's logits are NaN or infinite at record {records[0]['id']!r}" in error.replace("\n", "")


def test_a_loss_that_is_not_finite_stops_the_run_before_the_step(tmp_path, student):
    records = load_lab_records("lab:new")[:4]
    trainer, losses = make_trainer(tmp_path, model=student, train_dataset=records, config_shuffle_dataset=False)

    def spoil(module, args, kwargs, output):
        if not kwargs["use_cache"] and trainer.state.global_step == 1:  # the loss of the second step
            queries = trainer.processing_class.batch_decode(kwargs["input_ids"])
            rows = [i for i, text in enumerate(queries) if records[3]["query"] in text]
            output.last_hidden_state[rows] = NAN
        return output

    student.model.register_forward_hook(spoil, with_kwargs=True)
    before = []
    step = trainer.training_step
    trainer.training_step = lambda *a: (before.append(copy.deepcopy(student.state_dict())), step(*a))[1]
    message = f"step 2: the loss is NaN or infinite, in a batch with record {records[3]['id']!r}. The weights"
    with pytest.raises(FloatingPointError, match=message):
        trainer.train()
    assert len(losses.losses) == 1 and losses.losses[0] > 0
    assert all(torch.equal(weight, before[-1][name]) for name, weight in student.state_dict().items())


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step(tmp_path, student):
    trainer, losses = make_trainer(tmp_path, model=student)
    student.model.layers[0].mlp.up_proj.weight.register_hook(lambda g: g + float("inf"))
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(FloatingPointError, match="step 1: the gradient is NaN or infinite, in a batch with record"):
        trainer.train()
    assert not losses.losses
    assert all(torch.equal(weight, before[name]) for name, weight in student.state_dict().items())


def test_odd_rows_are_counted():
    eos = 2
    rollout = Rollout(
        completion_ids=[[eos], [5, eos], [5, 6, 7], [5, 6]],
        from_teacher=[[False], [True, True], [False, True, False], [True, False]],
        stats=RolloutStats(),
        broken={3: "teacher"},
        teacher_hidden=[torch.ones(n, 4) for n in (1, 2, 3, 2)],
    )
    totals = RolloutTotals(broken=6)
    rows = [{"row_id": i} for i in range(4)]
    metrics, left_out = rollout_health(rollout, rows, [eos], totals, types.SimpleNamespace(num_processes=1))
    assert metrics == {
        "rollout/broken_rows": 7,
        "rollout/empty": 0.25,
        "rollout/all_teacher": 0.25,
        "rollout/unfinished": 0.25,
    }
    assert left_out == 1 and rollout.completion_ids[3] == [eos] and rollout.teacher_hidden[3].shape == (1, 4)


def test_rows_of_every_odd_kind_are_survived(tmp_path):
    """Texts that the teacher writes alone, and rows that are cut after two tokens."""
    settings = {"config_max_completion_length": 2, "config_max_steps": 1, "config_teacher_temperature": 3.0}
    trainer, losses = make_trainer(tmp_path, config_rollout_policy="teacher", **settings)
    trainer.train()
    assert losses.logs[0]["rollout/all_teacher"] == losses.logs[0]["rollout/unfinished"] == 1.0
    assert losses.losses[0] > 0
