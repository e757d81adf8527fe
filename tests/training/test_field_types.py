"""A number where a number belongs: of every field of every configuration, and of layers and stages."""

from dataclasses import fields
from typing import get_type_hints

import numpy as np
import pytest

from lupi_trainer.pruning.layers import drop_layers, save_bundle
from lupi_trainer.pruning.stages import load_stage
from lupi_trainer.scripts.kd_lora import QAArguments
from lupi_trainer.scripts.sft import SFTDataArguments
from tests.kd_lora.training import make_kd_config
from tests.lupi_skd.training import make_config
from tests.training.test_given_data import make_sft_trainer
from tests.wmtp.training import make_wmtp_config


WRONG = {  # a field's type -> values of others
    int: (2.5, 4.0, True, "4", None),
    int | None: (2.5, 4.0, True, "4"),
    int | str | None: (2.5, 4.0, True, "many"),
    float: (True, "0.1", None),
    float | None: (True, "0.1"),
    bool: ("false", 2, 0.5),
}


@pytest.mark.parametrize("make", [make_config, make_kd_config, make_wmtp_config])
def test_a_value_of_another_type_is_refused_by_name(tmp_path, make):
    config = type(make(tmp_path))
    hints, seen = get_type_hints(config), set()
    for field in fields(config):
        for value in WRONG.get(hints[field.name], ()):
            if value is not field.default:
                with pytest.raises(ValueError, match=rf"^{field.name} must be (a|true).*, got {value!r}$"):
                    make(tmp_path, **{field.name: value})
                seen.add(field.name)
    own = {f.name for f in fields(config) if hints[f.name] in WRONG} - {f.name for f in fields(config.__mro__[1])}
    assert own and own <= seen and {"learning_rate", "seed", "pad_to_multiple_of"} <= seen


def test_numbers_of_numpy_become_python_s(tmp_path):
    made = make_wmtp_config(tmp_path, horizon=np.int64(3), learning_rate=np.float32(0.5), packing=np.bool_(False))
    assert [type(x) for x in (made.horizon, made.learning_rate, made.packing)] == [int, float, bool]
    assert made.horizon == 3 and make_kd_config(tmp_path, kd_temperature=3).kd_temperature == 3


def test_layers_and_stages_are_whole_numbers(tmp_path, teacher):
    for number in (1.0, True, "1"):
        with pytest.raises(ValueError, match=f"bundle 'B': {number!r} is no whole number"):
            drop_layers(teacher, {"B": [number]})
        with pytest.raises(ValueError, match=f"bundle 'B': {number!r} is no whole number"):
            save_bundle(tmp_path / "B", "B", teacher, [number])
        with pytest.raises(ValueError, match=f"stage: {number!r} is no whole number"):
            load_stage("lab:teacher", None, number)
    assert not (tmp_path / "B").exists()
    drop_layers(teacher, {"B": np.array([1])})
    save_bundle(tmp_path / "B", "B", teacher, np.array([1]))


def test_which_data_a_command_reads_is_of_its_type_too():
    for make, key, value in (
        (QAArguments, "max_samples", 1.5),
        (QAArguments, "stage", True),
        (QAArguments, "allow_special_tokens", "false"),
        (SFTDataArguments, "verbose", "no"),
        (SFTDataArguments, "allow_special_tokens", "no"),
    ):
        with pytest.raises(ValueError, match=f"{key} must be"):
            make("lab:qa", **{key: value})


def test_settings_that_were_changed_later_are_looked_at_too(tmp_path):
    wrong = {"pad_to_multiple_of": 2.5, "gradient_accumulation_steps": True, "max_length": 0.5, "packing": "no"}
    for name, value in wrong.items():
        with pytest.raises(ValueError, match=f"{name} must be"):
            make_sft_trainer(tmp_path, **{f"config_{name}": value})
