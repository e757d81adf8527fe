"""What a rollout costs on GPUs, counted without one: `python -m tests.benchmarks.fake_device`.

Qwen3 at full size, eight rows, prompts of 2,460 and 47 tokens (the teacher's share the first 1,900), up to 4,096 new
tokens, 20 tokens a draft. The caches have room for all of that; two rounds are run. Some minutes.
"""

import argparse

from transformers import Qwen3Config

from tests.fake_cuda.device import UNABLE, Counted
from tests.fake_cuda.rollout import rolled


SIZES = {  # layers, width, feed-forward width, query heads, whether the lm_head is the embedding
    "0.6B": (28, 1024, 3072, 16, True),
    "4B": (36, 2560, 9728, 32, True),
    "32B": (64, 5120, 25600, 64, False),
}
ROUNDS, GAMMA = 2, 20


def qwen3(name: str) -> Qwen3Config:
    """The configuration of a Qwen3 model."""
    layers, width, inner, heads, tied = SIZES[name]
    return Qwen3Config(
        vocab_size=151936,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=tied,
        max_position_embeddings=40960,
    )


def prompts(rows: int) -> tuple[list[list[int]], list[list[int]]]:
    """The student's and the teacher's."""
    student = [[5] * 20 + [6 + row] * 27 for row in range(rows)]
    return student, [[1] * 1900 + [6 + row] * 560 for row in range(rows)]


def measured(student: str, teacher: str, devices: tuple[str, str], rows: int, **options) -> tuple[str, Counted]:
    """The row of a pair in the table, and what was counted."""
    lengths = [ROUNDS * (GAMMA - 1)] * rows
    given = {"max_new_tokens": 4096, "gamma": GAMMA, "return_teacher_hidden": True, **options}
    rollout, seen = rolled(
        qwen3(student), qwen3(teacher), *prompts(rows), devices=devices, lengths=lengths, accepted=GAMMA - 2, **given
    )
    layers = SIZES[student][0], SIZES[teacher][0]
    token = seen.launched("draft") / rollout.stats.student_forwards
    block = seen.launched("verify") / rollout.stats.teacher_forwards
    asked = sum(n for (phase, *_), n in seen.questions.items() if phase not in ("load", "end")) / rollout.stats.rounds
    told = sum(n for (phase, *_), n in seen.uploads.items() if phase in ("draft", "verify", "commit", "round"))
    gib = {device: f"{size / 2**30:.2f}" for device, size in sorted(seen.peak.items())}
    work = max(size - seen.phase_peak["start", device] for (phase, device), size in seen.phase_peak.items()
               if phase == "prefill" and device == devices[1]) / 2**30  # fmt: skip
    cells = [
        f"{student} on {devices[0]}, {teacher} on {devices[1]}, {rows} rows",
        f"{token:.0f} ({token / layers[0]:.1f})",
        f"{block:.0f} ({block / layers[1]:.1f})",
        f"{seen.launched('commit') / rollout.stats.rounds:.0f}",
        f"{asked:.0f}",
        f"{told / rollout.stats.rounds:.0f}",
        ", ".join(f"{size} on {device}" for device, size in gib.items()),
        f"{work:.2f}",
    ]
    return "| " + " | ".join(cells) + " |", seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=8)
    args = parser.parse_args()
    if UNABLE is not None:
        raise SystemExit(UNABLE)
    print(
        "| models | launches of a drafted token (a layer) | of a verified block (a layer) | of a commit | questions a"
    )
    for student, teacher, devices in (("4B", "32B", ("cuda:0", "cuda:1")), ("0.6B", "4B", ("cuda:0", "cuda:0"))):
        print(measured(student, teacher, devices, args.rows)[0], flush=True)


if __name__ == "__main__":
    main()
