"""Numbers that go wrong: counted, logged, left out or stopped at, with the records' names; never trained on."""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch

from ..data.records import record_name
from ..speculative import RemoteError, Rollout
from ..training.finite_steps import FiniteSteps
from ..training.private import DistillationHooks
from .metrics import RolloutTotals


logger = logging.getLogger(__name__)


def names(rows: list[dict[str, Any]]) -> str:
    """Records as messages name them."""
    return ", ".join(map(record_name, rows))


@contextmanager
def errors_named(rows: list[dict[str, Any]]) -> Generator[None]:
    """While `rows` are rolled out: what a remote teacher cannot say about one of them is said with its record."""
    try:
        yield
    except RemoteError as error:
        if error.row is None:
            raise
        raise type(error)(f"{record_name(rows[error.row])}: {error}") from error


def rollout_health(
    rollout: Rollout, rows: list[dict[str, Any]], eos_token_ids: list[int], totals: RolloutTotals, accelerator
) -> tuple[dict[str, float], int]:
    """Count the odd rows of a rollout over all processes; rows that the teacher broke are emptied for the loss.

    Args:
        rollout: of `rows`; a broken row's completion becomes one end token, which the caller must mask.
        rows: the records.
        eos_token_ids: tokens that end a row.
        totals: its `broken` moves on.
        accelerator: of the run.

    Returns:
        metrics: `rollout/broken_rows` (since the run began), and as shares of the rows `rollout/empty` (nothing but
        the end token), `rollout/all_teacher` (no drafted token was accepted) and `rollout/unfinished` (cut at its
        limit); and the number of tokens, over all processes, that are not to be counted in the loss.

    Raises:
        FloatingPointError: the student's logits are no distribution (its weights are broken), or the teacher's are
            none for every record of the batch.
    """
    by_student = [rows[i] for i, writer in rollout.broken.items() if writer == "student"]
    if by_student:
        raise FloatingPointError(
            f"the student's logits are NaN or infinite at {names(by_student)}: its weights are broken. Go back "
            "to the last checkpoint, with a lower learning rate or in bfloat16 or float32"
        )
    for i in rollout.broken:
        rollout.completion_ids[i], rollout.from_teacher[i] = [eos_token_ids[0]], [True]
        for kept in (rollout.teacher_hidden, rollout.teacher_top):
            if kept is not None and kept[i] is not None:
                kept[i] = kept[i].new_zeros(1, kept[i].shape[1])
    valid = [i for i in range(len(rows)) if i not in rollout.broken]
    completions = [rollout.completion_ids[i] for i in valid]
    counts = torch.tensor(
        [
            len(rollout.broken),
            len(rows),
            sum(len(ids) == 1 and ids[-1] in eos_token_ids for ids in completions),
            sum(all(rollout.from_teacher[i]) for i in valid),
            sum(ids[-1] not in eos_token_ids for ids in completions),
        ],
        dtype=torch.float64,
    )
    if accelerator.num_processes > 1:
        counts = accelerator.reduce(counts.to(accelerator.device), reduction="sum")
    broken, of_all, empty, all_teacher, unfinished = counts.tolist()
    if rollout.broken:
        logger.warning(
            f"the teacher's logits are NaN or infinite at {names([rows[i] for i in rollout.broken])}: left out "
            "of this step"
        )
    if broken == of_all:
        raise FloatingPointError(
            f"the teacher's logits are NaN or infinite at every record of the batch ({names(rows)}): load it in "
            "another `teacher_dtype`, or without quantization"
        )
    totals.broken += int(broken)
    metrics = {
        "rollout/broken_rows": totals.broken,
        "rollout/empty": empty / of_all,
        "rollout/all_teacher": all_teacher / of_all,
        "rollout/unfinished": unfinished / of_all,
    }
    return metrics, int(broken)


class NamedSteps(FiniteSteps, DistillationHooks):
    """For [`LUPISKDTrainer`]: the message names the records whose loss is not finite."""

    _batch_rows: list[dict[str, Any]]  # the records of the batch that is being trained on

    def _where_not_finite(self) -> str:
        return f", in a batch with {names(self._not_finite_rows() or self._batch_rows)}"

    @torch.no_grad()
    def _not_finite_rows(self) -> list[dict[str, Any]]:
        """The records of the batch whose own loss is not finite; none where weights are sharded."""
        if self.dist.is_fsdp or self.dist.is_zero3:
            return []
        student, found = self.accelerator.unwrap_model(self.model), []
        for batch in self.buffered_batches:
            for i, row in enumerate(batch["row_number"].tolist()):
                one = {k: v[i : i + 1] if isinstance(v, torch.Tensor) and v.dim() else v for k, v in batch.items()}
                if not self.distillation_loss(student, one, 1)[0].isfinite():
                    found.append(self._batch_rows[row])
        return found
