"""What a chat template does, seen from the outside: it is asked to write a conversation whose texts are known."""

from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError as JinjaError


_SENTENCES = "Some words, and more: here. Are these read? They are!\n\n" * 40


# arguments of `apply_chat_template` that are no variables of a template: they say how its text becomes tokens
_OF_THE_CALL = {"conversation", "tokenize", "tokenizer_kwargs", "padding", "truncation", "max_length"}
_OF_THE_CALL |= {"return_tensors", "return_dict", "return_assistant_tokens_mask", "continue_final_message"}


def check_template_kwargs(template_kwargs: Mapping[str, Any], key: str = "chat_template_kwargs") -> None:
    """Refuse what would cut, pad or not tokenize the prompts, in place of being read by the chat template.

    Args:
        template_kwargs: names and values.
        key: of the recipe, that they are from.

    Raises:
        ValueError: one of them, by name.
    """
    for name in template_kwargs:
        if name in _OF_THE_CALL:
            raise ValueError(
                f"{key}: {name!r} is no variable of a chat template, but an argument of the call that "
                "makes tokens of its text, which are set here: leave it out"
            )


def _mark(place: int) -> str:
    """A text that no template has, and none changes."""
    return f"zq{'abcdefghijklmnopqrstuvwxyz'[place % 26]}{place}qz"


def _text(place: int) -> tuple[str, str, str]:
    """As much as a persona may have, in sentences and paragraphs, and the marks that it begins and ends with."""
    begin = _mark(place)
    return f"{begin}. {_SENTENCES}{begin[::-1]}", begin, begin[::-1]


def end_of_turn(tokenizer: Any, **template_kwargs: Any) -> int | None:
    """The token that the chat template writes right after an assistant's answer; `None` where it is no token of its
    own (text, or nothing), there is no template, or it does not write a finished conversation."""
    if not tokenizer.chat_template:
        return None
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


def thinks_unless_told(tokenizer: Any) -> bool:
    """Whether a prompt ends otherwise once `enable_thinking` is false, as Qwen3's: its model thinks where nothing is
    said, and is told not to by a closed, empty block."""
    if not tokenizer.chat_template:
        return False
    asked, options = [{"role": "user", "content": _mark(0)}], {"add_generation_prompt": True, "tokenize": False}
    try:
        told = tokenizer.apply_chat_template(asked, enable_thinking=False, **options)
        return told != tokenizer.apply_chat_template(asked, **options)
    except Exception:  # it comes with a model, and may fail in any way: said where the prompts are written
        return False


def fault_of_template(tokenizer: Any, roles: tuple[str, ...], **template_kwargs: Any) -> str | None:
    """What is wrong with how the chat template writes conversations whose turns have these roles; `None`: nothing.

    It must write every turn from its beginning to its end, and end where the assistant begins to speak.

    Raises:
        jinja2.TemplateError: it refuses such a conversation.
    """
    conversation = [{"role": role, "content": _text(place)[0]} for place, role in enumerate(roles)]

    def write(turns: list[dict[str, str]], **options: Any) -> str:
        return tokenizer.apply_chat_template(turns, tokenize=False, **options)

    prompt = write(conversation, **{"add_generation_prompt": True, **template_kwargs})
    for place, role in enumerate(roles):
        _, begin, end = _text(place)
        if begin not in prompt or end not in prompt:
            what = "a part of the" if begin in prompt or end in prompt else "the"
            turn = f"{role} turn (number {place + 1} of {len(roles)})"
            return f"it leaves out {what} {turn}, so what is in it is not read"
    without = {**template_kwargs, "add_generation_prompt": False}
    if prompt != write(conversation, **without):
        return None
    # some need none: the answer follows the prompt at once
    answered = write([*conversation, {"role": "assistant", "content": _mark(len(roles))}], **without)
    before, answer, _ = answered.rpartition(_mark(len(roles)))
    if answer and before.startswith(prompt) and not before[len(prompt) :].strip():
        return None
    return "it has no generation prompt (`add_generation_prompt`), so the assistant's turn is not begun"
