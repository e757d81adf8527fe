"""The critic's own stage: a value head learns, on the states of a frozen model, what a text is worth so far."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from ..models.mtp_heads import ValueHead


class RewardCollator:
    """Adds the records' `reward` [B] to what another collator makes of them."""

    def __init__(self, collator: Callable[[list[dict]], dict[str, Any]]):
        self.collator = collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        rewards = [example.pop("reward", None) for example in examples]
        batch = self.collator(examples)
        if None not in rewards:
            batch["reward"] = torch.tensor(rewards, dtype=torch.float32)
        return batch


def check_rewards(rewards: list[Any]) -> None:
    """Raise ValueError if a reward is not a finite number (naming the record), or if all are equal."""
    for number, reward in enumerate(rewards):
        if isinstance(reward, bool) or not isinstance(reward, int | float) or not math.isfinite(reward):
            raise ValueError(f"record number {number}: `reward` must be a finite number, got {reward!r}")
    if len(set(rewards)) == 1:
        raise ValueError(f"every record has the same `reward`, {rewards[0]!r}: a critic has nothing to learn from it")


def repeated(loader: Iterable, steps: int) -> Iterator[Any]:
    """So many batches, with the loader begun again where it ends; none of an empty one."""
    left = steps
    while left:
        before = left
        for batch in loader:
            yield batch
            left -= 1
            if not left:
                return
        if left == before:
            return


def judged_places(labels: torch.Tensor) -> torch.Tensor:
    """labels [B, S] -> [B, S] bool: labeled tokens, and the one before each, from which its advantage is counted."""
    labeled = labels != -100
    return labeled | torch.nn.functional.pad(labeled[:, 1:], (0, 1))


def gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    """That of a parameter which a backward has reached."""
    assert parameter.grad is not None
    return parameter.grad


def fit_critic(
    batches: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    hidden_size: int,
    *,
    learning_rate: float,
    device: torch.device,
    moments: tuple[float, float] | None = None,
    total: Callable[[torch.Tensor], torch.Tensor] = lambda x: x,
) -> tuple[ValueHead, float]:
    """A value head fitted by least squares to the returns of one batch after another.

    Every place counts alike, whichever process reads it; a batch without places is passed over.

    Args:
        batches: of (hidden [B, S, D], returns [B, S], places [B, S] bool), without gradients.
        hidden_size: D.
        learning_rate: of AdamW.
        device: of the value head.
        moments: mean and standard deviation of the returns; those of the first batch if omitted.
        total: the sum of a tensor over all processes.

    Returns:
        The frozen head, and the share of the returns' variance that it explained in the last tenth of the batches,
        each judged before it was learned from; 0 is what a constant reaches.

    Raises:
        ValueError: no batch with places.
    """
    critic: ValueHead | None = None
    optimizer: torch.optim.AdamW | None = None
    history: list[torch.Tensor] = []
    for hidden, returns, places in batches:
        wanted = returns[places].float()
        count = total(torch.tensor(float(len(wanted)), device=wanted.device))
        if not count:
            continue
        centered = critic is None and moments is None
        if critic is None or optimizer is None:
            if moments is None:
                mean = total(wanted.sum()) / count
                moments = mean.item(), (total((wanted - mean).square().sum()) / count).sqrt().item()
            critic = ValueHead(hidden_size, scale=max(moments[1], 1e-6)).to(device)
            critic.down.bias.data.fill_(moments[0] / critic.scale)
            optimizer = torch.optim.AdamW(critic.parameters(), lr=learning_rate, weight_decay=0.0)
        error = (critic(hidden[places]) - wanted).square()
        (error.sum() / count / critic.scale**2).backward()
        for parameter in critic.parameters():
            parameter.grad = total(gradient(parameter))
        if centered:  # at its own mean a batch has no slope but rounding, of which Adam would make a full step
            gradient(critic.down.bias).zero_()
        optimizer.step()
        optimizer.zero_grad()
        history.append(torch.stack([error.detach().sum(), wanted.sum(), wanted.square().sum()]) / count)
    if critic is None:
        raise ValueError("there was no batch to train the critic on")
    tail = history[-max(1, len(history) // 10) :]
    error, mean, square = total(torch.stack(tail).double().mean(dim=0)).tolist()
    return critic.requires_grad_(False).eval(), 1 - error / max(square - mean**2, 1e-12)
