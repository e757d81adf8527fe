import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Ernie4_5_MoeConfig,
    Gemma3nTextConfig,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    YoutuConfig,
)

from lupi_trainer.cli import main
from lupi_trainer.pruning.influence import block_influence, choose_block
from lupi_trainer.pruning.layers import drop_layers, kept_layers, layer_file, restore_bundle, save_bundle
from lupi_trainer.pruning.stages import Stage, merge_stage


def make_model(family: str, depth: int = 6, dtype=torch.float32):
    common = {"vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    config = {
        "llama": lambda: LlamaConfig(**common, num_hidden_layers=depth, num_key_value_heads=2),
        "qwen3": lambda: Qwen3Config(**common, num_hidden_layers=depth, num_key_value_heads=1, head_dim=16),
        # five sliding layers, then a full one: which is which must follow the layers
        "gemma3": lambda: Gemma3TextConfig(
            **common, num_hidden_layers=depth + 1, num_key_value_heads=1, head_dim=16, sliding_window=4
        ),
        "gpt2": lambda: GPT2Config(vocab_size=120, n_embd=32, n_head=2, n_layer=depth, n_positions=64),
    }[family]()
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config)
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return model.to(dtype).eval()


def passing_through(model, dropped: list[int], ids):
    """Logits of the model with these layers passing their input through."""
    layers = [m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) > max(dropped)][0]
    hooks = []
    for number in dropped:
        hooks.append(
            layers[number].register_forward_hook(
                lambda _, args, out: (args[0], *out[1:]) if isinstance(out, tuple) else args[0]
            )
        )
    logits = model(ids, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return logits


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt2"])
def test_a_base_is_the_model_whose_dropped_layers_pass_through_and_restoring_gives_it_back(family, tmp_path):
    model = make_model(family)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    ids = torch.randint(0, 120, (2, 12), generator=torch.Generator().manual_seed(0))
    bundles = {"B": [1, 2], "C": [4]}
    base = drop_layers(model, bundles)
    assert torch.equal(base(ids).logits, passing_through(model, [1, 2, 4], ids))
    base.save_pretrained(tmp_path / "base")
    for name, numbers in bundles.items():
        save_bundle(tmp_path / name, name, model, numbers)
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == [
            "bundle_meta.json",
            *(f"layer_{n:03d}.safetensors" for n in numbers),
        ]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert loaded.config.num_hidden_layers == model.config.num_hidden_layers - 3
    assert torch.equal(loaded(ids).logits, base(ids).logits)

    with_c = restore_bundle(loaded, tmp_path / "C")
    assert torch.equal(with_c(ids).logits, passing_through(model, [1, 2], ids))
    assert loaded.config.num_hidden_layers == model.config.num_hidden_layers - 3  # and is left as it was
    restored = restore_bundle(with_c, tmp_path / "B")
    assert restored.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in restored.state_dict().items())
    ours, theirs = restored.config.to_dict(), model.config.to_dict()
    for key in ("_name_or_path", "architectures", "dtype", "transformers_version"):
        ours.pop(key, None), theirs.pop(key, None)
    assert ours == theirs
    assert torch.equal(restored(ids).logits, model(ids).logits)


EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2, "vocab_size": 120, "hidden_size": 32}
SHAPE = {"intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 4}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}


@pytest.mark.parametrize(
    "config, lost, kept",
    [
        # layer 3 is dense by its place; so are the layers 0 and 2 beside a step of 2
        (Qwen3MoeConfig(**EXPERTS, **SHAPE, head_dim=16, num_experts=4, mlp_only_layers=[3]), {"B": [1]}, None),
        # B alone, without C, would move layer 3
        (
            Qwen3MoeConfig(**EXPERTS, **SHAPE, head_dim=16, num_experts=4, decoder_sparse_step=2),
            {"B": [1], "C": [2]},
            {"B": [1, 2]},
        ),
        (
            DeepseekV3Config(
                **EXPERTS, **SHAPE, **LATENT, n_routed_experts=4, n_group=1, topk_group=1, first_k_dense_replace=2
            ),
            {"B": [0]},
            {"B": [2]},
        ),
        (
            Ernie4_5_MoeConfig(**EXPERTS, **SHAPE, moe_num_experts=4, moe_k=2, moe_layer_start_index=2),
            {"B": [1]},
            {"B": [3]},
        ),
        # the last layers can go, but C must not come back without B
        (
            GPT2Config(
                vocab_size=120, n_embd=32, n_head=2, n_layer=4, n_positions=64, scale_attn_by_inverse_layer_idx=True
            ),
            {"B": [2], "C": [3]},
            {"B": [2, 3]},
        ),
    ],
    ids=["mlp_only", "step", "first_dense", "first_sparse", "inverse_scale"],
)
def test_layers_that_are_what_they_are_by_their_place_stay_so_or_are_not_moved(config, lost, kept, tmp_path):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(ValueError, match=r"layer \d would be another one at place \d of \d"):
        drop_layers(model, lost)
    if kept is None:
        return
    ids = torch.randint(0, 120, (2, 12), generator=torch.Generator().manual_seed(0))
    base = drop_layers(model, kept)
    torch.testing.assert_close(base(ids).logits, passing_through(model, kept["B"], ids))
    save_bundle(tmp_path / "B", "B", model, kept["B"])
    back, before = restore_bundle(base, tmp_path / "B").state_dict(), model.state_dict()
    assert back.keys() == before.keys() and all(torch.equal(back[name], before[name]) for name in back)


def test_models_with_weights_or_numbers_for_single_layers_elsewhere_are_refused():
    shape = {"vocab_size": 120, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "head_dim": 8}
    shape |= {
        "num_key_value_heads": 1,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }
    shape |= {"vocab_size_per_layer_input": 120, "hidden_size_per_layer_input": 8, "num_kv_shared_layers": 0}
    for config, said in (
        (
            Gemma4TextConfig(**shape, per_layer_config={1: {"head_dim": 16}, 3: {"head_dim": 16}}),
            r"Gemma4TextConfig with .*per_layer_config",
        ),
        (
            Gemma3nTextConfig(**shape, laurel_rank=4),
            "Gemma3nForCausalLM of 3 layers has another shape of 'model.embed_",
        ),
    ):
        with pytest.raises(ValueError, match=f"{said}.* cannot lose layers"):
            drop_layers(AutoModelForCausalLM.from_config(config).eval(), {"B": [2]})


def test_a_model_whose_forward_computes_by_a_layers_place_is_refused(monkeypatch):
    model = make_model("llama")
    attention = type(model.model.layers[0].self_attn)
    before = attention.forward

    def by_place(self, hidden_states, *args, **kwargs):
        return before(self, hidden_states / (self.layer_idx + 1), *args, **kwargs)

    monkeypatch.setattr(attention, "forward", by_place)
    with pytest.raises(ValueError, match="layer 2 would be off by .* in the 5 layers"):
        drop_layers(model, {"B": [1]})


def test_bfloat16_comes_back_bit_for_bit_by_the_commands(tmp_path):
    model = make_model("llama", depth=8, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    arguments = ["prune", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--drop", "2-4", "--bundle", "B", "--drop", "5-6", "--bundle", "C"]) == 0
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "base")
    assert kept_layers(base.config) == [0, 1, 7] and base.dtype == torch.bfloat16
    meta = json.loads((tmp_path / "out" / "bundles" / "B" / "bundle_meta.json").read_text())
    assert meta["layers"] == [2, 3, 4] and meta["num_hidden_layers"] == 8
    arguments = ["restore", "--base", str(tmp_path / "out" / "base"), "--out", str(tmp_path / "back")]
    for name in "CB":  # in any order
        arguments += ["--bundle", str(tmp_path / "out" / "bundles" / name)]
    assert main(arguments) == 0
    ours, theirs = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "back"))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_weights_that_loading_would_round_are_refused():
    model = make_model("llama", dtype=torch.bfloat16)
    model.model.layers[0].mlp.up_proj.float()
    with pytest.raises(ValueError, match="'model.layers.0.mlp.up_proj.weight' is torch.float32 in a model of torch.b"):
        drop_layers(model, {"B": [2]})


def test_a_base_shares_no_weights_with_the_model_and_those_that_loading_writes_into_are_refused(tmp_path):
    model = make_model("llama")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    save_bundle(tmp_path / "B", "B", model, [2])
    base = drop_layers(model, {"B": [2]})
    back = restore_bundle(base, tmp_path / "B")
    for made in (back, base):
        for p in made.parameters():
            p.data.zero_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    common = {**LATENT, "vocab_size": 120, "hidden_size": 32, "head_dim": 8, "pad_token_id": 0}
    model = AutoModelForCausalLM.from_config(YoutuConfig(**common, **SHAPE, tie_word_embeddings=True)).eval()
    torch.nn.init.normal_(model.model.embed_tokens.weight)  # a row for padding, too, which loading makes zero
    before = model.model.embed_tokens.weight.clone()
    with pytest.raises(ValueError, match="'(lm_head|model.embed_tokens).weight' does not come back as it was: Youtu"):
        drop_layers(model, {"B": [2]})
    assert torch.equal(model.model.embed_tokens.weight, before)


def test_block_influence_finds_the_layers_that_do_the_least():
    model = make_model("llama", depth=6)
    for number in (2, 3):  # these add next to nothing to the residual stream
        layer = model.model.layers[number]
        layer.self_attn.o_proj.weight.data *= 1e-3
        layer.mlp.down_proj.weight.data *= 1e-3
    rows = torch.randint(0, 120, (3, 9), generator=torch.Generator().manual_seed(0)).tolist()
    influence = block_influence(model, rows)
    assert choose_block(influence, model.config, 2, set()) == [2, 3]
    assert choose_block(influence, model.config, 1, {2}) == [3]
    assert not {2, 3} & set(choose_block(influence, model.config, 2, {2, 3}))
    # beside the definition: states from the model's own output, but the last, which is normed there
    states = model(torch.tensor([rows[0]]), output_hidden_states=True).hidden_states
    alone = block_influence(model, rows[:1])
    wanted = 1 - torch.cosine_similarity(states[1][0].double(), states[4][0].double(), dim=-1).mean()
    assert alone[1, 4].item() == pytest.approx(wanted.item(), abs=1e-7)
    with pytest.raises(ValueError, match="there are no 5 consecutive layers to drop"):
        choose_block(influence, model.config, 5, {0})
    with pytest.raises(ValueError, match="needs some text"):
        block_influence(model, [])


def test_the_command_chooses_layers_by_influence(tmp_path, capsys):
    arguments = ["prune", "--model", "lab:teacher", "--data", "lab:qa", "--samples", "4", "--out", str(tmp_path / "o")]
    assert main([*arguments, "--drop", "least:1", "--bundle", "B", "--drop", "0", "--bundle", "C"]) == 0
    assert "bundle B: layers" in capsys.readouterr().out
    meta = json.loads((tmp_path / "o" / "bundles" / "B" / "bundle_meta.json").read_text())
    assert meta["layers"] != [0] and len(meta["layers"]) == 1


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A pruned model of six layers on disk: `model`, `base`, `B` (1 and 2), `C` (4)."""
    folder = tmp_path_factory.mktemp("pruned")
    model = make_model("llama")
    model.save_pretrained(folder / "model")
    drop_layers(model, {"B": [1, 2], "C": [4]}).save_pretrained(folder / "base")
    save_bundle(folder / "B", "B", model, [1, 2])
    save_bundle(folder / "C", "C", model, [4])
    return folder


def altered(pruned, tmp_path, **changes):
    """A copy of bundle B with other words in its description."""
    shutil.copytree(pruned / "B", tmp_path / "B")
    path = tmp_path / "B" / "bundle_meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return tmp_path / "B"


def test_a_bundle_that_does_not_fit_is_refused(pruned, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(pruned / "base")
    with pytest.raises(ValueError, match="layer 9 is out of range for a model of 6 layers"):
        restore_bundle(base, altered(pruned, tmp_path / "1", layers=[1, 9]))
    with pytest.raises(ValueError, match="is of a llama model of width 64 and 6 layers"):
        restore_bundle(base, altered(pruned, tmp_path / "2", hidden_size=64))
    with pytest.raises(ValueError, match="the model has layer 1 already"):
        restore_bundle(restore_bundle(base, pruned / "B"), pruned / "B")
    with pytest.raises(FileNotFoundError, match="no bundle in .*nowhere: there is no bundle_meta.json"):
        restore_bundle(base, tmp_path / "nowhere")
    missing = altered(pruned, tmp_path / "3")
    (missing / layer_file(2)).unlink()
    with pytest.raises(FileNotFoundError, match=r"the file of layer 2 is missing \(layer_002.safetensors\)"):
        restore_bundle(base, missing)
    torn = altered(pruned, tmp_path / "4")
    weights = load_file(torn / layer_file(2))
    weights.pop("mlp.up_proj.weight")
    save_file(weights, torn / layer_file(2))
    with pytest.raises(
        ValueError, match="these weights are missing or unknown, or have another shape: .'mlp.up_proj.weight'"
    ):
        restore_bundle(base, torn)
    (torn / layer_file(2)).write_bytes((pruned / "B" / layer_file(2)).read_bytes()[:-100])
    with pytest.raises(ValueError, match="layer_002.safetensors cannot be read"):
        restore_bundle(base, torn)
    (torn / "bundle_meta.json").write_text("{")
    with pytest.raises(ValueError, match="does not describe a bundle"):
        restore_bundle(base, torn)
    with pytest.raises(FileExistsError, match="there is a bundle in .* already; nothing was written"):
        save_bundle(pruned / "B", "B", base, [0])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--drop", "1-9", "--bundle", "B"], "bundle 'B': layer 6 is out of range; the model has the layers 0-5"),
        (["--drop", "1-2", "--bundle", "B", "--drop", "2", "--bundle", "C"], "layer 2 is in the bundles 'B' and 'C'"),
        (["--drop", "0-5", "--bundle", "B"], "no layer would be left"),
        (["--drop", "3-1", "--bundle", "B"], "--drop takes a range of layers such as 21-28"),
        (["--drop", "x", "--bundle", "B"], "--drop takes a range of layers such as 21-28"),
        (["--drop", "1", "--bundle", "B", "--drop", "2"], "every --drop needs its --bundle: got 2 and 1"),
        (["--drop", "1", "--bundle", "B", "--drop", "2", "--bundle", "B"], "two bundles of one name"),
        (["--drop", "least:2", "--bundle", "B"], "name it with --data"),
        (["--drop", "1", "--bundle", "B_merged"], "are those of the bundles that `lupi merge` writes"),
    ],
)
def test_prune_says_what_is_wrong_and_writes_nothing(pruned, tmp_path, arguments, message, capsys):
    out = tmp_path / "out"
    assert main(["prune", "--model", str(pruned / "model"), "--out", str(out), *arguments]) == 2
    assert message in capsys.readouterr().err and not out.exists()


def test_only_a_complete_model_is_written(tmp_path, pruned, capsys):
    from peft import LoraConfig, get_peft_model

    model = make_model("llama")
    adapter = get_peft_model(make_model("llama"), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    adapter.base_model.model.config.name_or_path = str(pruned / "model")
    adapter.save_pretrained(tmp_path / "adapter")
    weights = model.state_dict()
    lacking = {k: v for k, v in weights.items() if k != "model.layers.3.mlp.up_proj.weight"}
    model.save_pretrained(tmp_path / "lacking", state_dict=lacking)
    model.save_pretrained(tmp_path / "strange", state_dict=weights | {"value_head.weight": torch.zeros(1, 32)})
    model.save_pretrained(tmp_path / "quantized")
    config = json.loads((tmp_path / "quantized" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "quantized" / "config.json").write_text(json.dumps(config))
    out = tmp_path / "out"
    for name, message in {
        "adapter": f"{tmp_path / 'adapter'} is an adapter, and a model is wanted",
        "lacking": "lack 1 weights that do not fit (model.layers.3.mlp.up_proj.weight)",
        "strange": "have 1 weights that do not fit (value_head.weight)",
        "quantized": "is quantized",
    }.items():
        folder = str(tmp_path / name)
        commands = [
            ["prune", "--model", folder, "--drop", "1", "--bundle", "B", "--out", str(out)],
            ["restore", "--base", folder, "--bundle", str(pruned / "B"), "--out", str(out)],
            ["merge", "--base_dir", folder, "--adapter", str(tmp_path / "adapter"), "--out", str(out)],
        ]
        for command in commands if name == "lacking" else commands[:1]:
            assert main(command) == 2
            assert message in capsys.readouterr().err and not out.exists()
    with pytest.raises(ValueError, match="has an adapter in its layers"):
        drop_layers(adapter, {"B": [1]})


def test_nothing_is_overwritten(pruned, capsys):
    assert main(["prune", "--model", "lab:teacher", "--drop", "1", "--bundle", "B", "--out", str(pruned)]) == 2
    assert main(["restore", "--base", str(pruned / "base"), "--bundle", str(pruned / "B"), "--out", str(pruned)]) == 2
    assert capsys.readouterr().err.count("exists already; nothing was written") == 2


def test_a_base_and_a_merged_model_are_saved_whatever_their_generation_config(tmp_path):
    make_model("llama").save_pretrained(tmp_path / "model")
    (tmp_path / "model/generation_config.json").write_text('{"temperature": 0.9, "top_k": 7}')
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    model.generation_config.pad_token_id = 3  # as trainers do
    with pytest.warns(UserWarning, match="temperature=0.9 had no effect"):
        drop_layers(model, {"B": [2]}).save_pretrained(tmp_path / "base")
    assert model.generation_config.temperature == 0.9, "the model is left as it is"
    adapted = get_peft_model(make_model("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    with pytest.warns(UserWarning, match="temperature=0.9 had no effect"):
        merge_stage(Stage(model, None, list(range(6))), str(tmp_path / "adapter"), tmp_path / "merged")
    for name in ("base", "merged"):
        assert GenerationConfig.from_pretrained(tmp_path / name).pad_token_id == 3
