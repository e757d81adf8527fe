"""The command `lupi`: `lupi COMMAND --help` explains each. A command owns its flags; they are only gathered here.

Nothing heavy is imported before a command needs it.
"""

import argparse
import difflib
import os
import re
import sys
from typing import Any, NoReturn

from .data.credentials import guard_output, without_secrets
from .scripts import (
    ask,
    chat,
    compare,
    data,
    demo,
    evaluate,
    export,
    generate,
    inspect,
    merge,
    new,
    plan,
    plot,
    prune,
    push,
    real,
    recipes,
    restore,
    run,
    stopped,
    sweep,
    teach,
)
from .scripts.launch import TRAINING, explanation, summary, train
from .scripts.recipe_words import one_line
from .training.signals import answering


CLOSED = 141  # exit status where nobody reads the output, as shells have it
# What other tools call a command.
MEANT = {
    "train": "skd",
    "distill": "skd",
    "eval": "evaluate",
    "test": "evaluate",
    "upload": "push",
    "init": "new",
    "list": "ls",
    "show": "cat",
    "copy": "cp",
    "validate": "check",
}
# command -> what has its `HELP`, `add_arguments` and `main`
COMMANDS = {
    "new": new,
    "plan": plan,
    "ask": ask,
    "chat": chat,
    "evaluate": evaluate,
    "generate": generate,
    "prune": prune,
    "restore": restore,
    "merge": merge,
    "export": export,
    "push": push,
    "data": data,
    "teach": teach,
    "compare": compare,
    "sweep": sweep,
    "inspect": inspect,
    "plot": plot,
    "recipes": recipes,
    "demo": demo,
    "real": real,
}


class Parser(argparse.ArgumentParser):
    """One whose errors name what may have been meant; a flag is known by all of its name alone."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str) -> NoReturn:
        found = re.fullmatch(r"argument (\S+): invalid choice: '(.*)' \(choose from (.*)\)", message, re.DOTALL)
        if found is not None:
            what, given, choices = found[1], found[2], re.findall(r"[^\s',]+", found[3])
            names = {name: name for name in choices} | {name: ours for name, ours in MEANT.items() if ours in choices}
            near = difflib.get_close_matches(given, names, 1)
            hint = f"did you mean {names[near[0]]!r}? There are" if near else "there are"
            what = f"{what}: no" if what.startswith("-") else f"no {what.lower()}"
            message = f"{what} {given!r}; {hint}: {', '.join(choices)}"
        super().error(without_secrets(message))


def make_parser() -> argparse.ArgumentParser:
    """The parser of everything but the training commands, whose keys are those of their recipes."""
    parser = Parser(prog="lupi", description="Teach a student what only its teacher can read.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in TRAINING:
        commands.add_parser(name, add_help=False, help=summary(name))
    for name, script in COMMANDS.items():
        command = commands.add_parser(name, help=script.HELP)
        command.set_defaults(run=script.main)
        script.add_arguments(command)
    return parser


def refuse(command: str, unknown: list[str]) -> NoReturn:
    """End with an error that names the arguments a command does not know, and the flag that one is nearly."""
    known = re.findall(r"--\w+", make_command(command).format_help())
    near = difflib.get_close_matches(unknown[0].partition("=")[0], known, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    make_parser().error(f"unrecognized arguments: {' '.join(unknown)}{hint}")


def make_command(command: str) -> argparse.ArgumentParser:
    """The parser of one command."""
    parser = Parser(prog=f"lupi {command}")
    COMMANDS[command].add_arguments(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console command; returns the exit status."""
    guard_output()
    try:
        try:
            with answering():
                return start(sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt as stop:
        return stopped(stop)
    except BrokenPipeError:
        if not output_is_closed():
            raise
        return CLOSED


def output_is_closed() -> bool:
    """Whether nobody reads what is printed (`| head`); what still waits to be written is then dropped."""
    try:
        print(flush=True)
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
        return True
    return False


def start(argv: list[str]) -> int:
    """Run a command."""
    if argv and argv[0] in TRAINING:
        command, *rest = argv
        if {"-h", "--help"} & set(rest):
            print(explanation(command, everything="all" in rest))
            return 0
        return run(lambda: train(command, rest))
    args, recipe_flags = make_parser().parse_known_args(argv)
    if "recipe_flags" in args:
        args.recipe_flags = recipe_flags
    elif recipe_flags:
        refuse(argv[0], recipe_flags)
    try:
        return args.run(args)
    except BrokenPipeError:  # whose output it was, `main` finds out
        raise
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
