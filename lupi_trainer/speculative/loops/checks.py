"""Checks of arguments: what cannot work raises a ValueError that names it, before anything runs."""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable
from types import SimpleNamespace

from ..rules.speculative_sampling import Sampling
from ..runners.support import text_config, usable_positions


def integer(name: str, value, least: int | None = None) -> int:
    """Returns an integer, of any library, as an int; `least` is the smallest that is valid."""
    try:
        number = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = None
    if number is None:
        raise ValueError(f"{name} must be an integer, got {value!r}")
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return number


def at_least_one(**values: int) -> None:
    """Refuses counts that are no positive integers."""
    for name, value in values.items():
        integer(name, value, least=1)


def one_of(name: str, value, choices: Collection[str]) -> None:
    """Refuses a string that is none of `choices`; other objects pass."""
    if isinstance(value, str) and value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_sampling(temperature, top_k, top_p, repetition_penalty) -> Sampling:
    """Returns how tokens are drawn."""
    return Sampling(float(temperature), integer("top_k", top_k), float(top_p), float(repetition_penalty))


def token_ids(name: str, value) -> list[int]:
    """Returns a list of ids, of tokens or rows, from None, one or several, be they numbers, or of torch or numpy."""
    value = value.tolist() if hasattr(value, "tolist") else value
    several = [] if value is None else list(value) if isinstance(value, Iterable) else [value]
    return [integer(name, number) for number in several]


def prompt_lists(name: str, prompts) -> list[list[int]]:
    """Returns B prompts as lists of ids, be they of torch or numpy."""
    found = []
    for i, prompt in enumerate(prompts):
        if isinstance(prompt, str) or not isinstance(prompt, Iterable) or getattr(prompt, "ndim", 1) != 1:
            raise ValueError(f"{name}[{i}] must be a list of token ids, got {prompt!r}")
        found.append(token_ids(f"{name}[{i}]", prompt))
    return found


def check_prompts(role: str, model, prompts: list[list[int]], max_new_tokens: int) -> None:
    """Refuses a prompt that a model cannot read, or cannot continue for `max_new_tokens`."""
    vocab_size, positions = text_config(model).vocab_size, usable_positions(model)
    for i, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"{role} prompt {i} is empty: there is nothing to continue")
        if min(prompt) < 0 or max(prompt) >= vocab_size:
            raise ValueError(f"{role} prompt {i} holds a token id outside [0, {vocab_size})")
        if positions is not None and len(prompt) + max_new_tokens > positions:
            raise ValueError(
                f"{role} prompt {i} has {len(prompt)} tokens; with max_new_tokens={max_new_tokens} that is beyond the "
                f"{role}'s {positions} positions"
            )


def check_prompts_by_config(role: str, config, prompts: list[list[int]], max_new_tokens: int) -> None:
    """`check_prompts` for a model of which only the configuration is loaded."""
    check_prompts(role, SimpleNamespace(config=config), prompts, max_new_tokens)


_TODAY = {  # an argument's name of earlier versions -> today's
    "verification": "block_verification now (for 'token': block_verification=False, or --no-block_verification)",
    "draft_length": "gamma_policy now",
}


def refuse_former(**given) -> None:
    """Refuses arguments by their names of earlier versions, with today's; None: it was not given."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} is called {_TODAY[name]}")
