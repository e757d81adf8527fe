"""Texts followed token by token while blocks of them are committed: ended at strings, and streamed."""

from __future__ import annotations

from typing import Any

import torch

from .generate_arguments import Ends


class Followed:
    """The `on_tokens` of a decoding for `generate`: ends rows at strings, and feeds a streamer as `generate` does.

    A streamer is given a token of every row at a time ([B] int64, `pad` for those that have ended), as soon as all
    rows have one there; the tokens of a block follow each other.

    Args:
        input_ids: [B, L].
        pad: stands behind the end of a row.
        streamer: has `put` and `end`, or None.
    """

    def __init__(self, input_ids: torch.Tensor, ends: Ends, pad: int, streamer: Any = None):
        self.texts, self.start = input_ids.tolist(), input_ids.shape[1]
        self.ends, self.pad, self.streamer = ends, pad, streamer
        self.lengths: dict[int, int] = {}  # row that has ended -> its new tokens
        self.streamed = 0

    def __call__(self, row: int, tokens: list[int]) -> bool:
        for token in tokens:
            if row not in self.lengths:
                self.texts[row].append(token)
                if self._ends(self.texts[row]):
                    self.lengths[row] = len(self.texts[row]) - self.start
        if self.streamer is not None:
            self._stream()
        return row in self.lengths

    def _ends(self, text: list[int]) -> bool:
        if text[-1] in self.ends.eos or len(text) - self.start == self.ends.limit:
            return True
        return any(criterion(torch.tensor([text]), None).item() for criterion in self.ends.strings)

    def _stream(self) -> None:
        while True:
            place = self.start + self.streamed
            written = [len(text) > place for text in self.texts]
            if not any(written) or not all(w or row in self.lengths for row, w in enumerate(written)):
                return
            column = [text[place] if w else self.pad for text, w in zip(self.texts, written)]
            self.streamer.put(torch.tensor(column))
            self.streamed += 1

    def cut(self, completion_ids: list[list[int]]) -> list[list[int]]:
        """The completions without what was committed behind a string that ends them."""
        return [tokens[: self.lengths.get(row)] for row, tokens in enumerate(completion_ids)]
