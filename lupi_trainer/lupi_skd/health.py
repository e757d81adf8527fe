"""Numbers that go wrong: counted, logged, left out or stopped at, with the records' names; never trained on."""

import logging
from typing import Any

import torch

from ..speculative import Rollout
from .metrics import RolloutTotals


logger = logging.getLogger(__name__)


def names(rows: list[dict[str, Any]]) -> str:
    """Records as messages name them: by `id`, else by number."""
    return ", ".join(repr(row["id"]) if row.get("id") else f"number {row.get('row_id', '?')}" for row in rows)


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
        the end token), `rollout/all_teacher` (no drafted token stands) and `rollout/unfinished` (cut at its limit);
        and the number of tokens, over all processes, that are not to be counted in the loss.

    Raises:
        FloatingPointError: the student's logits are no distribution (its weights are broken), or the teacher's are
            none for every record of the batch.
    """
    by_student = [rows[i] for i, who in rollout.broken.items() if who == "student"]
    if by_student:
        raise FloatingPointError(
            f"the student's logits are NaN or infinite at record {names(by_student)}: its weights are broken. Go back "
            "to the last checkpoint, with a lower learning rate or in bfloat16 or float32"
        )
    for i in rollout.broken:
        rollout.completion_ids[i], rollout.from_teacher[i] = [eos_token_ids[0]], [True]
        for kept in (rollout.teacher_hidden, rollout.teacher_top):
            if kept is not None:
                kept[i] = kept[i].new_zeros(1, kept[i].shape[1])
    sound = [i for i in range(len(rows)) if i not in rollout.broken]
    completions = [rollout.completion_ids[i] for i in sound]
    counts = torch.tensor(
        [
            len(rollout.broken),
            len(rows),
            sum(len(ids) == 1 and ids[-1] in eos_token_ids for ids in completions),
            sum(all(rollout.from_teacher[i]) for i in sound),
            sum(ids[-1] not in eos_token_ids for ids in completions),
        ],
        dtype=torch.float64,
    )
    if accelerator.num_processes > 1:
        counts = accelerator.reduce(counts.to(accelerator.device), reduction="sum")
    broken, of_all, empty, all_teacher, unfinished = counts.tolist()
    if rollout.broken:
        logger.warning(
            f"the teacher's logits are NaN or infinite at record {names([rows[i] for i in rollout.broken])}: left out "
            "of this step"
        )
    if broken == of_all:
        raise FloatingPointError(
            f"the teacher's logits are NaN or infinite at every record of the batch ({names(rows)}): load it in "
            "another `teacher_dtype`, or without quantisation"
        )
    totals.broken += int(broken)
    metrics = {
        "rollout/broken_rows": totals.broken,
        "rollout/empty": empty / of_all,
        "rollout/all_teacher": all_teacher / of_all,
        "rollout/unfinished": unfinished / of_all,
    }
    return metrics, int(broken)


class SoundSteps:
    """For [`LUPISKDTrainer`]: stops before the optimizer would take a step on numbers that are not finite.

    One question to the device an optimizer step. With float16, whose loss scaler skips steps with overflown
    gradients by itself, only the loss is looked at.
    """

    _sound: torch.Tensor | None = None

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        sound = loss.isfinite().all()
        self._sound = sound if self._sound is None else self._sound & sound
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        loss_is_sound, self._sound = self._sound, None
        sound = loss_is_sound
        if norm is not None and self.accelerator.scaler is None:
            sound = sound & torch.as_tensor(norm, device=sound.device).isfinite()
        if not sound:
            what = "gradient" if loss_is_sound else "loss"
            raise FloatingPointError(
                f"step {self.state.global_step + 1}: the {what} is NaN or infinite, in a batch with record "
                f"{names(self._unsound_rows() or self._batch_rows)}. The weights are still those of step "
                f"{self.state.global_step}; a lower learning rate, bfloat16 or float32 may help"
            )
        return norm

    @torch.no_grad()
    def _unsound_rows(self) -> list[dict[str, Any]]:
        """The records of the batch whose own loss is not finite; none where weights are sharded."""
        if self._dist.is_fsdp or self._dist.is_zero3:
            return []
        student, found = self.accelerator.unwrap_model(self.model), []
        for batch in self._buffered_inputs:
            for i, row in enumerate(batch["row_number"].tolist()):
                one = {k: v[i : i + 1] if isinstance(v, torch.Tensor) and v.dim() else v for k, v in batch.items()}
                if not self._compute_loss(student, one, 1)[0].isfinite():
                    found.append(self._batch_rows[row])
        return found
