"""A training that a signal ends: with a checkpoint where that is wanted, and a line that says how it goes on."""

import os
import signal
import threading
from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerCallback, TrainerControl

from lupi_trainer.cli import main
from lupi_trainer.scripts import lupi_skd, run
from lupi_trainer.training import signals
from lupi_trainer.training.checkpoints import last_complete_checkpoint
from lupi_trainer.training.signals import AtNextStep, Signalled, answering
from lupi_trainer.training.stopping import SaveAndStop


RUN = [
    "skd",
    "--config",
    "lab/lupi_skd/config_full.yaml",
    "--per_device_train_batch_size",
    "2",
    "--logging_steps",
    "1",
]
RUN += ["--max_completion_length", "6", "--max_steps", "4", "--disable_tqdm", "true", "--base_dataset_name", "none"]
RUN += ["--mixing", "none", "--probes", "none"]


@pytest.fixture(autouse=True)
def no_nohup():
    """SIGHUP has its effect, whatever the tests were started with."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


class Signals(TrainerCallback):
    """Sends this process a signal inside an evaluation, or inside a step."""

    def __init__(self, number: int, at: str, step: int = 2):
        self.number, self.at, self.step = number, at, step

    def _send(self, at, state):
        if self.at == at and state.global_step == self.step:
            self.at = ""
            signals._last.clear()
            os.kill(os.getpid(), self.number)

    def on_step_begin(self, args, state, control, **kwargs):
        self._send("step", state)

    def on_prediction_step(self, args, state, control, **kwargs):
        self._send("evaluation", state)


def trained(tmp_path, monkeypatch, callback, *options) -> int:
    """The exit status of a run with a callback."""
    build = lupi_skd.build_trainer

    def with_callback(*args):
        trainer = build(*args)
        trainer.add_callback(callback)
        return trainer

    monkeypatch.setattr(lupi_skd, "build_trainer", with_callback)
    return main([*RUN, "--output_dir", str(tmp_path), *options])


@pytest.mark.parametrize(
    "at, options, step",
    [("step", ["--eval_strategy", "no"], 3), ("evaluation", ["--eval_steps", "2"], 2)],
)
@pytest.mark.grid(2)
def test_sigterm_saves_a_checkpoint_of_the_step_that_is_taken(tmp_path, monkeypatch, capfd, at, options, step):
    before = signal.getsignal(signal.SIGTERM)
    assert trained(tmp_path, monkeypatch, Signals(signal.SIGTERM, at), *options) == 143
    said = capfd.readouterr().err
    assert "SIGTERM: a checkpoint is saved after this step, and the run ends there\n" in said
    goes_on = f"stopped at step {step}; the same command with --resume_from_checkpoint true goes on from step {step}\n"
    assert said.endswith(goes_on) and "Traceback" not in said
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / f"checkpoint-{step}")
    assert not (tmp_path / "model.safetensors").exists() and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    "number, options", [(signal.SIGTERM, ["--save_on_sigterm", "false"]), (signal.SIGHUP, [])], ids=["not", "SIGHUP"]
)
def test_other_signals_end_a_run_at_once(tmp_path, monkeypatch, capfd, number, options):
    callback = Signals(number, "step", step=1)
    assert trained(tmp_path, monkeypatch, callback, "--eval_strategy", "no", *options) == 128 + number
    assert "stopped at step 1; the same command begins anew: there is no complete" in capfd.readouterr().err
    assert last_complete_checkpoint(tmp_path) is None


def test_a_signal_before_the_first_step_ends_the_command(capsys):
    def begins() -> None:
        signal.raise_signal(signal.SIGTERM)

    assert run(begins) == 143 and capsys.readouterr().err == "stopped\n"
    with answering(), pytest.raises(Signalled):
        signal.raise_signal(signal.SIGHUP)
    seen = []
    thread = threading.Thread(target=lambda: seen.append(run(lambda: 0)))  # which can set no handler
    thread.start()
    thread.join()
    assert seen == [0]


def test_a_second_sigterm_ends_at_once(monkeypatch):
    monkeypatch.setattr(signals, "TWICE", 0.0)
    wish = AtNextStep()
    wish.active = True
    with answering(), signals.ending_at_next_step(wish):
        signal.raise_signal(signal.SIGTERM)
        assert wish.asked
        with pytest.raises(Signalled):
            signal.raise_signal(signal.SIGTERM)


def test_all_processes_end_at_one_step_whichever_of_them_was_asked():
    waited = []
    accelerator = SimpleNamespace(
        num_processes=2,
        device="cpu",
        reduce=lambda wish, reduction: wish + others[0],
        wait_for_everyone=lambda: waited.append(1),
    )
    callback, others = SaveAndStop(SimpleNamespace(accelerator=accelerator), AtNextStep()), [torch.tensor(0.0)]
    control = TrainerControl()
    callback.on_step_end(None, None, control)
    assert not control.should_save
    callback.wish.asked = True  # since then, and before a checkpoint that is due: the others know nothing of it
    callback.on_save(None, None, control)
    callback.wish.asked, others[0] = False, torch.tensor(1.0)
    callback.on_evaluate(None, None, control)  # not in a training
    assert not control.should_save
    callback.on_step_end(None, None, control)
    assert control.should_save and control.should_training_stop
    with pytest.raises(Signalled):
        callback.on_save(None, None, control)
    assert waited == [1]
