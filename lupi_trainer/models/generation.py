"""Where a model's texts end, and what its generation config would do to them."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from transformers import GenerationConfig


def eos_token_ids(model_or_config, tokenizer=None) -> list[int]:
    """The ids that end a text, ascending, each once; an empty list where nothing says any.

    Args:
        model_or_config: a model (its `generation_config` is read, as `generate` does) or a `GenerationConfig`, whose
            `eos_token_id` may be one id, several (a list, a tuple or a tensor) or None.
        tokenizer: adds its own `eos_token_id`, if it has one.
    """
    config = getattr(model_or_config, "generation_config", model_or_config)
    ids = config.eos_token_id
    ids = ids.tolist() if hasattr(ids, "tolist") else ids
    ids = set() if ids is None else {ids} if isinstance(ids, int) else set(ids)
    own = None if tokenizer is None else tokenizer.eos_token_id
    return sorted(ids if own is None else ids | {own})


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
