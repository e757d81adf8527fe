"""Exported students answer on a real vLLM server as they do here, merged or as an adapter (`make test-vllm`)."""

import json
import re
import shlex

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lupi_trainer.cli import main
from lupi_trainer.lab import resolve_model
from tests.vllm.server import Server


pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]


@pytest.mark.parametrize("kept", [False, True])
def test_a_student_answers_as_it_does_here(tmp_path, kept, capfd):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(resolve_model("lab:student"))
    config = LoraConfig(r=8, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(run := tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("lab:student"))
    tokenizer.save_pretrained(run)
    out, report = tmp_path / "out", tmp_path / "report.json"
    assert main(["export", str(run), "--to", "vllm", "--output", str(out), *(["--adapter"] if kept else [])]) == 0
    served, more = str(out), []
    if kept:  # as the README says, but for where the adapter is
        (line,) = re.findall(r"^vllm serve (.*)$", (out / "README.md").read_text(), re.MULTILINE)
        served, *more = shlex.split(line)
        more = [word.replace("out=.", f"out={out}") for word in more]
        more = [str(out / word) if word.endswith(".jinja") else str(out) if word == "." else word for word in more]
    server = Server(tmp_path / "server.log", served, more=more).wait()
    try:
        name = "out" if kept else "teacher"
        command = ["evaluate", "--server", f"{server.url}/v1", "--served_model", name, "--compare", str(run)]
        command += ["--probes", "lab:probes-common", "lab:probes", "--max_new_tokens", "24", "--device", "cpu"]
        assert main([*command, "--output", str(report)]) == 0
    finally:
        server.stop()
    for entry in json.loads(report.read_text()).values():
        compared = entry["compared, closed-book"]
        with capfd.disabled():
            print(len(compared["differences"]), [one["why"] for one in compared["differences"]])
        assert compared["prompts_known"] and compared["prompt"] is None
        assert {one["kind"] for one in compared["differences"]} <= {"a close call"}
        assert len(compared["differences"]) < 10
