"""`lupi data make` with a teacher on a real vLLM server, whose JSON is guided (`make test-vllm`)."""

import json

import pytest

from lupi_trainer.cli import main
from lupi_trainer.documents.facts import parse
from lupi_trainer.documents.verdicts import REASONS
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
