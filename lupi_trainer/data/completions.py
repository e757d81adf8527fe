"""Texts to be completed, and their completions: prompts are read, encoded, followed while they are written, and saved.

No model is run here, and none is known: tokens come in, and lines of JSON go out.
"""

import json
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .files import is_data_file, read_records
from .prompts import TeacherPrompt, TemplateError, check_turns, encode
from .records import LAB_PREFIX, load_lab_records, named, normalize_record, record_name
from .special_tokens import SpecialTokens, tokenize_open


def load_prompts(*sources: str) -> list[dict]:
    """Records with `prompt`, of each source in turn.

    Args:
        sources: a JSON or JSONL file of records (`prompt`, text or messages; `query` is read too), `lab:NAME`, or
            whatever else: the text of a prompt.

    Raises:
        FileNotFoundError: what is called like a file of records, and is not there.
        ValueError: no record, one without a prompt (named with its file), or a file of another kind.
    """
    found: list[dict] = []
    for source in sources:
        records: list[dict[str, Any]]
        if not source.startswith(LAB_PREFIX) and not is_data_file(source):
            records = [{"prompt": source}]
        else:
            records = load_lab_records(source) if source.startswith(LAB_PREFIX) else read_records(source)
        if not records:
            raise ValueError(f"{source}: no prompt in it")
        for record in records:
            if "knowledge" not in record:
                record.setdefault("privileged_context", None)
        with named(source):
            found += [normalize_record(record, number) for number, record in enumerate(records)]
    return found


def encode_prompts(
    tokenizer,
    records: list[dict],
    written: TeacherPrompt | None,
    *,
    chat_template_kwargs: dict[str, Any] | None = None,
    allow_special_tokens: bool = False,
) -> list[list[int]]:
    """Token ids of every prompt: by the chat template, or, where the tokenizer has none, of the plain text.

    A plain text is to go on, so an end of text that the tokenizer puts behind it is left out.

    Args:
        records: of `load_prompts`.
        written: puts each record's knowledge into its prompt, if given.
        chat_template_kwargs: for the chat template.
        allow_special_tokens: let records spell out special tokens, which become control tokens.

    Raises:
        ValueError: a record that spells out a special token or that the chat template cannot write (named); without a
            chat template, a prompt of several messages (named), knowledge to put into one, or keyword arguments.
    """
    SpecialTokens(tokenizer, allow_special_tokens).check_prompts(records)
    if getattr(tokenizer, "chat_template", None):
        conversations = [
            written.messages(record["prompt"], record["privileged_context"]) if written else record["prompt"]
            for record in records
        ]
        kwargs = chat_template_kwargs or {}
        try:
            ids = encode(tokenizer, conversations, **kwargs)
            check_turns(tokenizer, conversations, **kwargs)
        except TemplateError as error:
            raise ValueError(f"{record_name(records[error.number], error.number)}: {error}") from error
        return ids
    if chat_template_kwargs:
        raise ValueError("the target's tokenizer has no chat template: leave out --chat_template_kwargs")
    if written:
        raise ValueError("the target's tokenizer has no chat template: knowledge has no place in a plain text")
    for number, record in enumerate(records):
        if len(record["prompt"]) > 1:
            raise ValueError(
                f"{record_name(record, number)}: {len(record['prompt'])} messages, but the target has no chat "
                "template to write them with: give plain text, which is continued as it is"
            )
    return tokenize_open(tokenizer, [record["prompt"][0]["content"] for record in records])


def stop_ids(tokenizer, stop: list[str]) -> set[int]:
    """Ids of the stop strings that are special tokens: the text is written without these, and ends as at an eos.

    Raises:
        ValueError: a special token is a part of a longer stop string, which no text can hold.
    """
    special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    for text in stop:
        for token in special:
            if token in text and text not in special:
                raise ValueError(
                    f"--stop {text!r} holds the special token {token!r}, which is left out of the text: give the "
                    "token alone, or the rest alone"
                )
    return {special[text] for text in stop if text in special}


class Completions:
    """Text of every row while it is written; knows where a row ends.

    Args:
        tokenizer: the target's.
        rows: how many.
        max_new_tokens: the longest completion.
        eos: ids that end one.
        stop: strings that end one, and are not part of it.
        show: where the text of row 0 goes as it is written.
        done: called with a row's index when it has ended.
    """

    def __init__(
        self,
        tokenizer,
        rows: int,
        max_new_tokens: int,
        eos: set[int],
        stop: list[str],
        show: Callable[[str], None] | None = None,
        done: Callable[[int], None] = lambda row: None,
    ):
        self.tokenizer, self.limit, self.eos, self.stop = tokenizer, max_new_tokens, eos, stop
        self.show, self.done = show, done
        self.ids: list[list[int]] = [[] for _ in range(rows)]
        self.texts = [""] * rows
        self.reasons: list[str | None] = [None] * rows
        self.shown = 0

    def __call__(self, row: int, tokens: list[int]) -> bool:
        ids = self.ids[row]
        ids += tokens
        ended = ids[-1] in self.eos
        text = self._decode(ids[:-1] if ended else ids)
        places = [place for place in (text.find(stop) for stop in self.stop) if place >= 0]
        self.texts[row] = text[: min(places)] if places else text
        if places or ended or len(ids) >= self.limit:
            self.reasons[row] = "stop" if places else "eos" if ended else "length"
            self.done(row)
        if self.show is not None and row == 0:
            self._show(self.show, self.reasons[row] is not None)
        return bool(places)

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)

    def count(self, row: int) -> int:
        """Tokens of a row, its eos included; up to a stop string, as many as its text needs."""
        ids, text = self.ids[row], self.texts[row]
        if self.reasons[row] != "stop":
            return len(ids)
        return bisect_left(range(len(ids)), True, key=lambda n: self._decode(ids[:n]).startswith(text))

    def _show(self, show: Callable[[str], None], ended: bool) -> None:
        """Shows what cannot change any more: no half character, and nothing that may begin a stop string."""
        text = self.texts[0]
        if not ended:
            text = text.rstrip("\ufffd")
            text = text[: len(text) - max(map(len, self.stop), default=1) + 1]
        show(text[self.shown :])
        self.shown = max(self.shown, len(text))


class Lines:
    """Complete rows of JSONL in the order of the prompts, each written as soon as it and those before it have ended.

    Args:
        output: the file; None: the screen.
    """

    def __init__(self, output: Path | None):
        self.ended: dict[int, dict] = {}
        self.next = 0
        if output is not None:
            output.parent.mkdir(parents=True, exist_ok=True)
        # without a buffer: a line is one write, and is there when the process is killed
        self.file = None if output is None else open(output, "wb", buffering=0)

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        if self.file is not None:
            self.file.close()

    def add(self, number: int, row: dict) -> None:
        self.ended[number] = row
        while self.next in self.ended:
            line = json.dumps(self.ended.pop(self.next), ensure_ascii=False) + "\n"
            if self.file is None:
                print(line, end="", flush=True)
            else:
                self.file.write(line.encode())
            self.next += 1
