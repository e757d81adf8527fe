"""What a rollout costs on GPUs, counted without one: `python -m tests.benchmarks.fake_device`.

Qwen3 at full size in bfloat16, eight rows, prompts of 2,460 and 47 tokens (the teacher's share the first 1,900), up to
4,096 new tokens, 20 tokens a draft. One round is run, without compilation: caches are as they begin. What the teacher
holds that reads such a batch by itself comes last. Some minutes.
"""

import torch

from lupi_trainer.models.backbone import completion_states_by_rows
from tests.fake_cuda.device import UNABLE, fake_cuda
from tests.fake_cuda.rollout import model_on, rolled
from tests.planning.shapes import qwen3_06b, qwen3_4b, qwen3_32b


SIZES = {"0.6B": qwen3_06b(), "4B": qwen3_4b(), "32B": qwen3_32b()}
ROWS, NEW, GAMMA = 8, 4096, 20
COLUMNS = (
    "student and teacher",
    "launches of a drafted token",
    "of a verified block",
    "of a commit",
    "questions a round",
    "copies from the host",
    "most GiB",
)


def prompts() -> tuple[list[list[int]], list[list[int]]]:
    """The student's and the teacher's."""
    rows = range(ROWS)
    return [[5] * 20 + [6 + row] * 27 for row in rows], [[1] * 1900 + [6 + row] * 560 for row in rows]


def rollout(student: str, teacher: str, devices: tuple[str, str]) -> list[str]:
    """The cells of a pair."""
    models = SIZES[student], SIZES[teacher]
    options = {"max_new_tokens": NEW, "gamma": GAMMA, "return_teacher_hidden": True}
    lengths = [GAMMA] * ROWS
    done, seen = rolled(*models, *prompts(), devices=devices, lengths=lengths, accepted=GAMMA - 1, **options)
    rounds, launched = done.stats.rounds, []
    for phase, forwards, name in (("draft", done.stats.student_forwards, student), ("verify", rounds, teacher)):
        number = seen.launched(phase) / forwards
        launched.append(f"{number:,.0f} ({number / SIZES[name].num_hidden_layers:.1f} a layer)")
    waits = []
    for counts in (seen.questions, seen.uploads):
        number = sum(
            n for (phase, *_), n in counts.items() if phase not in ("load", "start", "admit", "prefill", "end")
        )
        waits.append(f"{number / rounds:.0f}")
    peak = ", ".join(f"{size / 2**30:.1f} on {device}" for device, size in sorted(seen.peak.items()))
    return [f"{student} and {teacher}", *launched, f"{seen.launched('commit') / rounds:.0f}", *waits, peak]


def own_reading(teacher: str, rows: int) -> float:
    """GiB beside the weights, where a teacher reads so many rows of a batch at a time, and keeps their states."""
    with fake_cuda() as counted, torch.no_grad():
        model = model_on("cuda:0", SIZES[teacher])
        prompt, text = (torch.ones(ROWS, n, dtype=torch.long, device="cuda:0") for n in (len(prompts()[1][0]), NEW))
        before = counted.live["cuda:0"]
        completion_states_by_rows(model, rows, prompt, prompt, text, text)
        return (counted.peak["cuda:0"] - before) / 2**30


def main() -> None:
    if UNABLE is not None:
        raise SystemExit(UNABLE)
    print(f"| {' | '.join(COLUMNS)} |\n|{len(COLUMNS) * '---|'}")
    for student, teacher, devices in (("4B", "32B", ("cuda:0", "cuda:1")), ("0.6B", "4B", ("cuda:0", "cuda:0"))):
        print("| " + " | ".join(rollout(student, teacher, devices)) + " |", flush=True)
    for rows in (ROWS, 1):
        print(f"32B reads a batch by itself, {rows} rows at a time: {own_reading('32B', rows):.1f} GiB", flush=True)


if __name__ == "__main__":
    main()
