"""Time and peak memory of the chunked KD-LoRA loss over the dense one: `python -m tests.benchmarks.kd_loss`.

Forward and backward from hidden states, one sequence of 1,024 labeled tokens, a vocabulary of 32,000, heads that are
frozen as in a LoRA run.
"""

import argparse
import time
from statistics import median

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from lupi_trainer.losses.chunked_kd import chunked_kd_ce
from lupi_trainer.losses.reference import kd_ce_loss
from lupi_trainer.models.lm_head import Head


class Model(nn.Module):
    """No more of a model than its frozen `lm_head`."""

    def __init__(self, hidden_size: int, vocab_size: int):
        super().__init__()
        self.lm_head = nn.Linear(hidden_size, vocab_size, bias=False).requires_grad_(False)
        self.config = self

    def get_text_config(self):
        return self

    def get_output_embeddings(self):
        return self.lm_head

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith(("logit", "final", "output", "lm_head_")):
                return None  # as a configuration without these keys
            raise


def make(hidden_size: int, length: int = 1024, vocab_size: int = 32_000):
    """(dense, chunked): functions that compute the same loss and the gradient of the hidden states."""
    torch.manual_seed(0)
    student, teacher = Model(hidden_size, vocab_size), Model(hidden_size, vocab_size)
    states = torch.randn(1, length, hidden_size, requires_grad=True)
    teacher_states = torch.randn(1, length, hidden_size)
    labels = torch.randint(0, vocab_size, (1, length))

    def dense() -> torch.Tensor:
        states.grad = None
        with torch.no_grad():
            teacher_logits = teacher.lm_head(teacher_states)
        loss = kd_ce_loss(student.lm_head(states), teacher_logits, labels, 0.2, 2.0)
        loss.backward()
        return loss.detach()

    def chunked() -> torch.Tensor:
        states.grad = None
        heads = Head(student, vocab_size), Head(teacher, vocab_size)
        out = chunked_kd_ce(states[0], heads[0], teacher_states[0], heads[1], labels[0], 0.2, 2.0)
        loss = out.total / length
        loss.backward()
        return loss.detach()

    return dense, chunked


def peak_bytes(function) -> int:
    """The most that was allocated at a time while `function` ran, beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    held = peak = 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def seconds(functions, turns: int) -> list[float]:
    """Median seconds of each function, which take turns."""
    times = [[] for _ in functions]
    for _ in range(turns):
        for function, taken in zip(functions, times):
            start = time.perf_counter()
            function()
            taken.append(time.perf_counter() - start)
    return [median(taken) for taken in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden_size", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--turns", type=int, default=7)
    args = parser.parse_args()
    for hidden_size in args.hidden_size:
        dense, chunked = make(hidden_size)
        torch.testing.assert_close(chunked(), dense(), rtol=1e-5, atol=1e-5)
        a, b = peak_bytes(dense), peak_bytes(chunked)
        s, t = seconds((dense, chunked), args.turns)
        print(
            f"width {hidden_size}: peak memory {b / 2**20:.0f} of {a / 2**20:.0f} MiB, {b / a:.2f}x; "
            f"time {t:.2f} of {s:.2f} s, {t / s:.2f}x"
        )


if __name__ == "__main__":
    main()
