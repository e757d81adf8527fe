"""The record of a run's rollouts: which, how many, what each says, and what a cut-off or resumed run leaves."""

import json

import pytest

from lupi_trainer.data.mixing import mix
from lupi_trainer.data.records import load_training_data, prepare_columns
from lupi_trainer.inspection import read_run, write_page
from lupi_trainer.lab import load_lab_records
from lupi_trainer.lupi_skd.recorder import RolloutRecorder
from lupi_trainer.publishing.student_files import student_files
from lupi_trainer.scripts.common import last_evaluation
from tests.lupi_skd.training import make_trainer


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "rollouts.jsonl").read_text(encoding="utf-8").split("\n") if line]


class Args:
    per_device_train_batch_size, world_size, gradient_accumulation_steps = 4, 1, 1


class State:
    max_steps, global_step, is_world_process_zero = 100, 0, True


def test_a_run_records_every_token_and_its_writer(tmp_path):
    trainer, losses = make_trainer(
        tmp_path,
        config_record_rollouts=8,
        config_max_steps=4,
        train_dataset=load_lab_records("lab:new")[:8],
        eval_dataset=load_lab_records("lab:eval")[:10],
        config_per_device_eval_batch_size=10,
    )
    trainer.train()
    trainer.evaluate()
    recorded = lines(tmp_path / "run")
    train, of_eval = ([r for r in recorded if r["split"] == split] for split in ("train", "eval"))
    assert len(train) == 8 and {r["step"] for r in train} == {0, 1, 2, 3}
    assert sorted(r["row_id"] for r in of_eval) == list(range(8)) and {r["step"] for r in of_eval} == {4}
    # every record in every epoch, so that checkpoints can be compared on it
    assert sorted(r["id"] for r in train) == sorted(2 * list({r["id"] for r in train}))
    for entry in recorded:
        count = len(entry["token_ids"])
        for name in (
            "completion",
            "from_teacher",
            "draft",
            "teacher_rank",
            "student_probability",
            "teacher_probability",
            "draft_student_probability",
            "draft_teacher_probability",
            "divergence",
        ):
            assert len(entry[name]) == count, name
        assert "".join(entry["completion"]) == trainer.processing_class.decode(entry["token_ids"])
        for place, by_teacher in enumerate(entry["from_teacher"]):
            assert (entry["draft"][place] is not None) == bool(by_teacher)
            accepted = entry["teacher_rank"][place] < 5 and entry["teacher_probability"][place] >= 0.05
            assert by_teacher or accepted
        assert entry["privileged_context"] and entry["prompt"][-1]["role"] == "user"
    trainer.save_model()
    write_page(read_run(tmp_path / "run"), tmp_path / "run" / "inspect.html")
    sent = student_files(tmp_path / "run")  # the knowledge stays here when the student is pushed
    assert "model.safetensors" in sent and not {"rollouts.jsonl", "inspect.html"} & sent.keys()


@pytest.mark.parametrize("settings", [{}, {"config_rollout_policy": "teacher"}, {"config_rollout_policy": "student"}])
@pytest.mark.grid(3)
def test_recording_changes_no_loss(tmp_path, settings):
    runs = []
    for name, count in (("with", 4), ("without", 0)):
        trainer, losses = make_trainer(tmp_path / name, config_record_rollouts=count, **settings)
        trainer.train()
        runs.append(losses.losses)
    assert runs[0] == runs[1]
    assert not (tmp_path / "without" / "run" / "rollouts.jsonl").exists()


def test_the_choice_is_even_over_records_and_epochs(tmp_path):
    rows = [{"row_id": i} for i in range(40)]  # 400 rollouts are 10 epochs of them
    for limit, chosen, epochs in ((400, 40, 10), (100, 10, 10), (10, 1, 10), (5, 1, 5), (1, 1, 1)):
        recorder = RolloutRecorder(tmp_path / str(limit), None, limit, 40)
        recorder.on_train_begin(Args, State, None)
        picks = [recorder.choose(rows, "train", epoch + 0.5) for epoch in range(10)]
        assert max(map(len, picks)) == chosen and sum(map(bool, picks)) == epochs


def test_a_record_that_comes_again_in_a_mixture_is_recorded_again(tmp_path):
    class Args:
        per_device_train_batch_size, world_size, gradient_accumulation_steps = 24, 1, 1

    class State:
        max_steps, global_step, is_world_process_zero = 200, 0, True

    mixed = mix(load_training_data("lab:new"), load_training_data("lab:common"), 0.5, total=4800, batch=24)
    recorder = RolloutRecorder(tmp_path, None, 300, 4800)
    recorder.on_train_begin(Args, State, None)
    rows = [{"row_id": place, "source_row": row} for place, row in enumerate(prepare_columns(mixed)["source_row"])]
    picks = [rows[i]["source_row"] for i in recorder.choose(rows, "train", 0.0)]
    assert 250 <= len(picks) <= 350 and 3 * len(set(picks)) <= len(picks)


def entry(step: int, split: str = "train", text: str = "a") -> dict:
    """What is recorded of a text of one token."""
    shares = ("student_probability", "teacher_probability", "draft_student_probability", "draft_teacher_probability")
    lists = {"completion": text, "from_teacher": 0, "draft": None, "teacher_rank": 0, "divergence": 0.5}
    lists |= dict.fromkeys(shares, 0.5)
    prompt = {"prompt": [{"role": "user", "content": "q"}], "privileged_context": None}
    return {"step": step, "split": split, **prompt, **{key: [value] for key, value in lists.items()}}


def test_no_more_than_the_limit_is_written_for_each_split(tmp_path):
    recorder = RolloutRecorder(tmp_path, None, 3)
    for step in range(5):
        recorder.write([entry(step), entry(step, "eval")], step)
    assert [(r["step"], r["split"]) for r in lines(tmp_path)] == [(s, x) for s in range(3) for x in ("train", "eval")]


def test_resuming_drops_what_came_after_the_checkpoint_and_half_a_line(tmp_path):
    RolloutRecorder(tmp_path, None, 9).write([entry(s) for s in range(5)] + [entry(2, "eval"), entry(4, "eval")], 0)
    with open(tmp_path / "rollouts.jsonl", "a") as file:
        file.write('{"step": 5, "spl')
    again = RolloutRecorder(tmp_path, None, 5)
    again.write([entry(2), entry(3), entry(4), entry(5)], 2)
    assert [(r["step"], r["split"]) for r in lines(tmp_path)] == [
        (0, "train"),
        (1, "train"),
        (2, "eval"),
        (2, "train"),
        (3, "train"),
        (4, "train"),
    ]


BROKEN = {
    "half a character": '{"step": 1, "split": "train", "id": "한국'.encode()[:-1],
    "half a number": b'{"step": 1, "split": "train", "x": 0.',
    "a number alone": b"7",
    "no step": b'{"split": "train"}',
    "no split": b'{"step": 0}',
    "no object": b'["step", "split"]',
    "a step of another type": b'{"step": null, "split": "train"}',
    "zeros": b"\0" * 40,
    "depth": b"[" * 99_999,
}


@pytest.mark.parametrize("place", ["end", "middle"])
@pytest.mark.parametrize("name", BROKEN)
def test_a_line_that_cannot_be_read_was_cut_off(tmp_path, caplog, name, place):
    whole = [json.dumps(entry(step)).encode() for step in (0, 1)]
    parts = [*whole, BROKEN[name]] if place == "end" else [whole[0], BROKEN[name], whole[1], b""]
    (tmp_path / "rollouts.jsonl").write_bytes(b"\n".join(parts))
    if name in ("half a character", "half a number", "zeros", "depth"):
        run = read_run(tmp_path)
        assert list(run.rollouts) == [entry(0), entry(1)] and run.rollouts.broken == 1
    else:  # that is no line of a recorder: shown, it would not be what was recorded
        with pytest.raises(ValueError, match=f"rollouts.jsonl, line {3 if place == 'end' else 2}: "):
            list(read_run(tmp_path).rollouts)
    RolloutRecorder(tmp_path, None, 9).write([entry(2)], 2)
    assert lines(tmp_path) == [entry(0), entry(1), entry(2)]
    assert "rollouts.jsonl: 1 line cut off in the writing, left out now" in caplog.text


@pytest.mark.parametrize("steps", [{"eval_steps": 2}, {"eval_steps": 3}], ids=["on the way", "at the end"])
@pytest.mark.grid(2)
def test_a_run_killed_behind_its_last_checkpoint_is_the_unbroken_one(tmp_path, steps):
    """It has all its steps, and its last evaluation is made again, or read from its log."""
    options = {"config_save_strategy": "steps", "config_save_steps": 1, "config_eval_strategy": "steps"}
    options |= {f"config_{name}": value for name, value in steps.items()}
    seen = []
    for resume in (False, True, True):
        trainer, _ = make_trainer(
            tmp_path,
            **options,
            config_max_steps=2,
            config_logging_steps=3,
            config_record_rollouts=8,
            train_dataset=load_lab_records("lab:new")[:8],
            eval_dataset=load_lab_records("lab:eval")[:3],
        )
        output = trainer.train(resume_from_checkpoint=resume)
        metrics = last_evaluation(trainer) or trainer.evaluate()
        figures = {k: v for k, v in metrics.items() if not any(word in k for word in ("second", "runtime"))}
        seen.append((output.training_loss, figures, lines(tmp_path / "run")))
    assert seen[0] == seen[1] == seen[2]
    assert seen[0][0] > 0 and len([e for e in seen[0][2] if e["split"] == "eval"]) == 3


def begins(folder, limit: int = 9) -> RolloutRecorder:
    recorder = RolloutRecorder(folder, None, limit)
    recorder.on_train_begin(Args, State, None)
    return recorder


def test_every_earlier_runs_record_is_put_aside_not_lost(tmp_path):
    for step in (7, 8, 9):
        begins(tmp_path).write([entry(step)], 0)
    assert lines(tmp_path) == [entry(9)]
    for name, step in (("previous", 7), ("previous-2", 8)):
        assert json.loads((tmp_path / f"rollouts.{name}.jsonl").read_text()) == entry(step)


def test_an_evaluation_of_a_finished_run_leaves_its_record_in_place(tmp_path):
    begins(tmp_path, limit=2).write([entry(0), entry(1)], 0)
    with open(tmp_path / "rollouts.jsonl", "a") as file:
        file.write('{"step": 5, "spl')
    evaluated = RolloutRecorder(tmp_path, None, 2)
    evaluated.write([entry(0, "eval")] * 3, 0)
    run = read_run(tmp_path)
    assert list(run.rollouts) == [entry(0), entry(1), entry(0, "eval"), entry(0, "eval")] and run.rollouts.broken == 1
    evaluated.on_train_begin(Args, State, None)  # which begins anew: the evaluation before it is this run's
    evaluated.write([entry(0)], 0)
    assert lines(tmp_path) == [entry(0, "eval"), entry(0, "eval"), entry(0)]
    assert (tmp_path / "rollouts.previous.jsonl").read_text().startswith(json.dumps(entry(0), separators=(",", ":")))


@pytest.mark.parametrize("text", ["a\u2028b", "a\x85b\u2029", "a\x1c\x0bb"])
def test_a_text_with_line_separators_is_one_record(tmp_path, text):
    said = entry(0, text=text)
    RolloutRecorder(tmp_path, None, 9).write([said, entry(3)], 0)
    assert list(read_run(tmp_path).rollouts) == [said, entry(3)] and not read_run(tmp_path).rollouts.broken
    RolloutRecorder(tmp_path, None, 9).write([entry(2)], 2)
    assert list(read_run(tmp_path).rollouts) == [said, entry(2)]
