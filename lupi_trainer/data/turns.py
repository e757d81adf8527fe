"""Dialogues: a record of several turns as a row for each of the assistant's."""

from typing import Any

from datasets import Dataset

from .records import make_dataset


TURNS = ("last", "all")  # of a dialogue, that are trained on


def turns_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each turn of the assistant that answers the user: those that the dialogue has, and the next one.

    Args:
        row: with `prompt`, messages of which the last is the user's.

    Returns:
        Rows in the order of the dialogue, whose prompts end where the assistant speaks; the last is `row` itself. All
        else is the same in each, since the knowledge belongs to every turn, but for an `answer`, which the last has.
    """
    prompt = row["prompt"]
    ends = [
        place
        for place, (message, answer) in enumerate(zip(prompt, prompt[1:]), start=1)
        if message["role"] == "user" and answer["role"] == "assistant"
    ]
    gold = {"answer": None} if "answer" in row else {}
    return [*(row | gold | {"prompt": prompt[:end]} for end in ends), row]


def expand_turns(records: Dataset) -> Dataset:
    """All rows of [`turns_of`] each record, with row numbers (`row_id`, the address of their noise) of their own."""
    rows = [turn for record in records for turn in turns_of(record)]
    return make_dataset([row | {"row_id": number} for number, row in enumerate(rows)])
