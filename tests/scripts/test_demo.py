"""The main job, end to end, and the control that must not work."""

import json
import re

import pytest

from lupi_trainer.cli import main as lupi
from lupi_trainer.evaluation import closed_book
from lupi_trainer.inspection import read_run
from lupi_trainer.inspection.page import page_data
from lupi_trainer.lab import load_lab_records
from lupi_trainer.scripts.demo_run import run_demo
from lupi_trainer.scripts.lupi_skd import build_trainer, make_parser
from lupi_trainer.scripts.recipe_files import find_recipe


def train(recipe: str, *overrides: str):
    """The trainer of a lab recipe, after training."""
    arguments = ["--config", str(find_recipe(recipe)), "--eval_strategy", "no", "--disable_tqdm", "true", *overrides]
    trainer = build_trainer(*make_parser().parse_args_and_config(arguments))
    trainer.train()
    return trainer


def marks(model, tokenizer, *names: str) -> list[float]:
    """Closed-book accuracy at each of the lab's sets of questions."""
    return [closed_book(model, tokenizer, load_lab_records(f"lab:{name}")).lenient for name in names]


def worth(draft, folder, capsys) -> float:
    """The acceptance length that `lupi generate` reports for a draft; the target reads about the new islands."""
    prompts = folder / "prompts.json"
    prompts.write_text(json.dumps(load_lab_records("lab:new")[::8]))
    run = ["generate", "--target", "lab:teacher", "--draft", str(draft), "--prompts", str(prompts)]
    assert lupi([*run, "--with_knowledge", "--max_new_tokens", "56", "--output", str(folder / "texts.jsonl")]) == 0
    return float(re.search(r"acceptance length ([\d.]+)", capsys.readouterr().err)[1])


@pytest.mark.parametrize(
    "steps", [20, pytest.param(60, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.lab)]
)
def test_demo_teaches_what_only_the_teacher_reads(tmp_path, capsys, steps):
    """The first steps, more of them, which teach a quarter of it, and all, after which the student knows it."""
    run_demo(tmp_path / "demo", "--max_steps", str(steps))
    metrics = json.loads((tmp_path / "demo" / "metrics.json").read_text())
    assert metrics["teacher_open_book"] >= 0.95
    assert metrics["student_closed_book_before"] <= 0.05
    kept, more = {20: (0.8, 0.0), 60: (0.9, 0.1), 200: (0.95, 0.1)}[steps]
    assert metrics["common_facts_after"] >= kept
    assert metrics["acceptance_last"] > metrics["acceptance_first"] + more
    out = capsys.readouterr().out
    assert "warning: " not in out and f"\nstep {steps} of {steps}   loss " in out
    assert "The student, closed-book" in out and "It has the capital [" in out
    assert (tmp_path / "demo" / "student" / "model.safetensors").is_file()
    run = read_run(tmp_path / "demo")  # the pages' figures are those of metrics.json
    shown = {curve["name"]: curve["lines"] for curve in page_data(run)["curves"]}
    assert shown["acceptance"]["all"][0] == (10, metrics["acceptance_first"])
    assert shown["acceptance"]["all"][-1] == (steps, metrics["acceptance_last"])
    assert shown["closed_book"]["lenient"][-1] == (steps, metrics["student_closed_book_after"])
    assert page_data(run)["metrics"] == metrics and len(run.rollouts) > 200
    if steps > 20:
        taught, longer = {60: (0.25, 0.4), 200: (0.95, 0.5)}[steps]
        assert metrics["student_closed_book_after"] >= taught * metrics["teacher_open_book"]
        assert metrics["student_unseen_phrasing_after"] >= taught * metrics["teacher_open_book"]
        before, after = (worth(draft, tmp_path, capsys) for draft in ("lab:student", tmp_path / "demo" / "student"))
        assert after > before + longer, "the student is no better draft for its teacher than it was"
    svg = (tmp_path / "demo" / "rollout.svg").read_text()
    assert "[Ku]" in svg and "http" not in svg.replace("http://www.w3.org", "")


@pytest.mark.lab
def test_shuffled_knowledge_teaches_nothing(tmp_path, student, tokenizer):
    """Each question with another island's facts: accuracy stays at its start, so the gain comes from the knowledge.

    With the right facts, the same 50 steps teach a fifth of them (19%). `make test` holds that no question has its
    own island's facts there (tests/lab, tests/experiments), and that its figures are those of the runs.
    """
    before = marks(student, tokenizer, "probes", "probes-unseen")
    overrides = ["--dataset_name", "lab:new-shuffled", "--max_steps", "50", "--output_dir", str(tmp_path / "run")]
    trainer = train("lab/lupi_skd/config_full.yaml", "--gamma_policy", "goodput", *overrides)
    for after, start in zip(marks(trainer.model, tokenizer, "probes", "probes-unseen"), before):
        assert after <= start + 0.03


@pytest.mark.lab
@pytest.mark.timeout(1200)
def test_lora_recipe_saves_an_adapter_that_answers_closed_book(tmp_path, student, tokenizer, compiling):
    """With generated code, which writes the same text in half the time."""
    from peft import PeftModel

    assert marks(student, tokenizer, "probes")[0] <= 0.05
    speed = ["--compile_rollout", "true", "--gamma", "4"]  # every step of a draft is code that takes time to make
    trainer = train("lab/lupi_skd/config_lora.yaml", *speed, "--output_dir", str(tmp_path / "run"))
    trainer.save_model(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    loaded = PeftModel.from_pretrained(student, tmp_path / "adapter")
    new, unseen = marks(loaded, tokenizer, "probes", "probes-unseen")
    assert new >= 0.90
    assert unseen >= 0.80
