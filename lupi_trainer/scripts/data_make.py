"""`lupi data make`: a folder of documents becomes records, probes and a recipe."""

import argparse
from pathlib import Path

from .flags import add_loading_arguments, check_models, json_object


HELP = "make records, probes and a recipe of a folder of documents"
DESCRIPTION = """\
A teacher reads each document (Markdown, text, HTML, PDF, DOCX) chunk by chunk and writes questions about it. Kept are
those that stand alone, that it answers right with the text before it, and that the student does not answer without.
Every reply is kept at once: given again, the command goes on, and asks only about what is new or has changed.

  lupi data make handbook/ --teacher Qwen/Qwen3-8B --student Qwen/Qwen3-0.6B --output data/handbook \\
      --chat_template_kwargs '{"enable_thinking": false}'
  lupi data make handbook/ --teacher_server http://host:8000/v1 --student Qwen/Qwen3-0.6B --output data/handbook \\
      --chat_template_kwargs '{"enable_thinking": false}'
"""
AT_LEAST_ONE = ("chunk_tokens", "facts", "samples", "max_new_tokens", "in_flight")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class, parser.description = argparse.RawDescriptionHelpFormatter, DESCRIPTION
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="of the documents; nothing outside of it is read")
    add("--teacher", help="writes the questions and answers them: a name, a path, lab:NAME; of a server, the model's")
    add(
        "--teacher_server",
        metavar="URL",
        help="of an OpenAI-compatible server, on which the teacher is",
    )
    add("--reader", help="answers the questions with the text before it, and teaches, in place of --teacher")
    add("--student", required=True, help="must not know the answers: a name, a path, or lab:NAME")
    add("--output", type=Path, required=True, help="folder of what is made")
    add("--tokenizer", help="by which chunks are measured (default: the teacher's, or if it is served, the student's)")
    add("--chunk_tokens", type=int, default=400, help="tokens that a chunk has at most")
    add("--facts", type=int, default=5, help="facts that are asked for, of a chunk at most")
    add("--fill_in", action="store_true", help="a local teacher is too small to write JSON: have it fill in questions")
    add("--samples", type=int, default=3, help="open-book answers of the teacher, all of which must be right")
    add("--temperature", type=float, default=0.7, help="of all of these but the first")
    add("--mark", choices=("strict", "lenient"), default="strict", help="how the teacher must be right")
    add("--max_new_tokens", type=int, default=64, help="longest answer")
    add("--keep_known", action="store_true", help="keep what the student knows, marked `known`, for rehearsal")
    add("--never", type=int, default=20, help="questions that no document answers, at most")
    add("--language", choices=("en", "ko"), help="of the prompts (default: that of each document)")
    add("--prompts", type=Path, metavar="FOLDER", help="prompts in place of the package's: FOLDER/en/write.txt, ...")
    add("--limit", type=int, help="ask about the first so many chunks only")
    add("--seed", type=int, default=0, help="of the samples, and of which phrasings are held out")
    add("--max_megabytes", type=float, default=20.0, help="larger files are left out")
    add("--chat_template_kwargs", type=json_object, default={}, metavar="JSON", help="for the chat templates")
    add("--in_flight", type=int, default=8, help="requests to the server at the same time")
    add("--server_timeout", type=float, default=240.0, help="seconds to wait for the server to be up, or back")
    add_loading_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Make it, and print what became of every document.

    Raises:
        ValueError: settings that cannot work, no document, or none about which anything can be taught.
    """
    for name in AT_LEAST_ONE:
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.limit is not None and args.limit < 1:
        raise ValueError(f"--limit must be at least 1, got {args.limit}")
    if args.never < 0:
        raise ValueError(f"--never must be at least 0, got {args.never}")
    if not 0 < args.temperature <= 10:
        raise ValueError(f"--temperature must be above 0 and at most 10, got {args.temperature:g}")
    if not 0 <= args.seed < 2**31:
        raise ValueError(f"--seed must be from 0 to {2**31 - 1}, got {args.seed}")
    if args.teacher is None and args.teacher_server is None:
        raise ValueError("who writes the questions? Name a --teacher, or the --teacher_server that it is on")
    if args.fill_in and args.teacher_server is not None:
        raise ValueError("--fill_in is for a teacher that is loaded here; one on a --teacher_server writes JSON")
    teacher = None if args.teacher_server else args.teacher
    check_models({"--student": args.student, "--reader": args.reader, "--teacher": teacher}, args.device)
    from . import run
    from .making import make

    try:
        return run(lambda: make(args))
    except ModuleNotFoundError as error:
        raise ValueError(str(error)) from error
