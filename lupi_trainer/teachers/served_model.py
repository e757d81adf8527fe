"""Whether the model behind an address is the one that is meant."""

from __future__ import annotations

import math
import os
from typing import Any


_PROBE_TOKENS = 48


def probe_text(tokenizer) -> tuple[str, list[int]]:
    """Text of tokens from all over the vocabulary, and how the tokenizer reads it."""
    last = len(tokenizer) - 1
    text = tokenizer.decode([i * last // (_PROBE_TOKENS - 1) for i in range(_PROBE_TOKENS)])
    return text, tokenizer(text, add_special_tokens=False)["input_ids"]


def same_name(wanted: str, card: dict[str, Any]) -> bool:
    """The model's name, or a folder's under another path: the server's disk need not look like this one's."""
    names = [name for name in (card["id"], card.get("root")) if name]
    return wanted in names or os.path.basename(wanted) in [os.path.basename(name) for name in names]


def differ(ours: list[dict[int, float]], theirs: list[dict[int, float]]) -> bool:
    """Whether a probability differs by more than half precision and another batch explain."""
    for a, b in zip(ours, theirs):
        shared = a.keys() & b.keys()
        if not shared or any(abs(math.exp(a[token]) - math.exp(b[token])) > 0.02 for token in shared):
            return True
    return False
