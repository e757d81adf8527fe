"""What axolotl's plugin for distillation reads, as texts of a teacher store.

A row has `messages`, of which the last is the assistant's, and `logprobs`: for each token that the chat template
writes of that answer, the end of the turn included, the teacher's likeliest tokens with natural log-probabilities at
temperature 1. A place is a list of `{"token": "token_id:5", "logprob": -0.1}` (as vLLM returns them), or of numbers,
of which the ids are in `target_token_ids`.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..data.files import read_records
from ..data.gold import gold_texts
from ..data.prompts import Words
from .store import Text
from .teach import Entry, Writer


_SUM = 1.02  # of probabilities in half precision, at most
_LOST = {
    "target_logprobs": "are scaled to sum to 1, so that how likely all other tokens are is lost: give what they were "
    "made of (`logprobs`)",
    "compressed_logprobs": "are DistillKit's: a fitted curve, from which log-probabilities cannot be read again",
}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file: Parquet, JSON or JSONL.

    Raises:
        ValueError: none, or columns that do not hold what is needed; they are named.
        FileNotFoundError: there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--axolotl: no such file: {path}")
    rows = list(Dataset.from_parquet(str(path))) if path.suffix == ".parquet" else list(read_records(path))
    columns = set().union(*(row.keys() for row in rows))
    for name, why in _LOST.items():
        if name in columns:
            raise ValueError(f"--axolotl: {path}: `{name}` {why}")
    if absent := {"messages", "logprobs"} - columns:
        raise ValueError(f"--axolotl: {path} has no column {sorted(absent)}; found {sorted(columns)}")
    return rows


def _place(values: Any, ids: Any, most: int) -> tuple[list[int], list[float]]:
    """The `most` likeliest tokens of a place and their log-probabilities, falling.

    Raises:
        ValueError: what is there is not that; the message says why.
    """
    if ids is None:
        try:
            pairs = [(int(entry["token"].removeprefix("token_id:")), float(entry["logprob"])) for entry in values]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError("an entry that is no {token: 'token_id:5', logprob: -0.1}") from error
    else:
        pairs = [(int(token), float(value)) for token, value in zip(ids, values, strict=True)]
    known = dict(pairs)
    if len(known) < most:
        raise ValueError(f"{len(known)} of the {most} likeliest tokens that loss_top_k asks for")
    if not all(-math.inf < value <= 1e-3 for value in known.values()) or min(known) < 0:
        raise ValueError("a number that is no log-probability, or an id that is none")
    if math.fsum(map(math.exp, known.values())) > _SUM:
        raise ValueError("probabilities that sum to more than 1")
    likeliest = sorted(known, key=known.__getitem__, reverse=True)[:most]
    return likeliest, [min(known[token], 0.0) for token in likeliest]


def _text(row: dict[str, Any], ids: list[int], most: int) -> Text:
    """The text of a row, whose answer has the tokens `ids`.

    Raises:
        ValueError: its places are not those of the answer; the message says why.
    """
    places, tokens = row["logprobs"], row.get("target_token_ids")
    if len(places) != len(ids) or (tokens is not None and len(tokens) != len(ids)):
        raise ValueError(
            f"{len(places)} places for an answer of {len(ids)} tokens: to which token each belongs is not known"
        )
    found = [_place(place, None if tokens is None else tokens[number], most) for number, place in enumerate(places)]
    return Text(ids, np.array([top for top, _ in found]), np.array([values for _, values in found], np.float32))


class KnownTexts(Writer):
    """Texts that are known already, in place of a teacher.

    Args:
        rows: as [`read_rows`] gives them.
        own: how the student's conversations are written, which wrote the rows' too.
        most: likeliest tokens of each place.
        as_answers: whether a text is found by its answer, too, as with `rollout_policy: gold`.

    Raises:
        ValueError: a row whose places are not exactly those of its answer, or a prompt that comes twice; its number is
            said.
    """

    def __init__(self, rows: list[dict[str, Any]], own: Words, most: int, as_answers: bool):
        self.k, self.entries = most, []
        self._texts: dict[tuple[int, ...], Text] = {}
        asked: list[dict[str, Any]] = []
        for number, row in enumerate(rows):
            messages = row["messages"]
            if not messages or messages[-1].get("role") != "assistant" or len(messages) < 2:
                raise ValueError(f"row {number}: its last message is not the assistant's")
            asked.append({"id": f"row {number}", "prompt": messages[:-1], "answer": messages[-1]["content"]})
        prompts = own.encode([one["prompt"] for one in asked])
        for number, (row, prompt, ids) in enumerate(zip(rows, prompts, gold_texts(own, asked))):
            try:
                text = _text(row, ids or [], most)
            except ValueError as error:
                raise ValueError(f"row {number}: {error}") from error
            entry = Entry(f"row {number}", prompt, text.ids if as_answers else [])
            where = self._where(prompt, entry.gold)
            if where in self._texts:
                raise ValueError(f"row {number}: its prompt was there before, and a store has one answer to it")
            self._texts[where] = text
            self.entries.append(entry)

    @staticmethod
    def _where(prompt: list[int], gold: list[int]) -> tuple[int, ...]:
        return (*prompt, -1, *gold)

    def write(self, prompts, addresses):
        return [self._texts[self._where(prompt, [])].ids for prompt in prompts]

    def top(self, prompts, texts):
        found = [
            self._texts.get(self._where(prompt, ids)) or self._texts[self._where(prompt, [])]
            for prompt, ids in zip(prompts, texts)
        ]
        return [text.top(self.k) for text in found]


def unknown_tokens(texts: KnownTexts, vocab_size: int) -> list[str]:
    """The rows that have a token which the student does not.

    Args:
        texts: of the rows.
        vocab_size: token ids that the student has.
    """
    found = []
    for entry in texts.entries:
        (top,) = texts.top([entry.prompt], [entry.gold])
        if torch.any(top[:, : texts.k] >= vocab_size):
            found.append(entry.name)
    return found
