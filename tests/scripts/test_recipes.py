"""Every shipped recipe parses, says how it is started and what its keys are; bad recipes are named."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

from lupi_trainer import KDLoRAConfig, LUPISKDConfig, WMTPConfig
from lupi_trainer.cli import TRAINING, main, make_parser
from lupi_trainer.data.prompts import load_few_shot_examples
from lupi_trainer.data.records import load_probes, load_training_data, read_records
from lupi_trainer.scripts import kd_lora, lupi_skd, sft, wmtp
from lupi_trainer.scripts.dry_run.settings import read_settings
from lupi_trainer.scripts.recipe_files import (
    SHIPPED,
    copy_recipe,
    find_accelerate_config,
    find_recipe,
    list_recipes,
    recipes_dir,
)
from lupi_trainer.scripts.recipe_parser import RecipeError


ROOT = Path(__file__).parents[2]
SCRIPTS = {"kd_lora": kd_lora, "lupi_skd": lupi_skd, "sft": sft, "wmtp": wmtp}
RECIPES = [name for name in list_recipes() if not name.startswith("accelerate_configs/")]
ALONE = ["--base_dataset_name", "none", "--mixing", "none"]
ON_THIS_MACHINE = ["--bf16", "false", "--use_cpu", "true"]  # parsing asks whether the hardware has bfloat16


def head_commands(name: str) -> list[str]:
    """The commands of a recipe's first comment, in order."""
    head = re.sub(r"^# ?", "", find_recipe(name).read_text().split("\n\n")[0], flags=re.M)
    lines = [line.split(" #")[0].strip() for line in re.sub(r"\\\n *", "", head).splitlines()]
    return [line for line in lines if line.startswith(("lupi ", "accelerate "))]


def parse(args):
    return lupi_skd.make_parser().parse_args_and_config(args)


def write(tmp_path, text: str) -> list[str]:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return ["--config", str(path), "--output_dir", str(tmp_path / "run"), *ON_THIS_MACHINE]


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_parses_and_says_how_it_is_started(name):
    script = Path(name).parent.name
    text = find_recipe(name).read_text()
    (command,) = [c for c, s in TRAINING.items() if s == script]
    started = ["--config", f"recipes/{name}"]
    commands = [shlex.split(line) for line in head_commands(name)]
    assert commands[-1][:2] == ["accelerate", "launch"]
    launched = launch_command_parser().parse_args(commands[-1][2:])
    with_what = Path(launched.config_file).stem
    alone, beside = ["lupi", command, *started], ["--accelerate_config", with_what]
    needed = {"zero2_paired": beside, "multi_node_paired": [beside[0], f"{beside[1]}.yaml"]}  # a template is copied
    assert [*alone, *needed.get(with_what, [])] in commands
    assert launched.module and launched.training_script == f"lupi_trainer.scripts.{script}"
    assert launched.training_script_args == started
    assert Path(launched.config_file) == Path("recipes", "accelerate_configs", Path(launched.config_file).name)
    assert (recipes_dir().parent / launched.config_file).is_file()
    for program, *arguments in commands[:-1]:
        assert program == "lupi" and make_parser().parse_known_args(arguments)[0].command == arguments[0]
    arguments = ["--config", str(find_recipe(name)), *ON_THIS_MACHINE]
    data_args, training_args, model_args = SCRIPTS[script].make_parser().parse_args_and_config(arguments)
    assert model_args.model_name_or_path and data_args.dataset_name
    for key, value in yaml.safe_load(text).items():
        if (
            key not in ("bf16", "use_cpu", "report_to")
            and isinstance(value, str | int)
            and not key.endswith("implementation")
        ):
            given = [getattr(args, key) for args in (data_args, training_args, model_args) if hasattr(args, key)]
            assert value in given or str(value) in map(str, given), key
    # a teacher on a GPU of its own is started with the configuration that gives it one
    device = yaml.safe_load(text).get("teacher_device")
    assert device in (None, "cpu", "paired")
    assert with_what.endswith(("paired_gpu", "_paired")) == (device == "paired")
    # whose weights the optimizer steps on: float32 ones, whatever the model computes in
    (stated,) = re.findall(r"^dtype: (\w+) .*# .*master weights: (.*)$", text, re.M)
    adapted, frozen = model_args.use_peft, getattr(training_args, "freeze_trunk", False)
    assert ("the adapter's, in float32" in stated[1], "the heads', in float32" in stated[1]) == (adapted, frozen)
    if not adapted and not frozen:
        assert stated[0] == "float32" or ("DeepSpeed's, in float32" in stated[1] and with_what in needed)
    # every group of keys is explained: a comment on the line, or a heading above
    assert len(re.findall(r"^# \w", text, re.M)) >= 4


@pytest.mark.slow
def test_the_commands_of_the_lab_recipes_run(tmp_path, monkeypatch, small_lab):
    """All that their first comments name, for a step; a sweep is run by tests/experiments/test_sweep.py."""
    monkeypatch.chdir(tmp_path)
    short = "--max_steps 1 --per_device_train_batch_size 2 --eval_strategy no --save_strategy no".split()
    less = {"prune": [], "kd": [*short, "--max_samples", "8", "--max_eval_samples", "2"]}
    lab = [name for name in RECIPES if name.startswith("lab/")]
    # a teacher before its student, the heads before the model that goes on with them
    lab.sort(key=lambda name: not name.endswith(("_teacher.yaml", "_warmup.yaml")))
    lines = dict.fromkeys(line for name in lab for line in head_commands(name) if line.startswith("lupi "))
    commands = [shlex.split(line)[1:] for line in lines if not line.startswith("lupi sweep ")]
    for arguments in commands:
        assert main([*arguments, *less.get(arguments[0], short)]) == 0, arguments
    outputs = [yaml.safe_load(find_recipe(name).read_text())["output_dir"] for name in lab]
    assert len(outputs) == 16 and all((tmp_path / folder / "README.md").is_file() for folder in outputs)


@pytest.mark.parametrize("path", sorted((recipes_dir() / "accelerate_configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_accelerate_configs_are_complete(path):
    config = yaml.safe_load(path.read_text())
    assert {"distributed_type", "mixed_precision", "num_processes", "use_cpu"} <= config.keys()
    assert find_accelerate_config(path.stem) == path


def test_qwen3_recipe_has_the_seeds_values(tmp_path):
    for name in ("config_korean_culture.yaml", "config_korean_culture_en.yaml"):
        _, args, model = parse(["--config", str(find_recipe(f"qwen3-4b/lupi_skd/{name}")), *ON_THIS_MACHINE])
        assert (model.model_name_or_path, args.teacher_model_name_or_path) == ("Qwen/Qwen3-4B", "Qwen/Qwen3-32B")
        assert (args.accept_top_k, args.gamma, args.teacher_min_prob) == (5, 20, 0.05)
        assert (args.student_temperature, args.teacher_temperature) == (0.7, 0.7)
        assert (args.learning_rate, args.num_train_epochs, args.max_completion_length) == (1e-5, 5, 4096)


def test_a_recipe_finds_its_records_outside_of_the_checkout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (name for name in RECIPES if name.startswith("qwen3-4b/")):
        data, args, _ = parse(["--config", str(find_recipe(name)), *ON_THIS_MACHINE])
        assert len(load_training_data(data.dataset_name)) == 200 and len(load_probes(data.probes)) == 600
        assert len(load_few_shot_examples(args.few_shot_examples)) == 3
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "general_en.json").write_text("[]")
    assert read_records("data/general_en.json") == [] and len(read_records("data/general_ko.json")) == 100
    with pytest.raises(FileNotFoundError, match="no such data file: data/nothing.json"):
        read_records("data/nothing.json")


def test_command_line_overrides_the_recipe(tmp_path):
    args = write(tmp_path, "dataset_name: lab:new\ngamma: 3\naccept_top_k: 7")
    _, training_args, _ = parse([*args, "--gamma", "9"])
    assert (training_args.gamma, training_args.accept_top_k) == (9, 7)


@pytest.mark.parametrize("start", ["base_dataset_name: lab:common\nmixing: 0.5", "base_dataset_name: none"])
def test_a_key_can_be_unset(tmp_path, start):
    args = write(tmp_path, f"dataset_name: lab:new\nprobes: lab:probes\nreport_to: none\n{start}")
    data, training, _ = parse([*args, "--base_dataset_name=none", "--mixing", "null", "--probes", "None"])
    assert (data.base_dataset_name, data.mixing, data.probes) == (None, None, None)
    assert training.report_to in ("none", [])  # a word of its own
    assert parse([*args, *ALONE, "--probes", "none", "--probes", "lab:probes-unseen"])[0].probes == "lab:probes-unseen"
    assert parse([*args, *ALONE, "--probes", "lab:probes-unseen", "--probes", "none"])[0].probes is None
    with pytest.raises(RecipeError, match="invalid int value: 'none'"):  # what has no default of nothing
        parse([*args, *ALONE, "--gamma", "none"])


def test_nested_values_reach_the_configuration(tmp_path):
    text = "dataset_name: lab:new\nfew_shot_examples:\n- {query: q, answer: a}\nchat_template_kwargs: {x: false}"
    _, training_args, _ = parse(write(tmp_path, text))
    assert training_args.few_shot_examples == [{"query": "q", "answer": "a"}]
    assert training_args.chat_template_kwargs == {"x": False}


@pytest.mark.parametrize(
    "text, message",
    [
        ("gama: 3", "unknown key 'gama'; did you mean 'gamma'"),
        ("torch_dtype: bfloat16", "unknown key 'torch_dtype': it is now called 'dtype'$"),
        ("max_new_tokens: 9", "did you mean 'max_completion_length'"),
        ("evaluation_strategy: steps", "'evaluation_strategy': it is now called 'eval_strategy'$"),
        ("max_seq_length: 9", "unknown key 'max_seq_length'(?!.*now called)"),  # here nothing is called `max_length`
        ("qqqqqq: 1", "unknown key 'qqqqqq'$"),
        ("gamma: 2.5", "gamma.*2.5"),
        ("gamma: [1, 2]", "'gamma' takes one value"),
        ("learning_rate: fast", "learning_rate.*fast"),
        ("rollout_policy: other", "'rollout_policy' must be one of"),
        ("- gamma", "must be a mapping"),
        ("gamma: {", "not valid YAML"),
        ("env: 3", "`env` must be a mapping"),
    ],
)
def test_bad_recipes_are_named(tmp_path, text, message):
    with pytest.raises(RecipeError, match=message):
        parse(write(tmp_path, text))
    assert not (tmp_path / "run").exists()


REFUSED_WORDS = [
    ("save_strategy: no", "'save_strategy': no without quotes is read as false: put it into quotes"),
    ("report_to: OFF", "'report_to': OFF without quotes is read as false: put it into quotes"),
    ("report_to: [none, off]", "'report_to.1': off without quotes is read as false"),
    ("run_name: on", "'run_name': on without quotes is read as true"),
    ("chat_template_kwargs: {think: yes}", "'chat_template_kwargs.think': yes without quotes is read as true"),
    ("gamma: 010", "'gamma': 010 without quotes is read as 8: put it into quotes, or write what is meant"),
    ("gamma: -0b11", "'gamma': -0b11 without quotes is read as -3"),
    ("run_name: 1:30", "'run_name': 1:30 without quotes is read as 90"),
    ("learning_rate: 1:30.5", "'learning_rate': 1:30.5 without quotes is read as 90.5"),
    ("env: {A: 010}", "'env.A': 010 without quotes is read as 8"),
    ("env: {A: off}", "'env.A': off without quotes is read as false"),
    ("env: {A: true}", "'env.A': true without quotes is read as \"True\""),
    ("env: {A: 1.10}", "'env.A': 1.10 without quotes is read as \"1.1\""),
    ("run_name: 2026-11-29", "'run_name' is read as a date; put it into quotes"),
    ("gamma: 3\ngamma: 4", "'gamma' is given twice, in lines 1 and 2: leave one of them"),
    ("chat_template_kwargs:\n  a: 1\n  a: 1", "'a' is given twice, in lines 2 and 3"),
    (
        "gradient_checkpointing: true\nactivation_checkpointing: false",
        "_checkpointing' is given twice, once as",
    ),
    ("learning_rate: .nan", "'learning_rate' must be a finite number, got nan"),
    ("max_grad_norm: -.inf", "'max_grad_norm' must be a finite number, got -inf"),
    ("mixing: [{share: .5, until: .inf}, {share: 1}]", "'mixing' must be a finite number, got inf"),
    ("lr_scheduler_kwargs: {power: .nan}", "'lr_scheduler_kwargs' must be a finite number, got nan"),
    ("learning_rate: nan", "learning_rate.? must be a finite number, got nan"),
    ("learning_rate: 1e999", "learning_rate.? must be a finite number, got inf"),
]


@pytest.mark.parametrize("text, message", REFUSED_WORDS)
def test_words_and_numbers_that_would_become_others_are_refused(tmp_path, text, message):
    args = write(tmp_path, f"{text}\ndataset_name: lab:new\n")
    with pytest.raises(RecipeError, match=message):
        parse(args)
    try:
        faults = read_settings("skd", args).faults
    except RecipeError as error:
        faults = [str(error)]
    assert len(faults) == 1 and re.search(message, faults[0])


def test_words_that_mean_what_they_say_are_taken_as_they_are_written(tmp_path):
    text = "run_name: 1.10\nmodel_revision: 1_0\nhub_model_id: 0x1F\nlogging_first_step: on\ngamma: 0x1F"
    text += "\ndisable_tqdm: no\nmax_steps: 1_000\nreport_to: 'none'\ndataset_config: true"
    text += "\nresume_from_checkpoint: true\nseed: 0"
    args = write(tmp_path, f"{text}\ndataset_name: lab:new\nenv: {{LUPI_TEST_WORD: '010', LUPI_TEST_NUMBER: 3}}\n")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("LUPI_TEST_WORD", "LUPI_TEST_NUMBER"):
            patch.setenv(name, "")  # what the recipe sets goes with it
        data, training, model = parse(args)
        assert (os.environ["LUPI_TEST_WORD"], os.environ["LUPI_TEST_NUMBER"]) == ("010", "3")
    assert (training.run_name, model.model_revision, training.hub_model_id) == ("1.10", "1_0", "0x1F")
    assert (training.gamma, training.max_steps, training.seed, data.dataset_config) == (31, 1000, 0, "true")
    assert training.logging_first_step is True and training.disable_tqdm is False
    assert training.resume_from_checkpoint == "true"
    settings = read_settings("skd", args)
    assert not settings.faults and settings.get("run_name") == "1.10" and settings.get("dataset_config") == "true"


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_numbers_that_are_none_are_refused_on_the_command_line_and_in_python(tmp_path, value):
    own = ["--dataset_name", "lab:new", *ON_THIS_MACHINE]
    for script, key in ((lupi_skd, "beta"), (kd_lora, "kd_alpha"), (sft, "weight_decay"), (wmtp, "warmup_steps")):
        algo = ["--algo", "mtp-baseline"] if script is wmtp else []
        with pytest.raises(RecipeError, match=f"{key} must be a finite number, got "):
            script.make_parser().parse_args_and_config([*own, *algo, f"--{key}={value}"])
    number = float(value)
    for make in (LUPISKDConfig, KDLoRAConfig, WMTPConfig):
        for keys in ({"warmup_steps": number}, {"lr_scheduler_kwargs": {"a": [1, number]}}):
            with pytest.raises(ValueError, match=f"{next(iter(keys))} must be a finite number, got {number}"):
                make(str(tmp_path), bf16=False, use_cpu=True, **keys)


@pytest.mark.parametrize("flag", ["--evaluation_strategy", "--evaluation-strategy"])
@pytest.mark.parametrize("value", [["steps"], []])
def test_renamed_keys_are_refused_on_the_command_line_too(tmp_path, flag, value):
    with pytest.raises(RecipeError, match=f"unknown option {flag}: it is now called 'eval_strategy'$"):
        parse([*write(tmp_path, "dataset_name: lab:new"), flag, *value])
    with pytest.raises(RecipeError, match="unknown option --max_seq_length: it is now called 'max_length'$"):
        sft.make_parser().parse_args_and_config(["--dataset_name", "lab:new", "--max_seq_length", "9"])


@pytest.mark.parametrize(
    "text, message",
    [
        ("gamma: 3", "`dataset_name` is required"),
        ("dataset_name: lab:new\ngamma: 0", "gamma must be at least 1"),
        ("dataset_name: lab:new\nteacher_min_prob: 2", "teacher_min_prob"),
    ],
)
def test_values_out_of_range_are_named(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        parse(write(tmp_path, text))


def test_bfloat16_without_its_hardware_names_the_keys_to_change(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: False)
    with pytest.raises(RecipeError, match="^bf16: true, its default, needs a GPU .*: set `bf16: false`, and `use_cpu"):
        parse([*write(tmp_path, "dataset_name: lab:new"), "--bf16", "true", "--use_cpu", "false"])


def test_a_missing_recipe_names_the_nearest():
    with pytest.raises(FileNotFoundError, match="did you mean lab/lupi_skd/config_full.yaml"):
        find_recipe("lab/lupi_skd/config_ful.yaml")
    with pytest.raises(FileNotFoundError, match="single_cpu"):
        find_accelerate_config("no_such")


def test_cp_never_overwrites(tmp_path):
    target = copy_recipe("recipes/lab/lupi_skd/config_full.yaml", tmp_path)
    assert target.read_text() == find_recipe("lab/lupi_skd/config_full.yaml").read_text()
    with pytest.raises(FileExistsError, match="nothing was copied"):
        copy_recipe("lab/lupi_skd/config_full.yaml", tmp_path)


@pytest.mark.slow
def test_recipes_and_lab_come_with_a_plain_install(tmp_path):
    """A wheel unpacked outside the checkout has recipes, their records, the lab's models and the marker of types."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(ROOT)], check=True, capture_output=True)
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import lupi_trainer;"
        "from lupi_trainer.scripts.recipe_files import list_recipes, recipes_dir;"
        "from lupi_trainer.lab import resolve_model;"
        "import os, lupi_trainer.cli as c; print(lupi_trainer.__file__); print(recipes_dir());"
        "c.main(['recipes', 'ls']);"
        "print(os.path.isfile(resolve_model('lab:teacher') + '/model.safetensors'));"
        "print(os.path.isfile(os.path.dirname(lupi_trainer.__file__) + '/py.typed'));"
        "from lupi_trainer.data.files import find_data; print(find_data('data/smollm2/text.txt'))"
    )
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True
    ).stdout
    lines = out.splitlines()
    assert lines[0].startswith(str(tmp_path)) and lines[1].startswith(str(tmp_path))
    assert lines[2:-3] == list_recipes(*SHIPPED)
    assert lines[-3:-1] == ["True", "True"]
    assert lines[-1] == str(tmp_path / "site" / "lupi_trainer" / "shipped" / "smollm2" / "text.txt")
