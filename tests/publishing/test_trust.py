"""What comes from outside is read, never run: models, templates, recipes, names."""

import ast
import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig

import lupi_trainer
from lupi_trainer.cli import make_parser as make_cli_parser
from lupi_trainer.data.credentials import is_secret_name, looks_secret
from lupi_trainer.data.prompts import TeacherPrompt, TemplateError, encode
from lupi_trainer.data.records import load_training_data
from lupi_trainer.lab import resolve_model
from lupi_trainer.models.loading import load_model
from lupi_trainer.scripts import compare, sft
from lupi_trainer.scripts.lupi_skd import make_parser
from lupi_trainer.scripts.recipe_files import find_accelerate_config, find_recipe
from lupi_trainer.scripts.recipe_parser import RecipeError, RecipeParser
from lupi_trainer.scripts.sweep import flags_to_settings
from lupi_trainer.training.checkpoints import seal
from tests.kd_lora.training import make_kd_trainer
from tests.lupi_skd.training import make_trainer
from tests.wmtp.training import make_wmtp_trainer


ROOT = Path(lupi_trainer.__file__).parent
SECRET = "hf_" + "s" * 34


def compare_main(arguments: list[str]) -> None:
    return compare.compare(make_cli_parser().parse_args(["compare", *arguments]))


def calls_of_from_pretrained():
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                if node.func.attr == "from_pretrained" and isinstance(node.func.value, ast.Name):
                    given = {keyword.arg for keyword in node.keywords}  # `None` stands for **options
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node.func.value.id, given


def test_every_loading_of_models_says_whether_code_and_pickles_are_trusted():
    calls = list(calls_of_from_pretrained())
    assert len(calls) >= 8
    for where, name, given in calls:
        if name.startswith("Auto"):
            assert {"trust_remote_code", None} & given, f"{where}: {name} would ask at the terminal"
        if name.startswith(("AutoModel", "AutoPeft")):
            assert {"use_safetensors", None} & given, f"{where}: {name} would fall back on pickles"


def with_code(folder: Path, marker: Path) -> str:
    """A model whose configuration, model and tokenizer are code in its own folder; running it leaves a mark."""
    shutil.copytree(resolve_model("lab:student"), folder)
    for name, classes in (
        ("config.json", {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["own.OwnTokenizer", None]}),
    ):
        content = json.loads((folder / name).read_text())
        changed = {"auto_map": classes, "model_type": "own"} if name == "config.json" else {"auto_map": classes}
        (folder / name).write_text(json.dumps(content | changed))
    code = f"open({str(marker)!r}, 'w').close()\nfrom transformers import LlamaConfig\n"
    (folder / "own.py").write_text(code + "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n")
    return str(folder)


@pytest.mark.parametrize("role", ["student", "teacher", "evaluated"])
def test_a_models_own_code_is_not_run_and_nobody_is_asked(tmp_path, monkeypatch, tokenizer, role):
    monkeypatch.setattr("builtins.input", lambda *args: pytest.fail("asked at the terminal"))
    marker = tmp_path / "ran"
    path = with_code(tmp_path / "model", marker)
    with pytest.raises(ValueError, match="trust_remote_code"):
        if role == "evaluated":
            load_model(path)
        elif role == "student":
            make_trainer(tmp_path, path, processing_class=tokenizer)
        else:
            make_trainer(tmp_path, teacher_model=path)
    assert not marker.exists() and not (tmp_path / "run").exists()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    AutoConfig.from_pretrained(path, trust_remote_code=True)
    assert marker.exists()  # it is code that would run


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("role", ["student", "teacher", "evaluated", "base of an adapter", "reference", "sft"])
def test_code_of_the_hub_that_a_models_configuration_names_is_not_run(tmp_path, monkeypatch, tokenizer, role, key):
    monkeypatch.setattr("transformers.modeling_utils.is_kernel", lambda name: pytest.fail(f"{name} would be loaded"))
    path = tmp_path / "model"
    shutil.copytree(resolve_model("lab:student"), path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | {key: "someone/kernel"}))
    if role == "base of an adapter":
        tokenizer.save_pretrained(tmp_path / "adapter")
        LoraConfig(base_model_name_or_path=str(path)).save_pretrained(tmp_path / "adapter")
        path = tmp_path / "adapter"
    loading = LOADING | {"base of an adapter": LOADING["evaluated"]}
    loading["reference"] = lambda tmp_path, path: make_wmtp_trainer(tmp_path, "rho1-wmtp", reference_model=path)
    with pytest.raises(ValueError, match=f"`{key}` in its config.json names code on the Hub, 'someone/kernel'"):
        loading[role](tmp_path, str(path))


def pickled(folder: Path, model) -> str:
    shutil.copytree(resolve_model("lab:student"), folder)
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    return str(folder)


def sft_trainer(tmp_path, path):
    flags = {"model_name_or_path": path, "dataset_name": "lab:common", "output_dir": tmp_path / "run"}
    flags |= {"use_cpu": "true", "bf16": "false", "report_to": "none"}
    arguments = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    return sft.build_trainer(*sft.make_parser().parse_args_and_config(arguments))


LOADING = {
    "student": make_trainer,
    "teacher": lambda tmp_path, path: make_trainer(tmp_path, teacher_model=path),
    "evaluated": lambda tmp_path, path: load_model(path),
    "kd_lora": make_kd_trainer,
    "wmtp": lambda tmp_path, path: make_wmtp_trainer(tmp_path, model=path),
    "sft": sft_trainer,
}


@pytest.mark.parametrize("role", LOADING)
def test_pickled_weights_are_not_read(tmp_path, student, role):
    path = pickled(tmp_path / "model", student)
    with pytest.raises((OSError, ValueError), match="safetensors"):
        LOADING[role](tmp_path, path)
    assert not (tmp_path / "run").exists()


def test_pickled_weights_are_read_where_they_are_asked_for(tmp_path, student):
    path = pickled(tmp_path / "model", student)
    trainer, _ = make_trainer(tmp_path, path, config_model_init_kwargs={"use_safetensors": False})
    assert torch.equal(trainer.model.get_input_embeddings().weight, student.get_input_embeddings().weight)


def test_a_pickled_adapter_is_not_read(tmp_path, student, tokenizer):
    folder = tmp_path / "adapter"
    get_peft_model(student, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    load_model(str(folder))
    torch.save({}, folder / "adapter_model.bin")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(OSError, match=r"adapter has no adapter_model.safetensors$"):
        load_model(str(folder))
    for text in ("{", "[]", "[" * 100_000):
        (folder / "adapter_config.json").write_text(text)
        with pytest.raises(ValueError, match="adapter_config.json: not a configuration of an adapter"):
            load_model(str(folder))


class Mark:
    """Unpickled, it leaves a file: code of a checkpoint that would run."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_among_pickled_weights_that_are_asked_for_is_not_run(tmp_path, student):
    path, marker = pickled(tmp_path / "model", student), tmp_path / "ran"
    torch.save(student.state_dict() | {"more": Mark(marker)}, Path(path) / "pytorch_model.bin")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        make_trainer(tmp_path, path, config_model_init_kwargs={"use_safetensors": False})
    assert not marker.exists()


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"])
@pytest.mark.grid(2)
def test_code_in_a_checkpoint_is_not_run(tmp_path, file):
    """Whoever makes a checkpoint makes its manifest, too."""
    settings = {"config_max_steps": 2, "config_save_strategy": "steps", "config_save_steps": 1}
    make_trainer(tmp_path, **settings)[0].train()
    checkpoint, marker = tmp_path / "run" / "checkpoint-1", tmp_path / "ran"
    if file == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    torch.save({"state": Mark(marker)}, checkpoint / file)
    seal(checkpoint)
    with pytest.raises(ValueError, match="cannot resume from .*checkpoint-1: .*; no code of it was run"):
        make_trainer(tmp_path, **settings)[0].train(resume_from_checkpoint=str(checkpoint))
    assert not marker.exists()
    torch.load(checkpoint / file, weights_only=False)
    assert marker.exists()  # it is code that would run


@pytest.mark.parametrize(
    "template, message",
    [
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{{ messages.append(1) }}", "unsafe|not safely callable"),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "[Rr]ange too big"),
        ("{{ messages[0].nothing.further }}", "no attribute 'nothing'"),
        ("{% if %}", "Expected an expression"),
        ("{{ raise_exception('no such\nrole') }}", "no such role$"),
    ],
)
def test_chat_templates_run_in_the_sandbox_and_their_faults_are_said_in_one_line(tokenizer, template, message):
    tokenizer.chat_template = template
    with pytest.raises(TemplateError, match=f"the tokenizer's chat template cannot write.*({message})") as error:
        encode(tokenizer, [[{"role": "user", "content": "q"}]])
    assert "\n" not in str(error.value)


def test_a_record_that_the_template_refuses_is_named(tmp_path):
    records = [{"id": f"r{i}", "query": "q", "knowledge": None} for i in range(4)]
    records[2]["prompt"] = [{"role": "tool", "content": "x"}, {"role": "user", "content": "q"}]
    with pytest.raises(ValueError, match="record 'r2': the tokenizer's chat template .*unknown role tool"):
        make_trainer(tmp_path, train_dataset=records)
    assert not (tmp_path / "run").exists()


def test_knowledge_and_questions_are_values_and_never_templates(tokenizer):
    text = "{{ 7 * 7 }} {query} {privileged_context} {% raw %}"
    messages = TeacherPrompt("{{ 7 * 7 }}").messages([{"role": "user", "content": text}], text)
    assert messages[0]["content"] == "{{ 7 * 7 }}"
    assert messages[-1]["content"] == f"[Background Knowledge]\n{text}\n\n{text}"
    ids = encode(tokenizer, [messages])[0]
    assert "49" not in tokenizer.decode(ids) and tokenizer.decode(ids).count("7 * 7") == 3


def test_recipes_are_data(tmp_path):
    for text in ("a: !!python/object/apply:os.system ['touch ran']", "!!python/name:os.system"):
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(text)
        with pytest.raises(RecipeError, match="not valid YAML"):
            make_parser().parse_args_and_config(["--config", str(recipe)])
    assert not Path("ran").exists()


@pytest.mark.parametrize("key", ["hub_token", "push_to_hub_token"])
def test_tokens_have_no_place_in_recipes_or_on_the_command_line(tmp_path, key):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"dataset_name: lab:new\n{key}: {SECRET}")
    for arguments in (["--config", str(recipe)], [f"--{key}", SECRET], [f"--{key}={SECRET}"]):
        with pytest.raises(RecipeError, match=f"{key}.*set HF_TOKEN in the environment") as error:
            make_parser().parse_args_and_config(arguments)
        assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    "line, named",
    [
        (f"env: {{HF_TOKEN: {SECRET}}}", "env.*the variable HF_TOKEN"),
        ("env: {WANDB_API_KEY: 0123456789abcdef}", "env.*the variable WANDB_API_KEY"),
        ("env: {aws_secret_access_key: hunter2}", "env.*the variable aws_secret_access_key"),
        ("env: {HTTPS_PROXY: 'http://me:hunter2@proxy'}", "env.*a token or password"),
        (f"run_name: {SECRET}", "run_name.*a token or password"),
        (f"model_init_kwargs: {{header: [{SECRET}]}}", "model_init_kwargs.*a token or password"),
        (f"seed: [{SECRET}", "not valid YAML"),
        ("env: {A: [hunter2]}", "the variable A in `env` must be one value"),
    ],
)
def test_secrets_have_no_place_anywhere_in_a_recipe_and_are_not_shown(tmp_path, monkeypatch, line, named):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"dataset_name: lab:new\n{line}\n")
    monkeypatch.setattr("lupi_trainer.scripts.arms.build", lambda *args: pytest.fail("it would be trained"))
    for read in (
        lambda: make_parser().parse_args_and_config(["--config", str(recipe)]),
        lambda: compare_main(["--config", str(recipe), "--output_dir", str(tmp_path / "out")]),
    ):
        with pytest.raises(RecipeError, match=named) as error:
            read()
        assert not any(secret in str(error.value) for secret in (SECRET, "0123456789abcdef", "hunter2"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", [["--run_name", SECRET], [f"--run_name={SECRET}"]])
def test_secrets_have_no_place_on_the_command_line(tmp_path, flags):
    for read in (
        lambda: make_parser().parse_args_and_config(["--dataset_name", "lab:new", *flags]),
        lambda: flags_to_settings(flags),
    ):
        with pytest.raises(RecipeError, match="run_name.*a token or password") as error:
            read()
        assert SECRET not in str(error.value)


def test_names_of_secrets_and_texts_that_are_none():
    for name in ("eos_token", "pad_token", "resume_from_checkpoint"):
        RecipeParser.refuse_secret(name, "", "<|end|>")
    for name in ("PATH", "TOKENIZERS_PARALLELISM", "MAX_TOKENS", "MONKEY", "CUDA_VISIBLE_DEVICES"):
        assert not is_secret_name(name)
    for name in ("GITHUB_PAT", "AZURE_STORAGE_KEY", "DB_PASSWORD", "HUGGING_FACE_HUB_TOKEN"):
        assert is_secret_name(name)
    assert not looks_secret('{"://":1358,"a:b@c":7} http://host:8000/a@b hf_transfer')


@pytest.mark.parametrize("key", ["model_init_kwargs", "teacher_model_init_kwargs"])
def test_tokens_have_no_place_among_the_loading_options_of_a_recipe(tmp_path, key):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"dataset_name: lab:new\n{key}: {{token: hunter2}}")
    with pytest.raises(ValueError, match=f"a token in {key}") as error:
        make_parser().parse_args_and_config(["--config", str(recipe), "--bf16", "false", "--use_cpu", "true"])
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("name", ["../lab/lupi_skd/config_full", "../../pyproject", "/etc/hostname", "a/../fsdp2"])
def test_names_of_accelerate_configurations_stay_in_their_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if not Path(name).is_file():
        with pytest.raises(FileNotFoundError, match="no accelerate configuration"):
            find_accelerate_config(name)


@pytest.mark.parametrize("name", ["../pyproject.toml", "recipes/../setup.cfg", "lab/../../README.md"])
def test_names_of_recipes_stay_in_their_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no recipe"):
        find_recipe(name)


def test_names_of_the_lab_stay_in_the_lab():
    for name in ("lab:../../data/probes_en", "lab:/etc", "lab:"):
        with pytest.raises(ValueError, match="in the lab"):
            load_training_data(name)
        with pytest.raises(ValueError, match="in the lab"):
            resolve_model(name)


def test_a_dataset_that_is_a_script_is_not_run(tmp_path):
    (tmp_path / "script.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    for source in (tmp_path / "script.py", tmp_path):
        with pytest.raises(ValueError, match="is a file of another kind|cannot be loaded"):
            load_training_data(str(source))
    assert not (tmp_path / "ran").exists()
