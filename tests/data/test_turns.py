"""A dialogue becomes a row for each turn of the assistant."""

import json

import pytest

from lupi_trainer.data.records import load_training_data
from lupi_trainer.data.turns import expand_turns
from lupi_trainer.scripts import arms, sft
from lupi_trainer.scripts.dry_run.records import check_skd
from lupi_trainer.scripts.dry_run.report import Report
from lupi_trainer.scripts.lupi_skd import build_trainer, make_parser
from lupi_trainer.scripts.recipe_words import RecipeError


def say(*turns: str) -> list[dict[str, str]]:
    """Messages of texts that begin with s, u or a, as their roles do."""
    roles = {"s": "system", "u": "user", "a": "assistant"}
    return [{"role": roles[text[0]], "content": text} for text in turns]


DIALOGUES = [
    ({"prompt": say("s", "u1", "a1", "u2", "a2", "u3"), "knowledge": "Tamo."}, [2, 4, 6]),
    ({"prompt": "u", "knowledge": "Vesu."}, [1]),
    ({"prompt": say("a0", "u1", "u2", "a2", "a3", "u4"), "knowledge": None}, [3, 6]),  # a greeting is no answer
    ({"prompt": say("u1", "a1", "u2"), "knowledge": "Rima."}, [1, 3]),
]


@pytest.fixture
def dialogues(tmp_path) -> str:
    path = tmp_path / "dialogues.json"
    path.write_text(json.dumps([{"id": f"d{i}", **record} for i, (record, _) in enumerate(DIALOGUES)]))
    return str(path)


def parsed(tmp_path, *flags: str):
    run = ["--model_name_or_path", "lab:student", "--teacher_model_name_or_path", "lab:teacher", "--bf16", "false"]
    run += ["--use_cpu", "true", "--max_completion_length", "4", "--output_dir", str(tmp_path / "run")]
    return make_parser().parse_args_and_config([*run, "--per_device_train_batch_size", "2", *flags])


def test_a_row_ends_where_the_assistant_answers(dialogues):
    records = load_training_data(dialogues)
    rows, number = list(expand_turns(records)), 0
    for record, (_, ends) in zip(records, DIALOGUES):
        for end in ends:
            assert rows[number] == {**record, "prompt": record["prompt"][:end], "row_id": number}
            number += 1
    assert len(rows) == number


def test_a_run_trains_on_the_turns_that_it_is_told_to(tmp_path, dialogues):
    """By default on the last; of base records as of the others."""
    last = build_trainer(*parsed(tmp_path, "--dataset_name", dialogues)).train_dataset
    assert list(last["prompt"]) == list(load_training_data(dialogues)["prompt"])
    whole = expand_turns(load_training_data(dialogues))
    trainer = build_trainer(*parsed(tmp_path, "--dataset_name", dialogues, "--train_turns", "all"))
    assert list(trainer.train_dataset) == list(whole)
    trainer.model.train()
    rows = [trainer.train_dataset[number] for number in range(8)]
    inputs = trainer.roll_out(rows)
    for name, asked in (
        ("prompt", [row["prompt"] for row in rows]),
        ("teacher_prompt", [trainer.teacher_prompt.messages(r["prompt"], r["privileged_context"]) for r in rows]),
    ):
        read = [ids[mask.bool()].tolist() for ids, mask in zip(inputs[f"{name}_ids"], inputs[f"{name}_mask"])]
        assert read == trainer.processing_class.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
    base = tmp_path / "base.json"
    base.write_text(json.dumps([record | {"knowledge": None} for record, _ in DIALOGUES]))
    mixture = ["--base_dataset_name", str(base), "--mixing", "0.5", "--num_train_epochs", "1"]
    trainer = build_trainer(*parsed(tmp_path, "--dataset_name", dialogues, "--train_turns", "all", *mixture))
    assert trainer.args.max_steps == len(whole)  # as many base rows besides, two a step
    assert {len(prompt) for prompt in trainer.train_dataset["prompt"]} == {1, 2, 3, 4, 6}


def test_a_dry_run_counts_turns(tmp_path, dialogues):
    report = Report()
    assert check_skd(*parsed(tmp_path, "--dataset_name", dialogues, "--train_turns", "all"), None, report) == 8
    assert check_skd(*parsed(tmp_path, "--dataset_name", dialogues), None, report) == 4 and not report.faults


def test_other_turns_are_refused_and_so_are_all_where_answers_are_to_the_last(tmp_path, dialogues):
    with pytest.raises(RecipeError, match="train_turns"):
        parsed(tmp_path, "--dataset_name", dialogues, "--train_turns", "first")
    with pytest.raises((RecipeError, ValueError), match="all turns are for `lupi skd`"):
        sft.make_parser().parse_args_and_config(["--dataset_name", dialogues, "--train_turns", "all"])
    with pytest.raises(ValueError, match="the arm sft learns answers to last messages alone"):
        arms.check(["sft"], parsed(tmp_path, "--dataset_name", dialogues, "--train_turns", "all"), "answer")
