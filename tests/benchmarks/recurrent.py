"""`python -m tests.benchmarks.recurrent`: what it costs to take tokens back from recurrent states, counted.

Tokens and forwards beside those of the same rollout if states could be made shorter: what the models of every family
read without their replays. Tiny random models, 8 rows of 48 tokens; nothing here depends on the machine.
"""

import torch

from lupi_trainer.speculative import TopK, skd_rollout
from lupi_trainer.speculative.runners.replay import Replay
from tests.families.tiny import families, pair, small
from tests.speculative.toy_models import prompts


FAMILIES = ("llama", "qwen3_5_text", "falcon_h1", "mamba")
PROMPTS = prompts(8, 2, 9, seed=1)


@torch.no_grad()
def figures(family: str, gamma: int, copies: bool | None = None) -> dict[str, float]:
    """Counts of one rollout; `copies`: whether the student copies its states after every token (None: by bytes)."""
    student, teacher = pair(small(families()[family]))
    read = {"student": 0, "teacher": 0}

    def count(name):
        def hook(module, args, kwargs):
            read[name] += kwargs["input_ids"].numel() * kwargs.get("use_cache", False)

        return hook

    for name, model in (("student", student), ("teacher", teacher)):
        model.register_forward_pre_hook(count(name), with_kwargs=True)
    chosen = Replay.copies_steps
    if copies is not None:
        Replay.copies_steps = lambda self, rows, steps: copies
    try:
        given = {"max_new_tokens": 48, "gamma": gamma, "acceptance": TopK(k=3, min_prob=0.02), "seed": 1}
        stats = skd_rollout(student, teacher, PROMPTS, PROMPTS, **given).stats
    finally:
        Replay.copies_steps = chosen
    return {
        "accepted": stats.accepted / stats.drafted,
        "replayed": stats.replayed / (read["student"] + read["teacher"] - stats.replayed),
        "forwards": stats.student_forwards + stats.teacher_forwards,
        "rounds": stats.rounds,
        "copies": stats.state_copy_bytes / 1024,
    }


def main() -> None:
    print(
        "| family | gamma | student | accepted | read again, of what is read once | forwards a round | copies, KiB |"
    )
    print("|---|---|---|---|---|---|---|")
    for family in FAMILIES:
        for gamma in (4, 8):
            for copies, said in ((True, "a copy a token"), (False, "reads again")):
                if family == "llama" and copies:
                    continue
                f = figures(family, gamma, copies)
                said = "keys and values" if family == "llama" else said
                cells = f"{f['accepted']:.0%} | {f['replayed']:.1%} | {f['forwards'] / f['rounds']:.1f}"
                print(f"| {family} | {gamma} | {said} | {cells} | {f['copies']:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
