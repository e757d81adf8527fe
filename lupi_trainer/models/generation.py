"""A model's generation config: where texts end, whether it can be saved with its model, and doing without it."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import GenerationConfig

from ..data.templates import end_of_turn
from .private import generation_settings


logger = logging.getLogger(__name__)


def id_list(value: Any) -> list[int]:
    """Token ids as a list, of one id, several or none, be they numbers, or of torch or numpy."""
    value = value.tolist() if hasattr(value, "tolist") else value
    several = [] if value is None else value if isinstance(value, Iterable) else [value]
    return [int(one) for one in several]


def eos_token_ids(model_or_config, tokenizer=None) -> list[int]:
    """The ids that end a text, ascending, each once; an empty list where nothing says any.

    Args:
        model_or_config: a model (its `generation_config` is read, as `generate` does) or a `GenerationConfig`, whose
            `eos_token_id` may be one id, several (a list, a tuple, of torch or numpy) or None.
        tokenizer: adds its own `eos_token_id`, if it has one.
    """
    config = getattr(model_or_config, "generation_config", model_or_config)
    own = None if config is None else config.eos_token_id
    found = {*id_list(own), *id_list(None if tokenizer is None else tokenizer.eos_token_id)}
    return sorted(i for i in found if i >= 0)  # -1, as some configurations have it, is no token


def common_ends(
    student: Any,
    tokenizer: Any,
    teacher: Any = None,
    teacher_tokenizer: Any = None,
    vocab_size: int | None = None,
    teacher_template_kwargs: Mapping[str, Any] | None = None,
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
        teacher_template_kwargs: for the teacher's chat template; `None`: as for the student's.
        template_kwargs: for the student's.
    """
    own = set(eos_token_ids(student, tokenizer))
    others = [end_of_turn(tokenizer, **template_kwargs)]
    if teacher is not None:
        others += eos_token_ids(teacher)
    if teacher_tokenizer is not None:
        its = template_kwargs if teacher_template_kwargs is None else teacher_template_kwargs
        others += [teacher_tokenizer.eos_token_id, end_of_turn(teacher_tokenizer, **its)]
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


def make_savable(model: Any) -> None:
    """Puts a model's generation config right where `save_pretrained` would refuse it, with a warning.

    What has no effect and therefore is invalid (a temperature without sampling, a length penalty without beams) is
    taken out, numbers of torch or numpy become Python's, and what was put into the model's own configuration moves
    here. What `generate` writes stays the same. Numbers in the model's own configuration become Python's, too; and a
    model whose generation config was taken away gets one, as it is made with.

    Args:
        model: with or without an adapter; nothing is done for one that does not generate.

    Raises:
        ValueError: what is invalid otherwise, with transformers' reason.
    """
    for own in _model_configs(model):
        _plain_numbers(own)
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if getattr(base, "generation_config", 0) is None and base.can_generate():
        base.generation_config = GenerationConfig.from_model_config(base.config)  # as a model is made with
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    name = f"the generation config of {model.config.name_or_path or type(model).__name__}"
    changes = [*_move_settings(model.config, config), *_plain_numbers(config)]
    error = _fault(config)
    for flag in re.findall(r"^- `(\w+)`: ", error or "", re.MULTILINE):
        changes.append(f"{flag}={getattr(config, flag)!r} had no effect and is taken out")
        setattr(config, flag, None)
    if error is not None and (error := _fault(config)) is not None:
        raise ValueError(f"{name} is invalid, and the model could not be saved: {error}")
    if changes:
        warnings.warn(f"{name} could not be saved as it was: {'; '.join(changes)}", stacklevel=3)


def _fault(config: Any) -> str | None:
    try:
        config.validate(strict=True)
        config.to_json_string()
    except (ValueError, TypeError, AttributeError) as error:
        return str(error)
    return None


def _move_settings(model_config: Any, config: Any) -> list[str]:
    moved = []
    for name, value in generation_settings(model_config).items():
        delattr(model_config, name)
        if getattr(config, name) is None:
            setattr(config, name, value)
        moved.append(f"{name}={value!r} belongs into it, not into the model's configuration")
    return moved


def _model_configs(model: Any) -> list[Any]:
    """A model's configuration, and that of its text part if it has one; none of a model that is given by name."""
    config = getattr(model, "config", None)
    text = config.get_text_config() if config is not None else None
    return [part for part in (config, None if text is config else text) if part is not None]


def _plain_numbers(config: Any) -> list[str]:
    found = {name: value for name, value in vars(config).items() if _plain(value) is not value}
    for name, value in found.items():
        setattr(config, name, _plain(value))
    return [f"{name}={value!r} is of another library" for name, value in found.items()]


def _plain(value: Any) -> Any:
    """A number, or several of them, of torch or numpy as Python's; whatever else as it is."""
    if isinstance(value, (list, tuple)):
        parts = [_plain(part) for part in value]
        return value if all(new is old for new, old in zip(parts, value)) else parts
    return value.tolist() if hasattr(value, "tolist") else value


@contextmanager
def without_generation_config(model) -> Generator[None]:
    """Meanwhile `model.generate` does what its call says, and nothing that the model's own generation config says.

    What a call leaves out, `generate` fills from there: penalties, lengths, beams, strings and times to stop at.
    """
    owners = [(part, part.generation_config) for part in model.modules() if "generation_config" in vars(part)]
    for part, _ in owners:
        part.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for part, own in owners:
            part.generation_config = own
