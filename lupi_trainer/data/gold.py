"""Gold answers as the tokens that a student would write after its prompt."""

from typing import Any

from .probes import record_name
from .prompts import TemplateError, Words
from .templates import end_of_turn


def gold_texts(words: Words, rows: list[dict[str, Any]]) -> list[list[int] | None]:
    """The gold answer of each record, in tokens, from the end of its prompt to the end of the turn, which is kept.

    A template that writes no end after an answer gets the tokenizer's end of text there.

    Args:
        words: how the student's conversations are written.
        rows: with `prompt` (messages) and, where there is one, `answer`.

    Returns:
        Of each row, token ids; `None` where it has no answer.

    Raises:
        ValueError: the chat template does not write an answer right after its own prompt; the record is named.
    """
    answered = [row for row in rows if row.get("answer") is not None]
    if not answered:
        return [None] * len(rows)
    tokenizer, kwargs = words.tokenizer, words.template_kwargs
    ends = {tokenizer.eos_token_id, end_of_turn(tokenizer, **kwargs)}
    prompts = iter(words.encode([row["prompt"] for row in answered]))
    found: list[list[int] | None] = []
    for row in rows:
        if row.get("answer") is None:
            found.append(None)
            continue
        prompt, finished = next(prompts), _finished(words, row)
        if finished[: len(prompt)] != prompt:
            raise ValueError(
                f"{record_name(row)}: the tokenizer's chat template does not write an `answer` right after the prompt "
                "that it writes without one, so that a gold answer is no text that the student could write there"
            )
        ids = finished[len(prompt) :]
        end = next((place for place, token in enumerate(ids) if token in ends), None)
        found.append([*ids, tokenizer.eos_token_id] if end is None else ids[: end + 1])
    return found


def _finished(words: Words, row: dict[str, Any]) -> list[int]:
    """Prompt and answer as one conversation, in tokens."""
    conversation = [*row["prompt"], {"role": "assistant", "content": row["answer"]}]
    options = dict(words.template_kwargs) | {"add_generation_prompt": False, "tokenize": True, "return_dict": True}
    try:
        return words.tokenizer.apply_chat_template(conversation, **options)["input_ids"]
    except Exception as reason:  # a template comes with a model, and may fail in any way
        raise ValueError(f"{record_name(row)}: {TemplateError(reason, 0)}") from reason
