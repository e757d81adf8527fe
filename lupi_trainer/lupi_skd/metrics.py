"""Rollout statistics as logged metrics, summed over all processes."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from itertools import chain
from typing import Any

import torch

from ..evaluation import AcceptanceCounts
from ..speculative import Rollout
from ..speculative.loops.results import RowCounts
from .setup import TeacherKind
from .teachers import Teachers


KINDS = ("knowledge", "base")  # of the records of a mixture


@dataclass
class RolloutTotals:
    """Drafted and accepted tokens, and rows left out, since the run began."""

    drafted: int = 0
    accepted: int = 0
    broken: int = 0  # rows that were left out because the teacher's logits were no distribution
    knowledge: int = 0  # rows with knowledge
    base: int = 0  # rows without

    @staticmethod
    @contextmanager
    def clock() -> Generator[Callable[[], float]]:
        """Seconds spent inside the block, read after it."""
        start, end = time.perf_counter(), None

        def seconds() -> float:
            return (end or time.perf_counter()) - start

        yield seconds
        end = time.perf_counter()


def _of_rows(rollout: Rollout, rows: list[int]) -> list[float]:
    """What is summed over processes of some rows: how many they are, their draft lengths and seconds, and the rest."""
    counts = [rollout.stats.rows.get(row, RowCounts()) for row in rows]
    own = [len(rows), sum(row.gammas for row in counts), sum(row.seconds for row in counts)]
    return [*own, *astuple(AcceptanceCounts.of(rollout, rows))]


def _by_kind(sums: dict[str, list[float]], totals: RolloutTotals, processes: int) -> dict[str, float]:
    """Metrics of the rows of each kind that this rollout has; of the `KINDS`, once a run has had both."""
    for kind in KINDS:
        setattr(totals, kind, getattr(totals, kind) + int(sums[kind][0]))
    found: dict[str, float] = {}
    for kind, (rows, gammas, seconds, *counted) in sums.items():
        if not rows or (kind in KINDS and not (totals.knowledge and totals.base)):
            continue
        counts = AcceptanceCounts(*counted)
        metrics = counts.rates() | {
            "gamma/mean": gammas / max(counts.blocks, 1),
            "rollout/tokens_per_second": counts.written / max(seconds / processes, 1e-9),
        }
        found |= {f"{name}_{kind}": value for name, value in metrics.items()}
    return found


def server_metrics(teachers: Teachers) -> dict[str, float]:
    """What asking remote teachers has cost: `teacher_server/NAME`, summed over them (of an error, the largest)."""
    found: dict[str, float] = {}
    for teacher in teachers:
        if teacher.kind is TeacherKind.REMOTE:
            for name, value in vars(teacher.model.stats).items():
                key = f"teacher_server/{name}"
                before = found.get(key, 0)
                found[key] = max(before, value) if name == "normalizer_error" else before + value
    return found


def rollout_metrics(
    rollout: Rollout,
    records: list[dict[str, Any]],
    seconds: float,
    totals: RolloutTotals,
    accelerator,
    teachers: Teachers | None = None,
) -> dict[str, float]:
    """Metrics of one rollout over all processes; `totals` moves on.

    Args:
        rollout: of `records`.
        records: with `privileged_context`, which is null in a base record.
        seconds: that it took.
        totals: since the run began.
        accelerator: of the run.
        teachers: of the run; where there are several, their rows are told apart, too.

    Returns:
        `acc_rate/{mean,first_token,full_match}` (fractions of drafted tokens, and of blocks),
        `gamma/{mean,max,min,std}` (tokens),
        `tokens/{total_drafted,total_accepted,acceptance_ratio_global,teacher_share}` and
        `rollout/tokens_per_second` (tokens written, of all processes); where a model computes in half precision,
        `rollout/close_calls` (the share of the tokens written that hung on rounding).
        Once a run has had records with knowledge and base records, for each `KIND` (`knowledge`, `base`) of which
        there are some: `acc_rate/{mean,first_token,full_match}_KIND`, `gamma/mean_KIND` (a mean over blocks),
        `tokens/teacher_share_KIND` and `rollout/tokens_per_second_KIND` (where a round's time is divided evenly among
        the rows that ran in it, and the prompts' reading is no one's).
        Of several teachers, the same for each that has rows in the rollout, with `_of_NAME`.
    """
    told = [record["privileged_context"] is not None for record in records]
    kinds = {kind: [i for i, one in enumerate(told) if one is (kind == "knowledge")] for kind in KINDS}
    if teachers is not None and len(teachers) > 1:
        numbers = teachers.numbers(records)
        for at, name in enumerate(teachers.names):
            kinds[f"of_{name}"] = [i for i, number in enumerate(numbers) if number == at]
    of_kinds = [_of_rows(rollout, rows) for rows in kinds.values()]
    gammas = torch.tensor(rollout.stats.gamma_history, dtype=torch.float64)
    spread = len(gammas), gammas.sum(), gammas.square().sum()
    own = [*astuple(AcceptanceCounts.of(rollout)), rollout.stats.close_calls, *spread]
    sums = torch.tensor([*chain(*of_kinds), *own], dtype=torch.float64)
    extremes = torch.tensor([gammas.max(), -gammas.min(), seconds], dtype=torch.float64)
    if accelerator.num_processes > 1:
        device = accelerator.device
        sums = accelerator.reduce(sums.to(device), reduction="sum").cpu()
        extremes = accelerator.gather(extremes[None].to(device)).amax(dim=0).cpu()
    width = len(of_kinds[0])
    apart = {kind: sums[i * width : (i + 1) * width].tolist() for i, kind in enumerate(kinds)}
    *summed, close_calls, rounds, gamma_sum, gamma_squares = sums[len(kinds) * width :].tolist()
    counts = AcceptanceCounts(*summed)
    gamma_max, negative_min, seconds = extremes.tolist()
    totals.drafted += int(counts.drafted)
    totals.accepted += int(counts.accepted)
    mean = gamma_sum / rounds
    hung = {} if rollout.close_calls is None else {"rollout/close_calls": close_calls / max(counts.written, 1)}
    return (
        counts.rates()
        | hung
        | _by_kind(apart, totals, accelerator.num_processes)
        | {
            "gamma/mean": mean,
            "gamma/max": gamma_max,
            "gamma/min": -negative_min,
            "gamma/std": max(gamma_squares / rounds - mean**2, 0.0) ** 0.5,
            "tokens/total_drafted": totals.drafted,
            "tokens/total_accepted": totals.accepted,
            "tokens/acceptance_ratio_global": totals.accepted / max(totals.drafted, 1),
            "rollout/tokens_per_second": counts.written / max(seconds, 1e-9),
        }
    )
