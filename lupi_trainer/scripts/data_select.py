"""`lupi data select`: the questions that can be taught, by the marks of teacher and student."""

import argparse
from pathlib import Path

from .flags import add_loading_arguments, check_models, json_object


HELP = "keep the questions that the teacher reads and the student does not know, as records and probes"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", type=Path, nargs="?", help="records with the knowledge, found by the probes' record_id: JSON or JSONL")
    add("--probes", required=True, help="the questions: a JSON or JSONL file, or lab:NAME")
    add("--student", required=True, help="asked closed-book: a name, a path, or lab:NAME")
    add("--teacher", help="asked open-book, with the knowledge before it (default: the student)")
    add("--teacher_system_prompt", help="persona of the teacher, as in the recipe")
    add("--few_shot_examples", help="worked examples of the teacher: a JSON file")
    add("--chat_template_kwargs", type=json_object, default={}, metavar="JSON", help="for the chat template")
    add("--mark", choices=("strict", "lenient"), default="strict", help="how the teacher must be right")
    add("--max_new_tokens", type=int, default=64)
    add("--batch_size", type=int, default=32)
    add_loading_arguments(parser)
    add("--output_dir", type=Path, required=True, help="records.json, probes.json and selection.json are written here")


def main(args: argparse.Namespace) -> int:
    """Ask, keep and write; given again, the command goes on where it was ended.

    Raises:
        ValueError: a question has no knowledge, nothing can be taught, or the folder is that of other settings.
    """
    for name in ("max_new_tokens", "batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
    check_models({"--student": args.student, "--teacher": args.teacher}, args.device)
    from .selection import select

    select(args)
    return 0
