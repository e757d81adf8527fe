"""A batch whose rows have different teachers: a rollout of each teacher's rows, put together again.

A row's text is a function of its models, prompts, noise and rule alone, so it is the one that the row would have in a
batch of its own. While one teacher works, the others need not be on a device.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from accelerate.utils import gather_object

from ..speculative import Lockstep, RemoteError, Rollout, RolloutStats, skd_rollout
from ..speculative.loops.joined import joined, joined_stats
from .teachers import RowTeacher, Teachers


def _groups(
    teachers: Teachers, records: list[dict[str, Any]], lockstep: Lockstep | None
) -> list[tuple[RowTeacher, list[int], bool]]:
    """(teacher, places of its rows, whether they are its own) of each rollout.

    In lockstep every process takes part in all rollouts, with its first row, which is then thrown away, where it has
    none of the teacher's.
    """
    own = {teacher.name: places for teacher, places in teachers.groups(records)}
    asked = own if lockstep is None else {name for names in gather_object([[*own]]) for name in names}
    taking_part = [teacher for teacher in teachers if teacher.name in asked]
    return [(teacher, own.get(teacher.name, [0]), teacher.name in own) for teacher in taking_part]


def roll_out_rows(
    teachers: Teachers,
    records: list[dict[str, Any]],
    student: Any,
    prompt_ids: list[list[int]],
    teacher_prompt_ids: list[list[int]],
    *,
    row_ids: list[int],
    trace_rows: Sequence[int] = (),
    on_block: Callable[[Any], None] | None = None,
    on_round: Callable[[RolloutStats], None] | None = None,
    lockstep: Lockstep | None = None,
    bare_prompt_ids: list[list[int]] | None = None,
    **settings: Any,
) -> Rollout:
    """[`skd_rollout`] of B records, each with its own teacher.

    Args:
        teachers: of the run.
        records: B of them.
        student: unwrapped.
        prompt_ids, teacher_prompt_ids: B lists of token ids; `bare_prompt_ids`: those of the teachers without the
            knowledge, for a rule that looks at them.
        row_ids, trace_rows, on_block, on_round, lockstep: as of [`skd_rollout`], of all B rows.
        settings: its other arguments, but for those that a teacher has of its own.

    Returns:
        Rows in the order of the records; `teacher_hidden` and `teacher_top` as [`joined`] has them.

    Raises:
        RemoteError: a remote teacher did not answer as it should; its `row` is one of the B.
    """
    parts: list[tuple[list[int], Rollout]] = []
    for teacher, places, is_own in _groups(teachers, records, lockstep):
        done = [(before, rollout.stats) for before, rollout in parts]

        def block(seen, places=places) -> None:
            assert on_block is not None
            on_block(replace(seen, row=places[seen.row]))

        def round_(stats, places=places, done=done) -> None:
            assert on_round is not None
            on_round(joined_stats([*done, (places, stats)]) if done else stats)

        try:
            with teacher.on_device():
                rollout = skd_rollout(
                    student,
                    teacher.beside(student),
                    [prompt_ids[i] for i in places],
                    # a stand-in row reads what its own teacher would
                    [teacher_prompt_ids[i] for i in places],
                    row_ids=[row_ids[i] for i in places],
                    trace_rows=[n for n, i in enumerate(places) if is_own and i in trace_rows],
                    on_block=block if on_block is not None and is_own else None,
                    on_round=round_ if on_round is not None and is_own else None,
                    lockstep=lockstep,
                    gamma_policy=teacher.gamma_policy,
                    eos_token_id=teacher.eos_token_ids,
                    vocab_size=teacher.pair.vocab_size,
                    teacher_prompt_store=teacher.prompts,
                    kept=teacher.graphs,
                    bare_teacher_prompt_ids=[bare_prompt_ids[i] for i in places] if bare_prompt_ids else None,
                    **settings,
                )
        except RemoteError as error:
            error.row = None if error.row is None else places[error.row]
            raise
        if is_own:
            parts.append((places, rollout))
    return joined(parts)


def padded_rows(rows: list[torch.Tensor | None], length: int, device: torch.device) -> torch.Tensor:
    """Values of tokens as one tensor, zero where there are none.

    Args:
        rows: B of them, [n_i, H_i], or `None` where nothing is known.
        length: tokens of the longest completion, L.

    Returns:
        [B, L, H], H the largest H_i, in a type that holds all of theirs.
    """
    known = [row for row in rows if row is not None]
    dtype = reduce(torch.promote_types, (row.dtype for row in known))
    found = torch.zeros(len(rows), length, max(row.size(1) for row in known), dtype=dtype, device=device)
    for place, row in enumerate(rows):
        if row is not None:
            found[place, : row.size(0), : row.size(1)] = row.to(device)
    return found
