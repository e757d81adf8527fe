"""`--no_plugins`: a recipe of a stranger brings no code and sets no variable, in any command that reads one."""

import os
import sys

import pytest

from lupi_trainer.cli import COMMANDS, main
from lupi_trainer.scripts.launch import TRAINING


# what it refuses -> how it says so
CODE = {
    "acceptance_rule: own.py:Rule": "'acceptance_rule' names a class outside the package, 'own.py:Rule'",
    "acceptance_rule: own_module:Rule": "'acceptance_rule' names a class outside the package",
    "gamma_policy: own.py:Policy": "'gamma_policy' names a class outside the package",
    "env: {PYTHONPATH: /tmp}": "'env' sets variables",
    "trust_remote_code: true": "'trust_remote_code' lets code of a model or of the Hub run",
    "trust_remote_code: 'Yes'": "'trust_remote_code' lets code",
    "model_init_kwargs: {trust_remote_code: true}": "'model_init_kwargs.trust_remote_code' lets code",
    """teacher_model_init_kwargs: '{"a": [{"use_kernels": 1}]}'""": "'teacher_model_init_kwargs.a.use_kernels' lets",
    "model_init_kwargs: {_attn_implementation: someone/kernel}": "'model_init_kwargs._attn_implementation' names code",
    "model_init_kwargs: {experts_implementation: a/kernel}": "'model_init_kwargs.experts_implementation' names code",
    "model_init_kwargs: {kernel_config: {RMSNorm: a/b}}": "'model_init_kwargs.kernel_config' lets code",
    "model_init_kwargs: {weights_only: false}": "'model_init_kwargs.weights_only' lets code in pickled weights run",
    "attn_implementation: someone/kernel": "'attn_implementation' names code on the Hub, 'someone/kernel'",
}
READERS = {name: [name, "--config"] for name in (*TRAINING, "compare", "real", "teach")} | {
    "sweep": ["sweep"],
    "plan": ["plan"],
}


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path, monkeypatch):
    """A class whose code would leave a mark, in a folder in which modules are found."""
    code = "open('ran', 'w').close()\nclass Rule:\n    pass\nclass Policy(Rule):\n    pass\n"
    for name in ("own.py", "own_module.py"):
        (tmp_path / name).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *a, **k: pytest.fail("loaded"))
    yield
    assert not (tmp_path / "ran").exists() and "own_module" not in sys.modules


def refusal(arguments: list[str], capsys) -> str:
    assert main([*arguments, "--output_dir", "out"]) == 2
    assert "LUPI_SET" not in os.environ and not os.path.exists("out")
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize("line", CODE)
def test_code_is_refused_by_key_in_a_recipe_and_on_the_command_line(line, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(line)
    said = refusal(["skd", "--config", "recipe.yaml", "--no_plugins"], capsys)
    assert said.startswith(f"error: recipe.yaml: {CODE[line]}") and "--no_plugins refuses it" in said
    key, _, value = line.partition(": ")
    if key not in ("env", "model_init_kwargs"):
        said = refusal(["skd", "--no_plugins", f"--{key}", value.strip("'")], capsys)
        assert said.startswith(f"error: option {CODE[line].replace('Yes', 'yes')}")


@pytest.mark.parametrize("command", READERS)
def test_every_command_that_reads_a_recipe_has_it(command, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("dataset_name: lab:new\nenv: {LUPI_SET: 1}")
    named = "." if command == "sweep" else "recipe.yaml"  # a folder of them
    said = refusal([*READERS[command], named, "--no_plugins"], capsys)
    assert said.startswith("error: recipe.yaml: 'env' sets variables")


def test_no_other_command_takes_keys_of_a_recipe():
    from lupi_trainer.cli import make_command

    taking = {name for name in COMMANDS if "recipe_flags" in make_command(name)._defaults}
    assert taking | set(TRAINING) == set(READERS)


def test_scripts_that_accelerate_starts_have_it_and_what_brings_no_code_passes(tmp_path):
    from lupi_trainer.scripts import lupi_skd
    from lupi_trainer.scripts.recipe_parser import RecipeError

    recipe, parse = tmp_path / "recipe.yaml", lupi_skd.make_parser().parse_args_and_config
    arguments = ["--no_plugins", "--config", str(recipe), "--bf16", "false", "--use_cpu", "true"]
    for line in CODE:
        recipe.write_text(f"dataset_name: lab:new\n{line}")
        with pytest.raises(RecipeError, match="--no_plugins refuses it"):
            parse(arguments)
    recipe.write_text(
        "dataset_name: lab:new\nenv: {}\ntrust_remote_code: false\nacceptance_rule: top_p\nattn_implementation: sdpa\n"
        "model_init_kwargs: {trust_remote_code: false, weights_only: true}"
    )
    assert parse(arguments)[1].acceptance_rule == "top_p"
    with pytest.raises(RecipeError, match="option 'gamma_policy' names a class"):
        parse([*arguments, "--gamma_policy=own.py:Policy"])
