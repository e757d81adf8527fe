"""Where a served student stops: the end of turn of its chat template, wherever a server looks for it."""

from collections.abc import Mapping
from typing import Any

from transformers import GenerationConfig

from ..data.templates import check_template_kwargs, end_of_turn
from ..models.generation import id_list


def set_ends(generation: GenerationConfig, tokenizer: Any) -> list[str]:
    """Make the end of turn of the chat template the first end of a text, for `generate` and for servers.

    Args:
        generation: gets `eos_token_id` (what it had stays an end, too) and, where it has none, a pad token.
        tokenizer: gets the end of turn as its `eos_token`.

    Returns:
        What was changed, or cannot be made right, a line each.
    """
    notes, end = [], end_of_turn(tokenizer)
    if end is None:
        notes.append(
            f"the chat template ends an answer with no token of its own: a server stops at {tokenizer.eos_token!r}"
        )
    elif end != tokenizer.eos_token_id:
        token = tokenizer.convert_ids_to_tokens(end)
        notes.append(
            f"the tokenizer's end of text is {token!r}, as the chat template ends a turn, and no longer "
            f"{tokenizer.eos_token!r}"
        )
        own = tokenizer.eos_token_id
        tokenizer.eos_token = token
        generation.eos_token_id = [*id_list(generation.eos_token_id), *([] if own is None else [own])]
    first = [] if end is None else [end]
    ends = list(dict.fromkeys([*first, tokenizer.eos_token_id, *id_list(generation.eos_token_id)]))
    known = [one for one in ends if one is not None and one >= 0]
    generation.eos_token_id = known[0] if len(known) == 1 else known
    if generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id
    return notes


def set_template_defaults(tokenizer: Any, template_kwargs: Mapping[str, Any]) -> None:
    """Make keyword arguments the defaults of the chat template itself: who asks a server need not give them.

    Raises:
        ValueError: one that is no variable of a template, or a value that a template cannot hold.
    """
    check_template_kwargs(template_kwargs)
    lines = ""
    for name, value in template_kwargs.items():
        if not name.isidentifier() or not isinstance(value, (bool, int, float, str)):
            raise ValueError(f"chat_template_kwargs: {name}={value!r} cannot be a default of a chat template")
        lines += f"{{%- if {name} is not defined -%}}{{%- set {name} = {value!r} -%}}{{%- endif -%}}"
    if lines:
        tokenizer.chat_template = lines + tokenizer.get_chat_template()
