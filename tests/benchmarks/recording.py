"""What `record_rollouts` costs: training steps of the lab's pair with and without it, which must learn the same."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from transformers import PrinterCallback, set_seed

from lupi_trainer import LUPISKDConfig, LUPISKDTrainer, load_training_data
from tests.benchmarks.measure import row, take_turns
from tests.benchmarks.setting import Setting


STEPS, ROWS = 5, 24
SHARES = {"recorded": 1 / 16, "all recorded": 1.0}  # of the rollouts; the first is the demo's, 300 of 4,800


def recording(setting: Setting, repeats: int) -> Iterator[dict]:
    """The models are the lab's on every device: they are so small that recording weighs most."""
    data = load_training_data("lab:mixed")
    with tempfile.TemporaryDirectory() as folder:

        def make(name: str, share: float) -> LUPISKDTrainer:
            args = LUPISKDConfig(
                str(Path(folder, name)),
                record_rollouts=round(share * STEPS * ROWS),
                max_steps=STEPS,
                per_device_train_batch_size=ROWS,
                max_completion_length=56,
                gamma=8,
                max_teacher_prompt_length=256,
                teacher_system_prompt="You are an expert on the islands.",
                learning_rate=2e-3,
                bf16=False,
                gradient_checkpointing=False,
                use_cpu=setting.device == "cpu",
                save_strategy="no",
                disable_tqdm=True,
                logging_strategy="no",
                report_to="none",
            )
            trainer = LUPISKDTrainer("lab:student", "lab:teacher", args, train_dataset=data)
            trainer.remove_callback(PrinterCallback)
            return trainer

        trainers = {name: make(name, share) for name, share in {"without": 0.0, **SHARES}.items()}

        def train(trainer: LUPISKDTrainer) -> None:
            set_seed(0)  # the order of the records
            trainer.train()

        seconds = take_turns({name: partial(train, trainer) for name, trainer in trainers.items()}, repeats)
        written = {name: len(Path(folder, name, "rollouts.jsonl").read_text().splitlines()) for name in SHARES}
    weights = {name: torch.cat([p.flatten() for p in t.model.parameters()]) for name, t in trainers.items()}
    for name, lines in written.items():
        if not lines or not torch.equal(weights[name], weights["without"]):
            raise AssertionError(f"{name}: {lines} rollouts recorded; training must be as it is without")
    for name, lines in written.items():
        figure = f"{STEPS} lab steps, {lines} of {STEPS * ROWS} rollouts recorded, over none"
        yield row(figure, seconds, name, "without")
