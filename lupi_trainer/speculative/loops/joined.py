"""Rollouts of parts of a batch as one of all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from .results import Rollout, RolloutStats


Part = tuple[Sequence[int], Rollout]  # the places of its rows in the batch
Value = TypeVar("Value")


def joined_stats(parts: Sequence[tuple[Sequence[int], RolloutStats]]) -> RolloutStats:
    """Counts over all parts, each given with the places of its rows.

    Draft lengths follow one another, part after part; rows are numbered by their places.
    """
    total = RolloutStats()
    for places, stats in parts:
        for name, value in vars(stats).items():
            if name == "rows":
                total.rows |= {places[row]: counts for row, counts in value.items()}
            elif name == "state_copy_bytes":  # at a time
                total.state_copy_bytes = max(total.state_copy_bytes, value)
            else:
                setattr(total, name, getattr(total, name) + value)
    return total


def joined(parts: Sequence[Part]) -> Rollout:
    """The rollout of a batch whose rows were rolled out in parts.

    Args:
        parts: whose places are 0 to B-1, each once.

    Returns:
        Its `teacher_hidden` and `teacher_top` are `None` at rows of parts that have none, its traces in the order of
        the rows.
    """
    if len(parts) == 1 and list(parts[0][0]) == list(range(len(parts[0][0]))):
        return parts[0][1]
    rows = sum(len(places) for places, _ in parts)

    def of_rows(name: str, missing=lambda rollout, row: None) -> list | None:
        if all(getattr(rollout, name) is None for _, rollout in parts):
            return None
        found: list = [None] * rows
        for places, rollout in parts:
            values = getattr(rollout, name)
            for row, place in enumerate(places):
                found[place] = missing(rollout, row) if values is None else values[row]
        return found

    ids, by_teacher = of_rows("completion_ids"), of_rows("from_teacher")
    assert ids is not None and by_teacher is not None
    traces = [replace(trace, row=places[trace.row]) for places, rollout in parts for trace in rollout.traces or ()]
    return Rollout(
        completion_ids=ids,
        from_teacher=by_teacher,
        stats=joined_stats([(places, rollout.stats) for places, rollout in parts]),
        broken={places[row]: writer for places, rollout in parts for row, writer in rollout.broken.items()},
        close_calls=of_rows("close_calls", lambda rollout, row: [False] * len(rollout.completion_ids[row])),
        teacher_hidden=of_rows("teacher_hidden"),
        teacher_top=of_rows("teacher_top"),
        traces=sorted(traces, key=lambda trace: trace.row) or None,
    )
