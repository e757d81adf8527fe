import copy
from dataclasses import fields

import peft
import pytest
import torch
from peft import IA3Config, LoKrConfig, LoraConfig, OFTConfig, PeftModel, PeftType, VeraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from lupi_trainer import KDLoRAConfig, KDLoRATrainer
from lupi_trainer.models.adapters import KINDS, check_adapters, check_base_untouched, load_adapter, merge_adapter
from lupi_trainer.models.head_check import check_head
from lupi_trainer.models.loading import load_model
from lupi_trainer.pruning.stages import load_stage, merge_stage
from lupi_trainer.speculative import AdapterDisabled
from tests.lupi_skd.training import make_trainer


IDS = torch.arange(3, 15)[None]
TARGETS = ["q_proj", "up_proj"]


def lora(**changes) -> LoraConfig:
    return LoraConfig(**{"r": 2, "target_modules": TARGETS, "task_type": "CAUSAL_LM"} | changes)


def base_model(config_class=Qwen2Config, depth: int = 2, tied: bool = False):
    """A tiny model whose layers have biases (Qwen2)."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": depth, "num_attention_heads": 2}
    config = config_class(vocab_size=600, num_key_value_heads=2, tie_word_embeddings=tied, **shape)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    for parameter in model.parameters():
        parameter.data *= 4
    return model


def train(model, steps: int = 2) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.3)
    model.train()
    for _ in range(steps):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@torch.no_grad()
def off(model, wanted) -> float:
    return (model(input_ids=IDS).logits - wanted).abs().max().item()


KEPT = [
    *(lora(init_lora_weights=start) for start in (True, False, "gaussian", "eva", "orthogonal", "mica")),
    lora(use_dora=True),
    lora(lora_bias=True),
    lora(modules_to_save=["embed_tokens"], trainable_token_indices=None),
    lora(trainable_token_indices=[3, 4]),
    lora(target_modules=[], target_parameters=["mlp.up_proj.weight"]),
    OFTConfig(r=0, oft_block_size=4, target_modules=TARGETS, task_type="CAUSAL_LM"),
    LoKrConfig(r=2, target_modules=TARGETS, task_type="CAUSAL_LM"),
    VeraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"),
    IA3Config(target_modules=TARGETS, feedforward_modules=["up_proj"], task_type="CAUSAL_LM"),
]
CHANGED = {
    "init_lora_weights='pissa'": lora(init_lora_weights="pissa"),
    "init_lora_weights='pissa_niter_4'": lora(init_lora_weights="pissa_niter_4"),
    "init_lora_weights='olora'": lora(init_lora_weights="olora"),
    "init_lora_weights='lora_ga'": lora(init_lora_weights="lora_ga"),
    "layer_replication=": lora(layer_replication=[(0, 2), (0, 2)]),
    "bias='all'": lora(bias="all"),
    "bias='lora_only'": lora(bias="lora_only"),
    "bias='oft_only'": OFTConfig(
        r=0, oft_block_size=4, target_modules=TARGETS, bias="oft_only", task_type="CAUSAL_LM"
    ),
}


def test_without_its_adapter_a_student_is_the_original_model_or_is_refused():
    with torch.no_grad():
        wanted = base_model()(input_ids=IDS).logits
    for config in KEPT:
        student = get_peft_model(base_model(), config)
        check_base_untouched(student, None)
        assert off(AdapterDisabled(student.eval()), wanted) == 0
        train(student)
        assert off(student, wanted) > 0 and off(AdapterDisabled(student), wanted) == 0, config
    for said, config in CHANGED.items():
        with pytest.raises(ValueError, match=f"original model .* {said}"):
            check_base_untouched(base_model(), config)
    for config in (lora(init_lora_weights="pissa"), lora(bias="all")):
        with pytest.raises(ValueError, match="original model with its adapter switched off"):
            check_base_untouched(get_peft_model(base_model(), config), None)
    student = get_peft_model(base_model(), lora())
    student.base_model.model.model.norm.weight.requires_grad_(True)
    with pytest.raises(ValueError, match="'base_model.model.model.norm.weight' would be trained"):
        check_base_untouched(student, None)
    student.base_model.model.model.norm.weight.requires_grad_(False)
    student.merge_adapter()
    with pytest.raises(ValueError, match="the adapter 'default' is merged into"):
        check_base_untouched(student, None)


def test_a_self_taught_run_refuses_what_would_move_its_teacher(tmp_path, teacher):
    with pytest.raises(ValueError, match="init_lora_weights='olora' changes that model"):
        make_trainer(tmp_path, teacher_model=None, peft_config=lora(init_lora_weights="olora"))
    with pytest.raises(ValueError, match="bias='all' changes that model"):
        make_trainer(tmp_path, model=get_peft_model(teacher, lora(bias="all")), teacher_model=None)
    assert not (tmp_path / "run").exists()


def test_a_trained_adapter_is_loaded_and_merged_as_it_was_trained(tmp_path, tokenizer):
    for number, (config_class, tied, config) in enumerate(
        [
            (Qwen2Config, False, lora(init_lora_weights="pissa")),
            (Qwen2Config, False, lora(init_lora_weights="olora")),
            (Qwen2Config, False, lora(bias="all")),
            (Qwen2Config, False, KEPT[-1]),
            (Qwen2Config, True, lora(target_modules=["embed_tokens"])),
            (LlamaConfig, False, lora(layer_replication=[(0, 2), (0, 1)])),
        ]
    ):
        folder = tmp_path / str(number)
        base_model(config_class, tied=tied).save_pretrained(folder / "base")
        student = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "base"), config)
        train(student)
        with torch.no_grad():
            wanted = student(input_ids=IDS).logits
        student.save_pretrained(folder / "adapter")
        tokenizer.save_pretrained(folder / "adapter")
        assert off(load_model(str(folder / "adapter"), device="cpu")[0], wanted) < 1e-3, config
        stage = load_stage(str(folder / "base"), None, 1, dtype="auto")
        merged = merge_stage(stage, str(folder / "adapter"), folder / "merged")
        assert off(AutoModelForCausalLM.from_pretrained(merged).eval(), wanted) < 1e-3, config
    with pytest.raises(ValueError, match=r"does not belong to this Qwen2ForCausalLM: \d+ weights are missing"):
        load_adapter(base_model(depth=3), str(tmp_path / "0" / "adapter"))


OF_KIND = {
    "ADALORA": {"total_step": 10},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 16},
    "FOURIERFT": {"n_frequency": 16},
    "GRALORA": {"r": 4, "gralora_k": 2},
    "IA3": {"feedforward_modules": ["up_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "OFT": {"r": 0, "oft_block_size": 4},
    "ROAD": {"group_size": 4},
    "TRAINABLE_TOKENS": {"token_indices": [3, 4, 5]},
    "VBLORA": {"num_vectors": 8, "vector_length": 8},
    "WAVEFT": {"n_frequency": 16},
    "XLORA": {"adapters": {}, "hidden_size": 32},
}
ONE_SHAPE = {"VERA", "PVERA", "FROD", "RANDLORA", "UNILORA", "VBLORA"}  # what their layers share


def of_kind(kind: str, **changes):
    """A configuration of a kind of adapter, as small as can be; None: it needs a library that is not installed."""
    config_class = peft.PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
    known = {field.name for field in fields(config_class)}
    small = {"r": 2, "target_modules": ["q_proj"] if kind in ONE_SHAPE else TARGETS} | OF_KIND.get(kind, {}) | changes
    try:
        return config_class(task_type="CAUSAL_LM", **{key: value for key, value in small.items() if key in known})
    except ImportError:
        return None


@pytest.mark.slow
def test_every_kind_of_peft_comes_back_as_it_was_trained_or_is_refused_by_name(tmp_path):
    base = base_model(LlamaConfig)
    with torch.no_grad():
        original = base(input_ids=IDS).logits
    adapters = {kind.value: of_kind(kind.value) for kind in PeftType}
    adapters["VBLORA, fewer weights saved"] = of_kind("VBLORA", save_only_topk_weights=True)
    adapters |= {f"{kind}, no projection saved": of_kind(kind, save_projection=False) for kind in ("VERA", "RANDLORA")}
    for kind, config in adapters.items():
        if config is None:
            assert kind not in KINDS
            continue
        if config.peft_type not in KINDS:
            with pytest.raises(ValueError, match=f"{type(config).__name__} is not supported"):
                check_adapters(base, config)
            continue
        check_adapters(base, config)
        check_base_untouched(base, config)
        student = get_peft_model(copy.deepcopy(base), config).eval()
        assert off(AdapterDisabled(student), original) == 0, kind
        train(student)
        check_head(student, "student")
        check_base_untouched(student, None)
        with torch.no_grad():
            wanted = student(input_ids=IDS).logits
        assert off(AdapterDisabled(student), original) == 0 and (wanted - original).abs().max() > 1e-3, kind
        student.save_pretrained(tmp_path / kind)
        loaded = load_adapter(copy.deepcopy(base), str(tmp_path / kind)).eval()
        assert off(loaded, wanted) < 1e-5, kind
        assert off(merge_adapter(loaded), wanted) < 1e-3, kind


def test_settings_of_lora_that_cannot_be_honored_are_refused(tmp_path):
    for key, value in {
        "alora_invocation_tokens": [5, 6],
        "kasa_config": peft.KasaConfig(),
        "monteclora_config": peft.MontecloraConfig(),
        "arrow_config": peft.ArrowConfig(),
    }.items():
        with pytest.raises(ValueError, match=f"{key} of LoraConfig is not supported: .*Leave it out"):
            make_trainer(tmp_path, peft_config=lora(**{key: value}))
    with pytest.raises(ValueError, match="lora_bias=True: .*q_proj has no bias of its own"):
        make_trainer(tmp_path, peft_config=lora(lora_bias=True))
    check_head(get_peft_model(base_model(Qwen2Config), lora(lora_bias=True, target_modules=["q_proj"])), "student")


def test_an_adapter_that_would_not_come_back_is_refused(tmp_path):
    for start in ("pissa_niter_4", "corda", "lora_ga"):
        with pytest.raises(ValueError, match=f"init_lora_weights='{start}' takes out of the base model"):
            check_adapters(base_model(), lora(init_lora_weights=start))
    args = KDLoRAConfig(str(tmp_path / "run"), bf16=False, use_cpu=True)
    with pytest.raises(ValueError, match="'pissa_niter_2' takes out of the base"):
        KDLoRATrainer("lab:student", "lab:teacher", args=args, peft_config=lora(init_lora_weights="pissa_niter_2"))
    student = get_peft_model(base_model(), lora(init_lora_weights="pissa_niter_2"))
    with pytest.raises(ValueError, match="'pissa_niter_2' takes out of the base"):
        make_trainer(tmp_path, model=student)
    assert isinstance(student, PeftModel)
