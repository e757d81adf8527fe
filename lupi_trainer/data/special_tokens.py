"""What a tokenizer does beyond its text: tokens that it adds around one, and control tokens that a text spells out."""

import re
from collections.abc import Iterable
from typing import Any

from .records import record_name


def tokenize_open(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Token ids of texts that go on: what the tokenizer puts before a text is there once, what it puts behind is not.

    A text that begins with the beginning-of-text token itself gets no second one.
    """
    probe, bare = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (True, False))
    start = next((n for n in range(len(probe)) if probe[n : n + len(bare)] == bare), 0)
    prefix = list(probe[:start])
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return [[*row] if prefix and row[:start] == prefix else [*prefix, *row] for row in ids]


class SpecialTokens:
    """The control tokens of a tokenizer, refused in the text of records.

    Args:
        tokenizer: of the model that reads the records.
        allowed: refuse nothing; the texts are meant as they are.
        other: that of a second model that reads them; its control tokens are refused, too.
    """

    def __init__(self, tokenizer: Any, allowed: bool = False, other: Any = None):
        self.of_other = None if other is None or other is tokenizer else SpecialTokens(other, allowed)
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        special = [token for token in added if token.special and token.content]
        if allowed or getattr(tokenizer, "split_special_tokens", False):  # which reads them as text
            special = []
        contents = sorted((re.escape(token.content) for token in special), key=len, reverse=True)
        self.pattern = re.compile("|".join(contents)) if contents else None
        normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
        self.normalize = normalizer.normalize_str if normalizer and any(t.normalized for t in special) else None

    def check(self, name: str, *texts: str | None) -> None:
        """Refuse the texts of a record if one of them holds a special token.

        Raises:
            ValueError: one does; the message names record and token.
        """
        for text in filter(None, texts):
            if (found := self.found(text)) is not None:
                raise ValueError(
                    f"{name}: its text holds the special token {found!r}, which a model reads as a control token: "
                    "take it out of the text, or set `allow_special_tokens` where it is meant"
                )

    def found(self, text: str) -> str | None:
        """The first special token that a text holds, if there is any."""
        found = None if self.pattern is None else self.pattern.search(text)
        if found is None and self.pattern is not None and self.normalize is not None:
            found = self.pattern.search(self.normalize(text))
        if found is None and self.of_other is not None:
            return self.of_other.found(text)
        return found[0] if found else None

    def check_prompts(self, rows: Iterable[dict[str, Any]]) -> None:
        """[`check`] of records with `prompt` (messages) and, where it is there, `privileged_context`."""
        for row in rows:
            contents = (message["content"] for message in row["prompt"])
            self.check(record_name(row), *contents, row.get("privileged_context"))

    def check_completions(self, rows: Iterable[dict[str, Any]]) -> None:
        """[`check`] of rows with `text`, or with `prompt` and `completion` (messages); they are named by place."""
        for number, row in enumerate(rows):
            messages = (*row.get("prompt", ()), *row.get("completion", ()))
            self.check(record_name({}, number), row.get("text"), *(message["content"] for message in messages))

    def check_probes(self, probes: Iterable[dict[str, Any]]) -> None:
        """[`check`] of questions and the knowledge that they may come with."""
        for number, probe in enumerate(probes):
            self.check(f"probe of {record_name(probe, number)}", probe["question"], probe.get("knowledge"))
