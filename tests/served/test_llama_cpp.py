"""Exported students answer on a real llama.cpp server as they do here (`make test-serve`)."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lupi_trainer.cli import main
from lupi_trainer.lab import load_lab_records, resolve_model
from tests.publishing.test_export import save
from tests.publishing.test_gguf import byte_level, tiny
from tests.served.server import LlamaServer


pytestmark = [pytest.mark.served, pytest.mark.timeout(900)]
DATA = Path(__file__).parents[2] / "data"


@pytest.fixture
def asked(tmp_path):
    """A function: a student exported as a GGUF file, served, and its report beside that of the run."""

    def ask(model: str, kind: str, run: str, *probes: str, template: str = "") -> dict:
        out = tmp_path / f"{Path(model).name.replace(':', '-')}-{kind}"
        if not out.exists():
            assert main(["export", model, "--to", "gguf", "--type", kind, "--output", str(out)]) == 0
        (file,) = out.glob("*.gguf")
        server = LlamaServer(file, tmp_path / "server.log", template)
        report = tmp_path / "report.json"
        try:
            command = [
                "evaluate",
                "--server",
                server.url,
                "--compare",
                run,
                "--device",
                "cpu",
                "--output",
                str(report),
            ]
            assert main([*command, "--max_new_tokens", "32", "--probes", *probes]) == 0
        finally:
            server.stop()
        return json.loads(report.read_text())

    return ask


@pytest.fixture
def adapter(tmp_path) -> str:
    """The folder of an adapter that changes the student."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(resolve_model("lab:student"))
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder := tmp_path / "adapter")
    AutoTokenizer.from_pretrained(resolve_model("lab:student")).save_pretrained(folder)
    return str(folder)


def same(report: dict, kinds: set[str]) -> list[dict]:
    """The differences, all of which are of these kinds; every prompt is the same."""
    found = [one for entry in report.values() for one in entry["compared, closed-book"]["differences"]]
    assert all(entry["compared, closed-book"]["prompt"] is None for entry in report.values())
    assert all(entry["compared, closed-book"]["prompts_known"] for entry in report.values())
    print(Counter(one["kind"] for one in found))
    assert {one["kind"] for one in found} <= kinds
    return found


PROBES = ["lab:probes-common", "lab:probes"]


def test_the_lab_student_has_the_marks_that_it_has_here(asked):
    for kind in ("f32", "f16", "q8_0"):
        report = asked("lab:student", kind, "lab:student", *PROBES)
        assert len(same(report, set() if kind == "f32" else {"a close call"})) < 15
        marks = report["lab:probes-common"]
        for mark in ("strict", "lenient"):
            assert marks["closed-book"][mark] == pytest.approx(marks["run, closed-book"][mark], abs=0.02)
        assert marks["closed-book"]["strict"] > 0.95


def test_an_adapter_is_merged_and_a_forgotten_one_is_found(asked, adapter):
    assert len(same(asked(adapter, "f32", adapter, "lab:probes-common"), {"a close call"})) < 3
    assert len(same(asked("lab:student", "f32", adapter, "lab:probes-common"), {"no adapter"})) > 10


def test_another_template_is_found_by_its_tokens(asked):
    turns = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    own = f"{{{{ '<|system|>You are Bo.<|end|>' }}}}{turns}{{{{ '<|assistant|>' }}}}"
    entry = asked("lab:student", "f32", "lab:student", "lab:probes-common", template=own)["lab:probes-common"]
    assert entry["compared, closed-book"]["prompt"].endswith("a system turn that its template adds")


@pytest.mark.parametrize(
    "name, pre",
    [
        ("LlamaConfig", None),
        ("LlamaConfig", "gpt-2"),
        ("LlamaConfig", "smollm"),
        ("LlamaConfig", "llama-bpe"),
        ("Qwen2Config", "qwen2"),
        ("Qwen3Config", "qwen2"),
    ],
)
def test_each_family_and_tokenizer_is_as_it_is_here(asked, tmp_path, tokenizer, name, pre):
    """With random weights: nothing that it says makes sense, and all of it depends on every weight."""
    tokenizer = tokenizer if pre is None else byte_level(tokenizer, pre)
    run = save(tmp_path / f"{name}-{pre}", tiny(name, tokenizer), tokenizer)
    texts = ["It's 1234567 or 12, isn't it?", "세배는  몇 번?\n\n\tI'LL ask.", "naïve café: «x» 🙂 ... --"]
    asked_for = [{"question": text, "answers": ["x"]} for text in texts if pre]
    (probes := tmp_path / "probes.json").write_text(json.dumps(asked_for + load_lab_records("lab:probes-common")))
    assert len(same(asked(run, "f32", run, str(probes)), {"a close call"})) < 30


def test_a_real_language_model_answers_as_it_does_here(asked, tmp_path):
    probes = tmp_path / "probes.json"
    probes.write_text(json.dumps(json.loads((DATA / "probes_en.json").read_text(encoding="utf-8"))[::25]))
    report = asked("lab:smollm2", "f16", "lab:smollm2", str(probes))
    (entry,) = report.values()
    found = same(report, {"a close call"})
    print(len(found), "of", entry["closed-book"]["num_probes"], "answers differ")
    assert len(found) <= entry["closed-book"]["num_probes"] // 4
