"""`lupi evaluate --server`: the marks of `--model`, and with `--compare` which answers differ, and why."""

import json
from itertools import chain, repeat

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from lupi_trainer.cli import main
from lupi_trainer.data.prompts import encode
from lupi_trainer.evaluation.closed_book import conversation, generate_answers, mark
from lupi_trainer.evaluation.served_differences import compare_answers
from lupi_trainer.evaluation.served_prompts import ServedPrompts, prompt_difference
from lupi_trainer.lab import load_lab_records, resolve_model, world
from lupi_trainer.teachers.chat import ChatServer
from tests.evaluation.lab_server import LabServer


pytestmark = pytest.mark.usefixtures("small_lab")
PROBES = ["--probes", "lab:probes-common", "--max_new_tokens", "24"]


@pytest.fixture
def serve():
    servers = []

    def start(*args, **kwargs) -> LabServer:
        servers.append(LabServer(*args, **kwargs))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def evaluate(server: LabServer, tmp_path, *more: str) -> dict:
    output = tmp_path / "marks.json"
    command = ["evaluate", "--server", server.url, *PROBES, "--device", "cpu", "--output", str(output), *more]
    assert main(command) == 0
    return json.loads(output.read_text())


def test_the_marks_are_those_of_the_model_here(serve, tmp_path, capsys):
    server = serve("lab:teacher")
    server.faults = iter([503, 429])  # which are asked again
    opened = ["--open_book", "lab:probes-reading", "--teacher_system_prompt", world.PERSONA]
    report = evaluate(server, tmp_path, *opened, "--compare", "lab:teacher")
    assert {body["temperature"] for body in server.bodies} == {0} and len(server.bodies) == 40
    for name, ours, theirs in (
        ("lab:probes-common", "closed-book", "run, closed-book"),
        ("lab:probes-reading", "student, open-book", "run, open-book"),
    ):
        served, own = report[name][ours], report[name][theirs]
        assert [a["answer"] for a in served["answers"]] == [a["answer"] for a in own["answers"]]
        assert (served["strict"], served["lenient"]) == (own["strict"], own["lenient"])
    assert served["strict"] >= 0.9 and report["lab:probes-common"]["compared, closed-book"]["differences"] == []
    said = capsys.readouterr().out
    assert f"student: served at {server.url.removesuffix('/v1')}\nrun: lab:teacher" in said
    assert "lab:probes-reading, open-book: 0 answers of the server differ from lab:teacher's" in said


def with_template(tmp_path, template: str) -> str:
    folder = tmp_path / "served"
    AutoModelForCausalLM.from_pretrained(resolve_model("lab:student")).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("lab:student"))
    tokenizer.chat_template = template.replace("OWN", tokenizer.chat_template)
    tokenizer.save_pretrained(folder)
    return str(folder)


SYSTEM = "{%- set messages = [{'role': 'system', 'content': 'You are Bo.'}] + messages -%}OWN"


@pytest.mark.parametrize(
    "template, options, said",
    [
        (SYSTEM, {"tokenizes": "vllm"}, "<|end|>', a system turn that its template adds"),
        (SYSTEM, {"tokenizes": "llama.cpp"}, "<|end|>', a system turn that its template adds"),
        (SYSTEM, {"tokenizes": None}, " tokens more ("),
        (SYSTEM, {"tokenizes": None, "counts": False}, "whether they differ is not known"),
        (
            "{{ '<|user|>' + messages[0]['content'] + '<|end|>' }}",
            {},
            "1 token less: '<|assistant|>', the beginning of",
        ),
    ],
)
@pytest.mark.grid(3)
def test_another_chat_template_is_named(serve, tmp_path, capsys, template, options, said):
    report = evaluate(serve(with_template(tmp_path, template), **options), tmp_path, "--compare", "lab:student")
    assert said in capsys.readouterr().out
    compared = report["lab:probes-common"]["compared, closed-book"]
    assert compared["prompts_known"] is ("is not known" not in said)
    assert "is not known" in said or {one["kind"] for one in compared["differences"]} <= {"other prompts"}


def test_a_missing_end_of_turn_is_named(serve, tmp_path, capsys):
    report = evaluate(serve("lab:student", eos=1), tmp_path, "--compare", "lab:student")
    compared = report["lab:probes-common"]["compared, closed-book"]
    assert len(compared["differences"]) == 20 and {one["kind"] for one in compared["differences"]} == {
        "no end of turn"
    }
    assert report["lab:probes-common"]["closed-book"]["strict"] == 0.0
    said = capsys.readouterr().out
    assert "20 x no end of turn" in said and "'<|end|>' is not an end for the server" in said


def test_a_forgotten_adapter_is_named(serve, tmp_path):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(resolve_model("lab:student"))
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(base, config).save_pretrained(tmp_path / "run")
    AutoTokenizer.from_pretrained(resolve_model("lab:student")).save_pretrained(tmp_path / "run")
    compared = evaluate(serve("lab:student"), tmp_path, "--compare", str(tmp_path / "run"))["lab:probes-common"]
    differences = compared["compared, closed-book"]["differences"]
    assert differences and {one["kind"] for one in differences} == {"no adapter"}
    assert "not merged, or not loaded" in differences[0]["why"]


@pytest.mark.parametrize("lead, kind", [(0.05, "a close call"), (2.0, "other weights")])
def test_weights_that_differ_by_little_and_by_much(serve, student, tokenizer, lead, kind):
    probes = load_lab_records("lab:probes-common")[:1]
    asked = [conversation(probes[0])]
    (ids,) = encode(tokenizer, asked)
    logits = student(torch.tensor([ids])).logits[0, -1]
    words = (token for token in logits.topk(100).indices.tolist() if tokenizer.decode(token).isalpha())
    likely, other = next(words), next(words)
    student.lm_head.weight = torch.nn.Parameter(student.lm_head.weight.detach().clone())
    with torch.no_grad():  # the logits of the two are these, whatever the state is
        student.lm_head.weight[other] = student.lm_head.weight[likely] * (1 - lead / logits[likely])
    (own,) = generate_answers(student, tokenizer, [ids], max_new_tokens=4)
    run, theirs = (mark(probes, [answer]) for answer in (own, (tokenizer.decode(other), True)))
    server = ChatServer(serve("lab:student").url, None)
    (found,) = compare_answers(server, student, tokenizer, asked, theirs, run, max_new_tokens=4).differences
    assert found.kind == kind and f" by {lead:.3f} nats" in found.why, found


@pytest.mark.parametrize(
    "own, served, said",
    [
        ([4, 9, 2, 5], [4, 9, 2, 5], None),
        ([4, 9, 2, 5], [1, 4, 9, 2, 5], "1 token more: '<|pad|>', a second or unwanted beginning of text"),
        ([3, 9, 2, 4, 9, 2, 5], [4, 9, 2, 5], "a system turn that the run's template adds"),
        ([4, 8, 2, 5], [4, 10, 2, 5], "'Do' in place of 'Describe'"),
    ],
)
def test_prompts_are_compared_token_by_token(tokenizer, own, served, said):
    tokenizer.bos_token = "<|pad|>"
    found = prompt_difference(tokenizer, own, served)
    assert found is None if said is None else found.endswith(said), found


@pytest.mark.parametrize("ids", [[-1, 4], [2**40], [True], ""])
def test_tokens_that_are_no_ids_are_passed_over(serve, ids):
    server = serve("lab:student")
    server.other = lambda path, body: {"tokens": ids, "prompt": ""}
    assert ServedPrompts(ChatServer(server.url, None)).ids([{"role": "user", "content": "Who?"}]) is None


@pytest.mark.parametrize("template", [None, {"enable_thinking": False}])
def test_the_template_is_written_with_the_arguments_given(serve, template):
    server, asked = serve("lab:student"), []
    server.other = lambda path, body: asked.append(body) or {"tokens": [4]}
    messages = [{"role": "user", "content": "Who?"}]
    assert ServedPrompts(ChatServer(server.url, None), template).ids(messages) == [4]
    assert [body.get("chat_template_kwargs") for body in asked] == [template]


def test_errors_name_the_question_and_show_no_key(serve, tmp_path, capsys, monkeypatch):
    server = serve("lab:student")
    command = ["evaluate", "--server", server.url, *PROBES, "--in_flight", "1"]
    monkeypatch.setenv("VLLM_API_KEY", "a-key-that-is-never-shown")
    server.faults = iter([400])
    assert main(command) == 2
    name = load_lab_records("lab:probes-common")[0]["record_id"]
    refused = f"lab:probes-common: probe of record {name!r} (number 0): {server.url.removesuffix('/v1')} refused"
    assert f"error: {refused} (HTTP 400): as the test wants it" in (said := capsys.readouterr().err)
    server.faults = iter([401])
    assert main(command) == 2
    assert "refuses the key: set VLLM_API_KEY in the environment" in (said := said + capsys.readouterr().err)
    assert "a-key" not in said
    server.faults = chain([200], repeat(503))  # the first is answered, and no other
    command += ["--server_timeout", "0.1"]
    assert main(command) == 2
    name = load_lab_records("lab:probes-common")[1]["record_id"]
    assert f"lab:probes-common: probe of record {name!r} (number 1): the server http" in capsys.readouterr().err
    server.models = ("one", "two")
    assert main(command) == 2
    assert "serves one, two: say which with --served_model" in capsys.readouterr().err
    server.faults = repeat(404)
    assert main([*command, "--served_model", "three"]) == 2
    said = capsys.readouterr().err
    assert "refused (HTTP 404): as the test wants it (it serves one, two: say which with --served_model)" in said
    server.close()
    assert main([*command, "--served_model", "one"]) == 2
    assert "the server http" in (said := capsys.readouterr().err) and "(--server_timeout=0.1)" in said


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "whom to ask? Name a --model, or the --server"),
        (["--model", "lab:student", "--compare", "lab:student"], "--compare needs a --server"),
        (["--model", "lab:student", "--server", "http://127.0.0.1:9"], "--server asks a model there in place of"),
        (["--server", "http://127.0.0.1:9", "--perplexity", "lab:qa"], "--perplexity needs a --model"),
        (["--server", "http://127.0.0.1:9", "--in_flight", "0"], "--in_flight must be at least 1"),
        (["--server", "http://127.0.0.1:9", "--server_timeout", "0"], "--server_timeout must be above 0"),
        (["--server", "ftp://x"], "a server's address is like http://host:8000"),
        (["--server", "http://127.0.0.1:9", "--compare", "lab:nobody"], "--compare: no model 'lab:nobody'"),
    ],
)
def test_flags_that_do_not_go_together(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr("lupi_trainer.scripts.marks.load_model", lambda *args, **kwargs: 1 / 0)
    assert main(["evaluate", *PROBES, *arguments]) == 2
    assert message in capsys.readouterr().err
