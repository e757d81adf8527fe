"""What flags of several commands have in common. Nothing heavy is imported here."""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from ..lab import resolve_model


ANSWER_AT_ONCE = {"enable_thinking": False}  # for the chat template of a model that thinks first


class _Renamed(argparse.Action):
    """Refuses an old flag, whatever follows it."""

    def __call__(self, parser, namespace, values, option_string=None):
        parser.error(f"{option_string} is now called {self.const}")


def refuse_renamed(parser: argparse.ArgumentParser, renamed: dict[str, str]) -> None:
    """Let a parser end with an error that gives the new name where an old flag is used.

    Args:
        parser: of a command.
        renamed: old flag to new one, both with their dashes.
    """
    for old, new in renamed.items():
        parser.add_argument(
            old, action=_Renamed, const=new, nargs="*", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )


def positive(text: str) -> int:
    """A whole number, at least 1: the type of a flag.

    Raises:
        argparse.ArgumentTypeError: it is below 1, or no number.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1, got {text!r}")
    return int(text)


def check_models(models: Mapping[str, str | None], device: str | None = None) -> None:
    """Refuse names of models that are none, and a device that is not there, before anything is loaded.

    Args:
        models: what a command calls each model, and the name that was given, if any.
        device: of the models.

    Raises:
        ValueError: the first that cannot be; the message names the flag and the path.
    """
    for flag, name in models.items():
        if name is not None:
            try:
                resolve_model(name)
            except ValueError as error:
                raise ValueError(f"{flag}: {error}") from error
    if device is not None:
        from ..models.loading import check_device

        check_device(device)


def warn_of_thinking(asked: Iterable[tuple[str, Any, Mapping[str, Any]]]) -> None:
    """Name, in one line, the models that think before they answer since no `--chat_template_kwargs` are given.

    Args:
        asked: (name of a model, its tokenizer, what its chat template is given).
    """
    from ..data.templates import thinks_unless_told

    names = dict.fromkeys(name for name, tokenizer, given in asked if not given and thinks_unless_told(tokenizer))
    if names:
        print(
            f"warning: the chat template lets {', '.join(names)} think before the answer: "
            f"--chat_template_kwargs '{json.dumps(ANSWER_AT_ONCE)}' turns that off",
            file=sys.stderr,
        )


def json_object(text: str) -> dict:
    """The type of a flag whose value is a JSON object.

    Raises:
        ArgumentTypeError: it is something else.
    """
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not valid JSON ({error}): {text!r}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
    return value


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of every command that writes prompts."""
    parser.add_argument(
        "--chat_template_kwargs",
        type=json_object,
        default={},
        metavar="JSON",
        help="for the chat template, as in the recipe: '{\"enable_thinking\": false}'",
    )
    parser.add_argument(
        "--allow_special_tokens",
        action="store_true",
        help="let the text of records spell out special tokens, which become control tokens",
    )


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of every command that runs models: how they are loaded, and where."""
    parser.add_argument(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16", "float64"),
        help="type that the models are loaded in (auto: that of their files)",
    )
    parser.add_argument("--device", help="device of the models (default: the GPU if there is one)")
