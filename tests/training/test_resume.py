"""A run that was killed and resumed is the unbroken run, bit for bit, whenever it was killed."""

import errno
import json
import logging
import os
import random
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lupi_trainer.data import files
from lupi_trainer.lupi_skd.recorder import RolloutRecorder
from lupi_trainer.scripts import run as script
from lupi_trainer.speculative import Goodput
from lupi_trainer.speculative.rules.gamma import Outcome
from lupi_trainer.training import checkpoints
from lupi_trainer.training.checkpoints import (
    MANIFEST,
    agree_on_checkpoint,
    find_checkpoint,
    flaw,
    last_complete_checkpoint,
    put_aside,
    room_for,
    seal,
    write_atomically,
)
from lupi_trainer.training.full_disk import DiskFull, is_full
from lupi_trainer.training.loss_totals import read_state
from lupi_trainer.training.private import TrainerHooks
from tests.forks import CONTEXT
from tests.lupi_skd.training import make_trainer
from tests.training import killed


def run(output_dir: Path, **arguments) -> int:
    """One process of a run, to its end; returns its exit status, negative for a signal."""
    process = CONTEXT.Process(target=killed.train, args=(str(output_dir),), kwargs=arguments)
    process.start()
    process.join(120)
    return process.exitcode


def assert_same_run(ours: Path, theirs: Path) -> None:
    ours_log, theirs_log = (json.loads((folder / "result.json").read_text()) for folder in (ours, theirs))
    assert ours_log == theirs_log and "train_loss" in ours_log[-1]
    weights = [torch.load(folder / "weights.pt") for folder in (ours, theirs)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def run_unbroken(folder: Path, **arguments) -> float:
    """An unbroken run; returns its seconds of training."""
    begun = CONTEXT.Event()
    process = CONTEXT.Process(target=killed.train, args=(str(folder), begun), kwargs=arguments)
    process.start()
    assert begun.wait(120)
    started = time.perf_counter()
    process.join(120)
    log = json.loads((folder / "result.json").read_text())
    assert [entry["step"] for entry in log if "loss" in entry] == [3, 6]
    assert len({entry["loss"] for entry in log if "loss" in entry}) == 2
    return time.perf_counter() - started


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken")
    run_unbroken(folder)
    return folder


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path):
    """Of a run with a mixture in two stages and a gamma policy that remembers."""
    reference = tmp_path / "unbroken"
    seconds = run_unbroken(reference, mixed=True)
    moments, kills, ended, resumable = random.Random(8), 0, 0, 0
    while kills < 20 or ended < 3:
        folder = tmp_path / f"run-{ended}"
        begun = CONTEXT.Event()
        process = CONTEXT.Process(target=killed.train, args=(str(folder), begun), kwargs={"mixed": True})
        process.start()
        assert begun.wait(120)
        process.join(moments.uniform(0, 0.8 * seconds) if kills < 20 else 120)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
            resumable += any(flaw(p) is None for p in folder.glob("checkpoint-*"))
            continue
        assert process.exitcode == 0
        assert_same_run(folder, reference)
        ended += 1
    assert resumable >= 8, "too few of the kills came after a checkpoint"


@pytest.mark.slow
@pytest.mark.parametrize("what, n", [("block", 3), ("block", 40), ("backward", 1), ("backward", 9)])
@pytest.mark.slow
def test_killed_inside_a_rollout_or_a_backward(unbroken, tmp_path, what, n):
    assert run(tmp_path, die_at=(what, n)) == -signal.SIGKILL
    assert run(tmp_path) == 0
    assert_same_run(tmp_path, unbroken)


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written(unbroken, tmp_path):
    """Killed at ten function calls, spread over the writing of the second checkpoint."""
    assert run(tmp_path / "count", die_at=("checkpoint", 0), changes={"max_steps": 2}) == 0
    calls = int((tmp_path / "count" / "calls.json").read_text())  # for one checkpoint
    base = tmp_path / "base"  # a run that has its first checkpoint, and dies before its second
    assert run(base, die_at=("backward", 7)) == -signal.SIGKILL
    assert last_complete_checkpoint(base).endswith("checkpoint-2")
    half_written = 0
    for i in range(10):
        folder = tmp_path / f"at-{i}"
        shutil.copytree(base, folder)
        assert run(folder, die_at=("checkpoint", 1 + i * calls // 10)) == -signal.SIGKILL
        assert last_complete_checkpoint(folder).endswith("checkpoint-2")
        half_written += flaw(folder / "checkpoint-4") is not None and (folder / "checkpoint-4").exists()
        if i % 5 == 4:
            assert run(folder) == 0
            assert_same_run(folder, unbroken)
    assert half_written >= 3


def make_checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "sub").mkdir()
    (folder / "sub" / "state.json").write_text("{}")
    seal(folder)
    return folder


def in_place_of(path: Path) -> None:
    """A file where a folder was, or the other way round."""
    if path.is_dir():
        shutil.rmtree(path)
        path.write_text("a file")
    else:
        path.unlink()
        path.mkdir()


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda p: (p / MANIFEST).unlink(), "its writing was cut off"),
        *(
            (lambda p, text=text: (p / MANIFEST).write_bytes(text), "manifest.json cannot be read")
            for text in (
                b"",
                b'{"files"',
                b"\xed\x95",
                b"[" * 99_999,
                b"[]",
                b"3",
                b'{"files": ["model.safetensors"]}',
                b'{"files": {}}',
                b'{"files": null}',
                b'{"files": {"model.safetensors": "7"}}',
                b'{"files": {"model.safetensors": 7}, "crc32": 5}',
            )
        ),
        (lambda p: in_place_of(p / MANIFEST), "it cannot be read"),
        (lambda p: (p / "sub" / "state.json").unlink(), r"sub.state.json is missing"),
        (lambda p: in_place_of(p / "sub"), r"sub.state.json is missing"),
        (lambda p: in_place_of(p / "model.safetensors"), "model.safetensors is a folder, and no file"),
        (lambda p: (p / "model.safetensors").write_bytes(b"wei"), "model.safetensors has 3 bytes, not 7"),
        (lambda p: (p / "model.safetensors").write_bytes(b"weighty"), "model.safetensors is damaged: it has other"),
        (lambda p: (p / "sub" / "state.json").write_bytes(b"\0\0"), "sub.state.json is damaged"),
        (in_place_of, "it is a file, and no folder"),
        (shutil.rmtree, "no such folder"),
    ],
)
def test_a_damaged_checkpoint_is_not_taken_for_whole(tmp_path, caplog, damage, message):
    older, newer = make_checkpoint(tmp_path / "checkpoint-9"), make_checkpoint(tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-best").mkdir()
    assert find_checkpoint("true", tmp_path) == find_checkpoint(True, tmp_path) == str(newer)
    damage(newer)
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(True, tmp_path) == str(older)
    if newer.exists():
        assert len(caplog.messages) == 1 and "checkpoint-10 is not resumed from" in caplog.text
    with pytest.raises(ValueError, match=f"cannot resume from .*checkpoint-10: .*{message}"):
        find_checkpoint(str(newer), tmp_path)


def test_a_manifest_of_an_earlier_version_has_sizes_alone(tmp_path):
    folder = make_checkpoint(tmp_path / "checkpoint-1")
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["crc32"].keys() == manifest["files"].keys() and MANIFEST not in manifest["files"]
    (folder / MANIFEST).write_text(json.dumps({"files": manifest["files"]}))
    assert find_checkpoint(True, tmp_path) == str(folder)


def test_a_state_that_no_checksum_vouches_for_is_named(tmp_path):
    for text in ("", "[1]", "{" * 9):
        (tmp_path / "state_0.json").write_text(text)
        with pytest.raises(ValueError, match=r"state_0.json cannot be read .*: go on from an earlier checkpoint"):
            read_state(tmp_path, "state_{process}.json", 1)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "no room", "model.safetensors"),
        OSError(errno.EDQUOT, "your quota"),
        RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/7: file write failed"),
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["open", "quota", "torch", "safetensors"],
)
@pytest.mark.grid(2)
def test_a_full_disk_ends_a_run_in_a_line_that_says_what_is_whole(tmp_path, monkeypatch, error, capsys):
    settings = {"config_save_strategy": "steps", "config_save_steps": 1, "config_save_only_model": True}
    trainer, _ = make_trainer(tmp_path, **settings)
    save = TrainerHooks.save_checkpoint

    def full(self, model, trial):
        save(self, model, trial)
        if self.state.global_step == 2:
            raise error

    monkeypatch.setattr(TrainerHooks, "save_checkpoint", full)
    assert script(trainer.train) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: the disk of ") and "has no room left, at step 2: " in said
    assert "checkpoint-1 is complete, and nothing after it. Make room; the same command with --resume_from" in said
    assert not (tmp_path / "run" / "checkpoint-2").exists()
    shutil.rmtree(tmp_path / "run" / "checkpoint-1")
    with pytest.raises(DiskFull, match="no checkpoint is complete. Make room, and begin anew"), room_for(trainer):
        raise RuntimeError("behind it") from error
    with pytest.raises(RuntimeError, match="something else"), room_for(trainer):
        raise RuntimeError("something else")


def test_a_device_without_room_is_known(tmp_path):
    (tmp_path / "rollouts.jsonl").symlink_to("/dev/full")
    recorder = RolloutRecorder(tmp_path, None, 3)
    recorder.written = {}
    with pytest.raises(OSError) as error:
        recorder.write([{"split": "train"}], 0)
    assert is_full(error.value)


def test_a_file_is_written_whole_or_not_at_all_and_leaves_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomically(path, "é")
    assert path.read_bytes() == "é".encode() and path.stat().st_mode & 0o777 == 0o666 & ~files._UMASK
    monkeypatch.setattr(os, "fsync", lambda file: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_atomically(path, b"other")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"] and path.read_text() == "é"


def test_what_a_manifest_vouches_for_is_on_the_disk_before_it(tmp_path, monkeypatch):
    written, sync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: (written.append(Path(os.readlink(f"/proc/self/fd/{file}"))), sync(file))
    )
    folder = make_checkpoint(tmp_path / "checkpoint-1")
    everything = {folder, folder / "sub", folder / "model.safetensors", folder / "sub" / "state.json"}
    assert set(written[:-1]) == everything and written[-1].name.startswith(MANIFEST)


def test_checkpoints_of_another_run_are_put_aside_and_never_resumed_from(tmp_path, caplog):
    settings = {"config_save_strategy": "steps", "config_save_steps": 1, "config_save_only_model": True}
    output_dir = tmp_path / "run"
    for step in (1, 2, 9):
        make_checkpoint(output_dir / f"checkpoint-{step}")
    half = make_checkpoint(output_dir / "checkpoint-3") / MANIFEST
    half.unlink()
    make_trainer(tmp_path, **settings, config_max_steps=1)[0].train()
    assert "(checkpoint-1, checkpoint-2, checkpoint-9)" in caplog.text
    assert last_complete_checkpoint(output_dir) == str(output_dir / "checkpoint-1")
    assert (output_dir / "checkpoint-1" / "README.md").is_file() and (output_dir / "checkpoint-3").is_dir()
    aside = output_dir / "checkpoints.previous"
    assert {p.name for p in aside.iterdir()} == {"checkpoint-1", "checkpoint-2", "checkpoint-9"}
    assert flaw(aside / "checkpoint-9") is None and not (aside / "checkpoint-1" / "README.md").exists()

    later = make_checkpoint(output_dir / "checkpoint-4")
    put_aside(output_dir, str(later))  # a run that goes on with the last one
    assert later.is_dir()
    put_aside(output_dir, str(output_dir / "checkpoint-1"))  # with an earlier one
    assert last_complete_checkpoint(output_dir).endswith("checkpoint-1")
    assert [p.name for p in (output_dir / "checkpoints.previous-2").iterdir()] == ["checkpoint-4"]
    put_aside(output_dir, str(aside / "checkpoint-9"))  # with one of elsewhere
    assert last_complete_checkpoint(output_dir) is None


def test_the_main_process_chooses_the_checkpoint_and_all_must_see_it(tmp_path, monkeypatch):
    there = str(make_checkpoint(tmp_path / "main" / "checkpoint-4"))
    mine = tmp_path / "mine"  # a disk of this process's own, with another checkpoint
    make_checkpoint(mine / "checkpoint-2")
    sent = []
    monkeypatch.setattr(checkpoints, "broadcast_object_list", lambda found: found.__setitem__(slice(None), sent[0]))
    monkeypatch.setattr(checkpoints, "gather_object", lambda mine: [None, *mine])
    other = SimpleNamespace(num_processes=2, is_main_process=False)

    def agreed(*found):
        sent[:] = [found]
        return agree_on_checkpoint(other, True, mine)

    assert agreed(None, None) is None and agreed(there, None) == there
    with pytest.raises(ValueError, match="cannot resume from nowhere"):
        agreed(None, "cannot resume from nowhere")
    with pytest.raises(ValueError, match="cannot resume from .*-5: for process 1, there is no such folder. All"):
        agreed(str(tmp_path / "main" / "checkpoint-5"), None)
    monkeypatch.setattr(checkpoints, "broadcast_object_list", sent.append)
    main = SimpleNamespace(num_processes=2, is_main_process=True)
    monkeypatch.setattr(checkpoints, "gather_object", lambda mine: [*mine, None])
    assert agree_on_checkpoint(main, True, tmp_path / "main") == there and sent[-1] == [there, None]
    with pytest.raises(ValueError, match="no such folder"):
        agree_on_checkpoint(main, "nowhere", tmp_path)
    assert sent[-1][0] is None and "no such folder" in sent[-1][1]  # the others learn of it


def test_without_a_checkpoint_the_run_says_that_it_starts(tmp_path, caplog):
    assert find_checkpoint(None, tmp_path) is find_checkpoint("false", tmp_path) is None
    assert find_checkpoint(True, tmp_path / "none") is None
    assert f"no complete checkpoint in {tmp_path / 'none'} to resume from: the run starts at step 0" in caplog.text


def test_a_run_that_has_all_its_steps_takes_no_more(tmp_path):
    """Though the epoch, ten steps long, has some left."""
    settings = {"config_save_strategy": "steps", "config_save_steps": 2}
    make_trainer(tmp_path, **settings, config_max_steps=2)[0].train()
    for steps in (2, 1):
        trainer, losses = make_trainer(tmp_path, **settings, config_max_steps=steps)
        trainer.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
        assert trainer.state.global_step == 2 and losses.logs == []


def test_a_changed_batch_is_said(tmp_path, caplog):
    settings = {"config_save_strategy": "steps", "config_save_steps": 1}
    make_trainer(tmp_path, **settings, config_max_steps=1)[0].train()
    trainer, _ = make_trainer(
        tmp_path, **settings, config_max_steps=2, config_per_device_train_batch_size=2, config_seed=7
    )
    with caplog.at_level(logging.WARNING):
        trainer.train(resume_from_checkpoint=True)
    assert "seed was 42, is 7; per_device_train_batch_size was 4, is 2" in caplog.text


def test_goodput_keeps_what_it_has_learnt(tmp_path):
    settings = {"config_save_strategy": "steps", "config_save_steps": 2, "config_gamma_policy": "goodput"}
    first, _ = make_trainer(tmp_path, **settings, config_max_steps=2)
    first.train()
    second, _ = make_trainer(tmp_path, **settings, config_max_steps=3)
    seen = []
    load = second._load_rng_state
    second._load_rng_state = lambda folder: (load(folder), seen.append(second.teachers.first.gamma_policy.state()))
    second.train(resume_from_checkpoint=True)
    assert seen == [first.teachers.first.gamma_policy.state()] and seen[0]["rounds"] > 4
    assert second.teachers.first.gamma_policy.rounds > seen[0]["rounds"]


def test_goodput_restored_chooses_as_before():
    learnt, other = Goodput(12), Goodput(12)
    for i in range(30):
        learnt.observe(1 + i % 8, [Outcome(0, i % 5, True, 9)], 0.01 + 0.002 * (i % 8))
    other.restore(json.loads(json.dumps(learnt.state())))
    learnt.trials.clear()
    assert other.choose({0: 20, 1: 30}, 0) == learnt.choose({0: 20, 1: 30}, 0) != Goodput(12).choose({0: 20, 1: 30}, 0)


@pytest.mark.slow
def test_recipe_and_environment_resume(tmp_path, monkeypatch, capsys):
    from lupi_trainer.scripts import lupi_skd
    from lupi_trainer.scripts.recipe_files import find_recipe

    def train(max_steps, *args):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(find_recipe("lab/lupi_skd/config_full.yaml").read_text() + "\n" + "\n".join(args) + "\n")
        options = "--save_strategy steps --save_steps 2 --logging_steps 1 --eval_strategy no --disable_tqdm true"
        options += " --per_device_train_batch_size 2 --max_completion_length 6 --max_steps"
        arguments = ["--config", str(recipe), "--output_dir", str(tmp_path / "run"), *options.split(), str(max_steps)]
        data, config, model = lupi_skd.make_parser().parse_args_and_config(arguments)
        trainer = lupi_skd.build_trainer(data, config, model)
        steps = []
        trainer.training_step = lambda *a, step=trainer.training_step: (steps.append(1), step(*a))[1]
        lupi_skd.train_and_save(trainer, data, model)
        return len(steps)

    assert train(2, "resume_from_checkpoint: true") == 2  # the first run of a recipe that resumes
    assert train(4, "resume_from_checkpoint: true") == 2
    monkeypatch.setenv("RESUME_CHECKPOINT", str(tmp_path / "run" / "checkpoint-2"))
    assert train(3) == 1
    monkeypatch.setenv("RESUME_CHECKPOINT", str(tmp_path / "run" / "checkpoint-1"))
    with pytest.raises(ValueError, match="cannot resume from .*checkpoint-1: there is no such folder"):
        train(3)
