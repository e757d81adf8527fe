"""Families whose modules or weights change when a model is used."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BigBirdConfig,
    OpenAIGPTConfig,
    Qwen3NextConfig,
    RecurrentGemmaConfig,
    RwkvConfig,
)

from lupi_trainer.cli import main
from lupi_trainer.pruning.influence import block_influence
from lupi_trainer.pruning.layers import drop_layers, restore_bundle, save_bundle


WIDTHS = {"vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}


def test_what_forwards_leave_in_a_model_is_no_difference(tmp_path):
    for name, config, dropped in (
        ("recurrent", RecurrentGemmaConfig(**WIDTHS, num_hidden_layers=6, lru_width=32), [3, 4, 5]),
        ("openai", OpenAIGPTConfig(vocab_size=120, n_embd=32, n_head=2, n_layer=4, n_positions=64), [1]),
        ("big_bird", BigBirdConfig(**WIDTHS, num_hidden_layers=3, is_decoder=True, use_cache=True), [1]),
        ("sparse", BigBirdConfig(**WIDTHS, num_hidden_layers=3, attention_type="block_sparse", block_size=4), [1]),
    ):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
        ids = torch.randint(0, 120, (2, 12), generator=torch.Generator().manual_seed(0))
        before = model(ids).logits
        base = drop_layers(model, {"B": dropped})
        base(ids)
        save_bundle(tmp_path / name, "B", model, dropped)
        back = restore_bundle(base, tmp_path / name)
        assert torch.equal(back(ids).logits, before), name
        assert all(torch.equal(value, back.state_dict()[key]) for key, value in model.state_dict().items())


def test_a_base_that_would_not_run_is_refused():
    attention = {"num_key_value_heads": 1, "head_dim": 16, "linear_num_value_heads": 2, "linear_num_key_heads": 2}
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}
    config = Qwen3NextConfig(**WIDTHS, **attention, **experts, shared_expert_intermediate_size=16, num_hidden_layers=4)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert set(config.layer_types[:3]) == {"linear_attention"} and config.layer_types[3] == "full_attention"
    with pytest.raises(
        ValueError, match=r"Qwen3NextForCausalLM does not run on the layers \[0, 1, 2\] alone: .*[Cc]ache"
    ):
        drop_layers(model, {"B": [3]})
    drop_layers(model, {"B": [1]})


def test_a_model_that_divides_its_weights_is_refused_before_it_reads(tmp_path, capsys):
    model = AutoModelForCausalLM.from_config(RwkvConfig(**WIDTHS, num_hidden_layers=4, rescale_every=2)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    said = "the RwkvForCausalLM is a rwkv model, which in eval mode divides the weights .*rescale_every=2"
    for refused in (lambda: drop_layers(model, {"B": [1]}), lambda: block_influence(model, [[1, 2, 3]])):
        with pytest.raises(ValueError, match=said):
            refused()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    command = ["prune", "--model", str(tmp_path / "model"), "--bundle", "B", "--out", str(out), "--drop", "1"]
    assert (
        main(command) == 2
        and "is a rwkv model, which in eval mode divides" in capsys.readouterr().err
        and not out.exists()
    )
