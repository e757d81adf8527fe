"""Short KD-LoRA runs for the tests."""

from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer

from lupi_trainer import KDLoRAConfig, KDLoRATrainer
from lupi_trainer.lab import load_lab_records, resolve_model
from tests.lupi_skd.training import Losses


def lab_tokenizer():
    return AutoTokenizer.from_pretrained(resolve_model("lab:student"))


def labeled_dataset(tokenizer, count=16, name="lab:common") -> Dataset:
    """Questions of the lab as token ids, with labels on the answer only; rows of different lengths."""
    records = load_lab_records(name)
    rows = []
    for record in records[:: max(1, len(records) // count)][:count]:
        prompt, answer = tokenizer(record["query"])["input_ids"], tokenizer(" " + record["answer"])["input_ids"]
        answer = [*answer, tokenizer.eos_token_id]
        rows.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
    return Dataset.from_list(rows)


def make_kd_config(tmp_path, **changes) -> KDLoRAConfig:
    """A configuration of a tiny float32 run on the CPU."""
    defaults = {
        "output_dir": str(tmp_path / "run"),
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_steps": 3,
        "logging_steps": 1,
        "kd_alpha": 0.3,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return KDLoRAConfig(**{**defaults, **changes})


def make_kd_trainer(tmp_path, model="lab:student", teacher_model="lab:teacher", train_dataset=None, **kwargs):
    """A trainer on the lab with a LoRA student; `config_*` keyword arguments go to its configuration."""
    config = {k.removeprefix("config_"): kwargs.pop(k) for k in list(kwargs) if k.startswith("config_")}
    kwargs.setdefault("peft_config", LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, task_type="CAUSAL_LM"))
    if train_dataset is None:
        train_dataset = labeled_dataset(kwargs.get("processing_class") or lab_tokenizer())
    losses = Losses()
    trainer = KDLoRATrainer(
        model,
        teacher_model,
        args=make_kd_config(tmp_path, **config),
        train_dataset=train_dataset,
        callbacks=[losses],
        **kwargs,
    )
    return trainer, losses
