"""A teacher that is asked, not run: somewhere else, and known by its likeliest tokens alone.

It takes the place of a `Runner`. What it does not return is bounded by what it does: no other token is likelier than
the least likely one returned, and together they have the rest of the probability. A replacement is drawn from the full
distribution all the same: with the noise known for every token, few of the others could win, and those are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable
from contextlib import contextmanager

import torch

from ...teachers.remote import MOST_ASKED, RemoteError, RemoteTeacher
from ..rules.noise import TEACHER, gumbel


class RemoteRunner:
    """Reads as a `Runner` does; the text of a row takes the place of its keys and values."""

    recorded, least_batch, replay, resolution = False, 0, None, 0.0

    def __init__(
        self,
        teacher: RemoteTeacher,
        prompts: list[list[int]],
        *,
        slots: int,
        max_new_tokens: int,
        vocab_size: int,
        temperature: float,
        eos_token_ids: Iterable[int],
        device: torch.device,
    ):
        self.teacher, self.prompts, self.device = teacher, prompts, device
        self.limit, self.ends = max_new_tokens, set(eos_token_ids)
        self.vocab_size, self.temperature = vocab_size, temperature
        self.texts: list[list[int]] = [[] for _ in range(slots)]
        self.starts = [0] * slots  # prompt length - 1
        self.rows = [0] * slots
        self.forwards = 0
        self._requests_before = teacher.stats.requests
        teacher.begin()

    @property
    def requests(self) -> int:
        """Requests so far, with those of the look at who answers."""
        return self.teacher.stats.requests - self._requests_before

    def admit(self, slots: list[int], rows: list[int]) -> None:
        """Makes the slots ready to continue the prompts `rows`."""
        for slot, row in zip(slots, rows):
            self.texts[slot], self.starts[slot] = list(self.prompts[row]), len(self.prompts[row]) - 1
            self.rows[slot] = row

    @contextmanager
    def _of_rows(self, slots: list[int]) -> Generator[None]:
        """While the texts of `slots` are asked about, in this order."""
        try:
            yield
        except RemoteError as error:
            error.row = None if error.place is None else self.rows[slots[error.place]]
            raise

    def idle(self) -> None:
        """Nothing: no other process waits for what is asked here."""

    def move(self, source: int, target: int, written: int) -> None:
        """Moves a row to another slot."""
        self.texts[target], self.texts[source] = self.texts[source], []
        self.starts[target], self.rows[target] = self.starts[source], self.rows[source]

    def settle(self, written: dict[int, int]) -> None:
        """Ends a round; the server reads texts anew each time."""

    def clear(self, slot: int, length: int = 0) -> None:
        """Forgets what a slot holds beyond its first `length` tokens."""
        del self.texts[slot][length:]

    def read(self, tokens: torch.Tensor, written: torch.Tensor, longest: int, keep_hidden: bool = False):
        """tokens [A, Q] -> log-probabilities [A, Q, V] float32, what was returned [A, Q, 2 * top_k] or None.

        Tokens that were not returned share what is left of the probability equally; they have the lowest entry of
        their place. Places after the completion's end or limit are not asked for.
        """
        self.forwards += 1
        counts = []
        for slot, (new, n) in enumerate(zip(tokens.tolist(), written.tolist())):
            end = next((i for i, token in enumerate(new) if i and token in self.ends), len(new))
            counts.append(min(end, self.limit - n))
            self.texts[slot][self.starts[slot] + n :] = new[: counts[-1]]
        asked = [slot for slot, count in enumerate(counts) if count > 0]
        with self._of_rows(asked):
            answers = self.teacher.score([self.texts[slot] for slot in asked], [counts[slot] for slot in asked])
        k, sink = self.teacher.top_k, self.vocab_size  # a column beyond the vocabulary, dropped at the end
        absent = [([sink] * k, [-math.inf] * k)] * tokens.shape[1]
        rows = [list(absent) for _ in counts]
        for slot, places in zip(asked, answers):
            for i, (top, values) in enumerate(places):
                missing = max(k - len(top), 0)
                rows[slot][i] = top[:k] + [sink] * missing, values[:k] + [-math.inf] * missing
        ids = torch.tensor([[top for top, _ in row] for row in rows])
        logprobs = torch.tensor([[values for _, values in row] for row in rows], dtype=torch.float64)
        ids = ids.clamp(max=sink)  # what only the teacher's vocabulary has
        ids, logprobs = ids.to(self.device), logprobs.to(self.device)
        dense = self._rest(ids, logprobs)[..., None].expand(*ids.shape[:-1], sink + 1).clone()
        dense.scatter_(-1, ids, logprobs.float())
        logprobs = logprobs.masked_fill(ids == sink, -math.inf)
        return dense[..., :sink], torch.cat([ids.float(), logprobs.float()], -1) if keep_hidden else None

    def _rest(self, ids: torch.Tensor, logprobs: torch.Tensor) -> torch.Tensor:
        """[A, Q, K] of each -> [A, Q] float32: the log-probability of every token that was not returned."""
        left = (1 - logprobs.exp().sum(-1)).clamp(min=1e-12)
        others = (self.vocab_size - (ids < self.vocab_size).sum(-1)).clamp(min=1)
        least = logprobs.masked_fill(logprobs.isinf(), math.inf).amin(-1)
        self._note_error(ids, logprobs, left, others, least)
        lower = torch.nextafter(least.float(), torch.tensor(-math.inf, device=least.device))  # below what is known
        return torch.minimum((left.log() - others.log()).float(), lower)

    def _note_error(self, ids, logprobs, left, others, least) -> None:
        """Keeps how far probabilities at another temperature than 1 can be off, their normalizer being a bound."""
        if self.temperature in (0.0, 1.0) or self.teacher.top_k >= self.vocab_size:
            return
        power = 1 / self.temperature
        equal = others.log() + power * (left.log() - others.log())  # the rest spread equally
        most = left.log() + (power - 1) * least if power > 1 else equal
        error = (most - (power * logprobs).logsumexp(-1)).exp()
        error = error.masked_fill((ids == self.vocab_size).all(-1), 0.0).max().item()
        self.teacher.stats.normalizer_error = max(self.teacher.stats.normalizer_error, error)

    def draw(self, logits, at, temperature: float, keys, positions, wanted) -> tuple[torch.Tensor, None]:
        """logits [A, Q, V], at [A] -> tokens [A] drawn from the full distribution at place `at`, where `wanted` [A].

        Also returns None for the close calls: what the server computes in is not known.

        A token that was not returned has at most the log-probability of the least likely one returned. With the
        addressed noise of every token at hand, those that could still win are asked for, most promising first.
        """
        logits = logits[torch.arange(len(at), device=at.device), at].clone()
        if temperature == 0:
            return logits.argmax(-1), None
        noise = gumbel(keys, positions, TEACHER, self.vocab_size)
        unknown = logits == logits.amin(-1, keepdim=True)
        ceiling = logits.masked_fill(unknown, math.inf).amin(-1, keepdim=True)
        texts = {
            slot: self.texts[slot][: self.starts[slot] + 1 + position]
            for slot, (position, needed) in enumerate(zip(positions.tolist(), wanted.tolist()))
            if needed and self.starts[slot] + position < len(self.texts[slot])
        }
        while texts:
            best = (logits / temperature + noise).masked_fill_(unknown, -math.inf).amax(-1)
            bounds = (ceiling / temperature + noise).masked_fill_(~unknown, -math.inf)
            could_win, tokens = bounds.topk(min(MOST_ASKED, self.vocab_size))
            counts = (could_win > best[:, None]).sum(-1).tolist()
            texts = {slot: text for slot, text in texts.items() if counts[slot]}
            asked = {slot: tokens[slot, : counts[slot]] for slot in texts}
            with self._of_rows(list(texts)):
                answers = self.teacher.logprobs(list(texts.values()), [asked[slot].tolist() for slot in texts])
            for slot, values in zip(texts, answers):
                self.teacher.stats.asked_tokens += len(values)
                logits[slot, asked[slot]] = torch.tensor(values, device=logits.device)
                unknown[slot, asked[slot]] = False
        scores = (logits / temperature).add_(noise).masked_fill_(unknown, -math.inf)
        return scores.argmax(-1), None
