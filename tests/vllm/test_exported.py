"""Exported students answer on a real vLLM server as they do here, merged or as an adapter (`make test-vllm`)."""

import json
import re
import shlex

import httpx
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lupi_trainer.cli import main
from lupi_trainer.data.prompts import TeacherPrompt
from lupi_trainer.evaluation.closed_book import conversation
from lupi_trainer.lab import load_lab_records, resolve_model
from lupi_trainer.teachers.chat import ChatServer
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
        assert served == "BASE"  # a folder, which is not for all to see
        served = resolve_model("lab:student")
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


def ask_drafted(tmp_path, draft: str | None, messages: list[list[dict[str, str]]]) -> tuple[list[str], float | None]:
    """What the teacher answers, and the share of the drafted tokens that it accepts, by the server's own count."""
    more = []
    if draft is not None:
        out = tmp_path / f"draft-{len(list(tmp_path.iterdir()))}"
        assert main(["export", draft, "--to", "vllm", "--draft_of", "lab:teacher", "--output", str(out)]) == 0
        (line,) = re.findall(r"^vllm serve TEACHER (.*)$", (out / "README.md").read_text(), re.MULTILINE)
        more = [word.replace('"."', json.dumps(str(out))) for word in shlex.split(line)]
    server = Server(tmp_path / "draft.log", "lab:teacher", more=more).wait()
    try:
        chat = ChatServer(server.url, "teacher")
        texts = [chat.reply(one, max_tokens=24).text for one in messages]
        metrics = httpx.get(f"{server.url}/metrics").text
    finally:
        server.stop()
    counts = {
        name: float(value)
        for name, value in re.findall(r"^vllm:spec_decode_num_(\w+)_tokens_total\{.*\} (\S+)$", metrics, re.MULTILINE)
    }
    return texts, counts["accepted"] / counts["draft"] if draft else None


def test_the_student_drafts_for_its_teacher_better_once_it_is_trained(tmp_path, capfd):
    """The teacher reads the knowledge, and so does the draft: the texts stay the teacher's own."""
    recipe = ["skd", "--config", "lab/lupi_skd/config_full.yaml", "--max_steps", "60", "--eval_strategy", "no"]
    assert main([*recipe, "--output_dir", str(tmp_path / "run")]) == 0
    prompt = TeacherPrompt("You are an expert on the islands.")
    asked = [conversation(probe, prompt) for probe in load_lab_records("lab:probes")[:48]]
    plain, _ = ask_drafted(tmp_path, None, asked)
    shares = {}
    for name in ("lab:student", str(tmp_path / "run")):
        texts, shares[name] = ask_drafted(tmp_path, name, asked)
        assert texts == plain
    before, after = shares.values()
    with capfd.disabled():
        print(f"\naccepted of what was drafted: {before:.1%} before training, {after:.1%} after 60 steps")
    assert after > before
