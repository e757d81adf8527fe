"""`--check`, and what is said of every run before torch is imported."""

import importlib
import json
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from lupi_trainer.cli import main
from lupi_trainer.scripts.dry_run.key_types import CLASSES, UNKNOWN, key_types
from lupi_trainer.scripts.dry_run.look import look
from lupi_trainer.scripts.dry_run.machine import check_disk
from lupi_trainer.scripts.dry_run.report import Report
from lupi_trainer.scripts.dry_run.settings import read_settings
from lupi_trainer.scripts.launch import TRAINING
from lupi_trainer.scripts.recipe_files import find_recipe, list_recipes


ALONE = "--mixing none --base_dataset_name none --per_device_train_batch_size 200".split()
FULL = "lab/lupi_skd/config_full.yaml"
COMMANDS = {"lupi_skd": "skd", "kd_lora": "kd", "wmtp": "wmtp", "sft": "sft"}  # folder of recipes -> command


def parser_of(command):
    return importlib.import_module(f"lupi_trainer.scripts.{TRAINING[command]}").make_parser()


def faults_of(command, *args, recipe=FULL):
    return [
        fault for part in look(read_settings(command, ["--config", str(find_recipe(recipe)), *args])) for fault in part
    ]


@pytest.mark.parametrize("command", CLASSES)
def test_keys_are_read_from_the_source_as_the_parser_has_them(command):
    kinds, actions = key_types(command), {action.dest: action for action in reversed(parser_of(command).actions)}
    assert kinds.keys() == actions.keys() - {"help"}
    texts = {key: " ".join((action.help or "").replace("%%", "%").split()) for key, action in actions.items()}
    for key, kind in kinds.items():
        assert " ".join(kind.help.split()) == texts[key] or not kind.help, key
        default = getattr(actions[key].default, "value", actions[key].default)
        assert kind.default in (UNKNOWN, default) or key == "debug", key  # which transformers leaves out of its parser
        assert set(kind.choices) <= set(actions[key].choices or ()), key
    read = [key for key, kind in kinds.items() if kind.default is not UNKNOWN]
    assert sum(not kind.help and bool(texts[key]) for key, kind in kinds.items()) < 5
    assert len(read) > 0.95 * len(kinds) and sum("Any" in kind.kinds for kind in kinds.values()) < 5


def test_nothing_is_said_of_the_shipped_recipes_but_what_has_to_be_trained_before():
    for recipe in list_recipes():
        if "accelerate_configs" not in recipe:
            found = faults_of(COMMANDS[recipe.split("/")[-2]] if "/" in recipe else "", recipe=recipe)
            of_others = (
                "no such model folder: runs/",
                "teacher_store: no such folder: runs/",
                "HF_HUB_OFFLINE is set, and its cache has no such model",
            )
            assert all(any(part in fault for part in of_others) for fault in found), (recipe, found)


@pytest.mark.parametrize(
    "args, message",
    [
        ("--gama 3", "unknown option --gama; did you mean 'gamma'?"),
        ("--gamma 2.5", "--gamma takes a whole number, got '2.5'"),
        ("--bf16 maybe", "--bf16 takes true or false, got 'maybe'"),
        ("--eval_strategy sometimes", "must be one of ['no', 'steps', 'epoch'], got 'sometimes'"),
        ("--rollout_policy none", "must be one of ['speculative', 'student', 'teacher', 'gold'], got 'none'"),
        (
            "--gamma none",
            "--gamma cannot be left without a value: give it a whole number, or leave it out for its default, 20",
        ),
        (
            "--use_cpu null",
            "--use_cpu cannot be left without a value: give it true or false, or leave it out for its default, False",
        ),
        ("--device cuda", "unknown option --device: training takes the GPU where there is one, and `use_cpu: true`"),
        ("--no_cuda", "unknown option --no_cuda; did you mean 'use_cpu'?"),
        ("--probes notes.md", "probes: notes.md is a file of another kind"),
        ("--report_to tensorbord", "no reporter 'tensorbord'; did you mean 'tensorboard'? There are azure_ml,"),
        ("--gamma", "--gamma needs a value"),
        ("--gamma 3 4", "--gamma takes one value, got '3 4'"),
        ("--report_to wandb trackio", "--report_to takes one value, got 'wandb trackio'; a recipe may have a list"),
        ("--beta nan", "--beta must be a finite number, got nan"),
        ("--learning_rate 1e999", "--learning_rate must be a finite number, got inf"),
        ("--vllm_mode server", "vllm_mode='server' has no effect here"),
        ("--mixing none", "`mixing` and `base_dataset_name` belong together"),
        ("--teacher_model_name_or_path none", "no teacher: set `teacher_model_name_or_path`"),
        ("--eval_dataset_name none", "eval_strategy='steps' needs records to evaluate on"),
        ("--load_best_model_at_end true", "eval_strategy='steps' and save_strategy='no' must be the same"),
        ("--bf16 true --fp16 true", "bf16 and fp16 exclude each other"),
        ("--dataset_name none", "`dataset_name` is required"),
        ("--dataset_name notes.md", "notes.md is a file of another kind"),
        ("--dataset_name lab:x", "no 'lab:x' in the lab"),
        ("--report_to somewhere", "report_to: no reporter 'somewhere'; there are azure_ml,"),
        ("--hub_token hf_x", "does not belong here"),
    ],
)
@pytest.mark.grid(3)
def test_what_the_first_look_refuses_the_run_refuses_too(args, message, tmp_path):
    own = [*args.split(), "--output_dir", str(tmp_path / "run")]
    found = faults_of("skd", *own)
    assert len(found) == 1 and message in found[0]
    script = importlib.import_module("lupi_trainer.scripts.lupi_skd")
    with pytest.raises(ValueError):
        script.build_trainer(*parser_of("skd").parse_args_and_config(["--config", str(find_recipe(FULL)), *own]))


def test_what_is_missing_of_files_folders_and_packages_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("lupi_trainer.training.reporters.is_installed", lambda module: False)
    args = "--dataset_name a.json --probes b.jsonl --model_name_or_path empty --teacher_model_name_or_path ./no "
    args += "--few_shot_examples c.json --output_dir file/run --report_to tensorboard --load_in_4bit true "
    args += "--optim paged_adamw_8bit --resume_from_checkpoint run/checkpoint-9"
    assert faults_of("skd", *args.split()) == [
        "dataset_name: no such data file: a.json",
        "probes: no such data file: b.jsonl",
        "few_shot_examples: no such data file: c.json",
        "model_name_or_path: empty is a folder without a config.json: no model is in it",
        "teacher_model_name_or_path: no such model folder: ./no",
        f"output_dir: {tmp_path / 'file'} is a file, and file/run would lie below it",
        "resume_from_checkpoint: no such checkpoint: run/checkpoint-9",
        "report_to: tensorboard needs tensorboard or tensorboardX: pip install tensorboard",
        "load_in_4bit needs bitsandbytes: pip install bitsandbytes",
        "optim: paged_adamw_8bit needs bitsandbytes: pip install bitsandbytes",
    ]


def test_an_optimizer_is_looked_for_in_its_own_package(monkeypatch):
    bnb = ("adamw_8bit", "adamw_bnb_8bit", "ademamix_8bit", "lion_8bit", "galore_adamw_8bit", "paged_lion_32bit")
    ours = dict.fromkeys(("adamw_torch_4bit", "adamw_torch_8bit"), "torchao") | dict.fromkeys(bnb, "bitsandbytes")
    for optimizer, package in ours.items():
        monkeypatch.setattr("lupi_trainer.training.reporters.is_installed", lambda name, there=package: name != there)
        faults = faults_of("skd", "--optim", optimizer, "--report_to", "none")
        assert faults == [f"optim: {optimizer} needs {package}: pip install {package}"]


def test_no_number_of_steps_and_no_value_are_explained(tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump({**yaml.safe_load(find_recipe(FULL).read_text()), "gamma": None})
    )
    faults = read_settings("skd", ["--config", str(tmp_path / "recipe.yaml"), "--max_steps", "none"]).faults
    unset = "cannot be left without a value: give it a whole number, or leave it out for its default,"
    assert faults == [f"{tmp_path / 'recipe.yaml'}: 'gamma' {unset} 20", f"--max_steps {unset} -1"]
    assert faults_of("skd", "--max_steps", "0") == [
        "max_steps must be at least 1, or left out for num_train_epochs=5.0; got 0"
    ]


def test_variables_of_a_recipe_hold_while_it_is_looked_at(tmp_path, capsys, monkeypatch):
    recipe = yaml.safe_load(find_recipe(FULL).read_text()) | {"env": {"KUBEFLOW_TRAINER_SERVER_URL": "http://x"}}
    for key, said in ("KUBEFLOW_TRAINER_SERVER_URL", ""), ("OTHER", "kubeflow needs KUBEFLOW_TRAINER_SERVER_URL in"):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"env": {key: "x"}, "gamma": 0}))
        assert main(["skd", "--config", str(tmp_path / "recipe.yaml"), "--report_to", "kubeflow"]) == 2
        error = capsys.readouterr().err
        assert "gamma must be at least 1" in error and (said in error if said else "kubeflow" not in error)
        assert key not in os.environ


def test_what_files_tell_is_told_before_torch_is_imported(tmp_path):
    recipe = yaml.safe_load(find_recipe(FULL).read_text()) | {"gama": 3, "gamma": "few", "mixing": None}
    recipe |= {"dataset_name": "nowhere.json", "model_name_or_path": "./nobody", "output_dir": "run"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    code = "import sys; from lupi_trainer.cli import main; status = main(sys.argv[1:]); "
    code += "print('torch' in sys.modules, status)"
    for flags, status in ([], 2), (["--check"], 1):
        run = [sys.executable, "-c", code, "skd", "--config", "recipe.yaml", *flags]
        done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout == f"False {status}\n"
        assert done.stderr.splitlines() == [
            "error: recipe.yaml: unknown key 'gama'; did you mean 'gamma'?",
            "error: recipe.yaml: 'gamma' takes a whole number, got 'few'",
            "error: `mixing` and `base_dataset_name` belong together: set both, or neither",
            "error: dataset_name: no such data file: nowhere.json",
            "error: model_name_or_path: no such model folder: ./nobody",
        ]
    assert os.listdir(tmp_path) == ["recipe.yaml"]


def check(capsys, tmp_path, command, recipe, *args):
    """(status, table, faults) of a check whose run would write to a folder, which is not there afterwards."""
    output = tmp_path / "run"
    status = main([command, "--config", recipe, *args, "--check", "--output_dir", str(output)])
    said = capsys.readouterr()
    assert not output.exists()
    table = {line.split()[0]: line for line in said.out.splitlines() if not line.startswith(" ")}
    return status, table, [line for line in said.err.splitlines() if line.startswith("error: ")]


def test_every_record_beyond_a_limit_is_listed(tmp_path, capsys, monkeypatch):
    records = [{"prompt": "Where?", "privileged_context": "Tamo is it. " * (1 if n % 4 else 90)} for n in range(100)]
    records[1] = {"prompt": "", "privileged_context": None}
    records[2] = {"id": "two", "prompt": "What?", "privileged_context": "It<|end|>"}
    (tmp_path / "records.json").write_text(json.dumps(records))
    (tmp_path / "probes.json").write_text(json.dumps([{"question": "Where?", "answers": []}]))
    args = ["--dataset_name", str(tmp_path / "records.json"), "--probes", str(tmp_path / "probes.json")]
    warned = []
    tokenizers = logging.getLogger("transformers.tokenization_utils_base")
    monkeypatch.setattr(tokenizers, "warning", lambda *args, **kwargs: warned.append(args))
    status, table, faults = check(capsys, tmp_path, "skd", FULL, *args, *ALONE)
    assert warned == []
    assert status == 1
    records, probes = (f"error: {tmp_path / name}: " for name in ("records.json", "probes.json"))
    assert faults[0] == f"{probes}probe of record number 0: `answers` must be a list of accepted strings, got []"
    assert faults[1] == f"{records}record number 1: the prompt is empty"
    assert faults[2].startswith(
        f"{records}25 records, the first: its teacher prompt has 655 tokens, beyond max_teacher"
    )
    assert "They are record number 0, record number 4, record number 8," in faults[2]
    assert faults[2].endswith("record number 76, and 5 more")
    assert faults[3].startswith(f"{records}record 'two' (number 2): its text holds the special token")
    assert "99 records, fewer than one batch of 200" in faults[4] and len(faults) == 5
    assert "the longest is the teacher's of record number 0" in table["prompts"]
    assert "not measured" in table["time"]


def test_files_of_nothing_but_faults_are_listed(tmp_path, capsys):
    (tmp_path / "records.json").write_text(json.dumps([{"query": " ", "knowledge": None}]))
    (tmp_path / "base.json").write_text(json.dumps([{"question": "Where?", "answers": ["Tamo"]}]))
    long = {"id": "parking", "prompt": "Where?", "privileged_context": "Tamo<|end|>"}
    (tmp_path / "eval.json").write_text(json.dumps([long, long]))
    keys = "dataset_name", "base_dataset_name", "eval_dataset_name"
    paths = [str(tmp_path / name) for name in ("records.json", "base.json", "eval.json")]
    args = [word for key, path in zip(keys, paths) for word in (f"--{key}", path)]
    status, table, faults = check(capsys, tmp_path, "skd", FULL, *args)
    assert status == 1
    assert faults[:2] == [
        f"error: {paths[0]}: record number 0: the prompt is empty",
        f"error: {paths[1]}: record number 0: no `prompt` (`query` is read as well); found ['answers', 'question']; "
        "this looks like a probe, of a file that `probes` names",
    ]
    assert faults[2].startswith(f"error: {paths[2]}: 2 records, the first: its text holds the special token")
    assert faults[2].endswith(". They are record 'parking' (number 0), record 'parking' (number 1)")
    assert len(faults) == 3 and "0 of" in table["records"]


def test_a_run_without_faults_is_a_short_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 5_000_000_000})())
    saving = ["--save_strategy", "steps", "--save_steps", "50", "--save_total_limit", "2"]
    status, table, faults = check(capsys, tmp_path, "skd", FULL, *saving, "--accelerate_config", "single_cpu")
    assert (status, faults) == (0, []) and "all" in table
    assert table["reports"].endswith("nowhere: report_to is none")
    assert "720 of lab:new, 720 of lab:common, 12 of lab:eval" in table["records"]
    assert "3 checkpoints at a time (save_total_limit=2, one more while it is written)" in table["disk"]
    assert "s a step" in table["time"] and "for 200 steps" in table["time"] and "estimate" in table["time"]

    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2_000_000})())
    monkeypatch.delenv("HF_TOKEN", raising=False)
    status, table, faults = check(capsys, tmp_path, "skd", FULL, *saving, "--push_to_hub", "true")
    assert status == 1 and len(faults) == 2 and "not measured" in table["time"]
    assert "push_to_hub: the Hub wants a token" in faults[0]
    assert "are free: set save_total_limit: 1" in faults[1]


def test_every_record_without_a_text_is_listed(tmp_path, capsys, small_lab):
    """Of gold answers and of a store; and a run that writes nothing is not timed as though it did."""
    gold = ["--rollout_policy", "gold", "--per_device_train_batch_size", "4", "--eval_dataset_name", "none"]
    gold += ["--eval_strategy", "no"]
    status, table, faults = check(capsys, tmp_path, "skd", FULL, *gold)
    assert (status, faults) == (0, []) and "from one batch, forward and" in table["time"]
    status, _, faults = check(capsys, tmp_path, "skd", FULL, *gold, "--eval_dataset_name", "lab:eval")
    assert status == 1 and len(faults) == 1
    assert "lab:eval: 12 records, the first: it has no `answer`" in faults[0]

    store = ["--rollout_policy", "teacher", "--max_completion_length", "8"]
    words = ["teach", "--config", FULL, "--store", str(tmp_path / "store"), *store, "--base_dataset_name", "none"]
    assert main([*words, "--mixing", "none", "--dataset_name", "lab:common"]) == 0
    capsys.readouterr()
    status, _, faults = check(capsys, tmp_path, "skd", FULL, *store, "--teacher_store", str(tmp_path / "store"))
    assert status == 1 and len(faults) == 1
    assert "lab:new: 48 records, the first: what its teacher reads is not in teacher_store" in faults[0]


def test_one_checkpoint_is_not_several(tmp_path):
    keys = {"save_strategy": "steps", "save_steps": 2, "save_total_limit": None, "save_only_model": False}
    args = SimpleNamespace(**keys, load_best_model_at_end=False, optim="adamw_torch")
    for steps, said in (2, "1 checkpoint at a time "), (4, "2 checkpoints at a time "):
        report = Report()
        check_disk(str(tmp_path), args, (10, 10, 4), False, steps, report)
        assert report.rows[0][1].startswith(said)


@pytest.mark.parametrize(
    "command, recipe, args, found",
    [
        ("sft", "lab/sft/config_full.yaml", ["--max_length", "16"], "are cut at max_length=16: 64 keeps all of them"),
        ("wmtp", "lab/wmtp/config_tiny.yaml", [], "the longest has"),
        ("kd", "lab/kd_lora/config_teacher.yaml", ["--max_length", "70"], "are left out, longer than max_length=70"),
    ],
)
@pytest.mark.grid(3)
def test_the_other_methods_are_checked_too(command, recipe, args, found, tmp_path, small_lab, capsys):
    status, table, faults = check(capsys, tmp_path, command, recipe, *args)
    assert (status, faults) == (0, [])
    assert found in table["records"] and "estimate" in table["time"]


def test_an_accelerate_configuration_of_gpus_needs_them(tmp_path, capsys, monkeypatch):
    def refused(*args):
        assert main(["skd", "--config", FULL, "--output_dir", str(tmp_path / "run"), *args]) == 2
        return capsys.readouterr().err

    single = "--accelerate_config single_gpu"
    assert refused(*single.split()) == (
        f"error: {single} is for GPUs, and the recipe has use_cpu: true: leave one of them out, or take "
        "--accelerate_config single_cpu\n"
    )
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    none = "process on a GPU, and there is none, as far as PyTorch can see\n"
    assert refused(*single.split(), "--use_cpu", "false") == f"error: {single} starts 1 {none}"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    several = refused("--accelerate_config", "multi_gpu", "--use_cpu", "false")
    assert "processes, each on a GPU of its own, and there is 1, as far as" in several
    assert not (tmp_path / "run").exists()
