"""What a run with several teachers says of them: warnings, its page, its card, the command that comes next."""

import logging

from lupi_trainer.inspection.page import page_data
from lupi_trainer.inspection.run import read_run
from tests.lupi_skd.test_teachers import OTHER, config, mixed
from tests.lupi_skd.training import make_trainer


def test_a_teacher_without_a_record_is_named_in_a_warning(tmp_path, caplog):
    teachers = OTHER["teachers"] | {"third": {"model_name_or_path": "lab:teacher"}}
    shared = config(teachers=teachers, base_teacher="student")
    with caplog.at_level(logging.WARNING):
        make_trainer(tmp_path, train_dataset=mixed("other", None, "other", None), **shared)
        make_trainer(tmp_path / "b", train_dataset=mixed(None, None, "other", "third"), **shared)
    said = [record.getMessage() for record in caplog.records if "no record has the teacher" in record.getMessage()]
    assert said == ["no record has the teacher teacher or third, which is kept in memory all the same"]


def test_page_and_card_know_each_teacher(tmp_path):
    records = mixed("other", None, "other", None)
    teachers = {"other": {"model_name_or_path": "lab:student"}}
    shared = {"teachers": teachers, "base_teacher": "student", "max_steps": 2, "record_rollouts": 8}
    trainer, _ = make_trainer(tmp_path, train_dataset=records, **config(**shared))
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    (line,) = [line for line in card.splitlines() if line.startswith("| teacher |")]
    assert line.split("|")[2].split(";") == [
        " `lab:teacher` (shipped with lupi_trainer)",
        " `lab:student` (shipped with lupi_trainer)",
        " the student as it was before training ",
    ]
    page = page_data(read_run(tmp_path / "run"))
    taught = {rollout["id"]: rollout["teacher"] for rollout in page["rollouts"]}
    assert taught == {row["id"]: row["teacher"] or "student" for row in records} and len(page["rollouts"]) == 8
    curves = {curve["name"]: curve for curve in page["curves"]}
    for name in ("acceptance", "gamma"):
        lines, words = (curves[name][key] for key in ("lines", "words"))
        assert {"taught by other", "taught by student"} <= lines.keys()
        assert words["taught by other"].startswith("Of records of the teacher other: ")
        assert all(len(lines[f"taught by {teacher}"]) == 2 for teacher in ("other", "student"))
    assert "taught by other" not in curves["loss"]["lines"]
