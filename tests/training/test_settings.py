"""Every field of every configuration is honored, refused, or named as of no effect."""

import importlib
import inspect
import math
import pkgutil
import re
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, Qwen3MoeConfig, TrainingArguments, integrations
from trl import DistillationConfig, SFTConfig
from trl.trainer import base_trainer, distillation_trainer, sft_trainer

import lupi_trainer
from lupi_trainer import KDLoRAConfig, LUPISKDConfig, MTPHeads, WMTPConfig
from lupi_trainer.lab import resolve_model
from lupi_trainer.training.settings import FOR_SCRIPTS, LOADING
from lupi_trainer.wmtp.config import CRITIC, REFERENCE, RHO1
from tests.kd_lora.training import make_kd_config, make_kd_trainer
from tests.lupi_skd.training import make_config, make_trainer
from tests.training.test_given_data import make_sft_trainer
from tests.wmtp.training import make_wmtp_config, make_wmtp_trainer, rewarded


TEACHERS = [f.name for f in fields(KDLoRAConfig) if f.name.startswith("teacher_") and "samples" not in f.name]
OTHER = {  # a value that a key does not have by default, where its type does not say one
    "train_sampling_strategy": "group_by_length",
    "eval_do_concat_batches": False,
    "gamma_policy": "goodput",
    "verification": "sequential",
    "acceptance_rule": "top_p",
    "acceptance_kwargs": None,
    "include_for_metrics": ["loss"],
    "include_num_input_tokens_seen": "all",
    "label_names": ["labels"],
    "teacher_model_init_kwargs": {"revision": "x"},
    "reference_model_init_kwargs": {"revision": "x"},
    "teacher_dtype": "float32",
    "teacher_bnb_4bit_quant_type": "fp4",
    "teacher_device": "cpu",
    "min_p": 0.1,
    "generation_kwargs": {"top_p": 0.5},
    "max_tool_calling_iterations": 3,
    "data_seed": 3,
    "loss_type": "dft",
    "rho1_score": "signed",
    "rho1_over": "token",
    "rho1_select": "top",
    "rho1_share": 0.5,
    "critic_decay": 0.5,
    "kd_alpha": 0.5,
    "head_weighting": "shuffled",
    "teacher_min_prob": 0.5,
    "loss_top_k": 9,
    "num_completions_to_print": 3,
    "vllm_max_model_length": 99,
}


def other(config: type, name: str):
    """A valid value that a field does not have by default."""
    (default,) = [f.default for f in fields(config) if f.name == name]
    if name in OTHER:
        return OTHER[name]
    if isinstance(default, bool):
        return not default
    return default + 1 if isinstance(default, (int, float)) else "other"


VLLM = [f.name for f in fields(DistillationConfig) if f.name.startswith("vllm_")]
SAMPLING = "top_p top_k min_p repetition_penalty generation_kwargs use_vllm".split()
UNREAD_OF_SKD = (
    "cache_implementation label_smoothing_factor label_names prediction_loss_only include_for_metrics "
    "batch_eval_metrics eval_do_concat_batches remove_unused_columns length_column_name data_seed "
    "auto_find_batch_size include_num_input_tokens_seen average_tokens_across_devices max_tool_calling_iterations "
    "train_sampling_strategy"
).split()

REFUSED = {
    (LUPISKDConfig, make_config): [*VLLM, *SAMPLING, *UNREAD_OF_SKD],
    (KDLoRAConfig, make_kd_config): ["loss_type", "label_smoothing_factor"],
    (WMTPConfig, make_wmtp_config): ["loss_type", "label_smoothing_factor"],
}
NAMED = [  # configuration, settings beside which the keys have no effect, the keys
    *[(config, make, {}, list(FOR_SCRIPTS)) for config, make in REFUSED],
    (
        LUPISKDConfig,
        make_config,
        {"rollout_policy": "student"},
        ["accept_top_k", "teacher_min_prob", "acceptance_rule"],
    ),
    (LUPISKDConfig, make_config, {"rollout_policy": "student"}, ["teacher_temperature"]),
    (
        LUPISKDConfig,
        make_config,
        {"rollout_policy": "teacher"},
        ["gamma", "gamma_policy", "verification", "student_temperature", "accept_top_k"],
    ),
    (
        LUPISKDConfig,
        make_config,
        {"rollout_policy": "gold"},
        ["gamma", "gamma_policy", "student_temperature", "teacher_temperature", "accept_top_k", "compile_rollout"],
    ),
    (
        LUPISKDConfig,
        make_config,
        {"acceptance_rule": "top_p", "acceptance_kwargs": {"p": 0.5}},
        ["accept_top_k", "teacher_min_prob"],
    ),
    (LUPISKDConfig, make_config, {}, ["loss_top_k", "teacher_server_timeout", "teacher_server_request_timeout"]),
    (LUPISKDConfig, make_config, {}, ["num_completions_to_print", "log_unique_prompts"]),
    (KDLoRAConfig, make_kd_config, {"use_kd": False}, ["kd_alpha", "kd_temperature", *TEACHERS[:-4]]),
    (KDLoRAConfig, make_kd_config, {"kd_alpha": 0.0}, ["kd_temperature", *TEACHERS[:4]]),
    (WMTPConfig, make_wmtp_config, {}, ["head_window", "rho1_share", "draft_eval_new_tokens"]),
]

# Those that TRL's configurations add to transformers', and that are honored as TRL's own trainers do.
OF_DISTILLATION = set(
    "model_init_kwargs trust_remote_code teacher_model_name_or_path teacher_model_revision teacher_model_init_kwargs "
    "disable_dropout max_completion_length ds3_gather_for_generation shuffle_dataset pad_to_multiple_of temperature "
    "chat_template_kwargs beta log_completions".split()
)
OF_SFT = set(
    "model_init_kwargs trust_remote_code router_aux_loss_coef chat_template_path dataset_text_field dataset_kwargs "
    "dataset_num_proc eos_token max_length truncation_mode shuffle_dataset packing packing_strategy padding_free "
    "pad_to_multiple_of eval_packing completion_only_loss assistant_only_loss activation_offloading pad_token".split()
)


@cache
def read(ours: bool) -> set[str]:
    """What is read of configurations: by the package's trainers, or by transformers' and TRL's."""
    if ours:
        files = Path(lupi_trainer.__file__).parent.rglob("*.py")
        left_out = {"config.py", "unread.py", "settings.py", "model_card.py", "arms.py"}
        sources = [path.read_text() for path in files if path.name not in left_out]
    else:
        names = [m.name for m in pkgutil.iter_modules(transformers.__path__) if m.name.startswith("train")]
        modules = [importlib.import_module(f"transformers.{name}") for name in names]
        sources = [inspect.getsource(m) for m in (*modules, base_trainer, distillation_trainer, sft_trainer)]
        sources += [path.read_text() for path in Path(integrations.__file__).parent.glob("*.py")]
    found = re.compile(r"(?:(?<=\bargs\.)|(?<=\bself\.)|(?<=\bconfig\.))(\w+)(?!\w| = )")
    return {name for source in sources for name in found.findall(source)}


@pytest.mark.parametrize("config", [LUPISKDConfig, KDLoRAConfig, WMTPConfig])
def test_every_field_is_honored_refused_or_named(config):
    parent = DistillationConfig if config is LUPISKDConfig else SFTConfig
    general, inherited = ({f.name for f in fields(cls)} for cls in (TrainingArguments, parent))
    (refused,) = [names for (cls, _), names in REFUSED.items() if cls is config]
    named = {name for cls, _, beside, names in NAMED if cls is config and not beside for name in names}
    honored = {f.name for f in fields(config)} - {*refused, *named}
    assert honored - general - (honored - inherited) == (OF_DISTILLATION if config is LUPISKDConfig else OF_SFT)
    for name in honored:
        assert name in read(ours=True) or (name in inherited and name in read(ours=False)), name
    assert "local_rank" not in read(ours=True) | read(ours=False)


@pytest.mark.parametrize(
    "config, make, name",
    [(c, make, name) for (c, make), names in REFUSED.items() for name in names],
    ids=lambda x: x if isinstance(x, str) else getattr(x, "__name__", ""),
)
def test_what_has_no_effect_is_refused(tmp_path, config, make, name):
    with pytest.raises(ValueError, match=name):
        make(tmp_path, **{name: other(config, name)})


@pytest.mark.parametrize(
    "config, make, beside, names", NAMED, ids=lambda x: str(x) if isinstance(x, dict | list) else ""
)
def test_what_has_no_effect_beside_another_setting_is_named(tmp_path, caplog, config, make, beside, names):
    make(tmp_path, **beside, **{f.name: f.default for f in fields(config) if f.name in names})
    assert "no effect" not in caplog.text, "a default is named"
    make(tmp_path, **beside, **{name: other(config, name) for name in names})
    for name in names:
        assert re.search(rf"\b{name}=.*: no effect, since ", caplog.text), name


def test_settings_of_a_teacher_that_is_not_loaded_are_refused(tmp_path, teacher):
    lora = LoraConfig(r=2, task_type="CAUSAL_LM")
    for name in LOADING:
        keys = {f"config_{name}": other(LUPISKDConfig, name)}
        with pytest.raises(ValueError, match=f"{name}=.*: the teacher is loaded already; pass its name"):
            make_trainer(tmp_path, teacher_model=teacher, **keys)
        with pytest.raises(ValueError, match=f"{name}=.*: the teacher is loaded already; pass its name"):
            make_kd_trainer(tmp_path, teacher_model=teacher, **keys)
        with pytest.raises(ValueError, match=f"{name}=.*: there is no teacher to load"):
            make_trainer(tmp_path, teacher_model=None, peft_config=lora, **keys)
    with pytest.raises(ValueError, match="teacher_device='cpu'.*: the teacher is the student itself"):
        make_trainer(tmp_path, teacher_model=None, peft_config=lora, config_teacher_device="cpu")
    for make in (make_trainer, make_kd_trainer):
        for given in (teacher, "lab:teacher"):
            with pytest.raises(ValueError, match="teacher_model_name_or_path='lab:student' has no effect here: .*ed"):
                make(tmp_path, teacher_model=given, config_teacher_model_name_or_path="lab:student")
    for name in ("teacher_bnb_4bit_quant_type", "teacher_use_bnb_nested_quant", "teacher_dtype"):
        with pytest.raises(ValueError, match=f"{name}=.* does not work with teacher_model_server_url"):
            make_config(tmp_path, teacher_model_server_url="http://127.0.0.1:9", **{name: other(LUPISKDConfig, name)})
    assert not (tmp_path / "run").exists()
    path = resolve_model("lab:teacher")
    named = AutoModelForCausalLM.from_pretrained(path)
    for make in (make_trainer, make_kd_trainer):
        for given, key in (("lab:teacher", path), (path + "/", "lab:teacher"), (named, "lab:teacher")):
            make(tmp_path, teacher_model=given, config_teacher_model_name_or_path=key)


def test_quantization_of_a_teacher_that_is_not_quantized_is_named(tmp_path, caplog):
    make_trainer(tmp_path, config_teacher_bnb_4bit_quant_type="fp4")
    make_kd_trainer(tmp_path, config_teacher_use_bnb_nested_quant=True)
    assert "teacher_bnb_4bit_quant_type='fp4': no effect, since teacher_load_in_4bit is off" in caplog.text
    assert "teacher_use_bnb_nested_quant=True: no effect, since" in caplog.text


def test_a_load_balancing_loss_is_refused(tmp_path, tokenizer):
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        output_router_logits=True,
    )
    student, path = AutoModelForCausalLM.from_config(config), str(tmp_path / "moe")
    student.save_pretrained(path)
    tokenizer.save_pretrained(path)
    for model in (student, path):
        with pytest.raises(ValueError, match="set `output_router_logits` to false"):
            make_trainer(tmp_path, model, processing_class=tokenizer)
    make_trainer(tmp_path, path, config_model_init_kwargs={"output_router_logits": False})


def test_what_does_not_work_on_this_device_or_with_text_is_refused(tmp_path, caplog):
    for make in (make_kd_trainer, make_wmtp_trainer, make_sft_trainer):
        with pytest.raises(ValueError, match="activation_offloading=True has no effect on a CPU"):
            make(tmp_path, config_activation_offloading=True)
        with pytest.raises(ValueError, match="max_length must be at least 1, got -1"):
            make(tmp_path, config_max_length=-1)
    wrong = {"learning_rate": math.nan, "max_grad_norm": -1.0, "weight_decay": -0.1, "gradient_accumulation_steps": 0}
    wrong |= {"per_device_train_batch_size": 0, "per_device_eval_batch_size": 0, "pad_to_multiple_of": -3}
    wrong |= {"max_steps": 0, "dataloader_num_workers": -1, "eval_accumulation_steps": 0}
    wrong |= {"lr_scheduler_type": "warmup_stable_decay"}
    for make in (make_kd_trainer, make_wmtp_trainer, make_sft_trainer, make_trainer):
        for name, value in wrong.items():
            with pytest.raises(ValueError, match=name):
                make(tmp_path, **{f"config_{name}": value})
        with pytest.raises(ValueError, match="max_steps=-1 with num_train_epochs=0.0 says of no step"):
            make(tmp_path, config_max_steps=-1, config_num_train_epochs=0.0)
        with pytest.raises(ValueError, match="fp16=True has no effect on a CPU"):
            make(tmp_path, config_fp16=True)
    unknown = {"config_lr_scheduler_kwargs": {"nope": 1}}
    with pytest.raises(ValueError, match="lr_scheduler_type='linear' with lr_scheduler_kwargs={'nope': 1}"):
        make_kd_trainer(tmp_path, config_lr_scheduler_type="linear", **unknown)
    make_kd_trainer(tmp_path, config_warmup_steps=2, **unknown)
    for name in ("warmup_steps=2", "lr_scheduler_kwargs={'nope': 1}"):
        assert f"{name}: no effect, since lr_scheduler_type='constant'" in caplog.text
    for config in ({"dispatch_batches": True}, '{"dispatch_batches": true}'):
        with pytest.raises(ValueError, match="dispatch_batches=True does not work here: records are text"):
            make_config(tmp_path, accelerator_config=config)
    make_config(tmp_path, accelerator_config={"dispatch_batches": False})


def test_what_an_optimizer_or_no_metrics_would_read_is_named(tmp_path, caplog):
    unread = {"optim_args": "eps=0.5", "optim_target_modules": "all-linear"}
    metrics = {"include_for_metrics": ["loss"], "batch_eval_metrics": True}
    betas = {"adam_beta1": 0.5, "adam_epsilon": 0.5}
    for make, others, kind, names, honored in (
        (make_trainer, {}, "adamw_torch_fused", unread, betas),
        (make_kd_trainer, metrics, "sgd", betas, {"optim_args": "momentum=0.5"}),
        (make_wmtp_trainer, metrics, "adamw_torch", unread, betas),
    ):
        caplog.clear()
        given = {"optim": kind, **others, **names, **honored}
        make(tmp_path, **{f"config_{name}": value for name, value in given.items()})
        for name in (*names, *others):
            why = "no `compute_metrics` was" if name in others else f"optim='{kind}' does not"
            assert re.search(rf"\b{name}=.*: no effect, since {why}", caplog.text), name
        assert not any(f"{name}=" in caplog.text for name in honored)


def test_an_optimizer_must_hold_what_is_trained(tmp_path, student):
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    made = {"optimizers": (optimizer, None), "model": student}
    make_trainer(tmp_path, **made)
    with pytest.raises(ValueError, match="does not hold .* the first of them .*lora_A"):
        make_trainer(tmp_path, **made, peft_config=LoraConfig(r=2, task_type="CAUSAL_LM"))
    student = AutoModelForCausalLM.from_pretrained(resolve_model("lab:student"))
    heads = MTPHeads.for_model(student, 4, "residual")
    made = {"optimizers": (torch.optim.SGD(student.parameters(), lr=0.1), None), "model": student}
    with pytest.raises(ValueError, match="does not hold .* 'mtp_heads"):
        make_wmtp_trainer(tmp_path, **made)
    both = torch.optim.SGD([*student.parameters(), *heads.parameters()], lr=0.1)
    trainer, losses = make_wmtp_trainer(tmp_path, heads=heads, model=student, optimizers=(both, None))
    before = [p.clone() for p in heads.parameters()]
    trainer.train()
    assert not any(torch.equal(*pair) for pair in zip(before, trainer.model.mtp_heads.parameters()))


@pytest.mark.parametrize(
    "algorithm, beside, names",
    [
        ("mtp-baseline", {}, ["head_weighting", "head_weight_temperature", *REFERENCE, *RHO1[:3], *CRITIC]),
        ("critic-wmtp", {}, RHO1[:3]),
        ("critic-wmtp", {"train_dataset": rewarded([0.0, 1.0, 2.0, 1.0])}, ["reference_cache_dir", *RHO1[:3]]),
        ("rho1-wmtp", {}, CRITIC),
        ("rho1-wmtp", {"config_rho1_select": "top"}, ["head_weight_temperature"]),
        ("rho1-wmtp", {"config_head_weighting": "uniform", "reference_model": None}, ["rho1_score", *REFERENCE]),
    ],
)
def test_the_keys_of_other_algorithms_are_named(tmp_path, caplog, algorithm, beside, names):
    keys = {f"config_{name}": other(WMTPConfig, name) for name in names}
    if algorithm == "mtp-baseline":
        keys["reference_model"] = None
        make_wmtp_trainer(tmp_path, algorithm, config_critic_steps=200)
        assert "no effect" not in caplog.text
        del keys["reference_model"]
    make_wmtp_trainer(tmp_path, algorithm, **beside, **keys)
    for name in names:
        assert re.search(rf"\b{name}=.*: no effect, since ", caplog.text), name


def test_arguments_of_weighted_prediction_that_have_no_effect_are_refused(tmp_path, student, teacher):
    with pytest.raises(ValueError, match="compute_loss_func has no effect here"):
        make_wmtp_trainer(tmp_path, compute_loss_func=lambda *args, **kwargs: None)
    heads = MTPHeads.for_model(student, 4, "residual")
    with pytest.raises(ValueError, match="heads_name_or_path has no effect here: heads were passed"):
        make_wmtp_trainer(tmp_path, heads=heads, config_heads_name_or_path=str(tmp_path))
    with pytest.raises(ValueError, match="reference_model_init_kwargs=.*: the reference is loaded already"):
        keys = {"config_reference_model_init_kwargs": OTHER["reference_model_init_kwargs"]}
        make_wmtp_trainer(tmp_path, "rho1-wmtp", reference_model=teacher, **keys)
    with pytest.raises(ValueError, match="reference_model_name_or_path='lab:student' has no effect here: 'lab:teac"):
        make_wmtp_trainer(tmp_path, "rho1-wmtp", config_reference_model_name_or_path="lab:student")


def test_the_configuration_of_another_trainer_is_said(tmp_path):
    data = Dataset.from_list([{"prompt": "q", "privileged_context": "k"}] * 4)
    for cls, config, name in (
        (lupi_trainer.LUPISKDTrainer, DistillationConfig, "LUPISKDConfig"),
        (lupi_trainer.KDLoRATrainer, SFTConfig, "KDLoRAConfig"),
        (lupi_trainer.MTPBaselineTrainer, SFTConfig, "WMTPConfig"),
        (lupi_trainer.Rho1WMTPTrainer, KDLoRAConfig, "WMTPConfig"),
        (lupi_trainer.CriticWMTPTrainer, TrainingArguments, "WMTPConfig"),
    ):
        args = config(str(tmp_path / "run"), bf16=False, use_cpu=True)
        with pytest.raises(TypeError, match=f"`args` must be a {name}, got a {config.__name__}"):
            cls("lab:student", args=args, train_dataset=data)
    assert not (tmp_path / "run").exists()
