"""`lupi data make` with a teacher on a real vLLM server, whose JSON is guided (`make test-vllm`)."""

import itertools
import json

import pytest

from lupi_trainer.cli import main
from lupi_trainer.documents.facts import parse
from lupi_trainer.documents.verdicts import REASONS
from tests.documents.stand_in import StandIn
from tests.vllm.server import Server


pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

DOCUMENTS = {
    "observatory": "The observatory of Varnholt stands on Mount Kessel. It was opened in 1987 by Ilse Bramm.",
    "ferry": "The ferry Lindora sails from Ostrand to the island of Merrow. The trip takes 50 minutes.",
    "bakery": "The bakery Pellow in Tarnby sells a rye bread called Skarn. Jonas Pellow founded it in 1921.",
}


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_real_language_model_on_a_server_makes_the_files_and_is_asked_nothing_twice(tmp_path, capfd):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name, text in DOCUMENTS.items():
        (folder / f"{name}.md").write_text(text + "\n")
    server = Server(tmp_path / "server.log", "lab:smollm2", length=2048).wait()
    models = ["--teacher_server", server.url, "--teacher", "teacher", "--student", "lab:smollm2", "--device", "cpu"]
    command = ["data", "make", str(folder), *models, "--facts", "3", "--samples", "2", "--output", str(out)]
    try:
        status = main(command)
    finally:
        server.stop()
    said = capfd.readouterr()
    made = json.loads((out / "make.json").read_text())
    counts, facts = made["counts"], [fact for row in rows(out / "chunks.jsonl") for fact in row["facts"]]
    with capfd.disabled():
        print("", *((fact["reason"], fact["question"], fact["answer"], fact["detail"]) for fact in facts), sep="\n")
    assert "no guided decoding" not in said.err and counts["faults"] == 0
    replies = [row for row in rows(out / "answers.jsonl") if row["answer"].startswith("{")]
    assert len(replies) >= len(DOCUMENTS)
    assert sum(len(parse(row["answer"], row["finished"], 3)[0]) for row in replies if row["finished"]) == len(facts)
    assert counts["chunks"] == counts["documents"] == len(DOCUMENTS)
    assert 0 < counts["facts"] == len(facts) == sum(counts[reason] for reason in REASONS)
    assert counts["kept"] == counts["probes"] == sum(fact["reason"] == "kept" for fact in facts)
    assert counts["records"] == len(rows(out / "records.jsonl")) >= counts["kept"]
    assert status == (0 if counts["kept"] else 2) and (out / "recipe.yaml").exists() == (status == 0)

    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert main(command) == status  # the server is gone: nothing is asked
    assert "0 requests; there were" in capfd.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert main(["data", "report", str(out)]) == 0 and "Varnholt" in (out / "report.html").read_text()


ASKED = {  # question, two more phrasings, answer
    "Varnholt": (
        "In which year was the observatory of Varnholt opened?",
        "When did Ilse Bramm open the observatory of Varnholt?",
        "What is the year in which Varnholt's observatory opened?",
        "1987",
    ),
    "Lindora": (
        "From which town does the ferry Lindora sail to Merrow?",
        "Where does the ferry Lindora leave for the island of Merrow?",
        "Which town does the ferry Lindora start from?",
        "Ostrand",
    ),
    "Pellow": (
        "What is the rye bread of the bakery Pellow called?",
        "Which name has the rye bread that the bakery Pellow sells?",
        "How does the bakery Pellow in Tarnby call its rye bread?",
        "Skarn",
    ),
}


def asks(body: dict) -> str:
    """A right question about each document, which the model here is too small to write."""
    text = body["messages"][-1]["content"]
    question, *phrasings, answer = next(fact for name, fact in ASKED.items() if name in text)
    fact = {"question": question, "phrasings": phrasings, "answer": answer}
    return json.dumps({"facts": [fact], "unanswered": []})


def test_a_real_language_model_on_a_server_reads_what_another_asked(tmp_path, capfd):
    """The questions are those of a stand-in, which then fails; the real server goes on where it was left."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name, text in DOCUMENTS.items():
        (folder / f"{name}.md").write_text(text + "\n")
    models = ["--teacher", "teacher", "--student", "lab:smollm2", "--device", "cpu", "--mark", "lenient"]
    options = [
        "--facts",
        "1",
        "--samples",
        "2",
        "--max_new_tokens",
        "32",
        "--temperature",
        "0.3",
        "--output",
        str(out),
    ]

    def make(url: str) -> int:
        return main(["data", "make", str(folder), "--teacher_server", url, *models, *options, "--output", str(out)])

    scripted = StandIn(asks, models=("teacher",))
    try:
        scripted.faults = itertools.chain([200] * len(DOCUMENTS), itertools.repeat(400))
        assert make(scripted.url) != 0
    finally:
        scripted.close()
    assert len(rows(out / "answers.jsonl")) == len(DOCUMENTS)
    capfd.readouterr()
    server = Server(tmp_path / "server.log", "lab:smollm2", length=2048).wait()
    try:
        status = make(server.url)
    finally:
        server.stop()
    said = capfd.readouterr().err
    facts = [fact for row in rows(out / "chunks.jsonl") for fact in row["facts"]]
    with capfd.disabled():
        print("", *((fact["reason"], fact["question"], fact["answer"], fact["detail"]) for fact in facts), sep="\n")
    assert f"there were {len(DOCUMENTS)} replies before" in said
    assert {fact["question"] for fact in facts} == {question for question, *_ in ASKED.values()}
    read = [row for row in rows(out / "answers.jsonl") if not row["answer"].startswith("{")]
    assert len(read) >= 2 * len(DOCUMENTS)
    assert {fact["reason"] for fact in facts} <= {"kept", "unread", "unstable"}
    assert status == 0 and sum(fact["reason"] == "kept" for fact in facts) >= 1
