"""One run a folder: a second one is refused with the first one's name, and what has ended holds nobody up."""

import json
import os
import stat
import subprocess
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from transformers import TrainerCallback

from lupi_trainer.cli import main
from lupi_trainer.data.files import write_atomically
from lupi_trainer.training import run_lock
from lupi_trainer.training.run_lock import FILE, Holder, RunTaken, holding, require_held, taken
from tests.lupi_skd.training import make_trainer


@pytest.fixture
def other():
    """A process that runs."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield Holder(pid=process.pid, start=run_lock._start_of(process.pid), command="lupi skd --config first.yaml")
        process.kill()


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(run_lock, "PATIENCE", 0.15)
    monkeypatch.setattr(run_lock, "_TICK", 0.01)


def lock(folder: Path, holder: Holder) -> Path:
    (folder / FILE).write_text(json.dumps(asdict(holder)))
    return folder / FILE


def test_a_second_run_is_refused_with_the_first_ones_name(tmp_path, other, capsys):
    lock(tmp_path, other)
    named = f"trained into by process {other.pid} on {other.host}, since .* \\(lupi skd --config first.yaml\\): wait"
    with pytest.raises(RunTaken, match=named), holding(tmp_path):
        pass
    trainer, _ = make_trainer(tmp_path, config_output_dir=str(tmp_path))
    with pytest.raises(RunTaken, match=named):
        trainer.train()
    assert main(["skd", "--config", "lab/lupi_skd/config_full.yaml", "--output_dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: output_dir: {tmp_path} is trained into by process {other.pid}")
    assert [path.name for path in tmp_path.iterdir()] == [FILE] and run_lock.read(tmp_path / FILE) == other


@pytest.mark.parametrize("ended", ["killed", "another process has its number", "cut off", "empty", "elsewhere"])
def test_what_has_ended_holds_nobody_up(tmp_path, other, ended, caplog):
    path = lock(tmp_path, replace(other, start="1") if ended.startswith("another") else other)
    if ended == "killed":
        with subprocess.Popen(["true"]) as process:
            lock(tmp_path, replace(other, pid=process.pid))
    elif ended == "elsewhere":
        lock(tmp_path, replace(other, place="another machine"))
    elif ended in ("cut off", "empty"):
        path.write_text(path.read_text()[:40] if ended == "cut off" else "")
    assert taken(tmp_path) is None
    with holding(tmp_path) as held:
        assert run_lock.read(path) == held.holder
        assert taken(tmp_path) is None  # it is our own
    assert not list(tmp_path.iterdir())
    assert "has ended without taking its lock away" in caplog.messages[-1]
    assert ("seconds whether" in caplog.text) == (ended in ("cut off", "empty", "elsewhere"))


def test_a_holder_elsewhere_is_known_by_its_beat(tmp_path, other):
    path, over = lock(tmp_path, replace(other, place="another machine")), threading.Event()

    def beat() -> None:
        while not over.wait(0.02):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        with pytest.raises(RunTaken, match=f"process {other.pid} on"), holding(tmp_path):
            pass
    finally:
        over.set()
        thread.join()
    assert path.exists()


def test_the_holder_touches_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "BEAT", 0.01)
    with holding(tmp_path) as held:
        before, end = held.path.stat().st_mtime_ns, time.monotonic() + 10
        while held.path.stat().st_mtime_ns == before:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_of_two_that_take_over_one_has_it(tmp_path, other, monkeypatch):
    """The other one is quicker, between our look at the stale lock and our taking it away."""
    path = lock(tmp_path, replace(other, place="another machine"))
    monkeypatch.setattr(run_lock, "_beats", lambda path, content: bool(lock(tmp_path, other)) and False)
    with pytest.raises(RunTaken, match=f"process {other.pid}"), holding(tmp_path):
        pass
    assert run_lock.read(path) == other and [p.name for p in tmp_path.iterdir()] == [FILE]


def test_a_run_asks_several_times_and_leaves_nothing(tmp_path):
    folder = tmp_path / "a" / "run"
    with holding(folder) as first:
        with holding(folder) as second:
            assert first is second
        assert first.path.exists()
        require_held(folder)
    assert not folder.exists()
    require_held(folder)  # nothing is held: whoever saves there has not trained


def test_a_run_whose_folder_was_taken_over_saves_nothing(tmp_path, other):
    class TakeOver(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            lock(tmp_path / "run", other)

    trainer, _ = make_trainer(tmp_path, config_save_strategy="steps", config_save_steps=1)
    trainer.add_callback(TakeOver())
    with pytest.raises(RunTaken, match=f"process {other.pid}"):
        trainer.train()
    assert not list((tmp_path / "run").glob("checkpoint-*")) and (tmp_path / "run" / FILE).exists()


def test_two_writers_never_tear_a_file_and_what_is_no_file_is_not_replaced(tmp_path):
    path, texts = tmp_path / "a.json", [str(i) * 200_000 for i in range(4)]
    threads = [threading.Thread(target=lambda t=t: [write_atomically(path, t) for _ in range(5)]) for t in texts]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert not path.exists() or path.read_text() in texts
    for thread in threads:
        thread.join()
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    (tmp_path / "link").symlink_to(path)
    write_atomically(tmp_path / "link", "through it")
    assert path.read_text() == "through it" and (tmp_path / "link").is_symlink()
    os.mkfifo(tmp_path / "pipe")
    read = []
    thread = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    thread.start()
    write_atomically(tmp_path / "pipe", "é")
    thread.join()
    assert read == ["é".encode()] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
