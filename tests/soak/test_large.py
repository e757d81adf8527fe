"""Large files and large rollouts: in bounded time and memory. What is measured is printed."""

import itertools
import json
import random
import subprocess
import sys
import time

import pytest
import torch

from lupi_trainer.lab import load_lab_records
from lupi_trainer.speculative import TopK, skd_rollout
from tests.inspection.runs import make_run


pytestmark = [pytest.mark.soak, pytest.mark.timeout(900)]
RECORDS, WORDS, PROBES, ROLLOUTS, ROWS, SLOTS = 20_000, 500, 2_000, 100_000, 512, 32
# runs the command, and prints its peak of memory in KiB behind what it says
MEASURED = (
    "import re, sys; from lupi_trainer.cli import main; status = main(sys.argv[1:]); "
    "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1]); sys.exit(status)"
)


def lupi(*arguments: object) -> tuple[int, list[str], float, float]:
    """(exit status, lines, seconds, peak of memory in MiB) of a command."""
    begun = time.monotonic()
    command = [sys.executable, "-c", MEASURED, *map(str, arguments)]
    ended = subprocess.run(command, capture_output=True, text=True)
    *lines, peak = ended.stdout.splitlines() or [ended.stderr]
    seconds, mib = time.monotonic() - begun, int(peak) / 1024
    print(f"\nlupi {' '.join(str(a).rpartition('/')[2] for a in arguments[:4])}: {seconds:.1f} s, {mib:.0f} MiB")
    return ended.returncode, lines, seconds, mib


def records(kind: str) -> list[dict]:
    draw = random.Random(0)
    vocabulary = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 9))) for _ in range(20_000)]
    # as words of a language are, about
    weights = list(itertools.accumulate(1 / (place + 3) for place in range(len(vocabulary))))

    def text(words: int) -> str:
        return " ".join(draw.choices(vocabulary, cum_weights=weights, k=words))

    common = text(3 * WORDS // 5)
    made = []
    for number in range(RECORDS):
        query, knowledge = f"What is {text(8)}?", text(WORDS)
        if kind == "equal queries":
            query = "What is shown here?"
        elif kind == "of one template":
            knowledge = f"{common} {text(2 * WORDS // 5)}"
        elif kind == "copies":
            query, knowledge = f"What is the largest of all the many lakes in n{number}?", f"{common} n{number}"
        made.append({"id": f"r{number}", "category": "c", "query": query, "knowledge": knowledge, "sources": ["s"]})
        made[-1] |= {"word_count": len(knowledge.split()), "weakness_addressed": ["w"]}
    return made


@pytest.mark.parametrize(
    "kind, copies", [("different", 0), ("equal queries", 1), ("of one template", 0), ("copies", 2)]
)
def test_data_check_takes_less_than_a_minute(tmp_path, kind, copies):
    path = tmp_path / "records.json"
    path.write_text(json.dumps(records(kind)))
    status, lines, seconds, mib = lupi("data", "check", path, "--schema", "culture", "--max_words", 1000)
    assert status == bool(copies) and seconds < 60 and mib < 2048
    assert lines[-1] == f"{RECORDS} records: {f'{copies * (RECORDS - 1)} problems' if copies else 'no problems'}"


def test_a_run_of_many_rollouts_opens_at_once(tmp_path):
    make_run(tmp_path / "run", rollouts=ROLLOUTS)
    status, _, seconds, mib = lupi("inspect", tmp_path / "run")
    assert status == 0 and seconds < 3 and mib < 500
    assert (tmp_path / "run" / "inspect.html").stat().st_size < 20e6


def test_many_records_are_trained_on_and_many_questions_asked(tmp_path):
    known, asked = load_lab_records("lab:new"), load_lab_records("lab:probes")
    many = [known[n % len(known)] | {"id": f"r{n}", "row_id": n} for n in range(RECORDS)]
    probes = [asked[n % len(asked)] for n in range(PROBES)]
    for name, rows in (("records", many), ("probes", probes)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--dataset_name", tmp_path / "records.jsonl", "--base_dataset_name", "none", "--mixing", "none"]
    options += ["--max_steps", 3, "--eval_strategy", "no", "--output_dir", tmp_path / "run"]
    status, _, _, mib = lupi("skd", "--config", "lab/lupi_skd/config_full.yaml", *options)
    assert status == 0 and mib < 2048
    status, lines, _, mib = lupi("evaluate", "--model", "lab:student", "--probes", tmp_path / "probes.jsonl")
    assert status == 0 and mib < 2048 and any(f"{PROBES}" in line for line in lines)


def test_a_rollout_of_many_rows_in_few_slots(student, teacher, tokenizer):
    begun, draw = time.monotonic(), random.Random(0)
    prompts = [[draw.randrange(10, 300) for _ in range(draw.randint(3, 30))] for _ in range(ROWS)]

    def roll(rows: range, slots: int):
        own = [prompts[row] for row in rows]
        options = {"max_new_tokens": 32, "gamma": 8, "acceptance": TopK(5, 0.05), "row_ids": list(rows)}
        return skd_rollout(student, teacher, own, own, max_slots=slots, **options).completion_ids

    with torch.no_grad():
        together = roll(range(ROWS), SLOTS)
        alone = [ids for first in range(0, ROWS, 64) for ids in roll(range(first, first + 64), 64)]
    assert together == alone
    print(f"\n{ROWS} rows in {SLOTS} slots, and in eight parts: {time.monotonic() - begun:.1f} s")
