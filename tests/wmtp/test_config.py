"""Options of weighted multi-token prediction: what cannot work is refused, and each is documented."""

import shutil

import pytest
from peft import LoraConfig, PromptTuningConfig

from lupi_trainer import MTPHeads, WMTPConfig
from lupi_trainer.lab import resolve_model
from tests.models.families import train_tokenizer
from tests.wmtp.training import make_wmtp_config, make_wmtp_trainer, rewarded


def test_what_cannot_work_is_said(tmp_path):
    with pytest.raises(ValueError, match="every record has the same `reward`"):
        make_wmtp_trainer(tmp_path, "critic-wmtp", train_dataset=rewarded([1.0, 1.0]))
    with pytest.raises(ValueError, match="cannot be packed"):
        make_wmtp_trainer(tmp_path, "critic-wmtp", train_dataset=rewarded([0.0, 1.0]), config_packing=True)
    with pytest.raises(ValueError, match="no reference"):
        make_wmtp_trainer(tmp_path, "rho1-wmtp", reference_model=None)
    with pytest.raises(ValueError, match="leaves nothing for an adapter"):
        make_wmtp_trainer(tmp_path, config_freeze_trunk=True, peft_config=LoraConfig(task_type="CAUSAL_LM"))
    with pytest.raises(FileNotFoundError, match="no mtp_heads.json"):
        make_wmtp_trainer(tmp_path, config_heads_name_or_path=str(tmp_path))
    with pytest.raises(ValueError, match="PromptTuningConfig is not supported"):
        make_wmtp_trainer(tmp_path, peft_config=PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    heads = MTPHeads(4, "transformer", hidden_size=64, window=7)
    with pytest.raises(ValueError, match="and head_window=7; the configuration says .* and head_window=32"):
        make_wmtp_trainer(tmp_path, heads=heads, config_head_type="transformer")
    shutil.copytree(resolve_model("lab:teacher"), tmp_path / "reference")
    train_tokenizer(["another vocabulary"], vocab_size=700).save_pretrained(tmp_path / "reference")
    with pytest.raises(ValueError, match="the vocabularies do not match: .* for the reference"):
        make_wmtp_trainer(tmp_path, "rho1-wmtp", reference_model=str(tmp_path / "reference"))


FLOATS = ("head_weight_temperature", "rho1_share", "critic_learning_rate", "critic_decay")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"horizon": 0}, "horizon must be at least 1"),
        ({"head_type": "medusa"}, "head_type must be one of"),
        ({"head_weighting": "mixed"}, "head_weighting must be one of"),
        ({"rho1_select": "bottom"}, "rho1_select must be one of"),
        ({"head_weight_temperature": 0.0}, "head_weight_temperature is out of range"),
        ({"rho1_share": 1.5}, "rho1_share is out of range"),
        *[
            ({key: value}, f"{key} must be a finite number")
            for key in FLOATS
            for value in (float("nan"), float("inf"))
        ],
        ({"freeze_trunk": True, "horizon": 1}, "trains nothing"),
        ({"packing": True, "packing_strategy": "wrapped"}, "keeps no borders between texts"),
    ],
)
def test_configurations_that_cannot_work(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        make_wmtp_config(tmp_path, **options)


def test_every_option_is_documented():
    own = WMTPConfig.__dataclass_fields__.keys() - WMTPConfig.__mro__[1].__dataclass_fields__.keys()
    assert own and all(f"{name} (`" in WMTPConfig.__doc__ for name in own)
