"""`keep_graphs`: the rollouts of a run go on with what the first one has recorded, and train as if none were kept."""

import logging

import pytest
from peft import LoraConfig

from lupi_trainer import LUPISKDConfig
from tests.lupi_skd.training import make_trainer
from tests.speculative.runners.test_graphs import TapeRecorder, replayed  # noqa: F401


STEPS = 3


def train(folder, **settings):
    """Losses of the steps, recordings made until the end of each rollout, and the trainer."""
    recorded, given = [], {"config_bf16": False, "config_max_steps": STEPS} | settings
    trainer, losses = make_trainer(folder, config_compile_rollout=True, config_gamma_policy="fixed", **given)
    write = trainer.write_completions

    def counted(prompts):
        out = write(prompts)
        recorded.append(TapeRecorder.recordings)
        return out

    trainer.write_completions = counted
    trainer.train()
    return losses.losses, recorded, trainer


@pytest.mark.parametrize(
    "settings",
    [{}, {"config_bf16": True}, {"peft_config": LoraConfig(r=4, target_modules="all-linear")}],
    ids=["float32", "rounded", "lora"],
)
def test_from_the_second_rollout_on_nothing_is_recorded(tmp_path, replayed, settings):  # noqa: F811
    anew, all_of_them, _ = train(tmp_path / "anew", config_keep_graphs=False, **settings)
    assert len(all_of_them) == STEPS and all_of_them[0] < all_of_them[1] < all_of_them[2]
    TapeRecorder.recordings = 0
    kept, recorded, trainer = train(tmp_path / "kept", **settings)
    assert recorded[0] == recorded[1] == recorded[2] > 0
    assert kept == anew and len(set(kept)) == STEPS
    assert len(trainer.teachers.first.graphs) == 2
    copies = {} if trainer._rounded is None else trainer._rounded.copies
    assert bool(copies) == ("config_bf16" in settings), "of a student that writes rounded, and of no other"


def test_without_recordings_no_copy_is_kept(tmp_path):
    trainer, _ = make_trainer(tmp_path, config_bf16=True, config_max_steps=1, config_compile_rollout=False)
    trainer.train()
    assert trainer._rounded.copies == {} and trainer.teachers.first.graphs is None


def test_graphs_that_are_not_made_are_said_not_to_be_kept(caplog):
    with caplog.at_level(logging.WARNING):
        LUPISKDConfig("out", bf16=False, use_cpu=True, keep_graphs=False)
    assert "keep_graphs=False: no effect, since without compile_rollout no graph is recorded" in caplog.text
