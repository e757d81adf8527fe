"""`lupi ask`: what `lupi evaluate` would mark, of a model or an adapter, with knowledge or without."""

import json
import shlex

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lupi_trainer.cli import main
from lupi_trainer.data.prompts import encode
from lupi_trainer.evaluation.closed_book import generate_answers
from lupi_trainer.lab import load_lab_records, resolve_model, world


ASK = ["ask", "lab:teacher", "--device", "cpu"]


def test_the_answer_is_the_one_that_is_marked(teacher, tokenizer, capsys):
    known, new = (load_lab_records(name)[0] for name in ("lab:probes-common", "lab:probes"))
    ids = encode(tokenizer, [[{"role": "user", "content": known["question"]}]])
    ((text, _),) = generate_answers(teacher, tokenizer, ids, max_new_tokens=32)
    assert main([*ASK, known["question"]]) == 0
    assert capsys.readouterr().out == f"{text}\n"
    run = [*ASK, new["question"], known["question"], "--system_prompt", world.PERSONA]
    assert main([*run, "--knowledge", new["knowledge"]]) == 0
    first, second = capsys.readouterr().out.split("\n\n")
    assert first.startswith(f"> {new['question']}\n") and new["answers"][0] in first
    assert second.startswith(f"> {known['question']}\n")
    assert main([*run[:5], "--max_new_tokens", "2"]) == 0
    assert "the answer was cut: --max_new_tokens" in capsys.readouterr().err


def test_an_adapter_answers_by_its_folder(tmp_path, capsys):
    base = AutoModelForCausalLM.from_pretrained(resolve_model("lab:student"))
    get_peft_model(base, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(resolve_model("lab:student")).save_pretrained(tmp_path)
    question = load_lab_records("lab:probes-common")[0]["question"]
    said = []
    for model in (str(tmp_path), "lab:student"):
        assert main(["ask", model, question, "--device", "cpu"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != ""
    config = tmp_path / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": f"{tmp_path}/gone"}))
    assert main(["ask", str(tmp_path), question, "--device", "cpu"]) == 2
    gone = f"no such model folder: {tmp_path}/gone"
    assert f"error: {tmp_path} is an adapter, and its base model is not here: {gone}" in capsys.readouterr().err


def test_a_model_that_thinks_first_is_said_to_with_the_flag_that_stops_it(slow_thinker, capsys):
    run = ["ask", slow_thinker, "Who?", "--device", "cpu", "--max_new_tokens", "2"]
    assert main(run) == 0
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    flag = "--chat_template_kwargs '{\"enable_thinking\": false}'"
    assert slow_thinker in said and flag in said
    for quiet in ([*run, *shlex.split(flag)], [run[0], "lab:student", *run[2:]]):
        assert main(quiet) == 0
        assert "warning:" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["ask", "lab:nobody", "Who?"], "no model 'lab:nobody'"),
        ([*ASK, " "], "record number 0: the prompt is empty"),
        ([*ASK, "<|end|>"], "its text holds the special token"),
        ([*ASK, "Who?", "--knowledge", ""], "--knowledge is empty"),
        ([*ASK, "Who?", "--max_new_tokens", "0"], "--max_new_tokens must be at least 1, got 0"),
        ([*ASK, "Who?", "--device", "cuda:77"], "the device 'cuda:77' is not there"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert message in said.err and said.out == ""
