"""`rollouts.jsonl`: chosen rollouts of a run, token by token, for `lupi inspect`.

One JSON object a line. `step` (optimizer steps done), `split` (`train` or `eval`), `id` and `row_id` of the record,
`prompt` (messages), `privileged_context` (text or null), and one entry for each token in every list: `completion`
(text), `token_ids`, `from_teacher` (0 or 1), `student_probability`, `teacher_probability` (of the token, at the
rollout's temperatures), `teacher_rank` (of the student's draft, 0 for the teacher's favorite), `divergence`
(KL(teacher || student) in nats at temperature 1), and where the teacher wrote, else null: `draft` (text of the
student's rejected token), `draft_student_probability`, `draft_teacher_probability`.
"""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..data.wording import counted
from ..speculative import Rollout
from ..training.checkpoints import write_atomically
from ..training.token_text import text_instead, token_texts


logger = logging.getLogger(__name__)

FILE = "rollouts.jsonl"
EVAL_ROWS = 8  # records of an evaluation set that are recorded at every evaluation


def _short(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None  # JSON has no infinity


class RolloutRecorder(TrainerCallback):
    """Chooses the rollouts to record, and writes them.

    Training records are chosen so that about `limit` of their rollouts fall into the run, the same records in every
    epoch, so that one prompt can be compared between checkpoints. Of an evaluation set the first 8 records are. No
    more than `limit` lines are written for training, and as many for evaluation. A resumed run goes on with its file;
    what was recorded after the checkpoint is dropped, because it is rolled out again, and so is what cannot be read,
    because its writing was cut off. Lines of an earlier run are put
    aside when training begins anew (`rollouts.previous.jsonl`, `rollouts.previous-2.jsonl`, ...); an evaluation alone
    goes on behind them.

    Args:
        output_dir: folder of the run.
        tokenizer: the run's tokenizer.
        limit: the most rollouts to record.
        num_rows: records in the training set (`None`: unknown, it is a stream).
    """

    def __init__(self, output_dir: str | Path, tokenizer: Any, limit: int, num_rows: int | None = None):
        self.path, self.tokenizer, self.limit, self.num_rows = Path(output_dir) / FILE, tokenizer, limit, num_rows
        self.every_row = self.every_epoch = 1
        self.written: dict[str, int] | None = None  # lines of each split; None until the file is open
        self.at_checkpoint: dict[str, int] | None = None  # lines of each split that there were, where that is known
        self.earlier = 0  # bytes at the file's beginning that are of another run

    def on_train_begin(self, args, state, control, **kwargs):
        batch = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
        every = max(1, math.ceil(state.max_steps * batch / max(self.limit, 1)))
        self.every_row = min(every, self.num_rows or every)
        self.every_epoch = math.ceil(every / self.every_row)
        if state.is_world_process_zero and (self.written is None or state.global_step):
            self._open(state.global_step)
        if state.is_world_process_zero and not state.global_step and self.earlier:
            self._put_aside()

    def choose(self, rows: list[dict[str, Any]], split: str, epoch: float | None) -> list[int]:
        """Places in a batch of the rows that are to be recorded."""
        if split == "eval":
            return [i for i, row in enumerate(rows) if row.get("row_id", i) < EVAL_ROWS]
        if int(epoch or 0) % self.every_epoch:
            return []
        return [i for i, row in enumerate(rows) if row.get("source_row", row.get("row_id", 0)) % self.every_row == 0]

    def entries(
        self,
        rollout: Rollout,
        rows: list[dict[str, Any]],
        split: str,
        step: int,
        teachers: list[str] | None = None,
    ) -> list[dict[str, Any]]:
        """The lines that a rollout's traces make; `rows` are the records of its batch, `teachers` the names of theirs
        where a run has several."""
        lines = []
        for trace in rollout.traces or []:
            if trace.row in rollout.broken:
                continue  # it was left out
            ids, by_teacher, row = rollout.completion_ids[trace.row], rollout.from_teacher[trace.row], rows[trace.row]

            def rejected(values, by_teacher=by_teacher):
                return [value if teacher else None for value, teacher in zip(values, by_teacher)]

            drafts = [
                text_instead(self.tokenizer, ids, place, draft) if teacher else None
                for place, (draft, teacher) in enumerate(zip(trace.draft, by_teacher))
            ]
            lines.append(
                {
                    "step": step,
                    "split": split,
                    "id": row.get("id"),
                    "row_id": row.get("row_id"),
                    **({} if teachers is None else {"teacher": teachers[trace.row]}),
                    "prompt": row["prompt"],
                    "privileged_context": row["privileged_context"],
                    "completion": token_texts(self.tokenizer, ids),
                    "token_ids": ids,
                    "from_teacher": [int(teacher) for teacher in by_teacher],
                    "draft": drafts,
                    "teacher_rank": trace.teacher_rank,
                    "student_probability": [_short(x) for x in trace.student_probability],
                    "teacher_probability": [_short(x) for x in trace.teacher_probability],
                    "draft_student_probability": rejected(_short(x) for x in trace.draft_student_probability),
                    "draft_teacher_probability": rejected(_short(x) for x in trace.draft_teacher_probability),
                    "divergence": [_short(x) for x in trace.divergence],
                }
            )
        return lines

    def write(self, entries: list[dict[str, Any]], step: int) -> None:
        """Appends lines, within the limit; the main process calls this with the lines of all."""
        written = self._open(step) if self.written is None else self.written
        with open(self.path, "a", encoding="utf-8") as file:
            for entry in entries:
                if written.get(entry["split"], 0) < self.limit:
                    written[entry["split"]] = written.get(entry["split"], 0) + 1
                    file.write(json.dumps(entry, ensure_ascii=False, separators=(",", ":")) + "\n")

    def _open(self, step: int) -> dict[str, int]:
        """Starts the file, or goes on with what is there up to `step`; returns the lines of each split."""
        self.written = written = {}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return written
        if step == 0:  # another run's
            content = self.path.read_bytes()
            if content and not content.endswith(b"\n"):  # the process ended while it wrote this line
                write_atomically(self.path, content + b"\n")
            self.earlier = self.path.stat().st_size
            return written
        kept, broken, most = [], 0, self.at_checkpoint
        for line in filter(None, self.path.read_bytes().split(b"\n")):
            try:
                entry = json.loads(line.decode("utf-8"))
                at, split = int(entry["step"]), str(entry["split"])
            except (ValueError, KeyError, TypeError, RecursionError):  # the process ended while it wrote this line
                broken += 1
                continue
            before = at < step or (at == step and split == "eval")
            if before and (most is None or written.get(split, 0) < most.get(split, 0)):
                kept.append(line + b"\n")
                written[split] = written.get(split, 0) + 1
        if broken:
            logger.warning(f"{self.path}: {counted(broken, 'line')} cut off in the writing, left out now")
        write_atomically(self.path, b"".join(kept))
        return written

    def _put_aside(self) -> None:
        """Another run's lines get a file of their own; what this process has recorded stays."""
        number, aside = 1, self.path.with_name("rollouts.previous.jsonl")
        while aside.exists():
            number += 1
            aside = self.path.with_name(f"rollouts.previous-{number}.jsonl")
        content = self.path.read_bytes()
        write_atomically(aside, content[: self.earlier])
        write_atomically(self.path, content[self.earlier :])
        self.earlier = 0
