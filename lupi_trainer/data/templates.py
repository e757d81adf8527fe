"""What a chat template does, seen from the outside: it is asked to write a conversation whose texts are known."""

from typing import Any

from jinja2 import TemplateError as JinjaError


def _mark(place: int) -> str:
    """A text that no template has, and none changes."""
    return f"zq{'abcdefghijklmnopqrstuvwxyz'[place % 26]}{place}qz"


def end_of_turn(tokenizer: Any, **template_kwargs: Any) -> int | None:
    """The token that the chat template writes right after an assistant's answer; `None` where it is no token of its
    own (text, or nothing), or the template does not write a finished conversation."""
    roles = ("user", "assistant")
    conversation = [{"role": role, "content": _mark(place)} for place, role in enumerate(roles)]
    try:
        text = tokenizer.apply_chat_template(conversation, tokenize=False, **template_kwargs)
    except JinjaError:
        return None
    _, answer, after = text.rpartition(_mark(1))
    for token in tokenizer(after, add_special_tokens=False)["input_ids"] if answer else []:
        if token in tokenizer.added_tokens_decoder:
            return token
        if tokenizer.decode([token]).strip():
            return None
    return None
