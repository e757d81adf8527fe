"""What is odd or broken in a student, its folder or its name is said by `lupi export`, and nothing half is left."""

import json
import shutil

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lupi_trainer.cli import main
from lupi_trainer.lab import resolve_model


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(resolve_model("lab:student"), folder)
    return folder


@pytest.fixture
def adapter(tmp_path):
    base = AutoModelForCausalLM.from_pretrained(resolve_model("lab:student"))
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def edit(path, **change) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def refused(run, capsys, *more: str, to: str = "hf") -> str:
    out = run.parent / "out"
    before = sorted(run.parent.iterdir())
    command = ["export", str(run), "--to", to, *more]
    assert main(command if "--output" in more else [*command, "--output", str(out)]) == 2
    assert sorted(run.parent.iterdir()) == before
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "place, message",
    [
        ("file", "is a file, and a new folder is wanted"),
        ("file/out", "file is no folder, so that"),
        ("link", "is a link, and a new folder is wanted"),
        ("run/out", "which would be sent and served with it"),
        (".", "has no name"),
    ],
)
def test_where_nothing_can_be_written_is_said_before_weights_are_read(
    run, tmp_path, place, message, capsys, monkeypatch
):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "free").mkdir()
    monkeypatch.chdir(tmp_path / "free")
    monkeypatch.setattr("lupi_trainer.publishing.export.load_complete", lambda *args, **kwargs: 1 / 0)
    assert message in refused(run, capsys, "--output", place if place == "." else str(tmp_path / place))


@pytest.mark.parametrize("name, to", [("-x", "vllm"), ("a\nb", "vllm"), ("x" * 97, "gguf"), ("a b", "ollama")])
def test_a_name_is_a_word_of_a_command_and_of_a_file(run, name, to, capsys):
    assert "cannot be that of a served model" in refused(run, capsys, f"--name={name}", to=to)


@pytest.mark.parametrize(
    "template, message",
    [
        ("{% if %}", "Expected an expression"),
        ("{{ messages[0]['content'] + 3 }}", "can only concatenate"),
        ("{{ 'Hi' }}", "it leaves out the user turn"),
        ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}", "it has no generation prompt"),
    ],
)
def test_a_template_that_writes_no_question_is_refused(run, template, message, capsys):
    (run / "chat_template.jinja").write_text(template)
    assert message in refused(run, capsys)


@pytest.mark.parametrize("given", ['{"for": 1}', '{"true": 1}', '{"t": NaN}', '{"messages": "x"}', '{"bos_token": 1}'])
def test_no_default_is_made_of_what_no_template_reads(run, given, capsys):
    assert "chat_template_kwargs: " in refused(run, capsys, "--chat_template_kwargs", given)


def test_a_default_that_the_template_does_not_read_is_said(run, tmp_path, capsys):
    command = ["export", str(run), "--to", "hf", "--output", str(tmp_path / "out")]
    assert main([*command, "--chat_template_kwargs", '{"enable_thinking": false}']) == 0
    assert "the chat template does not read 'enable_thinking'" in capsys.readouterr().out


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("generation_config.json", "{", "generation_config.json: not valid JSON"),
        ("generation_config.json", "[1]", "generation_config.json: expected an object, found list"),
        ("generation_config.json", '{"max_new_tokens": -4}', "generation_config.json: `max_new_tokens` must be"),
        ("generation_config.json", '{"eos_token_id": "x"}', "eos_token_id='x' is no token id"),
        ("tokenizer_config.json", "[]", "no tokenizer can be read from it"),
        ("config.json", '{"model_type": "llama", "num_attention_heads": 0}', "no configuration can be read from it"),
        ("model.safetensors", "", "are no complete safetensors file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(run, file, content, message, capsys):
    (run / file).write_text(content)
    said = refused(run, capsys)
    assert message in said and (str(run) in said or file == "generation_config.json")


def test_weights_of_another_shape_are_named(run, capsys):
    edit(run / "config.json", vocab_size=100)
    assert "another shape of 1 weights that do not fit (model.embed_tokens.weight)" in refused(run, capsys)
    assert main(["ask", str(run), "Who?", "--device", "cpu"]) == 2
    assert f"the weights of {run} have other shapes than its configuration says" in capsys.readouterr().err


@pytest.mark.parametrize(
    "given, left, said",
    [
        ({"temperature": -1.0}, {"temperature": None}, "temperature=-1.0 is taken out: above 0"),
        ({"top_p": "hot"}, {"top_p": None}, "top_p='hot' is taken out"),
        ({"temperature": 0.0}, {"do_sample": False}, "samples at temperature 0, which is greedy"),
        ({"eos_token_id": 99999}, {"eos_token_id": 2}, "end of text 99999 is taken out"),
    ],
)
def test_sampling_that_servers_refuse_is_taken_out(run, tmp_path, given, left, said, capsys):
    edit(run / "generation_config.json", do_sample=True, **given)
    assert main(["export", str(run), "--to", "ollama", "--output", str(tmp_path / "served")]) == 0
    assert said in capsys.readouterr().out
    written = (tmp_path / "served" / "Modelfile").read_text()
    assert "null" not in written and not any(f"PARAMETER {name}" in written for name in ("temperature", "top_p"))
    assert main(["export", str(run), "--to", "hf", "--output", str(tmp_path / "out")]) == 0
    made = GenerationConfig.from_pretrained(tmp_path / "out")
    assert {name: getattr(made, name) for name in left} == left


def test_an_adapter_keeps_no_sampling_of_its_base_that_is_not_in_effect(run, adapter, tmp_path):
    """vLLM would sample by it."""
    edit(run / "generation_config.json", do_sample=False, temperature=0.5)
    out = tmp_path / "out"
    command = ["export", str(adapter), "--base_dir", str(run), "--to", "vllm", "--adapter", "--output", str(out)]
    with pytest.warns(UserWarning, match="temperature=0.5 had no effect"):
        assert main(command) == 0
    assert "temperature" not in json.loads((out / "generation_config.json").read_text())


@pytest.mark.parametrize("kept", [False, True])
def test_an_adapter_of_another_base_is_named(adapter, kept, capsys):
    said = refused(adapter, capsys, "--base_dir", "lab:teacher", *(["--adapter"] if kept else []), to="vllm")
    assert ("is no adapter of rank 2 of this llama" if kept else "does not belong to this LlamaForCausalLM") in said


@pytest.mark.parametrize(
    "change, more, message",
    [
        ({"base_model_name_or_path": 7}, [], "base_model_name_or_path must be the name of a model, got 7"),
        ({"base_model_name_or_path": "ADAPTER"}, [], "is an adapter, and a model is wanted"),
        ({"peft_type": "ZORG"}, [], "PEFT cannot read its adapter_config.json"),
        ({"r": "x"}, ["--adapter"], "r must be the rank of the adapter"),
        (None, [], "is no complete safetensors file"),
    ],
)
def test_a_broken_adapter_is_named(adapter, change, more, message, capsys):
    if change is None:
        (adapter / "adapter_model.safetensors").write_bytes(b"1234")
    else:
        known = {key: str(adapter) if value == "ADAPTER" else value for key, value in change.items()}
        edit(adapter / "adapter_config.json", **known)
    assert message in refused(adapter, capsys, *more, to="vllm")


@pytest.mark.parametrize("at", ["write_gguf", "modelfile"])
def test_an_interrupted_export_leaves_nothing(run, tmp_path, at, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    place = {"write_gguf": "gguf_file.write_gguf", "modelfile": "modelfile.modelfile"}[at]
    monkeypatch.setattr(f"lupi_trainer.publishing.{place}", stop)
    assert main(["export", str(run), "--to", "ollama", "--output", str(tmp_path / "out")]) == 130
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_marks_of_generation_are_no_tokens_of_a_template_elsewhere(run, tmp_path):
    """transformers' own tags would be an error in llama.cpp, which reads the template inside of the file."""
    gguf = pytest.importorskip("gguf")
    assert "{% generation %}" in AutoTokenizer.from_pretrained(run).chat_template
    assert main(["export", str(run), "--to", "gguf", "--output", str(tmp_path / "out")]) == 0
    field = gguf.GGUFReader(tmp_path / "out" / "out-f16.gguf").get_field("tokenizer.chat_template")
    assert "{% generation %}" not in field.contents()
