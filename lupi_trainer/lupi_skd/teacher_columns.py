"""What a training batch holds of the teacher beside the completions."""

from typing import Any

import torch

from ..speculative import Rollout
from ..training.private import pad
from .row_rollouts import padded_rows
from .teachers import Teachers


def teacher_columns(
    teachers: Teachers,
    records: list[dict[str, Any]],
    rollout: Rollout,
    teacher_prompt_ids: list[list[int]],
    width: int,
    pad_token_id: int,
    multiple: int | None,
    device: torch.device,
) -> dict[str, torch.Tensor]:
    """The teacher's prompts, and what it has said of the completions, as tensors.

    Args:
        teachers: of the run.
        records: B of them.
        rollout: of these.
        teacher_prompt_ids: of each, what the teacher reads.
        width: C, of the padded completions.
        pad_token_id: before prompts that are shorter than others.
        multiple: of which the prompts' width is to be one, if that is asked for.
        device: of the result.

    Returns:
        `teacher_prompt_ids` and `teacher_prompt_mask` [B, P], where the rollout has them `teacher_hidden` [B, C, H]
        and `teacher_top` [B, C, 2 * top_k], and of several teachers `teacher_number` [B].
    """
    prompts = [torch.tensor(ids) for ids in teacher_prompt_ids]
    columns: dict[str, Any] = {
        "teacher_prompt_ids": pad(prompts, pad_token_id, "left", multiple).to(device),
        "teacher_prompt_mask": pad([torch.ones_like(p) for p in prompts], 0, "left", multiple).to(device),
    }
    if rollout.teacher_hidden is not None and teachers.all_known(records, rollout.teacher_hidden):
        columns["teacher_hidden"] = padded_rows(rollout.teacher_hidden, width, device)
    if rollout.teacher_top is not None:
        columns["teacher_top"] = padded_rows(rollout.teacher_top, width, device)
    if len(teachers) > 1:
        columns["teacher_number"] = torch.tensor(teachers.numbers(records), device=device)
    return columns
