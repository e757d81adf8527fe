"""Which drafted tokens are accepted: the teacher's rules.

A rule judges every drafted token from the teacher's logits at its place. A rule with a memory keeps it as one row of
numbers for each sequence; since all tokens before the first rejection of a block were accepted, the memory before each
place of a block is known in advance, and judging a block at once or token by token is the same thing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from .logits import distribution, gain, probability, rank


@dataclass(frozen=True)
class Judged:
    """What a rule may look at, for Q consecutive drafted tokens of B rows.

    Attributes:
        teacher_logits: [B, Q, V] float32, before temperature.
        draft: [B, Q] int64 token ids.
        teacher_temperature, student_temperature: of the rollout.
        student_logits: [B, Q, V] float32, before temperature; where the rule asks for them.
        bare_logits: [B, Q, V] float32, the teacher's without the knowledge; likewise.
        state: [B, Q, S] float64, the memory before each place; where the rule has one.

    Example:

    ```python
    >>> import torch
    >>> from lupi_trainer.speculative import Judged, TopK

    >>> logits = torch.tensor([[[3.0, 2.0, 0.0]]])  # [B=1, Q=1, V=3]
    >>> judged = Judged(logits, draft=torch.tensor([[1]]), teacher_temperature=1.0)
    >>> TopK(k=2).accept(judged)
    tensor([[True]])
    ```
    """

    teacher_logits: torch.Tensor  # [B, Q, V] float32, before temperature
    draft: torch.Tensor  # [B, Q] int64
    teacher_temperature: float
    student_logits: torch.Tensor | None = None  # [B, Q, V] float32, before temperature; where the rule asks for it
    student_temperature: float = 1.0
    bare_logits: torch.Tensor | None = None  # [B, Q, V] float32, the teacher's without the knowledge; likewise
    state: torch.Tensor | None = None  # [B, Q, S] float64, the memory before each place; where the rule has one


class AcceptanceRule(Protocol):
    """What the engine needs of a rule; rules without a memory have `state_size` 0.

    One whose `needs_bare_logits` is true is told, too, what the teacher says without the knowledge.

    Example:

    ```python
    >>> from lupi_trainer.speculative.rules.acceptance import Memoryless

    >>> class Favorite(Memoryless):
    ...     def accept(self, judged):
    ...         return judged.teacher_logits.argmax(-1) == judged.draft

    >>> rollout = skd_rollout(student, teacher, prompt_ids, prompt_ids, max_new_tokens=4, acceptance=Favorite())
    ```
    """

    @property
    def state_size(self) -> int:
        """How many numbers its memory has."""

    @property
    def needs_student_logits(self) -> bool:
        """Whether `judged` shall have them."""

    def initial_state(self) -> list[float]:
        """The memory of a new row, `state_size` numbers."""

    def next_state(self, state: torch.Tensor, accepted: bool) -> torch.Tensor:
        """state [..., S] float64 -> [..., S], the memory after one more token was accepted or rejected."""

    def accept(self, judged: Judged) -> torch.Tensor:
        """Returns [B, Q] bool: the accepted tokens, each as if all before it in the block were accepted."""


def needs_bare_logits(rule: AcceptanceRule) -> bool:
    """Whether a rule looks at the teacher's logits behind its prompt without the knowledge."""
    return bool(getattr(rule, "needs_bare_logits", False))


class Memoryless:
    """Base of the rules that judge every token by itself."""

    state_size = 0
    needs_student_logits = False

    def initial_state(self) -> list[float]:
        return []

    def next_state(self, state: torch.Tensor, accepted: bool) -> torch.Tensor:
        return state


def _check_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")


@dataclass(frozen=True)
class TopK(Memoryless):
    """Accepts a token if fewer than `k` teacher logits are larger and its teacher probability is at least `min_prob`.

    The probability is taken at the teacher's temperature. Source: arXiv 2410.11325, algorithm 1 (top-k membership).

    Args:
        k: so many of the teacher's likeliest tokens are accepted.
        min_prob: and only with this teacher probability or more, in [0, 1].

    Raises:
        ValueError: `k` below 1, or `min_prob` outside of [0, 1].

    Example:

    ```python
    >>> import torch
    >>> from lupi_trainer.speculative import Judged, TopK

    >>> judged = Judged(torch.tensor([[[3.0, 2.0, 0.0]]]), draft=torch.tensor([[1]]), teacher_temperature=1.0)
    >>> TopK(k=2, min_prob=0.05).accept(judged)
    tensor([[True]])
    ```
    """

    k: int = 5
    min_prob: float = 0.05

    def __post_init__(self):
        if self.k < 1:
            raise ValueError(f"k must be at least 1, got {self.k}")
        _check_share("min_prob", self.min_prob)

    def accept(self, judged: Judged) -> torch.Tensor:
        accepted = rank(judged.teacher_logits, judged.draft) < self.k
        if self.min_prob > 0:
            accepted &= probability(judged.teacher_logits, judged.draft, judged.teacher_temperature) >= self.min_prob
        return accepted


@dataclass(frozen=True)
class AcceptNone(Memoryless):
    """Accepts nothing, so nothing is drafted: the teacher writes every token (supervised distillation).

    Example:

    ```python
    >>> import torch
    >>> from lupi_trainer.speculative import Judged, AcceptNone

    >>> judged = Judged(torch.tensor([[[3.0, 2.0, 0.0]]]), draft=torch.tensor([[1]]), teacher_temperature=1.0)
    >>> AcceptNone().accept(judged)
    tensor([[False]])
    ```
    """

    def accept(self, judged: Judged) -> torch.Tensor:
        return torch.zeros_like(judged.draft, dtype=torch.bool)


@dataclass(frozen=True)
class AdaptiveTopK:
    """Top-k membership with a k for each row and place: tight where the teacher is sure or the student does well.

    The row's k starts at `k`. After every token the moving average of success is updated, `ema = decay * ema + (1 -
    decay) * accepted`; k falls by `step` while it is above `r_plus` and rises by `step` while it is below `r_minus`.
    At each place the teacher's normalized entropy H in [0, 1] shifts it: `clip(round(k) + round(s * (2 * H - 1)),
    k_min, k_max)`. `min_prob` is as in `TopK`; it is 0 here because at most 1 / min_prob tokens can pass it.

    Raises:
        ValueError: a parameter out of range, or bounds that contradict each other.

    Example:

    ```python
    >>> from lupi_trainer.speculative import AdaptiveTopK

    >>> rule = AdaptiveTopK(k=10, k_max=20)
    >>> rollout = skd_rollout(student, teacher, prompt_ids, prompt_ids, max_new_tokens=4, acceptance=rule)
    ```
    """

    k: float = 25.0
    k_min: int = 1
    k_max: int = 50
    r_plus: float = 0.9
    r_minus: float = 0.7
    decay: float = 0.9
    step: float = 0.5
    s: float = 2.0
    min_prob: float = 0.0

    state_size = 2  # moving average of success, k
    needs_student_logits = False

    def __post_init__(self):
        if not 1 <= self.k_min <= self.k <= self.k_max:
            raise ValueError(f"1 <= k_min <= k <= k_max must hold, got {self.k_min}, {self.k}, {self.k_max}")
        if not self.r_minus <= self.r_plus:
            raise ValueError(f"r_minus must not be above r_plus, got {self.r_minus} and {self.r_plus}")
        for name in ("r_plus", "r_minus", "decay", "min_prob"):
            _check_share(name, getattr(self, name))
        for name in ("step", "s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")

    def initial_state(self) -> list[float]:
        return [(self.r_plus + self.r_minus) / 2, float(self.k)]

    def next_state(self, state: torch.Tensor, accepted: bool) -> torch.Tensor:
        ema = self.decay * state[..., 0] + (1 - self.decay) * float(accepted)
        change = (ema < self.r_minus).to(ema.dtype) - (ema > self.r_plus).to(ema.dtype)
        k = (state[..., 1] + self.step * change).clamp(self.k_min, self.k_max)
        return torch.stack([ema, k], -1)

    def accept(self, judged: Judged) -> torch.Tensor:
        probabilities = distribution(judged.teacher_logits, judged.teacher_temperature)
        entropy = torch.special.entr(probabilities).sum(-1) / math.log(probabilities.shape[-1])
        assert judged.state is not None  # `state_size` is above 0
        shift = (self.s * (2 * entropy - 1)).round()
        k = (judged.state[..., 1].round() + shift).clamp(self.k_min, self.k_max)
        accepted = rank(judged.teacher_logits, judged.draft) < k
        if self.min_prob > 0:
            accepted &= probabilities.gather(-1, judged.draft[..., None])[..., 0] >= self.min_prob
        return accepted


@dataclass(frozen=True)
class TopP(Memoryless):
    """Accepts a token if the teacher's more likely tokens together have less than `p` of the probability.

    Args:
        p: in [0, 1].

    Raises:
        ValueError: `p` outside of [0, 1].

    Example:

    ```python
    >>> import torch
    >>> from lupi_trainer.speculative import Judged, TopP

    >>> judged = Judged(torch.tensor([[[3.0, 2.0, 0.0]]]), draft=torch.tensor([[1]]), teacher_temperature=1.0)
    >>> TopP(p=0.9).accept(judged)
    tensor([[True]])
    ```
    """

    p: float = 0.9

    def __post_init__(self):
        _check_share("p", self.p)

    def accept(self, judged: Judged) -> torch.Tensor:
        probabilities = distribution(judged.teacher_logits, judged.teacher_temperature)
        larger = judged.teacher_logits > judged.teacher_logits.gather(-1, judged.draft[..., None])
        return (probabilities * larger).sum(-1) < (self.p if self.p < 1 else math.inf)


@dataclass(frozen=True)
class RelativeProbability(Memoryless):
    """Accepts a token if its teacher probability is at least `ratio` times the largest one.

    Args:
        ratio: in [0, 1].

    Raises:
        ValueError: `ratio` outside of [0, 1].

    Example:

    ```python
    >>> import torch
    >>> from lupi_trainer.speculative import Judged, RelativeProbability

    >>> judged = Judged(torch.tensor([[[3.0, 2.0, 0.0]]]), draft=torch.tensor([[1]]), teacher_temperature=1.0)
    >>> RelativeProbability(ratio=0.5).accept(judged)
    tensor([[False]])
    ```
    """

    ratio: float = 0.1

    def __post_init__(self):
        _check_share("ratio", self.ratio)

    def accept(self, judged: Judged) -> torch.Tensor:
        below = judged.teacher_logits.amax(-1) - judged.teacher_logits.gather(-1, judged.draft[..., None])[..., 0]
        if judged.teacher_temperature == 0:
            return (below == 0) | (self.ratio == 0)
        return (-below / judged.teacher_temperature).exp() >= self.ratio


@dataclass(frozen=True)
class JensenShannon(Memoryless):
    """Accepts a token if the student's distribution is near the teacher's: Jensen-Shannon divergence <= `tau` nats.

    Both are taken at their own temperatures; which token was drafted does not matter. The divergence lies in
    [0, log 2].

    Raises:
        ValueError: a negative `tau`.

    Example:

    ```python
    >>> from lupi_trainer.speculative import JensenShannon

    >>> rule = JensenShannon(tau=0.1)
    >>> rollout = skd_rollout(student, teacher, prompt_ids, prompt_ids, max_new_tokens=4, acceptance=rule)
    ```
    """

    tau: float = 0.2

    needs_student_logits = True

    def __post_init__(self):
        if not self.tau >= 0:
            raise ValueError(f"tau must not be negative, got {self.tau}")

    def accept(self, judged: Judged) -> torch.Tensor:
        p = distribution(judged.teacher_logits, judged.teacher_temperature)
        assert judged.student_logits is not None  # `needs_student_logits`
        q = distribution(judged.student_logits, judged.student_temperature)
        entropy = [torch.special.entr(x).sum(-1) for x in ((p + q) / 2, p, q)]
        return (entropy[0] - (entropy[1] + entropy[2]) / 2).clamp(0, math.log(2)) <= self.tau


@dataclass(frozen=True)
class Knowledge(Memoryless):
    """Strict where the knowledge speaks: top-k membership, with `strict_k` in the place of `k` where the teacher's
    distributions with and without the knowledge differ by `threshold` nats or more (KL, at temperature 1).

    `min_prob` is as in `TopK`. The teacher reads each text a second time, behind its prompt without the knowledge.

    Raises:
        ValueError: not 1 <= `strict_k` <= `k`, a negative `threshold`, or `min_prob` outside of [0, 1].

    Example:

    ```python
    >>> from lupi_trainer.speculative import Knowledge

    >>> rollout = skd_rollout(
    ...     student,
    ...     teacher,
    ...     prompt_ids,
    ...     prompt_ids,  # with the knowledge, normally
    ...     bare_teacher_prompt_ids=prompt_ids,
    ...     max_new_tokens=4,
    ...     acceptance=Knowledge(threshold=0.5),
    ... )
    ```
    """

    k: int = 5
    strict_k: int = 1
    threshold: float = 1.0
    min_prob: float = 0.05

    needs_bare_logits = True

    def __post_init__(self):
        if not 1 <= self.strict_k <= self.k:
            raise ValueError(f"1 <= strict_k <= k must hold, got {self.strict_k} and {self.k}")
        if not self.threshold >= 0:
            raise ValueError(f"threshold must not be negative, got {self.threshold}")
        _check_share("min_prob", self.min_prob)

    def accept(self, judged: Judged) -> torch.Tensor:
        assert judged.bare_logits is not None  # `needs_bare_logits`
        speaks = gain(judged.teacher_logits, judged.bare_logits) >= self.threshold
        lenient = TopK(self.k, self.min_prob).accept(judged)
        return lenient & (~speaks | (rank(judged.teacher_logits, judged.draft) < self.strict_k))
