"""A run that was killed and resumed is the unbroken run, bit for bit, whenever it was killed."""

import json
import logging
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from lupi_trainer.checkpoints import MANIFEST, find_checkpoint, flaw, last_whole_checkpoint, seal
from lupi_trainer.speculative import Goodput
from lupi_trainer.speculative.draft_length import Outcome
from tests import killed
from tests.training import make_trainer


@pytest.fixture(scope="module")
def server():
    return killed.server()


def run(server, output_dir: Path, **arguments) -> int:
    """One process of a run, to its end; returns its exit status, negative for a signal."""
    process = server.Process(target=killed.train, args=(str(output_dir),), kwargs=arguments)
    process.start()
    process.join(120)
    return process.exitcode


def assert_same_run(ours: Path, theirs: Path) -> None:
    ours_log, theirs_log = (json.loads((folder / "result.json").read_text()) for folder in (ours, theirs))
    assert [entry for entry in ours_log if "train_loss" not in entry] == [
        entry for entry in theirs_log if "train_loss" not in entry
    ]
    weights = [torch.load(folder / "weights.pt") for folder in (ours, theirs)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


@pytest.fixture(scope="module")
def unbroken(server, tmp_path_factory) -> tuple[Path, float]:
    """An unbroken run, and its seconds of training."""
    folder = tmp_path_factory.mktemp("unbroken")
    begun = server.Event()
    process = server.Process(target=killed.train, args=(str(folder), begun))
    process.start()
    assert begun.wait(120)
    started = time.perf_counter()
    process.join(120)
    log = json.loads((folder / "result.json").read_text())
    assert [entry["step"] for entry in log if "loss" in entry] == [2, 4, 6, 8]
    assert len({entry["loss"] for entry in log if "loss" in entry}) == 4
    return folder, time.perf_counter() - started


@pytest.mark.slow
def test_twenty_kills_at_random_moments(server, unbroken, tmp_path):
    reference, seconds = unbroken
    moments, kills, ended, half_written = random.Random(8), 0, 0, 0
    while kills < 20 or not ended:
        folder = tmp_path / f"run-{ended}"
        begun = server.Event()
        process = server.Process(target=killed.train, args=(str(folder), begun))
        process.start()
        assert begun.wait(120)
        process.join(moments.uniform(0, 0.8 * seconds) if kills < 20 else 120)
        if process.exitcode is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
            half_written += any(flaw(p) for p in folder.glob("checkpoint-*"))
            continue
        assert process.exitcode == 0
        assert_same_run(folder, reference)
        ended += 1
    assert kills == 20


@pytest.mark.slow
@pytest.mark.parametrize("what, n", [("block", 3), ("block", 40), ("backward", 1), ("backward", 9)])
def test_killed_inside_a_rollout_or_a_backward(server, unbroken, tmp_path, what, n):
    assert run(server, tmp_path, die_at=(what, n)) == -signal.SIGKILL
    assert run(server, tmp_path) == 0
    assert_same_run(tmp_path, unbroken[0])


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written(server, unbroken, tmp_path):
    """Killed at ten function calls, spread over the writing of the second checkpoint."""
    assert run(server, tmp_path / "count", die_at=("checkpoint", 0), changes={"max_steps": 3}) == 0
    calls = int((tmp_path / "count" / "calls.json").read_text())  # for one checkpoint
    base = tmp_path / "base"  # a run that has its first checkpoint, and dies before its second
    assert run(server, base, die_at=("backward", 9)) == -signal.SIGKILL
    assert last_whole_checkpoint(base).endswith("checkpoint-3")
    half_written = 0
    for i in range(10):
        folder = tmp_path / f"at-{i}"
        shutil.copytree(base, folder)
        assert run(server, folder, die_at=("checkpoint", 1 + i * calls // 10)) == -signal.SIGKILL
        assert last_whole_checkpoint(folder).endswith("checkpoint-3")
        half_written += flaw(folder / "checkpoint-6") is not None and (folder / "checkpoint-6").exists()
        if i % 5 == 4:
            assert run(server, folder) == 0
            assert_same_run(folder, unbroken[0])
    assert half_written >= 3


def make_checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "sub").mkdir()
    (folder / "sub" / "state.json").write_text("{}")
    seal(folder)
    return folder


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda p: (p / MANIFEST).unlink(), "its writing was cut off"),
        (lambda p: (p / MANIFEST).write_text('{"files"'), "cannot be read"),
        (lambda p: (p / "sub" / "state.json").unlink(), r"sub.state.json is missing"),
        (lambda p: (p / "model.safetensors").write_bytes(b"wei"), "model.safetensors has 3 bytes, not 7"),
        (shutil.rmtree, "no such folder"),
    ],
)
def test_a_half_written_checkpoint_is_not_taken_for_whole(tmp_path, caplog, damage, message):
    older, newer = make_checkpoint(tmp_path / "checkpoint-9"), make_checkpoint(tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-best").mkdir()
    assert find_checkpoint("true", tmp_path) == find_checkpoint(True, tmp_path) == str(newer)
    damage(newer)
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(True, tmp_path) == str(older)
    if newer.exists():
        assert "checkpoint-10 is not resumed from" in caplog.text
    with pytest.raises(ValueError, match=f"cannot resume from .*checkpoint-10: .*{message}"):
        find_checkpoint(str(newer), tmp_path)


def test_without_a_checkpoint_the_run_says_that_it_starts(tmp_path, caplog):
    assert find_checkpoint(None, tmp_path) is find_checkpoint("false", tmp_path) is None
    assert find_checkpoint(True, tmp_path / "none") is None
    assert "starts from the beginning" in caplog.text


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
    second._load_rng_state = lambda folder: (load(folder), seen.append(second._gamma_policy.state()))
    second.train(resume_from_checkpoint=True)
    assert seen == [first._gamma_policy.state()] and seen[0]["rounds"] > 4
    assert second._gamma_policy.rounds > seen[0]["rounds"]


def test_goodput_restored_chooses_as_before():
    learnt, other = Goodput(12), Goodput(12)
    for i in range(30):
        learnt.observe(1 + i % 8, [Outcome(0, i % 5, True, 9)], 0.01 + 0.002 * (i % 8))
    other.restore(json.loads(json.dumps(learnt.state())))
    learnt.trials.clear()
    assert other.choose({0: 20, 1: 30}, 0) == learnt.choose({0: 20, 1: 30}, 0) != Goodput(12).choose({0: 20, 1: 30}, 0)


def test_recipe_and_environment_resume(tmp_path, monkeypatch, capsys):
    from lupi_trainer.recipe_files import find_recipe
    from lupi_trainer.scripts import lupi_skd

    def train(max_steps, *args):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(find_recipe("lab/lupi_skd/config_full.yaml").read_text() + "\n" + "\n".join(args) + "\n")
        options = "--save_strategy steps --save_steps 2 --logging_steps 1 --eval_strategy no --disable_tqdm true"
        arguments = ["--config", str(recipe), "--output_dir", str(tmp_path / "run"), "--max_steps", str(max_steps)]
        data, config, model = lupi_skd.make_parser().parse_args_and_config([*arguments, *options.split()])
        trainer = lupi_skd.build_trainer(data, config, model)
        steps = []
        trainer.training_step = lambda *a, step=trainer.training_step: (steps.append(1), step(*a))[1]
        lupi_skd.train_and_save(trainer, data)
        return len(steps)

    assert train(2, "resume_from_checkpoint: true") == 2  # the first run of a recipe that resumes
    assert train(4, "resume_from_checkpoint: true") == 2
    monkeypatch.setenv("RESUME_CHECKPOINT", str(tmp_path / "run" / "checkpoint-2"))
    assert train(3) == 1
    monkeypatch.setenv("RESUME_CHECKPOINT", str(tmp_path / "run" / "checkpoint-1"))
    with pytest.raises(ValueError, match="cannot resume from .*checkpoint-1: there is no such folder"):
        train(3)
