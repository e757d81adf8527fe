"""What a training batch holds of the teacher beside the completions."""

from typing import Any

import torch
from torch.nn.functional import pad as pad_end

from ..speculative import Rollout
from ..training.private import pad


def teacher_columns(
    rollout: Rollout,
    teacher_prompt_ids: list[list[int]],
    width: int,
    pad_token_id: int,
    multiple: int | None,
    device: torch.device,
) -> dict[str, torch.Tensor]:
    """The teacher's prompts, and what it has said of the completions, as tensors.

    Args:
        rollout: of B records.
        teacher_prompt_ids: of each, what the teacher reads.
        width: C, of the padded completions.
        pad_token_id: before prompts that are shorter than others.
        multiple: of which the prompts' width is to be one, if that is asked for.
        device: of the result.

    Returns:
        `teacher_prompt_ids` and `teacher_prompt_mask` [B, P], and where the rollout has them `teacher_hidden`
        [B, C, H] and `teacher_top` [B, C, 2 * top_k].
    """
    prompts = [torch.tensor(ids) for ids in teacher_prompt_ids]
    columns: dict[str, Any] = {
        "teacher_prompt_ids": pad(prompts, pad_token_id, "left", multiple).to(device),
        "teacher_prompt_mask": pad([torch.ones_like(p) for p in prompts], 0, "left", multiple).to(device),
    }
    for name in ("teacher_hidden", "teacher_top"):
        if (parts := getattr(rollout, name)) is not None:
            states = pad([part.to(device) for part in parts], 0, "right")
            columns[name] = pad_end(states, (0, 0, 0, width - states.size(1)))
    return columns
