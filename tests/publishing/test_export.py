"""`lupi export`: what a server loads is the trained student, ends where its template does, or is refused by name."""

import json
import re
import shlex
import shutil
import sys

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lupi_trainer.cli import main
from lupi_trainer.lab import resolve_model
from lupi_trainer.models.mtp_heads import MTPHeads
from lupi_trainer.publishing.modelfile import find_turns, go_template
from lupi_trainer.publishing.student_files import student_files


IDS = torch.arange(6, 30)[None]


def save(folder, model, tokenizer=None) -> str:
    model.save_pretrained(folder)
    (tokenizer or AutoTokenizer.from_pretrained(resolve_model("lab:student"))).save_pretrained(folder)
    return str(folder)


def make_student(folder, kind: str):
    """A trained student of a kind in a folder; returns it, as it was when it was saved."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(resolve_model("lab:student"))
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("lab:student"))
    if kind == "untied":
        model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) / 10)
        model.config.tie_word_embeddings = False
    if kind == "resized":
        tokenizer.add_tokens(["<a new one>"])
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if kind in ("lora", "dora", "saved", "resized"):
        more = {"dora": {"use_dora": True}, "saved": {"modules_to_save": ["lm_head"]}}.get(kind, {})
        config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **more)
        model = get_peft_model(model, config)
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.data += torch.randn_like(parameter) / 10
    else:
        model.model.norm.weight.data += 0.1
    save(folder, model, tokenizer)
    return model.eval()


@pytest.mark.parametrize("kind", ["tied", "untied", "lora", "dora", "saved", "resized"])
def test_the_exported_model_is_the_trained_one(tmp_path, kind, capsys):
    trained = make_student(tmp_path / "run", kind)
    assert main(["export", str(tmp_path / "run"), "--to", "vllm", "--output", str(tmp_path / "out")]) == 0
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        assert torch.allclose(exported(IDS).logits, trained(IDS).logits, atol=1e-5)
    tied = exported.get_input_embeddings().weight is exported.get_output_embeddings().weight
    assert tied is exported.config.tie_word_embeddings is (kind not in ("untied", "saved"))
    assert student_files(tmp_path / "out").keys() >= {"README.md", "chat_template.jinja", "generation_config.json"}
    assert "vllm serve . --served-model-name out" in capsys.readouterr().out


def test_an_adapter_is_kept_for_vllm_or_refused(tmp_path, capsys):
    trained = make_student(tmp_path / "run", "lora")
    out = tmp_path / "out"
    assert main(["export", str(tmp_path / "run"), "--to", "vllm", "--adapter", "--output", str(out)]) == 0
    with torch.no_grad():
        kept = AutoPeftModelForCausalLM.from_pretrained(out)(IDS).logits
        assert torch.allclose(kept, trained(IDS).logits, atol=1e-5)
    page, base = (out / "README.md").read_text(), resolve_model("lab:student")
    serving = page[page.index("## Serving") :]
    assert f"vllm serve {base} --enable-lora" in capsys.readouterr().out and base not in serving
    assert (
        "vllm serve BASE --enable-lora --max-lora-rank 8 --lora-modules out=. --chat-template chat_template.jinja"
        in page
    )
    assert GenerationConfig.from_pretrained(out).eos_token_id == 2 and not (out / "model.safetensors").exists()
    for kind, key in (("dora", "use_dora=true"), ("saved", 'modules_to_save=["lm_head"]')):
        make_student(tmp_path / kind, kind)
        run = ["export", str(tmp_path / kind), "--to", "vllm", "--adapter", "--output", str(tmp_path / "x")]
        assert main(run) == 2
        assert f"vLLM loads no adapter with {key}: leave --adapter out" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_an_answer_ends_where_the_template_ends_a_turn(tmp_path, student, tokenizer, capsys):
    """The base's end of text is another one, its sampling is not valid, and the recipe had a keyword argument."""
    tokenizer.eos_token = "<|pad|>"
    tokenizer.chat_template = "{% if think %}{{ 'Think.' }}{% endif %}" + tokenizer.chat_template
    student.generation_config.eos_token_id = 1
    run = save(tmp_path / "run", student, tokenizer)
    path = tmp_path / "run" / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": 0.5, "do_sample": False}))
    template = ["--chat_template_kwargs", '{"think": true}']
    with pytest.warns(UserWarning, match="temperature=0.5 had no effect"):
        assert main(["export", run, "--to", "hf", "--output", str(tmp_path / "out"), *template]) == 0
    assert (
        "end of text is '<|end|>', as the chat template ends a turn, and no longer '<|pad|>'"
        in capsys.readouterr().out
    )
    made = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert made.eos_token == "<|end|>" and GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == [2, 1]
    asked = [{"role": "user", "content": "Hi"}]
    assert made.apply_chat_template(asked, tokenize=False).startswith("Think.<|user|>Hi")
    assert made.apply_chat_template(asked, tokenize=False, think=False).startswith("<|user|>Hi")


def test_heads_go_along_where_they_are_read(tmp_path, student, capsys):
    run = save(tmp_path / "run", student)
    MTPHeads.for_model(student, 3).save_pretrained(run)
    for target, said in (("hf", "which lupi_trainer alone reads"), ("vllm", "are left out: vLLM has no use for them")):
        out = tmp_path / target
        assert main(["export", run, "--to", target, "--output", str(out)]) == 0
        assert said in capsys.readouterr().out and said in (out / "README.md").read_text()
        assert (out / "mtp_heads.safetensors").exists() is (target == "hf")


def test_the_draft_of_a_teacher_has_its_line_where_the_vocabularies_are_one(tmp_path, student, capsys):
    run = ["export", "lab:student", "--to", "vllm", "--output", str(tmp_path / "out"), "--draft_of"]
    student.resize_token_embeddings(640, mean_resizing=False)
    larger = save(tmp_path / "larger", student)
    assert main([*run, larger]) == 2
    assert "vLLM wants as many embeddings of both; the student has 568" in capsys.readouterr().err
    assert main([*run, "lab:teacher"]) == 0
    assert f"draft of its teacher: vllm serve {resolve_model('lab:teacher')} --spec" in capsys.readouterr().out
    (line,) = re.findall(r"^vllm serve TEACHER (.*)$", (tmp_path / "out" / "README.md").read_text(), re.MULTILINE)
    assert json.loads(shlex.split(line)[1])["model"] == "."


def go(template: str, messages: list[dict[str, str]]) -> str:
    """What Go's text/template makes of the few forms that are used here: the branches of an `if` end together."""
    steps = re.findall(r"\{\{- (.*?) -\}\}", template)
    assert re.sub(r"\{\{- .*? -\}\}", "", template).strip() == ""
    start = next(place for place, step in enumerate(steps) if step.startswith("range"))
    end = len(steps) - 1 - steps[::-1].index("end")

    def run(steps: list[str], message: dict[str, str], first: dict[str, str]) -> str:
        text, on = "", True
        for step in steps:
            if step == "end":
                on = True
            elif (found := re.fullmatch(r'(?:else )?if (ne|eq) (.*) "(\w+)"', step)) is not None:
                role = (message if found[2] == ".Role" else first)["role"]
                on = (role == found[3]) is (found[1] == "eq")
            elif on:
                text += message["content"] if step == ".Content" else json.loads(step)
        return text

    inside = "".join(run(steps[start + 1 : end], message, messages[0]) for message in messages)
    return run(steps[:start], {}, messages[0]) + inside + run(steps[end + 1 :], {}, messages[0])


CHATML = (
    "{% for m in messages %}"
    "{% if loop.first and m.role != 'system' %}{{ '<|s|>system\nYou \"help\".<|e|>\n' }}{% endif %}"
    "{{ '<|s|>' + m.role + '\n' + m.content + '<|e|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|s|>assistant\n' }}{% endif %}"
)


def test_the_modelfile_writes_what_the_chat_template_writes(tmp_path, student, tokenizer):
    conversation = [
        {"role": role, "content": f"{role}'s {{{{ text }}}}"}
        for role in ("system", *["user", "assistant"] * 2, "user")
    ]
    for template in (tokenizer.chat_template, CHATML):
        tokenizer.chat_template = template
        written = go_template(find_turns(tokenizer))
        for messages in (conversation, conversation[1:], conversation[1:2]):
            own = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            assert go(written, messages) == own
    student.generation_config.update(do_sample=True, temperature=0.5, eos_token_id=[2, 1])
    tokenizer.chat_template = AutoTokenizer.from_pretrained(resolve_model("lab:student")).chat_template
    run = save(tmp_path / "run", student, tokenizer)
    assert main(["export", run, "--to", "ollama", "--name", "mine", "--output", str(tmp_path / "out")]) == 0
    made = (tmp_path / "out" / "Modelfile").read_text()
    assert made.startswith('FROM ./mine-f16.gguf\nTEMPLATE """{{-') and (tmp_path / "out" / "mine-f16.gguf").is_file()
    assert made.endswith(
        'PARAMETER stop "<|end|>"\nPARAMETER stop "<|pad|>"\nPARAMETER num_ctx 512\nPARAMETER repeat_penalty 1\n'
        "PARAMETER temperature 0.5\n"
    )


def edited(tmp_path, file: str, change: dict) -> str:
    folder = tmp_path / "edited"
    shutil.copytree(resolve_model("lab:student"), folder)
    (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | change))
    return str(folder)


@pytest.mark.parametrize(
    "flags, change, message",
    [
        (["--to", "gguf", "--adapter"], {}, "--adapter goes with --to hf and vllm: for gguf, the adapter is merged"),
        (["--to", "vllm", "--adapter"], {}, "is no adapter, but a complete model"),
        (["--to", "vllm", "--base_dir", "lab:teacher"], {}, "is no adapter, but a complete model"),
        (["--to", "ollama", "--dtype", "float16"], {}, "of a GGUF file: --type"),
        (["--to", "hf", "--type", "q8_0"], {}, "--type is of a GGUF file"),
        (["--to", "vllm", "--type", "f16"], {}, "--type is of a GGUF file"),  # its default, which vLLM has not
        (["--to", "hf", "--draft_of", "lab:teacher"], {}, "--draft_of is of a complete model for vLLM"),
        (["--to", "hf", "--name", "a/b"], {}, "--name 'a/b' cannot be"),
        (["--to", "gguf", "--converter", "gone.py"], {}, "--converter: no such file: gone.py"),
        (["--to", "gguf"], {"model_type": "gemma"}, "a GGUF file of gemma is not written here, only of llama"),
        (["--to", "gguf"], {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "'linear'"),
        (["--to", "gguf"], {"hidden_act": "gelu"}, "hidden_act='gelu' is not written here: give --converter"),
        (["--to", "hf"], {"quantization_config": {"quant_method": "gptq", "bits": 4}}, "the student is quantized"),
        (["--to", "hf", "--chat_template_kwargs", '{"tokenize": true}'], {}, "'tokenize' is no variable of a chat"),
        (["--to", "hf", "--chat_template_kwargs", '{"think": [1]}'], {}, "think=[1] cannot be a default"),
    ],
)
def test_what_cannot_be_exported_is_named_before_weights_are_read(
    tmp_path, flags, change, message, capsys, monkeypatch
):
    monkeypatch.setattr("lupi_trainer.publishing.export.load_complete", lambda *args, **kwargs: 1 / 0)
    run = edited(tmp_path, "config.json", change)
    assert main(["export", run, *flags, "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edited"]


def test_what_else_is_named(tmp_path, capsys, monkeypatch, tokenizer):
    monkeypatch.setattr("lupi_trainer.publishing.export.load_complete", lambda *args, **kwargs: 1 / 0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    run = edited(tmp_path, "tokenizer_config.json", {})
    path = tmp_path / "edited" / "chat_template.jinja"
    counts = tokenizer.chat_template.replace("message['content'] +", "message['content'] + loop.index | string +")
    monkeypatch.setitem(sys.modules, "gguf", None)
    for to, out, template, said in (
        ("hf", "full", None, "full exists already; nothing was written"),
        ("gguf", "out", None, 'the package `gguf` is needed: pip install "lupi-trainer[gguf]"'),
        ("hf", "out", "", "the tokenizer has no chat template"),
        ("ollama", "out", counts, "the chat template cannot be written as Ollama's"),
    ):
        if to == "ollama":
            monkeypatch.undo()
            monkeypatch.setattr("lupi_trainer.publishing.export.load_complete", lambda *args, **kwargs: 1 / 0)
        if template is not None:
            path.write_text(template) if template else path.unlink()
        assert main(["export", run, "--to", to, "--output", str(tmp_path / out)]) == 2, said
        assert said in capsys.readouterr().err
