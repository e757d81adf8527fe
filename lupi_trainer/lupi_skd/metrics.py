"""Rollout statistics as logged metrics, summed over all processes."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import astuple, dataclass

import torch

from ..evaluation import AcceptanceCounts
from ..speculative import Rollout


@dataclass
class RolloutTotals:
    """Drafted and accepted tokens, and rows left out, since the run began."""

    drafted: int = 0
    accepted: int = 0
    broken: int = 0  # rows that were left out because the teacher's logits were no distribution

    @staticmethod
    @contextmanager
    def clock() -> Generator[Callable[[], float]]:
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
        `rollout/tokens_per_second` (tokens written, of all processes); where a model computes in half precision,
        `rollout/close_calls` (the share of the tokens written that hung on rounding).
    """
    gammas = torch.tensor(rollout.stats.gamma_history, dtype=torch.float64)
    spread = len(gammas), gammas.sum(), gammas.square().sum()
    sums = torch.tensor(
        [*astuple(AcceptanceCounts.of(rollout)), rollout.stats.close_calls, *spread], dtype=torch.float64
    )
    extremes = torch.tensor([gammas.max(), -gammas.min(), seconds], dtype=torch.float64)
    if accelerator.num_processes > 1:
        device = accelerator.device
        sums = accelerator.reduce(sums.to(device), reduction="sum").cpu()
        extremes = accelerator.gather(extremes[None].to(device)).amax(dim=0).cpu()
    *summed, close_calls, rounds, gamma_sum, gamma_squares = sums.tolist()
    counts = AcceptanceCounts(*summed)
    gamma_max, negative_min, seconds = extremes.tolist()
    totals.drafted += int(counts.drafted)
    totals.accepted += int(counts.accepted)
    mean = gamma_sum / rounds
    hung = {} if rollout.close_calls is None else {"rollout/close_calls": close_calls / max(counts.written, 1)}
    return (
        counts.rates()
        | hung
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
