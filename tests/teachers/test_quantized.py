"""A teacher in 4 bits, on the CPU as on a GPU."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from lupi_trainer.kd_lora.quantization import quantization_kl
from lupi_trainer.teachers.loaded import load_teacher
from tests.kd_lora.training import lab_tokenizer, labeled_dataset, make_kd_trainer
from tests.lupi_skd.training import make_config, make_trainer


bnb = pytest.importorskip("bitsandbytes")


@pytest.fixture(scope="module")
def teacher_path(tmp_path_factory):
    """A teacher of the Llama family in which the linear layers are most of the weights, as in a real one."""
    tokenizer = lab_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    path = tmp_path_factory.mktemp("teacher")
    model = AutoModelForCausalLM.from_config(config)
    for name, p in model.named_parameters():
        if "norm" not in name:
            p.data.normal_(std=0.06)  # wider than at the start of a training: distributions that are not flat
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


@pytest.mark.parametrize(
    "saved, asked, expected",
    [
        ("bfloat16", "auto", torch.bfloat16),
        ("float16", "auto", torch.float16),
        ("float32", "auto", torch.float32),
        ("bfloat16", "float32", torch.float32),
    ],
)
def test_4_bits_compute_in_the_type_of_the_checkpoint(tmp_path, teacher_path, monkeypatch, saved, asked, expected):
    config = json.loads(Path(teacher_path, "config.json").read_text()) | {"dtype": saved}
    (tmp_path / "config.json").write_text(json.dumps(config))
    args = make_config(tmp_path, teacher_load_in_4bit=True, teacher_dtype=asked)
    given = []
    monkeypatch.setattr(
        AutoModelForCausalLM, "from_pretrained", lambda _, **options: given.append(options) or nn.Linear(1, 1)
    )
    load_teacher(str(tmp_path), args, torch.device("cpu"))
    assert given[0]["quantization_config"].bnb_4bit_compute_dtype == expected
    assert given[0]["dtype"] == ("auto" if asked == "auto" else expected)

    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != "dtype"}))
    if asked == "auto":
        with pytest.raises(ValueError, match="does not say which type its weights have.*set teacher_dtype"):
            load_teacher(str(tmp_path), args, torch.device("cpu"))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.slow
def test_a_4bit_teacher_trains_the_student_in_a_fraction_of_the_memory(tmp_path, teacher_path, nested):
    trainer, losses = make_kd_trainer(
        tmp_path,
        teacher_model=teacher_path,
        config_max_steps=6,
        config_kd_alpha=0.9,
        config_teacher_load_in_4bit=True,
        config_teacher_use_bnb_nested_quant=nested,
        config_learning_rate=3e-2,
        config_teacher_quantization_samples=4,
    )
    full = AutoModelForCausalLM.from_pretrained(teacher_path)
    kinds = [type(m).__name__ for m in trainer.teacher_model.modules()]
    assert kinds.count("Linear4bit") == 6 * 7
    share = trainer.teacher_model.get_memory_footprint() / full.get_memory_footprint()
    print(f"4-bit teacher, nested={nested}: {share:.3f} of the float32 memory")
    assert share < 0.4
    trainer.train()
    assert losses.logs[-1]["loss/kd"] < 0.9 * losses.logs[0]["loss/kd"]

    # its error: beside the definition, from the full logits of both
    total, count = 0.0, 0
    with torch.no_grad():
        for row in trainer.train_dataset.select(range(4)):
            ids = torch.tensor([row["input_ids"]])
            places = [i for i, label in enumerate(row["labels"][1:]) if label != -100]
            p, q = (m(ids).logits[0, places].double().log_softmax(-1) for m in (full, trainer.teacher_model))
            total += (p.exp() * (p - q)).sum().item()
            count += len(places)
    assert trainer.quantization_kl == pytest.approx(total / count, rel=1e-3)
    assert 0 < trainer.quantization_kl < 1 and math.isfinite(trainer.quantization_kl)
    assert losses.logs[0]["teacher/quantization_kl"] == trainer.quantization_kl


def test_a_4bit_teacher_writes_and_teaches_as_its_dequantized_weights_do(tmp_path, teacher_path):
    options = {"config_max_steps": 2, "config_per_device_train_batch_size": 2, "config_max_completion_length": 8}
    quantized, losses = make_trainer(tmp_path, teacher_model=teacher_path, config_teacher_load_in_4bit=True, **options)
    full = AutoModelForCausalLM.from_pretrained(teacher_path)
    layers = {n: m for n, m in quantized.teacher_model.named_modules() if isinstance(m, bnb.nn.Linear4bit)}
    assert len(layers) == 6 * 7
    for name, layer in layers.items():
        weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
        assert not torch.equal(weight, full.get_submodule(name).weight)
        full.get_submodule(name).weight.data = weight
    quantized.train()
    trainer, expected = make_trainer(tmp_path, teacher_model=full, **options)
    trainer.train()
    assert losses.losses == pytest.approx(expected.losses, rel=1e-4)
    for ours, theirs in zip(losses.logs, expected.logs):
        names = ("tokens/total_drafted", "tokens/total_accepted", "tokens/teacher_share")
        assert [ours[name] for name in names] == pytest.approx([theirs[name] for name in names])
        assert ours["tokens/teacher_share"] > 0


def test_a_teacher_that_is_not_quantized_has_no_error(teacher_path):
    tokenizer = lab_tokenizer()
    model = AutoModelForCausalLM.from_pretrained(teacher_path).eval()
    rows = labeled_dataset(tokenizer, count=2)
    batches = ({k: torch.tensor([v]) for k, v in row.items()} for row in rows)
    assert quantization_kl(model, model, batches) == pytest.approx(0.0, abs=1e-6)
