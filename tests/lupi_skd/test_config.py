import pytest
import torch

from lupi_trainer.lupi_skd.rules import gamma_policy_of
from tests.lupi_skd.training import make_config


NAN, INF = float("nan"), float("inf")
ROLES = ("student", "teacher")


def test_defaults_are_the_seeds(tmp_path):
    from lupi_trainer import LUPISKDConfig

    config = LUPISKDConfig(str(tmp_path), bf16=False, use_cpu=True)
    assert (config.accept_top_k, config.gamma, config.teacher_min_prob) == (5, 20, 0.05)
    assert (config.student_temperature, config.teacher_temperature) == (0.7, 0.7)
    assert (config.learning_rate, config.gradient_accumulation_steps, config.num_train_epochs) == (1e-5, 1, 5)
    assert (config.max_completion_length, config.beta, config.temperature) == (4096, 0.0, 1.0)
    assert config.rollout_policy == "speculative"


@pytest.mark.parametrize(
    "keys, policy",
    [({}, "goodput"), ({"deterministic": True}, "fixed"), ({"gamma_policy": "adaptive"}, "adaptive")],
)
def test_drafts_are_as_long_as_is_fastest_unless_the_shapes_must_repeat(tmp_path, keys, policy):
    assert gamma_policy_of(make_config(tmp_path, **{"gamma_policy": None} | keys)) == policy


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("gamma", 0, "gamma must be at least 1"),
        ("accept_top_k", 0, "accept_top_k must be at least 1"),
        ("teacher_min_prob", 1.5, r"teacher_min_prob.*\[0, 1\]"),
        ("teacher_min_prob", -0.1, r"teacher_min_prob.*\[0, 1\]"),
        ("student_temperature", -1.0, "student_temperature must not be negative"),
        ("teacher_temperature", -1.0, "teacher_temperature must not be negative"),
        ("temperature", 0.0, "temperature.*above 0"),
        ("beta", 2.0, "beta"),
        *[(f"{who}_temperature", value, f"{who}_temp.*finite") for who in ROLES for value in (NAN, INF)],
        *[("temperature", value, "^temperature must be a finite number") for value in (NAN, INF)],
        ("beta", NAN, "beta must be a finite number"),
        ("teacher_min_prob", NAN, "teacher_min_prob must be a finite number"),
        ("max_completion_length", 0, "max_completion_length must be at least 1"),
        ("max_teacher_prompt_length", 0, "max_teacher_prompt_length must be at least 1"),
        ("max_slots", 0, "max_slots"),
        ("record_rollouts", -1, "record_rollouts must not be negative"),
        ("rollout_policy", "other", "rollout_policy must be one of"),
        ("gamma_policy", "other", "gamma_policy must be one of"),
        ("verification", "other", "verification must be one of"),
        ("acceptance_rule", "other", "acceptance_rule must be one of"),
        ("acceptance_kwargs", {"p": 0.5}, "top_k is set by accept_top_k"),
        ("top_p", 0.9, "top_p=0.9 has no meaning here"),
        ("top_k", 5, "top_k=5 has no meaning here"),
        ("repetition_penalty", 1.1, "repetition_penalty"),
        ("pack_weights", "yes", "pack_weights must be one of auto, true, false, got 'yes'"),
        ("use_vllm", True, "use_vllm is not supported"),
    ],
)
def test_values_out_of_range_are_named(tmp_path, key, value, message):
    with pytest.raises(ValueError, match=message):
        make_config(tmp_path, **{key: value})


def test_parameters_of_a_rule_are_checked(tmp_path):
    with pytest.raises(ValueError, match="top_p has no parameter 'k'"):
        make_config(tmp_path, acceptance_rule="top_p", acceptance_kwargs={"k": 3})
    with pytest.raises(ValueError, match=r"p must lie in \[0, 1\]"):
        make_config(tmp_path, acceptance_rule="top_p", acceptance_kwargs={"p": 3})


def test_weights_to_be_packed_are_float32_on_a_cpu(tmp_path, monkeypatch):
    assert make_config(tmp_path, pack_weights=True).pack_weights is True
    with pytest.raises(ValueError, match="pack_weights=True is for float32: set bf16: false"):
        make_config(tmp_path, pack_weights="true", bf16=True)
    monkeypatch.setattr("transformers.TrainingArguments.device", torch.device("cuda", 0))
    with pytest.raises(ValueError, match="pack_weights=True is for a CPU, and the student trains on cuda:0"):
        make_config(tmp_path, pack_weights=True)
    assert make_config(tmp_path).pack_weights == "auto"


def test_4bit_and_8bit_exclude_each_other(tmp_path):
    with pytest.raises(ValueError, match="exclude each other"):
        make_config(tmp_path, teacher_load_in_4bit=True, teacher_load_in_8bit=True)


def test_every_key_is_explained():
    from dataclasses import fields

    from trl import DistillationConfig

    from lupi_trainer import LUPISKDConfig

    own = {f.name for f in fields(LUPISKDConfig)} - {f.name for f in fields(DistillationConfig)}
    assert own and all(f"{name} (`" in LUPISKDConfig.__doc__ for name in own)
