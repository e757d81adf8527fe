"""A run's folder as training leaves it, with as many rollouts as a test wants."""

import json
import random
from pathlib import Path


def make_run(folder: Path, rollouts: int = 12, tokens: int = 30, steps: int = 40, longest: int = 0, **metrics) -> Path:
    """Every record is rolled out at steps 0 and `steps` / 2; the teacher writes less at the second.

    With `longest`, every 25th rollout has so many tokens. Its settings and warnings hold what HTML would read.
    """
    draw, usual = random.Random(0), tokens
    folder.mkdir(parents=True)
    history = []
    for step in range(10, steps + 1, 10):
        history.append(
            {
                "step": step,
                "loss": 1 / step,
                "acc_rate/mean": step / 100,
                "acc_rate/first_token": step / 90,
                "acc_rate/full_match": step / 110,
                "gamma/mean": 8.0,
                "gamma/max": 8,
                "gamma/min": 8,
                "tokens/teacher_share": 1 / step,
                "rollout/tokens_per_second": 1500.0 + step,
            }
        )
    history.append({"step": steps, "eval_loss": 0.5, "eval_runtime": 1.0})
    history.append({"step": steps, "eval_closed_book_strict": 0.25, "eval_closed_book_lenient": 0.75})
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": steps, "log_history": history}))
    settings = [
        {"name": "gamma", "value": 8, "help": 'Draft length "in" <tokens>.'},
        {"name": "teacher_system_prompt", "value": "</script><b>You</b>", "help": ""},
        {"name": "mixing", "value": [{"share": 0.7, "until": 0.5}], "help": "Shares."},
    ]
    notes = {"settings": settings, "warnings": ["8 records do not divide", "<img onerror=alert(1)>"]}
    (folder / "run_notes.json").write_text(json.dumps(notes))
    if metrics:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    with open(folder / "rollouts.jsonl", "w", encoding="utf-8") as file:
        for number in range(rollouts):
            record, late = number // 2, number % 2
            tokens = longest if longest and number % 25 == 0 else usual
            by_teacher = [int(draw.random() < (0.1 if late else 0.4)) for _ in range(tokens)]
            chance = [round(draw.random(), 3) for _ in range(tokens)]

            def rejected(values, by_teacher=by_teacher):
                return [v if t else None for v, t in zip(values, by_teacher)]

            entry = {
                "step": late * steps // 2,
                "split": "train",
                "id": f"record_{record}",
                "row_id": record,
                "prompt": [{"role": "user", "content": f"Question {record} </script><b>?"}],
                "privileged_context": f"Knowledge {record}.",
                "completion": [f" 설{number}" if i == 3 else f" w{i}" for i in range(tokens)],
                "token_ids": list(range(tokens)),
                "from_teacher": by_teacher,
                "draft": rejected([f" d{i}" for i in range(tokens)]),
                "teacher_rank": [3] * tokens,
                "student_probability": chance,
                "teacher_probability": chance,
                "draft_student_probability": rejected(chance),
                "draft_teacher_probability": rejected(chance),
                "divergence": [round(number / 100, 3)] * tokens,
            }
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")
    return folder
