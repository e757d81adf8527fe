"""Students and teachers in 4 bits, on a CPU where bitsandbytes packs what is run in eval mode."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

from lupi_trainer.models.loading import keep_4bit_exact
from lupi_trainer.scripts import sft
from lupi_trainer.teachers.loaded import load_teacher
from lupi_trainer.wmtp.reference import load_reference
from tests.kd_lora.training import lab_tokenizer, make_kd_trainer
from tests.lupi_skd.training import Losses, make_config, make_trainer
from tests.wmtp.training import make_wmtp_config, make_wmtp_trainer


bnb = pytest.importorskip("bitsandbytes")


@pytest.fixture(autouse=True)
def packing(monkeypatch):
    """Layers pack themselves as on a CPU with AVX512-BF16, whichever this is."""
    monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: True)


def save_model(path) -> str:
    """A model whose widths bitsandbytes can pack."""
    tokenizer = lab_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def four_bit(path: str, **options):
    config = BitsAndBytesConfig(load_in_4bit=True, **options)
    return AutoModelForCausalLM.from_pretrained(path, quantization_config=config)


def layers_of(model) -> list:
    return [m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]


def make_sft_trainer(tmp_path, model, **_):
    flags = f"--model_name_or_path {model} --dataset_name lab:common --load_in_4bit --use_peft --lora_r 4 --use_cpu"
    flags += f" --output_dir {tmp_path} --max_steps 2 --logging_steps 1 --bf16 false --report_to none"
    flags += " --learning_rate 1e-3"
    trainer = sft.build_trainer(*sft.make_parser().parse_args_and_config(flags.split()))
    losses = Losses()
    trainer.add_callback(losses)
    return trainer, losses


def make_self_taught(tmp_path, model, **options):
    return make_trainer(tmp_path, model, teacher_model=None, **options)


def make_baseline(tmp_path, model, **options):
    return make_wmtp_trainer(tmp_path, "mtp-baseline", model, **options)


def make_critic(tmp_path, model, **options):
    return make_wmtp_trainer(tmp_path, "critic-wmtp", model, **options)


@pytest.mark.parametrize(
    "make", [make_trainer, make_self_taught, make_kd_trainer, make_baseline, make_critic, make_sft_trainer]
)
@pytest.mark.grid(3)
def test_a_4bit_student_learns(tmp_path, small_lab, make):
    trainer, losses = make(
        tmp_path,
        save_model(tmp_path / "model"),
        peft_config=LoraConfig(r=4, task_type="CAUSAL_LM"),
        quantization_config=BitsAndBytesConfig(load_in_4bit=True),
        config_max_steps=2,
    )
    assert len(layers_of(trainer.model)) == 2 * 7
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if "lora" in n}
    assert len(before) == 2 * 2 * 2
    if make in (make_kd_trainer, make_baseline, make_sft_trainer):  # the others run the student in eval mode anyway
        trainer.evaluate(trainer.train_dataset.select(range(4)))
    trainer.train()
    # without the processor's own kernel a packed layer has a backward, but is another layer
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers_of(trainer.model))
    assert all(log["grad_norm"] > 0 for log in losses.logs) and len(losses.logs) == 2
    assert not any(torch.equal(p, before[n]) for n, p in trainer.model.named_parameters() if n in before)


def test_a_4bit_student_may_have_widths_that_cannot_be_packed(tmp_path):
    trainer, losses = make_trainer(
        tmp_path,
        peft_config=LoraConfig(r=4, task_type="CAUSAL_LM"),
        config_max_steps=1,
        quantization_config=BitsAndBytesConfig(load_in_4bit=True),
    )
    assert any(layer.in_features % 64 for layer in layers_of(trainer.model))
    trainer.train()
    assert losses.logs[0]["grad_norm"] > 0


def load_as_teacher(model, tmp_path):
    return load_teacher(model, make_config(tmp_path), torch.device("cpu"))


def load_as_reference(model, tmp_path):
    student: Any = SimpleNamespace(config=model.config)  # of which the vocabulary alone is read
    return load_reference(model, make_wmtp_config(tmp_path), student, lab_tokenizer()).model


@pytest.mark.parametrize("load", [load_as_teacher, load_as_reference])
def test_a_frozen_model_is_its_dequantized_weights(tmp_path, load):
    model = load(four_bit(save_model(tmp_path / "model")), tmp_path)
    x = torch.randn(3, 5, 128)
    for layer in layers_of(model):
        if layer.in_features == 128:
            weight = bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
            torch.testing.assert_close(layer(x), nn.functional.linear(x, weight))
            assert not layer.training and not layer.weight.quant_state.nested


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("storage", [torch.uint8, torch.float32])
def test_what_was_packed_before_is_unpacked_with_a_word_on_its_scales(tmp_path, nested, storage):
    options = {"bnb_4bit_use_double_quant": nested, "bnb_4bit_quant_storage": storage}
    exact, model = (four_bit(save_model(tmp_path / "model"), **options).eval() for _ in range(2))
    keep_4bit_exact(exact)
    for layer in layers_of(model):  # as its forward does
        state = layer.weight.quant_state
        layer.weight.data, _ = bnb.nn.modules._convert_weight_packed_for_cpu(layer.weight.data, state)
    with pytest.warns(UserWarning, match="14 4-bit layers of LlamaForCausalLM were run in eval mode before"):
        keep_4bit_exact(model)
    for ours, theirs in zip(layers_of(model), layers_of(exact)):
        assert torch.equal(ours.weight.data.view(torch.uint8), theirs.weight.data.view(torch.uint8))
        got, expected = (
            bnb.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state) for layer in (ours, theirs)
        )
        assert got.dtype == expected.dtype and not torch.equal(got, expected)
        # scales have 8 significant bits, and are off by half a unit of the last at most
        torch.testing.assert_close(got, expected, rtol=2**-8, atol=0)
        x = torch.randn(4, ours.in_features, requires_grad=True)
        out = ours(x)
        torch.testing.assert_close(out, nn.functional.linear(x, got))
        out.sum().backward()
        torch.testing.assert_close(x.grad, got.sum(0).expand(4, -1))
