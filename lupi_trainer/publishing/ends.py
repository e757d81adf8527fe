"""Where a served student stops: the end of turn of its chat template, wherever a server looks for it."""

import keyword
import math
from collections.abc import Callable, Mapping
from typing import Any

from transformers import GenerationConfig

from ..data.templates import check_template_kwargs, end_of_turn
from ..models.generation import id_list


# what a server gives a chat template itself
_GIVEN = {"messages", "tools", "documents", "add_generation_prompt"}
_GIVEN |= {"bos_token", "eos_token", "pad_token", "unk_token"}


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
    for one in id_list(generation.eos_token_id):
        if one >= 0 and tokenizer.convert_ids_to_tokens(one) is None:
            notes.append(f"the generation config's end of text {one} is taken out: the tokenizer has no such token")
    first = [] if end is None else [end]
    ends = list(dict.fromkeys([*first, tokenizer.eos_token_id, *id_list(generation.eos_token_id)]))
    known = [one for one in ends if one is not None and one >= 0 and tokenizer.convert_ids_to_tokens(one) is not None]
    generation.eos_token_id = known[0] if len(known) == 1 else known
    if generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id
    return notes


# of a generation config: setting -> whether a number is one of its values, and which these are
_SAMPLING: dict[str, tuple[Callable[[Any], bool], str]] = {
    "temperature": (lambda value: 0 < value < float("inf"), "above 0"),
    "top_p": (lambda value: 0 < value <= 1, "above 0, 1 at most"),
    "top_k": (lambda value: value >= 0 and value == int(value), "a whole number, 0 or above"),
    "min_p": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "repetition_penalty": (lambda value: 0 < value < float("inf"), "above 0"),
}


def make_sampling_valid(generation: GenerationConfig) -> list[str]:
    """Take out of a generation config the sampling that servers refuse; returns what was, a line each.

    Raises:
        ValueError: an `eos_token_id` that is no token id.
    """
    try:
        id_list(generation.eos_token_id)
    except (TypeError, ValueError) as error:
        raise ValueError(f"generation config: eos_token_id={generation.eos_token_id!r} is no token id") from error
    notes = []
    if type(generation.do_sample) not in (bool, type(None)):
        notes.append(
            f"the generation config's do_sample={generation.do_sample!r} is taken out: true or false is wanted"
        )
        generation.do_sample = None
    if generation.do_sample and generation.temperature == 0:
        notes.append("the generation config samples at temperature 0, which is greedy: do_sample is false now")
        generation.do_sample, generation.temperature = False, None
    for name, (is_valid, wanted) in _SAMPLING.items():
        value = getattr(generation, name, None)
        if value is None or (type(value) in (int, float) and is_valid(value)):
            continue
        notes.append(f"the generation config's {name}={value!r} is taken out: {wanted} is wanted")
        setattr(generation, name, None)
    return notes


def set_template_defaults(tokenizer: Any, template_kwargs: Mapping[str, Any]) -> None:
    """Make keyword arguments the defaults of the chat template itself: who asks a server need not give them.

    Raises:
        ValueError: one that is no variable of a template, or a value that a template cannot hold.
    """
    check_template_kwargs(template_kwargs)
    lines = ""
    for name, value in template_kwargs.items():
        if name in _GIVEN:
            raise ValueError(f"chat_template_kwargs: {name!r} is given with every request, so that it has no default")
        is_word = name.isidentifier() and not keyword.iskeyword(name) and name not in ("true", "false", "none")
        is_plain = isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value))
        if not is_word or not is_plain:
            raise ValueError(f"chat_template_kwargs: {name}={value!r} cannot be a default of a chat template")
        lines += f"{{%- if {name} is not defined -%}}{{%- set {name} = {value!r} -%}}{{%- endif -%}}"
    if lines:
        tokenizer.chat_template = lines + tokenizer.get_chat_template()
