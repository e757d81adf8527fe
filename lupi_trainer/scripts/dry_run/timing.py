"""How long a step may take: an estimate, from a few tokens of one batch, with the models that the run has."""

import time
from collections.abc import Callable
from typing import Any

import torch


SHORT, LONG = 4, 12  # tokens that texts of the two timed batches have


def _seconds(work: Callable[[], Any], device: Any) -> float:
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def seconds_a_batch(trainer: Any) -> tuple[float, str]:
    """(seconds that a batch takes, forward, backward and, where the trainer writes texts, those; how it is known).

    No weight is changed. Of a trainer that writes texts, two short ones are timed, and a line is laid through them;
    texts that are there already have the length that they have.

    Args:
        trainer: made with `gradient_accumulation_steps` of 1.

    Raises:
        ValueError: there is no batch.
    """
    batch = next(iter(trainer.get_train_dataloader()), None)
    if batch is None:
        raise ValueError(f"no record is left to train on: max_length={trainer.args.max_length} leaves no answers")
    trainer.current_gradient_accumulation_steps = 1

    def work() -> None:
        trainer.training_step(trainer.model, batch, None)
        trainer.model.zero_grad()

    device = trainer.accelerator.device
    longest = getattr(trainer, "max_completion_length", None)
    if longest is None or not getattr(trainer, "writes_texts", True):
        _seconds(work, device)
        return _seconds(work, device), "one batch, forward and backward"
    times = {}
    short, long = min(SHORT, longest), min(LONG, longest)
    for tokens in (1, short, long):  # the first is for what happens once
        trainer.max_completion_length = tokens
        times[tokens] = _seconds(work, device)
    slope = max(0.0, (times[long] - times[short]) / max(1, long - short))
    said = f"texts of {short} and {long} tokens, as though each had max_completion_length={longest}"
    return times[long] + slope * (longest - long), said
