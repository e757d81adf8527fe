"""Short training runs for the tests."""

from transformers import TrainerCallback

from lupi_trainer import LUPISKDConfig, LUPISKDTrainer
from lupi_trainer.lab import load_lab_records, world


def make_config(tmp_path, **changes) -> LUPISKDConfig:
    """A configuration of a tiny float32 run on the CPU."""
    defaults = {
        "output_dir": str(tmp_path / "run"),
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 4,
        "max_steps": 3,
        "logging_steps": 1,
        "max_completion_length": 12,
        "gamma": 4,
        "gamma_policy": "fixed",  # lengths that follow the clock move the last digits of a loss
        "max_teacher_prompt_length": 256,
        "teacher_system_prompt": world.PERSONA,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return LUPISKDConfig(**{**defaults, **changes})


class Losses(TrainerCallback):
    """Keeps what is logged at every step."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.logs.append({"step": state.global_step, **logs})

    @property
    def losses(self) -> list[float]:
        return [float(log["loss"]) for log in self.logs]


def make_trainer(tmp_path, model="lab:student", teacher_model="lab:teacher", train_dataset=None, **kwargs):
    """A trainer on the lab; `config_*` keyword arguments go to its configuration."""
    config = {k.removeprefix("config_"): kwargs.pop(k) for k in list(kwargs) if k.startswith("config_")}
    if train_dataset is None:
        train_dataset = load_lab_records("lab:new")[:40]
    losses = Losses()
    trainer = LUPISKDTrainer(
        model,
        teacher_model,
        args=make_config(tmp_path, **config),
        train_dataset=train_dataset,
        callbacks=[losses],
        **kwargs,
    )
    return trainer, losses
