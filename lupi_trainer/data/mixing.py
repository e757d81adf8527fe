"""Records with knowledge beside base records without: in which order, by which ratio.

The order is computed up front, as a pure function of the seed and of the place in the run, so that it is the same for
any number of processes and after a resume. At every place the source is taken that is furthest behind its share
(error diffusion): however a stretch of the order is cut out, the count of either source is within one record of what
its shares there add up to. Each source is shuffled anew whenever it has been read to its end.
"""

import json
import math
import random
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

from datasets import Dataset, concatenate_datasets

from .records import record_name


@dataclass(frozen=True)
class Stage:
    """A stretch of the run: `share` of its records have knowledge, `until` is where it ends, as a part of the run."""

    share: float
    until: float = 1.0


def parse_mixing(mixing: Any) -> tuple[Stage, ...]:
    """The stages that a recipe names.

    Args:
        mixing: the share of records with knowledge (0.5), or a list of stages such as
            `[{"share": 0.7, "until": 0.6667}, {"share": 0.3}]`, or either as JSON text.

    Raises:
        ValueError: not of that form, a share or an end outside [0, 1], ends that do not rise, or a last stage that
            does not reach the end of the run.
    """
    if isinstance(mixing, str):
        try:
            mixing = json.loads(mixing)
        except json.JSONDecodeError as error:
            raise ValueError(f"mixing: neither a number nor JSON: {mixing!r}") from error
    listed = mixing if isinstance(mixing, list) else [{"share": mixing}]
    for stage in listed:
        values = list(stage.values()) if isinstance(stage, dict) else []
        good = all(isinstance(v, (int, float)) and not isinstance(v, bool) and 0 <= v <= 1 for v in values)
        if not good or "share" not in (stage if values else ()) or set(stage) - {"share", "until"}:
            raise ValueError(f"mixing: a stage is a share in [0, 1] and `until`, its end in (0, 1]; got {stage!r}")
    stages = tuple(Stage(**stage) for stage in listed)
    ends = [0.0, *(stage.until for stage in stages)]
    if not stages or ends[-1] != 1.0 or any(end <= start for start, end in pairwise(ends)):
        raise ValueError(f"mixing: the ends of the stages must rise, the last one to 1; got {ends[1:]}")
    return stages


def _counts(stages: tuple[Stage, ...], total: int, batch: int) -> list[int]:
    """[total + 1]: how many of the first n records have knowledge. A stage ends where a batch does."""
    counts, owed, start = [0], Fraction(0), 0
    for stage in stages:
        end = round(stage.until * total / batch) * batch if stage.until < 1.0 else total
        for _ in range(start, end):
            owed += Fraction(str(stage.share))
            counts.append(math.floor(owed + Fraction(1, 2)))
        start = max(start, end)
    return counts


def mixture_length(size: int, stages: tuple[Stage, ...], *, epochs: float, batch: int) -> int:
    """Records of a run, in full batches, in which `size` records with knowledge are each read `epochs` times.

    Raises:
        ValueError: the mixture has no share of them.
    """
    mean = sum(stage.share * (stage.until - start) for stage, start in zip(stages, [0.0, *(s.until for s in stages)]))
    if mean == 0:
        raise ValueError("mixing: with a share of 0 throughout the length of the run must be set by `max_steps`")
    wanted = size * epochs
    batches = math.ceil(wanted / mean / batch)
    while _counts(stages, batches * batch, batch)[-1] < wanted:
        batches += 1
    return batches * batch


def mixture(
    size: int, base_size: int, stages: tuple[Stage, ...], *, total: int, batch: int = 1, seed: int = 0
) -> list[int]:
    """The order of a complete run.

    Args:
        size, base_size: records with knowledge, and base records; the latter are numbered on from the former.
        stages: as of [`parse_mixing`].
        total: records of the run.
        batch: records of an optimizer step (all processes, all accumulated ones); a stage ends with one.
        seed: of the shuffles.

    Returns:
        [total]: numbers below `size + base_size`.
    """
    counts = _counts(stages, total, batch)
    orders: dict[tuple[int, int], list[int]] = {}

    def draw(source: int, n: int) -> int:
        """The n-th record that is taken from a source of the two."""
        epoch, place = divmod(n, (size, base_size)[source])
        if (source, epoch) not in orders:
            order = list(range((size, base_size)[source]))
            random.Random(f"{seed}/{source}/{epoch}").shuffle(order)
            orders[source, epoch] = order
        return source * size + orders[source, epoch][place]

    return [draw(0, a) if b > a else draw(1, n - a) for n, (a, b) in enumerate(pairwise(counts))]


def mix(records: Dataset, base: Dataset, mixing: Any, *, total: int, batch: int = 1, seed: int = 0) -> Dataset:
    """The records of a complete run in the order of [`mixture`], to be read once, unshuffled.

    Args:
        records: with knowledge.
        base: without; of the same columns.
        mixing: as for [`parse_mixing`].
        total, batch, seed: as for [`mixture`].

    Returns:
        A dataset of `total` rows; `row_id`, where there is one, is the place of a row in the run: a record that comes
        again is written with another noise, and known by its number in the column `source_row`.

    Raises:
        ValueError: a bad `mixing`, or a base record that has knowledge (named).
    """
    stages = parse_mixing(mixing)
    if "privileged_context" in base.column_names:
        for row in base:
            if row["privileged_context"] is not None:
                raise ValueError(f"base {record_name(row)} has a `privileged_context`; base records must have none")
    order = mixture(len(records), len(base), stages, total=total, batch=batch, seed=seed)
    mixed = concatenate_datasets([records, base]).select(order)
    if "row_id" in mixed.column_names:
        mixed = mixed.remove_columns("row_id").add_column("row_id", list(range(total)))
        mixed = mixed.add_column("source_row", order)
    return mixed
