"""What a training prints: a line a log, where it goes on, a summary whose commands can be run, the end by Ctrl-C."""

import io
import json
import logging
import shlex
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console
from torch import nn
from transformers.utils import logging as of_transformers

from lupi_trainer.cli import main, make_parser
from lupi_trainer.lab import load_lab_records
from lupi_trainer.scripts import lupi_skd, next_steps, setting_up, stopped
from lupi_trainer.scripts.run_notes import collect_warnings
from lupi_trainer.training import progress
from lupi_trainer.training.progress import Bar, WorkBar, quiet_bars
from lupi_trainer.training.run_log import duration, evaluation_line, resumed_line, step_line
from lupi_trainer.training.stopping import Stopped, how_to_go_on
from tests.lupi_skd.training import make_trainer


SHORT = "--use_cpu true --bf16 false --gradient_checkpointing false --logging_steps 1 --report_to none".split()


def commands(out: str) -> list[list[str]]:
    """The words of the commands that come next, each of which `lupi` can read."""
    lines = [shlex.split(line) for line in out.partition("Next:\n")[2].splitlines()]
    for program, *words in lines:
        assert program == "lupi" and make_parser().parse_args(words)
    return [words for _, *words in lines]


def skd(folder, *flags: str) -> list[str]:
    probes = folder / "probes.json"
    probes.write_text(json.dumps(load_lab_records("lab:probes")[:4]))
    recipe = ["skd", "--config", "lab/lupi_skd/config_full.yaml", "--per_device_train_batch_size", "8"]
    run = ["--output_dir", str(folder / "my run"), "--eval_strategy", "no", "--probes", str(probes)]
    return [*recipe, *run, "--save_strategy", "steps", "--save_steps", "2", "--logging_steps", "1", *flags]


@pytest.mark.slow
def test_ctrl_c_says_from_where_the_same_command_goes_on_and_it_does(tmp_path, monkeypatch, capsys, caplog):
    step = lupi_skd.LUPISKDTrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 3 and not self.resumed_from:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(lupi_skd.LUPISKDTrainer, "training_step", interrupted)
    of_transformers.enable_propagation()
    run = tmp_path / "my run"
    assert main(skd(tmp_path, "--max_steps", "4")) == 130
    first = capsys.readouterr()
    goes_on = "stopped at step 3; the same command with --resume_from_checkpoint true goes on from step 2"
    assert first.err.splitlines()[-1] == goes_on and "Traceback" not in first.err + first.out
    lines = first.out.splitlines()
    assert lines[0] == "asking 4 probes closed-book" and lines[1].startswith("evaluated at step 0: closed-book 0.0%")
    assert lines[2] == "asking the teacher 4 probes open-book"
    for number, line in enumerate(lines[3:], start=1):
        parts = line.split("   ")
        assert parts[0] == f"step {number} of 4" and [part.split()[0] for part in parts[1:4]] == [
            "loss",
            "accepted",
            "length",
        ]
        assert parts[4].endswith("tokens/s") and parts[5].endswith("s left") and len(parts) == 6
    assert number == 3 and "{" not in first.out

    with caplog.at_level(logging.WARNING):
        assert main(skd(tmp_path, "--max_steps", "4", "--resume_from_checkpoint", "true", "--verbose")) == 0
    of_transformers.disable_propagation()
    assert "missing keys" not in caplog.text, "heads that are tied are not missing"
    out = capsys.readouterr().out
    assert f"Resumed at step 2 of 4 from {run / 'checkpoint-2'}\n" in out and "'entropy': " in out
    assert "step 3 of 4   loss " in out and "4 steps, the last 2 of them in " in out and "warning: " not in out
    assert "closed-book: 0.0% before, " in out and f"Student saved to {run}. Next:" in out
    assert set(json.loads((run / "metrics.json").read_text())) == {
        "eval_closed_book_strict",
        "eval_closed_book_lenient",
    }
    inspect, evaluate = commands(out)
    assert inspect == ["inspect", str(run)] and evaluate[:3] == ["evaluate", "--model", str(run)]
    assert evaluate[3:] == [
        *("--probes", str(tmp_path / "probes.json"), "--before", "lab:student", "--teacher", "lab:teacher"),
        *("--teacher_system_prompt", "You are an expert on the islands."),
    ]
    assert main([*evaluate, "--max_new_tokens", "4"]) == 0
    assert main(skd(tmp_path, "--max_steps", "4")) == 2
    assert f"output_dir: {run} holds a finished run" in capsys.readouterr().err


def test_weights_that_are_missing_are_named_and_tied_ones_are_not(tmp_path, caplog):
    trainer, _ = make_trainer(tmp_path)
    of_transformers.set_verbosity_warning()  # whatever other tests have left
    of_transformers.enable_propagation()
    lost = SimpleNamespace(missing_keys=["lm_head.weight", "model.norm.weight"], unexpected_keys=[])
    trainer.say_what_is_missing(lost)
    assert "['model.norm.weight']" in caplog.text
    trainer.model.lm_head.weight = nn.Parameter(trainer.model.lm_head.weight.detach().clone())
    trainer.say_what_is_missing(lost)
    of_transformers.disable_propagation()
    assert "['lm_head.weight', 'model.norm.weight']" in caplog.text


def test_sft_asks_its_probes_before_and_after_and_an_adapter_is_merged_next(tmp_path, capsys):
    probes = tmp_path / "probes.json"
    probes.write_text(json.dumps(load_lab_records("lab:probes-common")[:4]))
    run = ["sft", "--config", "lab/sft/config_full.yaml", *SHORT, "--max_steps", "2", "--use_peft", "true"]
    run += ["--per_device_train_batch_size", "4", "--probes", str(probes), "--output_dir", str(tmp_path / "run")]
    assert main(run) == 0
    out = capsys.readouterr().out
    first, second = (line.split("   ") for line in out.splitlines() if line.startswith("step "))
    assert [part.split()[0] for part in first[:2]] == ["step", "loss"] and first[2].endswith("tokens/s")
    assert first[3].endswith("left") and len(second) == 3 and "{" not in out and "warning: " not in out
    assert "closed-book: 100.0% before, 100.0% after (strictly marked: 100.0% before, 100.0% after)\n" in out
    card = (tmp_path / "run" / "README.md").read_text()
    assert "| closed-book accuracy, strict | 100.0% (step 0) | 100.0% (step 2) |" in card
    assert "| `r` | 16 |" in card and "| `lora_alpha` | 32 |" in card
    *_, merge = commands(out)
    assert merge == ["merge", str(tmp_path / "run"), "--out", f"{tmp_path / 'run'}-merged"]
    assert main(merge) == 0


def test_lines_tell_what_there_is():
    logs = {"loss": 0.51234, "acc_rate/mean": 0.61, "completions/mean_length": 14.25}
    line = "step   4 of 200   loss 0.512   accepted  61.0%   length  14.2   1,250 tokens/s   3 min 5 s left"
    assert step_line(4, 200, logs, 1250.4, 185.0) == line
    assert step_line(200, 200, {"loss": 1.0, "acc_rate/mean": None}, None, None) == "step 200 of 200   loss 1.000"
    assert [duration(s) for s in (0.2, 59.6, 601, 7830)] == ["0 s", "1 min 0 s", "10 min", "2 h 10 min"]
    assert evaluation_line(8, {"eval_loss": 1.0, "eval_perplexity": 2.718}) == (
        "evaluated at step 8: loss 1.000, perplexity 2.718"
    )
    assert evaluation_line(8, {"train_runtime": 3.0}) is None

    assert resumed_line(2, 4, "a") == "Resumed at step 2 of 4 from a"
    assert resumed_line(4, 4, "a") == "Resumed at step 4 of 4 from a: nothing is left to train"
    assert resumed_line(16, 4, "a").startswith("Resumed from a, at step 16: this run ends at step 4, and nothing")


def test_a_summary_has_one_number_where_one_was_logged(monkeypatch):
    monkeypatch.setattr(next_steps, "next_commands", lambda *args: [])
    trainer = SimpleNamespace(args=SimpleNamespace(output_dir="run"))
    for losses, said in (
        ([0.5], "1 step in 3 s, loss 0.500"),
        ([0.5, 0.25], "2 steps in 3 s, loss 0.250 at the end (0.500 at the beginning)"),
    ):
        history = [{"step": step, "loss": loss} for step, loss in enumerate(losses, start=1)]
        trainer.state = SimpleNamespace(log_history=history, global_step=len(losses))
        assert next_steps.summary(trainer, None, "lab:student", 0, 3.0, {})[0] == said


def test_the_evaluation_asks_the_teacher_as_the_run_did():
    keys = {
        "teacher_model_name_or_path": None,
        "teacher_model_server_url": None,
        "teacher_system_prompt": 'Be "short".',
        "teacher_chat_template_kwargs": {},
    }
    args = SimpleNamespace(**keys, few_shot_examples=[{"query": "A?", "answer": "B."}], output_dir="run")
    probes = [{"question": "Where?", "answers": ["Tamo"], "record_id": "0"}]
    trainer = SimpleNamespace(args=args, probes=probes, open_book_probes=probes, chat_template_kwargs={})
    data = SimpleNamespace(probes="probes.json", dataset_name="my records.json")

    def asked() -> SimpleNamespace:
        (_, *words) = shlex.split(next_steps._evaluation(trainer, data, "lab:student"))
        return make_parser().parse_args(words)

    told = asked()
    assert told.teacher == told.before == "lab:student" and told.records == "my records.json"
    assert told.teacher_system_prompt == 'Be "short".' and json.loads(told.few_shot_examples) == args.few_shot_examples
    assert told.teacher_chat_template_kwargs == {}
    args.teacher_chat_template_kwargs = None
    assert asked().teacher_chat_template_kwargs is None
    probes[0]["knowledge"], args.teacher_model_name_or_path = "Tamo is there.", "lab:teacher"
    assert asked().records is None and asked().teacher == "lab:teacher"
    args.teacher_model_server_url = "http://localhost:1"
    assert asked().teacher is None and asked().teacher_system_prompt is None
    args.teacher_model_server_url, trainer.open_book_probes = None, []
    assert asked().teacher is None


def test_ctrl_c_says_no_more_than_is_true(capsys):
    assert stopped(KeyboardInterrupt()) == 130 and capsys.readouterr().err == "stopped\n"
    with pytest.raises(Stopped, match="^stopped before the first step$"), setting_up():
        raise KeyboardInterrupt


def test_a_warning_of_this_package_is_shown_once_where_nothing_else_shows_it(monkeypatch, capsys):
    monkeypatch.setattr(logging.root, "handlers", [logging.NullHandler()])
    collect_warnings()
    logger = logging.getLogger("lupi_trainer.training")
    for _ in range(2):
        logger.warning("out of\n the way")
        logger.info("no warning")
    assert capsys.readouterr().err == "warning: out of the way\n"
    monkeypatch.setenv("RANK", "1")
    logger.warning("of another process")
    monkeypatch.delenv("RANK")
    seen = io.StringIO()
    monkeypatch.setattr(logging.root, "handlers", [logging.StreamHandler(seen)])
    logger.warning("seen already")
    assert capsys.readouterr().err == "" and seen.getvalue() == "seen already\n"


def test_without_a_checkpoint_nothing_is_promised(tmp_path):
    args = SimpleNamespace(output_dir=str(tmp_path), save_strategy="no", save_steps=500)
    state = SimpleNamespace(global_step=5)
    said = (
        "stopped at step 5; the same command begins anew: there is no complete checkpoint yet (save_strategy is 'no')"
    )
    assert how_to_go_on(args, state, None) == said
    args.save_strategy = "steps"
    assert how_to_go_on(args, state, None).endswith("(save_steps is 500)")
    assert "goes on from elsewhere/checkpoint-4 again" in how_to_go_on(args, state, "elsewhere/checkpoint-4")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_there_is_one_bar_and_whatever_is_printed_comes_above_it_in_complete_lines(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(logging.root, "handlers", [])
    collect_warnings()
    of_transformers.enable_progress_bar()  # whatever other tests have left
    monkeypatch.setattr(progress, "REDRAWN_EVERY", 0.0)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(sys, "stdout", screen)
    logger, handler = logging.getLogger("a library's own"), logging.StreamHandler()
    logger.addHandler(handler)  # before there is any bar
    console = Console(file=screen, force_terminal=True, width=100)
    with quiet_bars(everywhere=True), Bar("step", 4, console=console) as bar:
        bar.step(1)
        with WorkBar("rollout", 8, delay=0.0, within=bar) as work:
            work.update(3, 300, 0.5)
        print("step 1 of 4   loss 0.5")
        logger.warning("said by a logger")
        print("said by a library", file=sys.stderr)
        logging.getLogger("lupi_trainer.data").warning("said by this package")
        assert not of_transformers.is_progress_bar_enabled()
    assert of_transformers.is_progress_bar_enabled()
    logger.warning("said afterwards")
    logger.removeHandler(handler)
    text = screen.getvalue()
    assert "rollout 3 of 8" in text and "1/4" in text and text.count("\x1b[?25l") == 1, "there is another bar"
    for said in ("step 1 of 4   loss 0.5", "said by a logger", "said by a library", "warning: said by this package"):
        (line,) = [line for line in text.split("\n") if said in line]
        assert "━" not in line.rpartition("\x1b[2K")[2], "it is written into the bar"
    assert text.endswith("said afterwards\n")
