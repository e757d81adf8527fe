"""Where a model's texts end."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from ..data.templates import end_of_turn


logger = logging.getLogger(__name__)


def id_list(value: Any) -> list[int]:
    """Token ids as a list, of one id, several or none, be they numbers, or of torch or numpy."""
    value = value.tolist() if hasattr(value, "tolist") else value
    several = [] if value is None else value if isinstance(value, Iterable) else [value]
    return [int(one) for one in several]


def use_plain_ids(model: Any) -> None:
    """Make the token ids in a model's generation config plain numbers: those of torch and numpy cannot be saved."""
    config = getattr(model, "generation_config", None)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = getattr(config, name, None)
        if value is not None and type(value) is not int:
            ids = id_list(value)
            setattr(config, name, ids if isinstance(value, Iterable) and getattr(value, "ndim", 1) else ids[0])


def eos_token_ids(model_or_config, tokenizer=None) -> list[int]:
    """The ids that end a text, ascending, each once; an empty list where nothing says any.

    Args:
        model_or_config: a model (its `generation_config` is read, as `generate` does) or a `GenerationConfig`, whose
            `eos_token_id` may be one id, several (a list, a tuple, of torch or numpy) or None.
        tokenizer: adds its own `eos_token_id`, if it has one.
    """
    config = getattr(model_or_config, "generation_config", model_or_config)
    return sorted({*id_list(config.eos_token_id), *id_list(None if tokenizer is None else tokenizer.eos_token_id)})


def common_ends(
    student: Any,
    tokenizer: Any,
    teacher: Any = None,
    teacher_tokenizer: Any = None,
    vocab_size: int | None = None,
    **template_kwargs: Any,
) -> list[int]:
    """The ids at which a text that two models write ends: either's end of text, or its end of turn.

    What the student would learn to write as an end, but not stop at once it is served, is said in a warning.

    Args:
        student: its model.
        tokenizer: the student's.
        teacher: its model or `GenerationConfig`; `None`: not known.
        teacher_tokenizer: the teacher's, if it is known.
        vocab_size: ids from here on are written by neither.
        template_kwargs: for both chat templates.
    """
    own = set(eos_token_ids(student, tokenizer))
    others = [end_of_turn(tokenizer, **template_kwargs)]
    if teacher is not None:
        others += eos_token_ids(teacher)
    if teacher_tokenizer is not None:
        others += [teacher_tokenizer.eos_token_id, end_of_turn(teacher_tokenizer, **template_kwargs)]
    known = {i for i in others if i is not None and (vocab_size is None or i < vocab_size)}
    unread = sorted(known - own)
    if unread:
        names = [f"{token!r} ({i})" for i, token in zip(unread, tokenizer.convert_ids_to_tokens(unread))]
        logger.warning(
            f"texts end at {', '.join(names)} too, which the teacher or a chat template ends with, but not the "
            "student: one that learns to write it does not stop there. Set "
            f"`generation_config.eos_token_id` of the student to {sorted(own | known)}, or use models with one chat "
            "template"
        )
    return sorted(own | known)
