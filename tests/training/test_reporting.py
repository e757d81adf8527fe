"""What arrives in W&B and trackio, read back from what they leave on disk."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from lupi_trainer.lab import load_lab_records
from lupi_trainer.training.reporting import RolloutReport, reported_names
from tests import forks
from tests.lupi_skd.training import make_trainer
from tests.training.wandb_files import read_history


PAGE = (Path(__file__).parents[2] / "docs" / "seeing_a_run.md").read_text(encoding="utf-8")
SEED_NAMES = {
    *("train/loss", "train/lr", "train/step"),
    *("acc_rate/mean", "acc_rate/first_token", "acc_rate/full_match"),
    *("gamma/mean", "gamma/max", "gamma/min", "gamma/std"),
    *("tokens/total_drafted", "tokens/total_accepted", "tokens/acceptance_ratio_global"),
}
DESIGN_NAMES = {"tokens/teacher_share", "rollout/tokens_per_second"}
TRL_NAMES = {"train/learning_rate", "train/grad_norm", "train/acc_rate/mean", "train/num_tokens"}
EVAL_NAMES = {"val/loss", "eval/loss", "eval/acc_rate/mean"}
PROBE_NAMES = {"eval/closed_book_strict", "eval/closed_book_lenient"}


def page_names() -> set[str]:
    """Those of the page's table, `a/{b,c}` spelled out."""
    cells = re.findall(r"`([\w/]+)(?:\{([\w,]+)\})?`", "".join(x for x in PAGE.splitlines() if x.startswith("|")))
    return {room + name for room, names in cells for name in names.split(",")}


def test_the_page_names_what_is_reported():
    reported = SEED_NAMES | DESIGN_NAMES | PROBE_NAMES | {"val/loss", "gamma/history"}
    assert page_names() == reported


def test_names_of_a_log():
    logs = {"loss": 1.0, "learning_rate": 0.1, "acc_rate/mean": 0.5, "grad_norm": 2.0}
    assert reported_names(logs, 7) == {"acc_rate/mean": 0.5, "train/lr": 0.1, "train/step": 7}
    assert reported_names({"eval_loss": 2.0, "eval_acc_rate/mean": 0.4}, 7) == {"val/loss": 2.0}
    assert reported_names({"train_runtime": 3.0}, 7) == {}


def test_a_run_reports_nowhere_unless_it_is_asked_to():
    assert RolloutReport.backends(SimpleNamespace(report_to=[])) == []


@pytest.fixture
def wandb_here(tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.chdir(tmp_path)
    wandb.teardown()  # W&B reads the environment once a process: another test's would be kept
    yield wandb
    wandb.finish()
    wandb.teardown()


@pytest.mark.slow
def test_wandb_offline_holds_every_name_histogram_and_table(tmp_path, wandb_here):
    probes = load_lab_records("lab:probes-common")[:3]
    trainer, losses = make_trainer(
        tmp_path,
        config_report_to="wandb",
        config_log_completions=True,
        config_num_completions_to_print=0,
        config_max_steps=2,
        config_gamma_policy="adaptive",
        eval_dataset=load_lab_records("lab:eval")[:3],
        probes=probes,
    )
    trainer.train()
    marks = trainer.evaluate()
    wandb_here.finish()
    history = read_history(tmp_path)

    steps = [entry for entry in history if "train/step" in entry]
    assert [entry["train/step"] for entry in steps] == [1, 2]
    together: dict = {}
    for entry in history:
        together |= entry
    assert SEED_NAMES | DESIGN_NAMES | TRL_NAMES | EVAL_NAMES | PROBE_NAMES | page_names() <= together.keys()
    for entry, log in zip(steps, losses.logs):
        for name in ("acc_rate/mean", "tokens/total_drafted", "gamma/std"):
            assert entry[name] == pytest.approx(log[name])
    assert together["val/loss"] == pytest.approx(marks["eval_loss"])
    assert together["eval/closed_book_strict"] == marks["eval_closed_book_strict"] == 1.0

    drawn = [entry["gamma/history"] for entry in steps]
    assert all(histogram["_type"] == "histogram" and sum(histogram["values"]) >= 2 for histogram in drawn)
    assert max(drawn[0]["bins"]) >= steps[0]["gamma/max"] >= steps[0]["gamma/min"] >= min(drawn[0]["bins"])

    (table, *_) = sorted(tmp_path.rglob("rollouts_*.table.json"))
    columns, rows = (json.loads(table.read_text())[k] for k in ("columns", "data"))
    assert columns == ["step", "prompt", "completion", "teacher_share"] and len(rows) == 4
    marked = [text.count("[") for _, _, text, _ in rows]
    assert sum(marked) > 0 and all((n > 0) == (row[3] > 0) for n, row in zip(marked, rows))


TRACKIO = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from lupi_trainer.lab import load_lab_records
from tests.lupi_skd.training import make_trainer
trainer, _ = make_trainer(
    Path({tmp!r}),
    config_report_to="trackio",
    config_project="islands",
    config_run_name="two-steps",
    config_max_steps=2,
    config_log_completions=True,
    config_num_completions_to_print=0,
    eval_dataset=load_lab_records("lab:eval")[:3],
    probes=load_lab_records("lab:probes-common")[:3],
)
trainer.train()
trainer.evaluate()
"""


@pytest.mark.slow
def test_trackio_holds_the_same(tmp_path, monkeypatch):
    """In a process of its own: trackio reads its folder when it is imported."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    root = str(__import__("pathlib").Path(__file__).parents[2])
    forks.run("-c", TRACKIO.format(root=root, tmp=str(tmp_path)), cwd=tmp_path).check_returncode()
    code = (
        "import json\nfrom trackio.sqlite_storage import SQLiteStorage\n"
        "print(json.dumps(SQLiteStorage.get_logs('islands', 'two-steps'), default=str))"
    )
    out = forks.run("-c", code).stdout
    logged: dict = {}
    for entry in json.loads(out.strip().splitlines()[-1]):
        logged |= entry
    assert SEED_NAMES | DESIGN_NAMES | TRL_NAMES | EVAL_NAMES | PROBE_NAMES <= logged.keys()
    assert logged["gamma/history"]["_type"] == "trackio.histogram"
    assert "teacher_share" in json.dumps(logged["rollouts"])
