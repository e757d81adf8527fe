"""`python -m tests.benchmarks.overlap`: what drafting on while the teacher verifies would give, by two clocks.

The rounds of real rollouts of the lab are recorded (of each block, how many tokens were accepted), and played again on
a student and a teacher with a clock each, one busy while the other is, in three ways:

- in turns: as the engine does;
- draft on: while a block is verified, the student drafts the next one as if all of it were accepted; where any row's
  was not, the batch drafts it again (a step of a batch takes as long as one of a row);
- two halves: the rows are parted in two, and one half is drafted while the other is verified.

Texts are the same in all three. Costs are seconds of a drafted token and of a verified block, whatever the rows.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict

from transformers import AutoModelForCausalLM, AutoTokenizer

from lupi_trainer.data.prompts import encode
from lupi_trainer.lab import load_lab_records, resolve_model
from lupi_trainer.speculative import TopK, skd_rollout
from tests.benchmarks.setting import Scripted


Blocks = list[list[bool]]  # of each row, of each of its blocks, whether all of it was accepted


def in_turns(rows: Blocks, gamma: int, draft: float, verify: float) -> float:
    """Seconds until every row has ended."""
    return max(map(len, rows)) * (gamma * draft + verify)


def draft_on(rows: Blocks, gamma: int, draft: float, verify: float) -> float:
    """Seconds, where the next draft begins with the verification of the last one."""
    total, ready = 0.0, False  # whether this round's draft was made during the last verification
    rounds = max(map(len, rows))
    for number in range(rounds):
        running = [row[number] for row in rows if number < len(row)]
        total += verify if ready else gamma * draft + verify
        ready = all(running)
        if ready and number + 1 < rounds:  # the student may need longer than the teacher
            total += max(gamma * draft - verify, 0.0)
    return total


def two_halves(rows: Blocks, gamma: int, draft: float, verify: float) -> float:
    """Seconds, where each half has rounds of its own and both share the student and the teacher."""
    left = [max(map(len, half), default=0) for half in (rows[::2], rows[1::2])]
    drafted = [0.0, 0.0]  # when the half may draft again
    student = teacher = end = 0.0
    while any(left):
        half = min((h for h in (0, 1) if left[h]), key=lambda h: drafted[h])
        student = max(student, drafted[half]) + gamma * draft
        teacher = max(teacher, student) + verify
        drafted[half] = end = teacher
        left[half] -= 1
    return end


def recorded(rows: int, gamma: int, share: float | None = None) -> Blocks:
    """Blocks of a rollout of the lab's pair; `share`: of the drafts, so many are accepted, as late in training."""
    models = [AutoModelForCausalLM.from_pretrained(resolve_model(f"lab:{name}")) for name in ("student", "teacher")]
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("lab:student"))
    records = load_lab_records("lab:mixed")[:rows]

    def prompts(told: bool) -> list[list[int]]:
        texts = [f"{row.get('knowledge') or ''} {row['query']}" if told else row["query"] for row in records]
        return encode(tokenizer, [[{"role": "user", "content": text}] for text in texts])

    blocks: dict[int, list[bool]] = defaultdict(list)
    skd_rollout(
        *models,
        prompts(False),
        prompts(True),
        max_new_tokens=56,
        gamma=gamma,
        eos_token_id=tokenizer.eos_token_id,
        acceptance=TopK(5, 0.05) if share is None else Scripted(share),
        on_block=lambda block: blocks[block.row].append(block.correction is None),
    )
    return [blocks[row] for row in range(rows)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--gamma", type=int, nargs="*", default=[2, 4, 8])
    args = parser.parse_args()
    print("| drafts accepted | rows | gamma | blocks accepted whole | draft on | two halves |")
    print("|---|---|---|---|---|---|")
    for share, number, gamma in itertools.product((None, 0.9, 0.98), args.rows, args.gamma):
        rows = recorded(number, gamma, share)
        whole = sum(map(sum, rows)) / sum(map(len, rows))
        found = []
        for way in (draft_on, two_halves):  # a verification takes half of a block's draft, as long, or twice that
            ratios = (way(rows, gamma, 1.0, c * gamma) / in_turns(rows, gamma, 1.0, c * gamma) for c in (0.5, 1, 2))
            found.append(", ".join(f"{ratio:.2f}" for ratio in ratios))
        said = "by top 5" if share is None else f"{share:.0%}"
        print(f"| {said} | {number} | {gamma} | {whole:.0%} |", " | ".join(found), "|")


if __name__ == "__main__":
    main()
