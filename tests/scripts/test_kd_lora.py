"""`lupi kd`, `lupi merge`, `lupi evaluate --perplexity`: flags, stages and what they refuse."""

import json
import math
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from lupi_trainer.cli import main
from lupi_trainer.data.squad import load_qa_records, tokenize_qa
from lupi_trainer.evaluation import perplexity
from lupi_trainer.lab import resolve_model
from lupi_trainer.pruning.layers import restore_bundle
from lupi_trainer.pruning.stages import Stage, check_trained, restrict_adapter
from lupi_trainer.scripts.kd_lora import make_parser
from lupi_trainer.scripts.recipe_files import find_recipe
from tests.kd_lora.training import lab_tokenizer
from tests.models.families import tiny_model


TINY = ["--seq_len", "256", "--bf16", "false", "--use_cpu", "true", "--gradient_checkpointing", "false"]
TINY += ["--report_to", "none", "--max_samples", "16", "--max_eval_samples", "8", "--bs", "8", "--grad_acc", "1"]
DATA = ["--qa_dataset", "lab:qa", "--eval_dataset_name", "lab:qa-eval", "--save_strategy", "no", "--max_steps", "2"]


def kd(out, *flags, base="lab:teacher") -> int:
    arguments = ["kd", "--base_dir", str(base), "--teacher_model", "lab:teacher", "--out_adapters", str(out)]
    return main([*arguments, *TINY, *DATA, "--eval_strategy", "epoch", "--lr", "1e-2", *map(str, flags)])


def test_the_short_flags_are_the_recipe_s_keys(tmp_path):
    flags = "--base_dir A --bundles_dir D --stage 1 --out_adapters OUT --qa_dataset squad --max_samples 20000"
    flags += " --max_eval_samples 8000 --seq_len 1024 --lr 3e-4 --epochs 2 --bs 1 --grad_acc 32 --lora_r 8"
    flags += " --lora_alpha 16 --use_kd --teacher_model meta-llama/Llama-2-7b-chat-hf --teacher_4bit"
    flags += " --teacher_device paired --kd_alpha 0.2 --kd_T 2.0 --bf16 false --use_cpu true"
    by_flags = make_parser().parse_args_and_config(flags.split())
    recipe = str(find_recipe("kd_lora/exp5_optimal.yaml"))
    by_recipe = make_parser().parse_args_and_config(["--config", recipe, "--bf16", "false", "--use_cpu", "true"])
    for key in (
        "dataset_name stage max_samples max_eval_samples max_length learning_rate num_train_epochs lora_r lora_alpha "
        "per_device_train_batch_size gradient_accumulation_steps use_kd use_peft teacher_model_name_or_path "
        "teacher_load_in_4bit teacher_device kd_alpha kd_temperature"
    ).split():
        ours, theirs = (next(getattr(p, key) for p in parsed if hasattr(p, key)) for parsed in (by_flags, by_recipe))
        assert ours == theirs, key
    qa, training_args, model_args = by_flags
    assert (model_args.model_name_or_path, qa.bundles_dir, training_args.output_dir) == ("A", "D", "OUT")


def test_the_help_says_the_short_names(capsys):
    assert main(["kd", "--help"]) == 0
    assert "--kd_T (kd_temperature)" in capsys.readouterr().out


def test_the_seven_recipes_have_the_values_that_they_are_named_for():
    table = {
        "exp1_baseline": (2e-4, 1, 8, 16, 0.1, 2.0, "< 19.0"),
        "exp2_higher_lr": (3e-4, 1, 8, 16, 0.1, 2.0, "17-18"),
        "exp3_more_epochs": (2e-4, 3, 8, 16, 0.1, 2.0, "16-17"),
        "exp4_higher_alpha": (2e-4, 1, 8, 16, 0.3, 2.0, "17-18"),
        "exp5_optimal": (3e-4, 2, 8, 16, 0.2, 2.0, "15-16"),
        "exp6_rank16": (2e-4, 4, 16, 32, 0.2, 2.0, "15-17"),
        "exp7_softer": (2e-4, 1, 8, 16, 0.1, 3.0, None),
    }
    for name, values in table.items():
        recipe = str(find_recipe(f"kd_lora/{name}.yaml"))
        qa, args, model = make_parser().parse_args_and_config(
            ["--config", recipe, "--bf16", "false", "--use_cpu", "true"]
        )
        assert values == (
            args.learning_rate,
            args.num_train_epochs,
            model.lora_r,
            model.lora_alpha,
            args.kd_alpha,
            args.kd_temperature,
            qa.expected_perplexity,
        ), name
        assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (1, 32)


def test_a_run_writes_its_adapter_and_what_came_of_it_and_evaluate_agrees(tmp_path, capsys):
    out, template = tmp_path / "adapter", ["--qa_template", "{context}\n{question}"]
    assert kd(out, *template) == 0
    result = json.loads((out / "kd_result.json").read_text())
    assert result["steps"] == 2 and result["train_records"] == 16 and result["eval_records"] == 8
    assert (
        result["train_dropped"] == 0 and result["lora_r"] == 8 and result["perplexity"] < result["perplexity_before"]
    )
    assert "Perplexity on 8 questions" in capsys.readouterr().out
    arguments = ["evaluate", "--model", str(out), "--perplexity", "lab:qa-eval", "--max_samples", "8", *template]
    assert main([*arguments, "--seq_len", "256", "--device", "cpu", "--output", str(tmp_path / "p.json")]) == 0
    report = json.loads((tmp_path / "p.json").read_text())["lab:qa-eval"]["perplexity"]
    assert report["perplexity"] == pytest.approx(result["perplexity"], rel=1e-4) and report["dropped"] == 0


def test_a_dataset_of_the_hub_ends_with_its_perplexity_without_another_word(tmp_path, capsys, monkeypatch):
    """As the command of the short flags is given: nothing of a strategy or another set of questions."""
    from lupi_trainer.data import squad

    splits = {"train": "lab:qa", "validation": "lab:qa-eval"}
    monkeypatch.setattr(squad, "load_hub_dataset", lambda name, config, split: squad.load_lab_records(splits[split]))
    command = ["kd", "--base_dir", "lab:teacher", "--out_adapters", str(tmp_path / "out"), "--qa_dataset", "squad"]
    command += [*TINY, "--use_kd", "--teacher_model", "lab:teacher", "--save_strategy", "no", "--max_steps", "2"]
    assert main([*command, "--lr", "1e-2"]) == 0
    result = json.loads((tmp_path / "out" / "kd_result.json").read_text())
    assert result["eval_records"] == 8 and 1 < result["perplexity"] < result["perplexity_before"]
    assert result["loss/ce"] == pytest.approx(math.log(result["perplexity"]))
    said = f"{result['perplexity_before']:.4g} before, {result['perplexity']:.4g} after."
    assert f"Perplexity on 8 questions: {said}" in capsys.readouterr().out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["eval_perplexity"] == result["perplexity"]
    assert (
        main([*command, "--qa_dataset", "lab:qa", "--overwrite_output_dir", "true"]) == 2
    )  # one set of questions, and no other split of it
    assert "`max_eval_samples` needs questions to evaluate on: set `eval_dataset_name`" in capsys.readouterr().err
    assert main([*command, "--qa_dataset", "lab:qa", "--eval_strategy", "epoch"]) == 2
    assert "`eval_strategy` needs questions to evaluate on" in capsys.readouterr().err


def test_evaluate_needs_something_to_ask(capsys):
    assert main(["evaluate", "--model", "lab:teacher"]) == 2
    error = capsys.readouterr().err
    assert "nothing to ask" in error and "--perplexity" in error


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """The lab's teacher without its layers 1 (B) and 2 (C)."""
    folder = tmp_path_factory.mktemp("stages") / "pruned"
    arguments = ["prune", "--model", "lab:teacher", "--out", str(folder)]
    assert main([*arguments, "--drop", "1", "--bundle", "B", "--drop", "2", "--bundle", "C"]) == 0
    return folder


def weights(folder) -> dict[str, torch.Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.mark.slow
def test_three_stages_grow_the_model_and_each_touches_its_own_layers_alone(pruned, tmp_path):
    folder = tmp_path / "p"
    shutil.copytree(pruned, folder)
    bundles, base = folder / "bundles", folder / "base"
    before = {name: weights(bundles / name) for name in "BC"}
    rows = tokenize_qa(load_qa_records("lab:qa-eval", max_samples=8), lab_tokenizer(), seq_len=256).dataset

    # 1: the base; both of its layers, and nothing else
    assert kd(tmp_path / "s1", "--stage", 1, base=base) == 0
    assert weights(tmp_path / "s1").keys() == {
        f"base_model.model.model.layers.{i}.self_attn.{p}_proj.lora_{m}.weight"
        for i in (0, 1)
        for p in "qv"
        for m in "AB"
    }
    merged = folder / "A_merged"
    merge = ["merge", "--base_dir", str(base), "--adapter", str(tmp_path / "s1"), "--stage", "1"]
    assert main([*merge, "--out", str(merged)]) == 0
    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "s1")
    one = AutoModelForCausalLM.from_pretrained(merged)
    assert perplexity(one, rows).nll == pytest.approx(perplexity(adapted, rows).nll, abs=1e-4)
    changed = {k for k, v in weights(merged).items() if not torch.equal(v, weights(base)[k])}
    assert changed == {f"model.layers.{i}.self_attn.{p}_proj.weight" for i in (0, 1) for p in "qv"}

    # 2: the layer of B, on the merged base
    assert kd(tmp_path / "s2", "--stage", 2, "--bundles_dir", bundles, base=merged) == 0
    assert {key.split(".layers.")[1].split(".")[0] for key in weights(tmp_path / "s2")} == {"1"}
    base_after = weights(merged)
    merge = ["merge", "--base_dir", str(merged), "--bundles_dir", str(bundles), "--stage", "2"]
    assert main([*merge, "--adapter", str(tmp_path / "s2")]) == 0
    assert all(torch.equal(v, base_after[k]) for k, v in weights(merged).items())
    b_merged = weights(bundles / "B_merged")
    assert {k for k, v in b_merged.items() if not torch.equal(v, before["B"][k])} == {
        "self_attn.q_proj.weight",
        "self_attn.v_proj.weight",
    }

    # 3: the layer of C, on the merged base and the merged B
    assert kd(tmp_path / "s3", "--stage", 3, "--bundles_dir", bundles, base=merged) == 0
    assert {key.split(".layers.")[1].split(".")[0] for key in weights(tmp_path / "s3")} == {"2"}
    assert main([*merge[:-1], "3", "--adapter", str(tmp_path / "s3")]) == 0
    assert (
        main(
            [
                "restore",
                "--base",
                str(merged),
                "--bundle",
                str(bundles / "B_merged"),
                "--bundle",
                str(bundles / "C_merged"),
                "--out",
                str(tmp_path / "complete"),
            ]
        )
        == 0
    )
    complete = AutoModelForCausalLM.from_pretrained(tmp_path / "complete")
    assert complete.config.num_hidden_layers == 4
    assert perplexity(complete, rows).nll == pytest.approx(
        math.log(json.loads((tmp_path / "s3" / "kd_result.json").read_text())["perplexity"]), abs=1e-4
    )
    # and what was dropped is still as it was
    model = AutoModelForCausalLM.from_pretrained(base)
    for name in "BC":
        model = restore_bundle(model, bundles / name)
    first = AutoModelForCausalLM.from_pretrained(resolve_model("lab:teacher")).state_dict()
    assert all(torch.equal(value, first[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("modules, count", [("all-linear", 7), ("q_proj", 1), (["self_attn.q_proj", "up_proj"], 2)])
def test_the_adapter_of_a_stage_is_in_its_layers_however_its_modules_are_named(modules, count):
    model = tiny_model("llama", lab_tokenizer())
    adapted = get_peft_model(model, restrict_adapter(LoraConfig(target_modules=modules), Stage(model, None, [1])))
    trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
    assert len(trained) == 2 * count and all(".layers.1." in name for name in trained)
    check_trained(adapted, Stage(model, None, [1]))
    with pytest.raises(ValueError, match=r"trains the layers \[0\] alone, and 'base_model.model.model.layers.1"):
        check_trained(adapted, Stage(model, None, [0]))


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--stage", "2"], "stage 2 needs `bundles_dir`"),
        (["--stage", "0"], "stages are counted from 1, got stage=0"),
        (["--stage", "4", "--bundles_dir", "BUNDLES"], "stage 4 trains bundle number 3, and"),
        (["--stage", "3", "--bundles_dir", "BUNDLES"], "stage 3 builds on B_merged, which stage 2 makes"),
        (["--stage", "2", "--bundles_dir", "nowhere"], "stage 2 trains bundle number 1, and nowhere has 0"),
        (["--stage", "1", "--use_peft", "false"], "a stage trains an adapter: leave `use_peft` on"),
        (["--stage", "1", "--lora_modules_to_save", "embed_tokens"], "a stage trains its own layers alone"),
        (["--stage", "1", "--lora_target_modules", ".*q_proj"], "`all-linear`, no pattern: '.*q_proj'"),
        (["--stage", "1", "--lora_target_parameters", "q_proj.weight"], "leave `lora_target_parameters` out"),
        (
            ["--stage", "2", "--bundles_dir", "BUNDLES", "--lora_target_modules", "q_proj"]
            + ["model.layers.0.self_attn.v_proj"],
            "'model.layers.0.self_attn.v_proj' names a module wherever it is",
        ),
        (["--kd_alpha", "1.5"], "kd_alpha must be in [0, 1], got 1.5"),
        (["--qa_dataset", "nowhere.json"], "no such data file: nowhere.json"),
        (["--seq_len", "8"], "none of 16 records fits seq_len=8"),
        (["--kd_beta", "1"], "unknown option --kd_beta"),
        (["--max_samples", "0"], "max_samples must be at least 1"),
    ],
)
def test_what_the_user_can_mend_is_said_before_anything_is_written(pruned, tmp_path, flags, message, capsys):
    flags = [str(pruned / "bundles") if flag == "BUNDLES" else flag for flag in flags]
    assert kd(tmp_path / "out", *flags, base=pruned / "base") == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_merge_refuses_the_adapter_of_another_stage_and_never_overwrites(pruned, tmp_path, capsys):
    assert kd(tmp_path / "s1", "--stage", 1, base=pruned / "base") == 0
    bundles = ["--bundles_dir", str(pruned / "bundles")]
    merge = ["merge", "--base_dir", str(pruned / "base"), "--adapter", str(tmp_path / "s1")]
    capsys.readouterr()
    assert main([*merge, "--stage", "2", *bundles]) == 2
    assert (
        "was trained on the layers [0, 1], this stage trains [1]: it belongs to another stage"
        in capsys.readouterr().err
    )
    assert not (pruned / "bundles" / "B_merged").exists()
    assert main([*merge, "--out", str(pruned / "base")]) == 2
    assert "exists already; nothing was written" in capsys.readouterr().err
    assert main(merge) == 2
    assert "--out is needed" in capsys.readouterr().err
    assert main(["merge", "--base_dir", "lab:teacher", "--adapter", "nowhere", "--out", str(tmp_path / "o")]) == 2
    assert "no such folder: nowhere" in capsys.readouterr().err


def test_an_ordinary_adapter_is_merged_into_its_model(tmp_path):
    assert kd(tmp_path / "a") == 0
    arguments = ["merge", "--model", "lab:teacher", "--adapter", str(tmp_path / "a"), "--out", str(tmp_path / "m")]
    assert main(arguments) == 0
    rows = tokenize_qa(load_qa_records("lab:qa-eval", max_samples=8), lab_tokenizer(), seq_len=256).dataset
    got = perplexity(AutoModelForCausalLM.from_pretrained(tmp_path / "m"), rows).perplexity
    assert got == pytest.approx(json.loads((tmp_path / "a" / "kd_result.json").read_text())["perplexity"], rel=1e-3)
