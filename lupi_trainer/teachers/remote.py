"""A teacher that is asked, not run: what the engine needs of one, wherever it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig


MOST_ASKED = 128  # tokens in one question about tokens that were not returned


Top = tuple[list[int], list[float]]  # token ids and their natural log-probabilities, falling


class RemoteError(RuntimeError):
    """A question that a teacher did not answer as it should. `place` is set by the teacher, `row` by the engine.

    Attributes:
        place: which of the texts asked about it is, where it is about one.
        row: which of the rollout's rows that is.

    Example:

    ```python
    >>> from lupi_trainer.speculative import RemoteError

    >>> issubclass(RemoteError, RuntimeError)
    True
    ```
    """

    place: int | None = None
    row: int | None = None


@dataclass
class RemoteStats:
    """What asking a teacher has cost since it was connected."""

    requests: int = 0  # over HTTP, where it is so asked
    prompts: int = 0  # that these held: each is read by itself
    retries: int = 0
    asked_tokens: int = 0  # tokens whose log-probability was asked for after all, to draw a replacement
    normalizer_error: float = 0.0  # largest possible relative error of a probability at the teacher's temperature


class RemoteTeacher(ABC):
    """What the engine needs of a teacher behind a wire. Log-probabilities are natural ones, at temperature 1.

    vocab_size: token ids that count; others that it may return are left out. top_k: how many of the likeliest tokens
    it returns. max_length: the longest text that it can be asked about, in tokens. name: the model's.

    Example:

    ```python
    >>> from lupi_trainer.speculative import RemoteTeacher

    >>> class Uniform(RemoteTeacher):
    ...     def score(self, texts, counts):
    ...         top = (list(range(self.top_k)), [-math.log(self.vocab_size)] * self.top_k)
    ...         return [[top] * count for count in counts]
    ...
    ...     def logprobs(self, texts, tokens):
    ...         return [[-math.log(self.vocab_size)] * len(asked) for asked in tokens]

    >>> teacher_there = Uniform(vocab_size=568, top_k=20)
    >>> rollout = skd_rollout(student, teacher_there, prompt_ids, prompt_ids, max_new_tokens=4)
    ```
    """

    name = ""

    def __init__(self, vocab_size: int, top_k: int, max_length: int | None = None):
        self.vocab_size, self.top_k, self.max_length = vocab_size, min(top_k, vocab_size), max_length
        self.stats = RemoteStats()

    @property
    def config(self) -> PreTrainedConfig:
        """Its vocabulary, length and name where a model has them."""
        known: dict[str, Any] = {"name_or_path": self.name, "max_position_embeddings": self.max_length}
        known["vocab_size"] = self.vocab_size
        return PreTrainedConfig(**known)

    def begin(self) -> None:  # noqa: B027
        """Called once before every rollout: where it can be seen that another model answers by now, it is said.

        Raises:
            RemoteError: another model answers.
        """

    @abstractmethod
    def score(self, texts: list[list[int]], counts: list[int]) -> list[list[Top]]:
        """For each text, what may follow each of its last `counts[i]` tokens: so many lists of likeliest tokens."""

    @abstractmethod
    def logprobs(self, texts: list[list[int]], tokens: list[list[int]]) -> list[list[float]]:
        """For each text, the log-probabilities that up to `MOST_ASKED` tokens of choice have after it."""
