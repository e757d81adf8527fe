"""`lupi plan` on recipes of the lab: what it prints, what it refuses, and that its advice is true."""

import json

import pytest
from transformers import MusicgenDecoderConfig

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
])  # fmt: skip
def test_what_is_wrong_is_named(flags, words, capsys):
    try:
        status = main(["plan", RECIPE, *flags])
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr().err
    assert status == 2 and all(word in said for word in words), said


def test_a_model_that_training_refuses_is_refused_by_name(tmp_path, capsys):
    MusicgenDecoderConfig().save_pretrained(tmp_path)
    assert main(["plan", RECIPE, *SMALL, "--model_name_or_path", str(tmp_path)]) == 2
    assert "the student musicgen_decoder" in capsys.readouterr().err
