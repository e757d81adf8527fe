"""Heads beside a model: what they say at first, their files, and what is refused."""

import json

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

from lupi_trainer import MTPHeads
from lupi_trainer.models.mtp_heads import HEAD_TYPES, ValueHead, attach_mtp_heads
from lupi_trainer.publishing.push import push_folder
from tests.speculative.toy_models import FAMILIES, MORE_FAMILIES, toy


@pytest.mark.parametrize("head_type", HEAD_TYPES)
@pytest.mark.parametrize("family", FAMILIES + MORE_FAMILIES)
def test_new_heads_say_what_the_model_says_and_can_learn_something_else(family, head_type):
    model = toy(family)
    heads = MTPHeads.for_model(model, 3, head_type)
    ids = torch.tensor([[4, 9, 11, 30, 5]])
    hidden = model.base_model(ids, use_cache=False).last_hidden_state
    first, *ahead = heads(hidden)
    assert first is hidden and len(ahead) == 2
    for state in ahead:
        torch.testing.assert_close(model.lm_head(state), model(ids).logits)
    torch.stack(ahead).square().sum().backward()
    for name, parameter in heads.named_parameters():
        if "norm" not in name and "qkv" not in name and "up" not in name:  # behind maps that are zero at first
            assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("head_type", HEAD_TYPES)
def test_saved_and_loaded_they_are_the_same(tmp_path, head_type):
    model = toy("llama")
    heads = MTPHeads.for_model(model, 4, head_type, window=7)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter)
    heads.save_pretrained(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mtp_heads.json", "mtp_heads.safetensors"]
    again = MTPHeads.from_pretrained(tmp_path)
    hidden = torch.randn(2, 9, 32)
    for ours, theirs in zip(heads(hidden), again(hidden)):
        assert torch.equal(ours, theirs)


def test_attached_heads_are_left_out_of_the_models_own_files(tmp_path):
    model = toy("qwen3")
    attach_mtp_heads(model, MTPHeads.for_model(model, 3))
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert not any("mtp" in name for name in loaded.state_dict())
    assert all(torch.equal(p, loaded.state_dict()[name]) for name, p in toy("qwen3").state_dict().items())
    assert any(name.startswith("mtp_heads.") for name, _ in model.named_parameters())


def damage(tmp_path, what):
    settings = tmp_path / "mtp_heads.json"
    if what == "settings":
        settings.unlink()
    elif what == "weights":
        (tmp_path / "mtp_heads.safetensors").unlink()
    elif what == "cut":
        (tmp_path / "mtp_heads.safetensors").write_bytes(b"nothing")
    elif what == "not json":
        settings.write_text("{")
    else:
        settings.write_text(json.dumps({**json.loads(settings.read_text()), **what}))


@pytest.mark.parametrize(
    "what, error, message",
    [
        ("settings", FileNotFoundError, "no mtp_heads.json"),
        ("weights", FileNotFoundError, "no mtp_heads.safetensors"),
        ("cut", ValueError, "cannot be read"),
        ("not json", ValueError, "does not describe MTPHeads"),
        ({"color": 3}, ValueError, "does not describe MTPHeads"),
        ({"horizon": 5}, ValueError, r"'heads.3.linear.bias' is missing there"),
        ({"horizon": 3}, ValueError, r"'heads.2.linear.bias' is \(32,\) there, and unknown"),
        ({"hidden_size": 16}, ValueError, r"'heads.0.linear.bias' is \(32,\) there, and \(16,\)"),
        ({"head_type": "linear"}, ValueError, "and unknown in MTPHeads"),
        ({"horizon": 0}, ValueError, "must be at least 1"),
    ],
)
def test_missing_and_misshapen_heads_are_an_error(tmp_path, what, error, message):
    MTPHeads(4, "residual", hidden_size=32).save_pretrained(tmp_path)
    damage(tmp_path, what)
    with pytest.raises(error, match=message):
        MTPHeads.from_pretrained(tmp_path)


def test_what_cannot_be_made_is_said():
    with pytest.raises(ValueError, match="hidden size of 16; the model's is 32"):
        attach_mtp_heads(toy("llama"), MTPHeads(hidden_size=16))
    with pytest.raises(ValueError, match="head_type must be one of"):
        MTPHeads(head_type="medusa", hidden_size=8)
    with pytest.raises(ValueError, match="3 attention heads do not divide"):
        MTPHeads(head_type="transformer", hidden_size=8, num_attention_heads=3)


def test_a_new_critic_says_zero_and_scales_what_it_learns():
    hidden = torch.randn(2, 3, 8)
    assert ValueHead(8)(hidden).abs().max() == 0 and ValueHead(8)(hidden).shape == (2, 3)
    critic = ValueHead(8, scale=5.0)
    critic.down.bias.data.fill_(1.0)
    assert critic(hidden).unique().item() == 5.0


def test_heads_are_pushed_with_their_model_and_loaded_from_the_hub(hub, tmp_path, student, tokenizer, monkeypatch):
    folder = tmp_path / "run"
    student.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlibrary_name: transformers\n---\n# A student\n")
    heads = MTPHeads.for_model(student, 3, "transformer")
    heads.save_pretrained(folder)
    push_folder(folder, "me/student")
    address = f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    cache = {"cache_dir": tmp_path / "cache"}
    loaded = MTPHeads.from_pretrained("me/student", **cache)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in heads.state_dict().items())
    attach_mtp_heads(AutoModelForCausalLM.from_pretrained("me/student", **cache), loaded)
    with pytest.raises(FileNotFoundError, match="no mtp_heads.json to be found at 'me/nobody'"):
        MTPHeads.from_pretrained("me/nobody", **cache)
