"""`lupi plan` on recipes of the lab: what it prints, what it refuses, and that its advice is true."""

import json

import pytest
from transformers import MambaConfig, MusicgenDecoderConfig, Qwen3Config

from lupi_trainer.cli import main
from lupi_trainer.planning.gpus import GPUS


RECIPE = "lab/lupi_skd/config_full.yaml"
SMALL = ["--student_prompt_tokens", "20", "--teacher_prompt_tokens", "80"]


def planned(capsys, *flags: str, status: int = 0) -> dict:
    assert main(["plan", RECIPE, "--json", *SMALL, *flags]) == status
    return json.loads(capsys.readouterr().out)


def peak(plan: dict) -> int:
    return max(part["peak"] for device in plan["devices"] for part in device.values() if isinstance(part, dict))


def test_every_item_is_shown_and_adds_up_to_the_peak(capsys):
    assert main(["plan", RECIPE, "--gpu", "l4-24"]) == 0
    page = capsys.readouterr().out
    for words in (
        "K/V of the teacher",
        "optimizer",
        "gradients",
        "activations",
        "largest per_device_train_batch_size",
    ):
        assert words in page
    assert "the longest of the records" in page  # the lab's own tokenizer reads them
    for device in planned(capsys)["devices"]:
        for part in (device["rollout"], device["training"]):
            assert sum(part["bytes"].values()) == part["peak"]


def test_keys_can_be_given_as_flags(capsys):
    small, large = planned(capsys), planned(capsys, "--per_device_train_batch_size", "96")
    cache = [plan["devices"][0]["rollout"]["bytes"]["K/V of the teacher"] for plan in (small, large)]
    assert cache[1] == 4 * cache[0]


def test_what_does_not_fit_is_said_and_the_advice_makes_it_fit(capsys):
    flags = ["--gpu", "l4-24", "--per_device_train_batch_size", "40000"]
    plan = planned(capsys, *flags, status=1)
    assert not plan["fits"] and 0 < plan["largest_batch"] < 40000
    changes = [change for change in plan["changes"] if change["fits"]]
    assert changes
    for change in changes:
        keys = [text for key, value in change["keys"].items() for text in (f"--{key}", str(value).lower())]
        assert peak(planned(capsys, *flags, *keys)) == change["total"] <= plan["gpu"]["memory"] < peak(plan)


@pytest.mark.parametrize("flags, words", [
    (["--gpu", "h100"], ["no GPU 'h100'", *GPUS]),
    (["--gama", "3"], ["--gama", "gamma"]),
    (["--gpu", "l4-24", "--gamma", "three"], ["--gamma", "a whole number"]),
    (["--student_prompt_tokens", "0"], ["student_prompt_tokens", "whole number from 1"]),
    (["--acceptance", "1"], ["acceptance", "below 1"]),
    (["--per_device_train_batch_size", "0"], ["per_device_train_batch_size must be at least 1, got 0"]),
    (["--gradient_accumulation_steps", "0"], ["gradient_accumulation_steps must be at least 1, got 0"]),
    (["--max_completion_length", "-5", "--gamma", "0"], ["max_completion_length must be at", "gamma must be at"]),
    (["--max_slots", "-1"], ["max_slots must be at least 1"]),
    (["--model_name_or_path", "none"], ["`model_name_or_path` is required"]),
    (["--teacher_dtype", "float99"], ["teacher_dtype: there is no type 'float99'"]),
    (["--max_completion_length", "9000"], ["longest student prompt has 11", "beyond the", "positions of lab:student"]),
    (["--teacher_device", "moon"], ["teacher_device='moon' is no device"]),
    (["--prefix_tokens", "-5"], ["prefix_tokens", "whole number from 0"]),
    (["--completion_tokens", "57"], ["completion_tokens", "max_completion_length=56"]),
])  # fmt: skip
def test_what_is_wrong_is_named(flags, words, capsys):
    try:
        status = main(["plan", RECIPE, *flags])
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr().err
    assert status == 2 and all(word in said for word in words), said


@pytest.mark.parametrize("command, recipe", [
    ("kd", "lab/kd_lora/config_tiny.yaml"), ("wmtp", "lab/wmtp/config_tiny.yaml"), ("sft", "lab/sft/config_full.yaml"),
])  # fmt: skip
def test_a_recipe_of_another_method_is_named_as_such(command, recipe, capsys):
    assert main(["plan", recipe]) == 2
    said = capsys.readouterr().err
    assert f"a recipe of `lupi {command}`; `lupi plan` is for those of `lupi skd`" in said and said.count("\n") == 1


@pytest.mark.parametrize("name, text, words", [
    ("launch.yaml", "- 1", "no mapping of keys"),
    ("launch.yaml", "a: [1,", "no mapping of keys"),
    ("launch.yaml", "num_processes: many", "num_processes must be a whole number from 1, got 'many'"),
    ("deepspeed.json", "[1]", "no stage of ZeRO can be read"),
    ("deepspeed.json", '{"zero_optimization": {"stage": "auto"}}', "no stage of ZeRO can be read"),
])  # fmt: skip
def test_a_faulty_file_of_the_launcher_is_named(name, text, words, tmp_path, capsys):
    (tmp_path / name).write_text(text)
    flag = "--accelerate_config" if name == "launch.yaml" else "--deepspeed"
    assert main(["plan", RECIPE, *SMALL, flag, str(tmp_path / name)]) == 2
    said = capsys.readouterr().err
    assert words in said and name in said or "num_processes" in said


def test_the_stage_of_zero_is_read_from_the_file_that_the_launcher_names(tmp_path, capsys):
    (tmp_path / "zero.json").write_text('{"zero_optimization": {"stage": 2}}')
    launch = {"distributed_type": "DEEPSPEED", "num_processes": 2, "deepspeed_config": {}}
    plans = []
    for settings in ({"zero_stage": 2}, {"deepspeed_config_file": str(tmp_path / "zero.json")}):
        (tmp_path / "launch.yaml").write_text(json.dumps(launch | {"deepspeed_config": settings}))
        plans.append(planned(capsys, "--accelerate_config", str(tmp_path / "launch.yaml")))
    assert plans[0] == plans[1] != planned(capsys)


def test_advice_that_a_model_cannot_take_is_left_out(tmp_path, capsys):
    """PEFT has no adapter for all linear layers of Mamba."""
    MambaConfig(vocab_size=259, hidden_size=64, num_hidden_layers=2, state_size=4).save_pretrained(tmp_path)
    flags = ["--gpu", "l4-24", "--per_device_train_batch_size", "200000", "--model_name_or_path", str(tmp_path)]
    assert "use_peft" not in str(planned(capsys, *flags, status=1)["changes"])


def test_a_checkpoint_in_4_bits_weighs_as_one_that_is_quantized_when_it_is_loaded(tmp_path, capsys):
    config = Qwen3Config(vocab_size=259, hidden_size=512, intermediate_size=2048, num_hidden_layers=4, head_dim=64)
    weights, flags = [], ["--teacher_model_name_or_path", str(tmp_path)]
    for stored, asked in ((None, "true"), ({"load_in_4bit": True, "quant_method": "bitsandbytes"}, "false")):
        config.quantization_config = stored
        if stored is None:
            del config.quantization_config
        config.save_pretrained(tmp_path)
        found = planned(capsys, *flags, "--teacher_load_in_4bit", asked)
        weights.append(found["devices"][0]["rollout"]["bytes"]["teacher's weights"])
    assert weights[0] == weights[1]
    config.quantization_config = {"quant_method": "gptq", "bits": 4}
    config.save_pretrained(tmp_path)
    assert main(["plan", RECIPE, *SMALL, *flags]) == 2
    assert "stored by gptq" in capsys.readouterr().err


@pytest.mark.parametrize(
    "config", [{"num_attention_heads": 0}, {"num_hidden_layers": "many"}, {"num_hidden_layers": -2}]
)
def test_a_configuration_that_cannot_be_is_one_line(config, tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3", **config}))
    assert main(["plan", RECIPE, *SMALL, "--model_name_or_path", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and (str(tmp_path) in said or "model_name_or_path" in said)


def test_a_model_that_training_refuses_is_refused_by_name(tmp_path, capsys):
    MusicgenDecoderConfig().save_pretrained(tmp_path)
    assert main(["plan", RECIPE, *SMALL, "--model_name_or_path", str(tmp_path)]) == 2
    assert "the student musicgen_decoder" in capsys.readouterr().err
