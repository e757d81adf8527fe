"""A file or a model that is not there is named with the key that names it."""

import pytest

from tests.kd_lora.training import make_kd_trainer
from tests.lupi_skd.training import make_trainer
from tests.wmtp.training import make_wmtp_trainer


@pytest.mark.parametrize(
    "make, key, beside",
    [
        (make_trainer, "teacher_model_name_or_path", {"teacher_model": None}),
        (make_kd_trainer, "teacher_model_name_or_path", {"teacher_model": None}),
        (make_trainer, "few_shot_examples", {}),
        (make_wmtp_trainer, "heads_name_or_path", {}),
        (make_wmtp_trainer, "value_head_name_or_path", {"algorithm": "critic-wmtp"}),
        (make_wmtp_trainer, "reference_model_name_or_path", {"algorithm": "rho1-wmtp", "reference_model": None}),
    ],
)
def test_a_missing_file_is_named_with_its_key(tmp_path, make, key, beside):
    missing = f"{tmp_path}/nowhere/x"
    with pytest.raises((OSError, ValueError), match=f"{key}.*{missing}|{missing}.*{key}") as error:
        make(tmp_path, **beside, **{f"config_{key}": missing})
    assert "\n" not in str(error.value)


def test_few_shot_examples_that_are_no_json_are_named(tmp_path):
    with pytest.raises(ValueError, match="few_shot_examples: "):
        make_trainer(tmp_path, config_few_shot_examples="[{")
