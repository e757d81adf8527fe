"""The command `lupi`: `lupi COMMAND --help` explains each. Nothing heavy is imported before a command needs it."""

import argparse
import logging
import subprocess
import sys
import warnings
from pathlib import Path


TRAINING = {"skd": "lupi_skd", "kd": "kd_lora", "wmtp": "wmtp", "sft": "sft"}  # command -> script


def train(command: str, rest: list[str]) -> int:
    """Run a training script here, or through `accelerate launch` if `--accelerate_config` is given."""
    import importlib

    from .scripts.recipe_files import find_accelerate_config, find_recipe

    own = ("--config=", "--accelerate_config=")
    args = [part for arg in rest for part in (arg.split("=", 1) if arg.startswith(own) else [arg])]
    if "--config" in args[:-1]:
        at = args.index("--config") + 1
        args[at] = str(find_recipe(args[at]))
    module = f"lupi_trainer.scripts.{TRAINING[command]}"
    if "--accelerate_config" in args:
        at = args.index("--accelerate_config")
        if at + 1 == len(args):
            raise ValueError("--accelerate_config needs a name or a path")
        config = find_accelerate_config(args[at + 1])
        del args[at : at + 2]
        launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(config)]
        return subprocess.run([*launch, "-m", module, *args]).returncode
    importlib.import_module(module).main(args)
    return 0


def recipes(args: argparse.Namespace) -> int:
    from .scripts.recipe_files import copy_recipe, find_recipe, list_recipes

    if args.action == "ls":
        print("\n".join(list_recipes()))
    elif args.action == "cat":
        print(find_recipe(args.name).read_text(encoding="utf-8"), end="")
    else:
        print(f"copied to {copy_recipe(args.name, args.destination)}")
    return 0


def evaluate(args: argparse.Namespace) -> int:
    from .scripts.evaluate import main

    return main(args)


def generate(args: argparse.Namespace) -> int:
    from .scripts.generate import main

    return main(args)


def pruning(args: argparse.Namespace) -> int:
    from .scripts import pruning as commands

    return getattr(commands, args.command)(args)


def push(args: argparse.Namespace) -> int:
    from .publishing.push import push_folder

    url = push_folder(
        args.folder,
        args.repo_id,
        private=args.private,
        base_model=args.base_model,
        overwrite=args.overwrite,
        revision=args.revision,
        commit_message=args.commit_message,
    )
    print(f"pushed to {url}")
    return 0


def compare(args: argparse.Namespace) -> int:
    from .scripts import run
    from .scripts.compare import main

    return run(lambda: main(args))


def data_check(args: argparse.Namespace) -> int:
    from .scripts.data_check import main

    return main(args)


def sweep(args: argparse.Namespace) -> int:
    from .scripts.sweep import main

    return main(args)


def inspect(args: argparse.Namespace) -> int:
    from .inspection import read_run, write_page

    output = write_page(read_run(args.run_dir), args.output or args.run_dir / "inspect.html", args.max_rollouts)
    print(f"written to {output}")
    return 0


def plot(args: argparse.Namespace) -> int:
    from .inspection import plot_runs, read_run

    for path in plot_runs([read_run(run) for run in args.run_dirs], args.output_dir, args.curves):
        print(f"written to {path}")
    return 0


def demo(args: argparse.Namespace) -> int:
    # of no use to a newcomer: names that libraries are about to change, and kernels that the demo has no use for
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from .scripts.demo import main

    return main(args.output_dir)


def json_object(text: str) -> dict:
    import json

    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not valid JSON ({error}): {text!r}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
    return value


def make_parser() -> argparse.ArgumentParser:
    """The parser of everything but the training commands, whose keys are those of their recipes."""
    parser = argparse.ArgumentParser(prog="lupi", description="Teach a student what only its teacher can read.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, what in (
        ("skd", "speculative knowledge distillation"),
        ("kd", "distillation into a LoRA adapter, beside the cross-entropy on gold answers"),
        ("wmtp", "weighted multi-token prediction; --tiny in place of --config runs everything in a minute"),
        ("sft", "supervised fine-tuning, the baseline"),
    ):
        commands.add_parser(
            name,
            add_help=False,
            help=f"train by {what}: lupi {name} --config RECIPE [--accelerate_config NAME] [--KEY VALUE ...]",
        )

    command = commands.add_parser("evaluate", help="ask a model closed-book questions, or measure its perplexity")
    command.add_argument("--model", required=True, help="the student: a name, a path (of an adapter too), or lab:NAME")
    command.add_argument("--probes", default=[], nargs="+", help="questions: JSON or JSONL files, or lab:NAME")
    command.add_argument(
        "--perplexity", default=[], nargs="+", help="questions with contexts, in SQuAD's form: files, lab:NAME, squad"
    )
    command.add_argument("--max_samples", type=int, help="so many of them for the perplexity")
    command.add_argument("--qa_template", help="their prompt, with {context} and {question}, as in training")
    command.add_argument("--split", default="validation", help="of a dataset from the Hub, for the perplexity")
    command.add_argument("--seq_len", type=int, default=1024, help="longer ones are dropped and counted")
    command.add_argument("--teacher", help="also ask this model open-book: with each probe's knowledge")
    command.add_argument("--records", help="records whose knowledge the teacher reads, found by the probes' record_id")
    command.add_argument(
        "--open_book", default=[], nargs="+", help="questions put to the student with their knowledge"
    )
    command.add_argument("--before", help="the student before it was trained: what it knew, and what of it is kept")
    command.add_argument(
        "--privilege", action="store_true", help="what --records are worth to the teacher, in nats a token; acceptance"
    )
    command.add_argument(
        "--gold", help="column of --records with answers to measure that on, beside the student's own"
    )
    command.add_argument("--samples", type=int, default=64, help="records for --privilege")
    command.add_argument("--teacher_system_prompt", help="persona of the teacher")
    command.add_argument("--few_shot_examples", help="worked examples of the teacher: a JSON file")
    command.add_argument(
        "--chat_template_kwargs", type=json_object, default={}, metavar="JSON",
        help="for the chat template, as in the recipe: '{\"enable_thinking\": false}'",
    )  # fmt: skip
    command.add_argument("--max_new_tokens", type=int, default=64)
    command.add_argument("--batch_size", type=int, default=64)
    command.add_argument("--dtype", default="auto", help="type that the models are loaded in")
    command.add_argument("--device", help="device of the models (default: the GPU if there is one)")
    command.add_argument("--output", type=Path, help="write marks and answers to this JSON file")
    command.set_defaults(run=evaluate)

    command = commands.add_parser("generate", help="complete prompts as the target alone would, drafted by another")
    command.add_argument("--target", required=True, help="whose text it is: a name, a path, or lab:NAME")
    command.add_argument(
        "--draft",
        required=True,
        help="who guesses it: a model with the same tokenizer, prompt-lookup, or mtp-heads (its own)",
    )
    command.add_argument("--prompts", required=True, help="records with `prompt`: a JSON or JSONL file, or lab:NAME")
    command.add_argument("--output", type=Path, help="write completions to this JSONL file (default: to the screen)")
    command.add_argument("--max_new_tokens", type=int, default=256)
    command.add_argument("--num_draft_tokens", type=int, default=5, help="tokens that the draft proposes a round")
    command.add_argument(
        "--gamma_policy", choices=("fixed", "goodput"), default="fixed",
        help="goodput: as many as promise the most tokens a second, --num_draft_tokens at most",
    )  # fmt: skip
    command.add_argument("--compile", action="store_true", help="compile both models' forwards")
    command.add_argument(
        "--pack_weights",
        choices=("auto", "true", "false"),
        default="auto",
        help="lay float32 weights out for the CPU meanwhile; auto: where that can be done; true: or refuse to run",
    )
    command.add_argument("--temperature", type=float, default=0.0)
    command.add_argument("--top_k", type=int, default=0, help="0 keeps every token")
    command.add_argument("--top_p", type=float, default=1.0)
    command.add_argument("--repetition_penalty", type=float, default=1.0)
    command.add_argument(
        "--block_verification",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="verify drafted tokens jointly, not one by one; above temperature 0",
    )
    for former in ("--verification", "--draft_length"):  # refused with today's name
        command.add_argument(former, help=argparse.SUPPRESS)
    command.add_argument("--stop", nargs="+", default=[], help="strings that end a completion")
    command.add_argument("--with_knowledge", action="store_true", help="put each record's knowledge into its prompt")
    command.add_argument("--system_prompt", help="persona, with --with_knowledge")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--batch_size", type=int, default=16, help="rows that run at a time")
    command.add_argument("--dtype", default="auto", help="type that the models are loaded in")
    command.add_argument("--device", help="device of the models (default: the GPU if there is one)")
    command.set_defaults(run=generate)

    command = commands.add_parser("prune", help="drop layers of a model into bundles, and save what is left")
    command.add_argument("--model", required=True, help="a name, a path, or lab:NAME")
    command.add_argument(
        "--drop",
        required=True,
        action="append",
        help="layers of a bundle, counted from 0: 21-28, or least:8 (the 8 consecutive ones of least influence)",
    )
    command.add_argument("--bundle", required=True, action="append", help="its name; again for each --drop")
    command.add_argument("--out", required=True, type=Path, help="folder of base/ and bundles/NAME/")
    command.add_argument("--data", help="questions to measure influence on: a file, lab:NAME, or a dataset name")
    command.add_argument("--samples", type=int, default=32, help="so many of them")
    command.add_argument("--seq_len", type=int, default=1024)
    command.add_argument("--dtype", default="auto", help="type that the model is loaded and saved in")
    command.set_defaults(run=pruning)

    command = commands.add_parser("restore", help="put bundles back at their places")
    command.add_argument("--base", required=True, help="the base: a path")
    command.add_argument("--bundle", required=True, action="append", type=Path, help="folder of a bundle; repeatable")
    command.add_argument("--out", required=True, type=Path, help="folder of the model")
    command.set_defaults(run=pruning)

    command = commands.add_parser("merge", help="fold an adapter into its model, or into the layers of its stage")
    command.add_argument("--base_dir", "--model", required=True, help="the model that the adapter was trained on")
    command.add_argument("--adapter", required=True, help="folder of the adapter")
    command.add_argument("--stage", type=int, default=1, help="stage of the training")
    command.add_argument("--bundles_dir", help="folder of the bundles, from stage 2")
    command.add_argument("--out", type=Path, help="folder of the merged model (stage 1; a bundle has its own place)")
    command.set_defaults(run=pruning)

    command = commands.add_parser("push", help="send the student of a finished run to the Hub")
    command.add_argument("folder", metavar="RUN", type=Path, help="the folder that the student was saved to")
    command.add_argument("--repo_id", required=True, help="user/name, or a name in the namespace of the token's owner")
    command.add_argument(
        "--private", action=argparse.BooleanOptionalAction, help="whether a repository that is created is private"
    )
    command.add_argument("--base_model", help="Hub name of an adapter's base model, where it was a local folder")
    command.add_argument("--overwrite", action="store_true", help="replace a student that is there (history keeps it)")
    command.add_argument("--revision", help="branch to commit to, created if it is not there (default: main)")
    command.add_argument("--commit_message", default="Upload student")
    command.set_defaults(run=push)

    command = commands.add_parser("data", help="check a file of records")
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser("check", help="name every fault of a file of records; exit status 1 if there is any")
    check.add_argument("file", type=Path, nargs="?", help="records: a JSON or JSONL file")
    check.add_argument(
        "--probes", type=Path, help="closed-book questions about them, or without them general ones: a file"
    )
    check.add_argument("--min_words", type=int, default=80, help="shortest knowledge, in words")
    check.add_argument("--max_words", type=int, default=160, help="longest knowledge, in words")
    check.add_argument("--json", action="store_true", help="print the faults as JSON")
    check.set_defaults(run=data_check)

    command = commands.add_parser(
        "compare", help="ways of teaching the same facts, side by side: table, plot and JSON; --KEY VALUE as in `skd`"
    )
    command.add_argument("--config", nargs="+", help="LUPI-SKD recipes (default: the lab's, with its questions)")
    command.add_argument("--arms", nargs="+", help="which of them (default: all; a wrong name lists them)")
    command.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    command.add_argument("--output_dir", type=Path, default=Path("runs/compare"), help="a JSON file a finished run")
    command.add_argument("--probes", help="questions about the new facts (default: those of the recipe)")
    command.add_argument("--unseen", help="the same in phrasings that are not trained")
    command.add_argument("--general", help="questions about what was known before")
    command.add_argument("--completion_column", default="answer", help="column of the gold answers, for the arm sft")
    command.add_argument("--every", type=int, default=20, help="optimizer steps between two measures")
    command.add_argument("--max_new_tokens", type=int, default=64, help="longest answer to a question")
    command.set_defaults(run=compare, flags=[])

    command = commands.add_parser("sweep", help="a set of KD-LoRA recipes one after another: table and plot")
    command.add_argument("recipes", help="a folder of recipes, or the name of a shipped one: recipes/kd_lora")
    command.add_argument("--output_dir", required=True, type=Path, help="a folder a run, table.md and plot.svg")
    command.add_argument("--override", type=Path, help="a recipe whose keys go before those of every run")
    command.set_defaults(run=sweep, flags=[])

    command = commands.add_parser("inspect", help="a page of a run for the browser: curves, and every token's story")
    command.add_argument("run_dir", type=Path, metavar="RUN", help="output_dir of a run")
    command.add_argument("--output", type=Path, help="the HTML file (default: RUN/inspect.html)")
    command.add_argument("--max_rollouts", type=int, default=1000, help="the most rollouts to put into the page")
    command.set_defaults(run=inspect)

    command = commands.add_parser("plot", help="curves of one or several runs as PNG and SVG")
    command.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN", help="output_dir of a run")
    command.add_argument("--output_dir", type=Path, default=Path("plots"), help="folder of the pictures")
    command.add_argument("--curves", nargs="+", help="loss, acceptance, gamma, ... (default: all that were logged)")
    command.set_defaults(run=plot)

    command = commands.add_parser("recipes", help="list, show or copy the shipped recipes")
    actions = command.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("ls", help="list them")
    show = actions.add_parser("cat", help="show one")
    show.add_argument("name")
    copy = actions.add_parser("cp", help="copy one to a file or folder")
    copy.add_argument("name")
    copy.add_argument("destination", type=Path)
    command.set_defaults(run=recipes)

    command = commands.add_parser("demo", help="the main job on two CPU cores, in a minute or two")
    command.add_argument("--output_dir", type=Path, default=Path("runs/demo"))
    command.set_defaults(run=demo)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in TRAINING:
        from .scripts import run

        if {"-h", "--help"} & set(argv[1:]):
            print(training_help(argv[0]))
            return 0
        return run(lambda: train(argv[0], argv[1:]))
    args, flags = make_parser().parse_known_args(argv)
    if args.command in ("compare", "sweep"):
        args.flags = flags  # keys of the recipes
    elif flags:
        make_parser().parse_args(argv)  # says which
    try:
        return args.run(args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def training_help(command: str) -> str:
    short = ""
    if command == "kd":
        from .scripts.kd_flags import FLAGS

        short = "\n\nShort names: " + ", ".join(f"--{name} ({key})" for name, key in FLAGS.items())
    return (
        f"usage: lupi {command} --config RECIPE [--accelerate_config NAME] [--KEY VALUE ...]\n\n"
        "RECIPE is a YAML file, or the name of a shipped one (`lupi recipes ls`); every key of it can be overridden\n"
        "on the command line. NAME is an accelerate configuration: a path, or single_cpu, multi_cpu, single_gpu,\n"
        "multi_gpu, paired_gpu, multi_node, zero2, zero3, fsdp2. Without it the script runs in this process.\n\n"
        f"All keys: python -m lupi_trainer.scripts.{TRAINING[command]} --help{short}"
    )


if __name__ == "__main__":
    sys.exit(main())
