"""Rollout statistics as logged metrics, summed over all processes."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ..speculative import Rollout


@dataclass
class RolloutTotals:
    """Drafted and accepted tokens, and rows left out, since the run began."""

    drafted: int = 0
    accepted: int = 0
    broken: int = 0  # rows that were left out because the teacher's logits were no distribution

    @staticmethod
    @contextmanager
    def clock() -> Iterator[Callable[[], float]]:
        """Seconds spent inside the block, read after it."""
        start, end = time.perf_counter(), None

        def seconds() -> float:
            return (end or time.perf_counter()) - start

        yield seconds
        end = time.perf_counter()


def rollout_metrics(rollout: Rollout, seconds: float, totals: RolloutTotals, accelerator) -> dict[str, float]:
    """Metrics of one rollout over all processes; `totals` moves on.

    Returns:
        `acc_rate/{mean,first_token,full_match}` (fractions of drafted tokens, and of blocks),
        `gamma/{mean,max,min,std}` (tokens),
        `tokens/{total_drafted,total_accepted,acceptance_ratio_global,teacher_share}` and
        `rollout/tokens_per_second` (committed tokens of all processes).
    """
    stats = rollout.stats
    committed = sum(map(len, rollout.completion_ids))
    written_by_teacher = sum(map(sum, rollout.from_teacher))
    gammas = torch.tensor(stats.gamma_history, dtype=torch.float64)
    sums = torch.tensor(
        [stats.drafted, stats.accepted, stats.blocks, stats.first_token_accepted, stats.full_match, committed,
         written_by_teacher, len(gammas), gammas.sum(), gammas.square().sum()],
        dtype=torch.float64,
    )  # fmt: skip
    extremes = torch.tensor([gammas.max(), -gammas.min(), seconds], dtype=torch.float64)
    if accelerator.num_processes > 1:
        device = accelerator.device
        sums = accelerator.reduce(sums.to(device), reduction="sum").cpu()
        extremes = accelerator.gather(extremes[None].to(device)).amax(dim=0).cpu()
    drafted, accepted, blocks, first, full, committed, teacher, rounds, gamma_sum, gamma_squares = sums.tolist()
    gamma_max, negative_min, seconds = extremes.tolist()
    totals.drafted += int(drafted)
    totals.accepted += int(accepted)
    mean = gamma_sum / rounds
    return {
        "acc_rate/mean": accepted / max(drafted, 1),
        "acc_rate/first_token": first / max(blocks, 1),
        "acc_rate/full_match": full / max(blocks, 1),
        "gamma/mean": mean,
        "gamma/max": gamma_max,
        "gamma/min": -negative_min,
        "gamma/std": max(gamma_squares / rounds - mean**2, 0.0) ** 0.5,
        "tokens/total_drafted": totals.drafted,
        "tokens/total_accepted": totals.accepted,
        "tokens/acceptance_ratio_global": totals.accepted / max(totals.drafted, 1),
        "tokens/teacher_share": teacher / max(committed, 1),
        "rollout/tokens_per_second": committed / max(seconds, 1e-9),
    }
