"""Short runs of weighted multi-token prediction for the tests."""

from datasets import Dataset

from lupi_trainer import CriticWMTPTrainer, MTPBaselineTrainer, Rho1WMTPTrainer, WMTPConfig
from lupi_trainer.data.records import load_sft_data
from tests.lupi_skd.training import Losses


ALGORITHMS = {"mtp-baseline": MTPBaselineTrainer, "critic-wmtp": CriticWMTPTrainer, "rho1-wmtp": Rho1WMTPTrainer}


OVER_TOKENS = {"config_rho1_over": "token", "config_rho1_score": "signed"}
SELECTED = {**OVER_TOKENS, "config_rho1_select": "top"}


def answers(count: int = 24, name: str = "lab:common") -> Dataset:
    """Questions of the lab with their answers."""
    data = load_sft_data(name)
    return data.select(range(0, len(data), max(1, len(data) // count))).select(range(count))


def uneven_answers() -> Dataset:
    """[`answers`] given once, twice or three times, so that the parts of a batch hold different numbers of tokens."""

    def again(row, number):
        (answer,) = row["completion"]
        return {"completion": [answer | {"content": " ".join([answer["content"]] * (1 + number % 3))}]}

    return answers().map(again, with_indices=True)


def make_wmtp_config(tmp_path, **changes) -> WMTPConfig:
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
        "critic_steps": 4,
        "max_length": 128,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    return WMTPConfig(**{**defaults, **changes})


def make_wmtp_trainer(tmp_path, algorithm="mtp-baseline", model="lab:student", train_dataset=None, **kwargs):
    """A trainer on the lab; `config_*` keyword arguments go to its configuration."""
    config = {k.removeprefix("config_"): kwargs.pop(k) for k in list(kwargs) if k.startswith("config_")}
    if algorithm != "mtp-baseline" and "reference_model" not in kwargs:
        kwargs["reference_model"] = "lab:teacher"
    losses = Losses()
    trainer = ALGORITHMS[algorithm](
        model,
        args=make_wmtp_config(tmp_path, **config),
        train_dataset=answers() if train_dataset is None else train_dataset,
        callbacks=[losses],
        **kwargs,
    )
    return trainer, losses


def batch_of(trainer, rows=6):
    """The first rows of a trainer's data, collated."""
    return trainer.data_collator([trainer.train_dataset[i] for i in range(rows)])


def rewarded(values):
    """As many questions with answers as there are rewards, each with its own."""
    data = answers(len(values))
    return data.add_column("reward", values)
