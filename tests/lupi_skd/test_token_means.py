"""The validation loss and entropies are means over tokens, however records are put into batches."""

import pytest
import torch

from lupi_trainer.lab import load_lab_records
from tests.lupi_skd.training import make_trainer


UNEVEN = {"config_rollout_policy": "student", "config_student_temperature": 3.0, "config_max_completion_length": 30}
RECORDS = [*load_lab_records("lab:eval")[:5], *load_lab_records("lab:common")[:2]]


def evaluated(trainer, size: int) -> dict[str, float]:
    trainer.args.per_device_eval_batch_size = size
    return trainer.evaluate()


def test_an_evaluation_is_the_mean_over_its_tokens(tmp_path):
    trainer, _ = make_trainer(tmp_path, eval_dataset=RECORDS, **UNEVEN)
    marks = {size: evaluated(trainer, size) for size in (7, 3, 1)}
    trainer.model.eval()
    losses, entropies, lengths = [], [], []
    for row in trainer.eval_dataset:
        batch = trainer.roll_out([row])
        with torch.no_grad():
            loss, entropy, tokens = trainer.distillation_loss(trainer.model, batch, None)
        losses.append(loss.item() * tokens.item())
        entropies.append(entropy.item())
        lengths.append(tokens.item())
    assert len(set(lengths)) > 1
    for size, found in marks.items():
        assert found["eval_loss"] == pytest.approx(sum(losses) / sum(lengths), abs=1e-6), size
        assert found["eval_entropy"] == pytest.approx(sum(entropies) / sum(lengths), abs=1e-6), size
    trainer.predict(RECORDS[:1])  # leaves nothing in the next evaluation's figures
    assert evaluated(trainer, 7)["eval_completions/mean_length"] == marks[7]["eval_completions/mean_length"]


def test_copies_of_a_record_count_alike_in_one_batch_and_in_several(tmp_path):
    trainer, _ = make_trainer(tmp_path, eval_dataset=[{**RECORDS[0], "row_id": 3}] * 6, **UNEVEN)
    marks = [evaluated(trainer, size)["eval_loss"] for size in (6, 2, 1, 6)]
    assert marks == pytest.approx([marks[0]] * 4, abs=1e-6)
    trainer, _ = make_trainer(tmp_path, eval_dataset=[{**RECORDS[0], "row_id": 3}], **UNEVEN)
    assert abs(trainer.evaluate()["eval_loss"] - marks[0]) > 1e-3, "all copies wrote the same text"


def test_rows_that_fill_up_a_last_batch_do_not_count(tmp_path, monkeypatch):
    """As on the second of two processes, whose last row of three is there again."""
    trainer, _ = make_trainer(tmp_path, eval_dataset=RECORDS, **UNEVEN)
    with monkeypatch.context() as patch:
        patch.setattr(type(trainer.accelerator), "process_index", 1)
        patch.setattr(trainer.accelerator, "gather_for_metrics", lambda numbers: torch.arange(5))
        assert trainer.counted_rows(3).tolist() == [True, True, False]
    monkeypatch.setattr(trainer, "counted_rows", lambda rows: torch.arange(rows) < 2)
    trainer.model.eval()
    rows = [trainer.eval_dataset[i] for i in range(3)]
    found = []
    for chosen in (rows, rows[:2]):
        with torch.no_grad():
            loss, entropy, tokens = trainer.distillation_loss(trainer.model, trainer.roll_out(chosen), None)
        found.append((loss.item(), entropy.item(), tokens.item()))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_the_entropy_of_a_step_is_the_mean_over_its_tokens(tmp_path):
    logs = []
    for size, steps in ((4, 1), (1, 4)):
        trainer, losses = make_trainer(
            tmp_path, config_per_device_train_batch_size=size, config_gradient_accumulation_steps=steps, **UNEVEN
        )
        trainer.train()
        logs.append([log["entropy"] for log in losses.logs])
    assert logs[0] == pytest.approx(logs[1], abs=1e-5) and len(set(logs[0])) == 3


@pytest.mark.slow
def test_the_train_loss_of_a_resumed_run_is_that_of_the_unbroken_one(tmp_path):
    keys = {"save_strategy": "steps", "save_steps": 1, "logging_steps": 2, "max_steps": 5}
    options = {f"config_{key}": value for key, value in keys.items()}
    unbroken = make_trainer(tmp_path, **options)[0]
    expected = unbroken.train()
    assert expected.training_loss == expected.metrics["train_loss"] == unbroken.state.log_history[-1]["train_loss"]
    for step in (1, 2, 4):
        again, _ = make_trainer(tmp_path, **options)
        output = again.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{step}"))
        assert output.training_loss == output.metrics["train_loss"] == expected.training_loss
        assert again.state.log_history[-1]["train_loss"] == expected.training_loss
        assert [h["entropy"] for h in again.state.log_history if "entropy" in h] == [
            h["entropy"] for h in unbroken.state.log_history if "entropy" in h
        ]
