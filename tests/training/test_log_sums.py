"""A resumed run logs what the unbroken one does: losses, their parts and accuracies, and tokens."""

import pytest

from tests.kd_lora.training import make_kd_trainer
from tests.lupi_skd.training import Losses
from tests.training.test_given_data import make_sft_trainer
from tests.wmtp.training import make_wmtp_trainer


def make_sft(tmp_path, **settings):
    (trainer, _), losses = make_sft_trainer(tmp_path, **settings), Losses()
    trainer.add_callback(losses)
    return trainer, losses


@pytest.mark.parametrize("make, steps", [(make_kd_trainer, (1, 3, 4)), (make_wmtp_trainer, (3,)), (make_sft, (1, 3))])
@pytest.mark.grid(3)
def test_a_resumed_run_logs_what_the_unbroken_one_does(tmp_path, make, steps):
    """It is cut off between two logs, or behind its last step, when nothing is left to train."""
    options = {
        "config_max_steps": 4,
        "config_logging_steps": 2,
        "config_save_strategy": "steps",
        "config_save_steps": 1,
    }
    full, unbroken = make(tmp_path, **options)
    ended = full.train().training_loss
    for step in steps:
        again, resumed = make(tmp_path, **options)
        again.args.output_dir = str(tmp_path / "again")
        output = again.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        assert output.training_loss == output.metrics["train_loss"] == pytest.approx(ended, rel=1e-5)
        assert len(resumed.logs) == 2 - step // 2
        for log, expected in zip(resumed.logs, unbroken.logs[step // 2 :]):
            assert log == pytest.approx(expected, rel=1e-5) and log["num_tokens"] > 0
