"""Texts followed token by token while blocks of them are committed: ended at strings, and streamed."""

from __future__ import annotations

from typing import Any

import torch

from .generate_arguments import Ends


_NO_TOKEN = 1 << 31  # which no vocabulary has: a StopStringCriteria matches it with nothing


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
        if row not in self.lengths:
            text = self.texts[row]
            ended = self._ends(text, tokens)
            text += tokens if ended is None else tokens[: ended + 1]
            if ended is not None:
                self.lengths[row] = len(text) - self.start
        if self.streamer is not None:
            self._stream()
        return row in self.lengths

    def _ends(self, text: list[int], tokens: list[int]) -> int | None:
        """The first of the Q tokens after a text with which it ends; `None`: with none of them."""
        last = self.ends.limit - (len(text) - self.start) - 1
        ends = [token in self.ends.eos or i == last for i, token in enumerate(tokens)]
        for criterion in self.ends.strings:  # each looks at the end of a text alone, so at a window of it
            width = criterion.maximum_token_len
            read = [_NO_TOKEN] * width + text[-width:] + tokens
            windows = torch.tensor(read[-(width + len(tokens) - 1) :]).unfold(0, width, 1)  # [Q, width]
            ends = [one or other for one, other in zip(ends, criterion(windows, None).tolist())]
        return ends.index(True) if any(ends) else None

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
