"""The command `lupi`: `lupi COMMAND --help` explains each. A command owns its flags; they are only gathered here.

Nothing heavy is imported before a command needs it.
"""

import argparse
import sys

from .scripts import (
    compare,
    data,
    demo,
    evaluate,
    generate,
    inspect,
    merge,
    plot,
    prune,
    push,
    real,
    recipes,
    restore,
    run,
    sweep,
)
from .scripts.launch import TRAINING, explanation, summary, train


# command -> what has its `HELP`, `add_arguments` and `main`
COMMANDS = {
    "evaluate": evaluate,
    "generate": generate,
    "prune": prune,
    "restore": restore,
    "merge": merge,
    "push": push,
    "data": data,
    "compare": compare,
    "sweep": sweep,
    "inspect": inspect,
    "plot": plot,
    "recipes": recipes,
    "demo": demo,
    "real": real,
}


def make_parser() -> argparse.ArgumentParser:
    """The parser of everything but the training commands, whose keys are those of their recipes."""
    parser = argparse.ArgumentParser(prog="lupi", description="Teach a student what only its teacher can read.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in TRAINING:
        commands.add_parser(name, add_help=False, help=summary(name))
    for name, script in COMMANDS.items():
        command = commands.add_parser(name, help=script.HELP)
        command.set_defaults(run=script.main)
        script.add_arguments(command)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in TRAINING:
        command, *rest = argv
        if {"-h", "--help"} & set(rest):
            print(explanation(command))
            return 0
        return run(lambda: train(command, rest))
    args, recipe_flags = make_parser().parse_known_args(argv)
    if "recipe_flags" in args:
        args.recipe_flags = recipe_flags
    elif recipe_flags:
        make_parser().parse_args(argv)  # says which
    try:
        return args.run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
