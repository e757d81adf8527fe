"""Each reporter that transformers names works, or is refused with what it needs, and writes below the run's folder."""

import importlib
import os
import sys
from types import SimpleNamespace

import pytest
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from lupi_trainer.publishing.student_files import _belongs
from lupi_trainer.training import reporters


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """A user without keys, whose environment is as before at the end."""
    for reporter in reporters.REPORTERS.values():
        for variable in (*reporter.keys, *(v for v, _ in reporter.folders), *(reporter.offline or ())[:1]):
            monkeypatch.setenv(variable, "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("NETRC", raising=False)
    monkeypatch.setattr(reporters, "_placed", {})
    return tmp_path


def test_every_reporter_of_transformers_is_known_and_says_what_it_needs(nobody, monkeypatch):
    assert reporters.REPORTERS.keys() == INTEGRATION_TO_CALLBACK.keys()
    monkeypatch.setattr(reporters, "is_installed", lambda module: False)
    for name, reporter in reporters.REPORTERS.items():
        (fault,) = reporters.faults(name)
        assert fault.startswith(f"report_to: {name} needs ")
        assert fault.endswith(f"pip install {reporter.package}" if reporter.package else "in the environment")
    assert list(reporters.faults(["all"])) == list(reporters.faults("none")) == list(reporters.faults(None)) == []
    monkeypatch.setattr(reporters, "is_installed", lambda module: True)
    refused = {name for name in reporters.REPORTERS if list(reporters.faults([name]))}
    assert refused == {"clearml", "comet_ml", "kubeflow", "neptune"}  # which need a key, and have no offline log
    for name in refused:
        monkeypatch.setenv(reporters.REPORTERS[name].keys[0], "x")
        assert list(reporters.faults([name])) == []
    assert list(reporters.faults(["wandb", "weights"]))[0].startswith("report_to: no reporter 'weights'; there are ")


def test_is_installed_asks_for_parts_of_packages_too():
    assert reporters.is_installed("torch") and reporters.is_installed("torch.nn")
    assert not reporters.is_installed("azureml.core.run") and not reporters.is_installed("torch.nowhere")


def test_files_of_reporters_lie_below_the_runs_folder_and_are_not_pushed(nobody, monkeypatch):
    monkeypatch.setattr(reporters, "is_installed", lambda module: True)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "elsewhere")
    for run in ("first", "second"):  # of one process
        reporters.place(["wandb", "mlflow", "trackio", "tensorboard", "swanlab", "comet_ml"], str(nobody / run))
        assert os.environ["WANDB_DIR"] == str(nobody / run)
        assert os.environ["MLFLOW_TRACKING_URI"] == f"file://{nobody}/{run}/mlruns"
        assert os.environ["TRACKIO_DIR"] == str(nobody / run / "trackio")
        assert os.environ["SWANLAB_LOG_DIR"] == str(nobody / run / "swanlog")
        assert os.environ["TENSORBOARD_LOGGING_DIR"] == "elsewhere"  # the user's own
    for folder in reporters.FOLDERS:
        assert not _belongs((nobody / folder / "a.json").relative_to(nobody)), folder


def test_without_a_key_a_run_is_logged_offline_and_that_is_said(nobody, capsys, monkeypatch):
    reporters.prepare(["wandb"], str(nobody / "run"))
    assert os.environ["WANDB_MODE"] == "offline"
    sync = f"wandb sync {nobody}/run/wandb/offline-run-*"
    line = f"wandb: no WANDB_API_KEY, so the run is logged offline; to send it later: {sync}\n"
    assert capsys.readouterr().err == line
    reporters.prepare(["wandb"], str(nobody / "run"))
    assert capsys.readouterr().err == ""  # once
    for variable, value in (("WANDB_MODE", "disabled"), ("WANDB_API_KEY", "x" * 40)):
        monkeypatch.setenv("WANDB_MODE", "")
        monkeypatch.setenv(variable, value)
        reporters.prepare("wandb", str(nobody / "run"))
        assert os.environ["WANDB_MODE"] != "offline"
    monkeypatch.setenv("WANDB_API_KEY", "")
    (nobody / ".netrc").write_text("machine api.wandb.ai login user password secret\n")  # as `wandb login` leaves it
    (nobody / ".netrc").chmod(0o600)
    reporters.prepare("wandb", str(nobody / "run"))
    assert os.environ["WANDB_MODE"] == "" and capsys.readouterr().err == ""


def test_dvclive_which_has_no_variable_is_given_its_folder(monkeypatch):
    made = SimpleNamespace(Live=lambda dir: f"log in {dir}")
    monkeypatch.setitem(sys.modules, "dvclive", made)
    callback = type("DVCLiveCallback", (), {"live": None})()
    reporters.place_dvclive([object(), callback], "run")
    assert callback.live == "log in run/dvclive"


def test_a_missing_package_is_named_before_weights_are_loaded(monkeypatch, tmp_path):
    common = importlib.import_module("lupi_trainer.scripts.common")
    monkeypatch.setattr(reporters, "is_installed", lambda module: False)
    args = SimpleNamespace(report_to=["mlflow"], output_dir=str(tmp_path), model_init_kwargs=None)
    model = dict.fromkeys(("model_revision", "attn_implementation", "dtype")) | {"model_name_or_path": "lab:student"}
    with pytest.raises(ValueError, match="report_to: mlflow needs mlflow: pip install mlflow"):
        common.student_arguments(args, SimpleNamespace(**model))
