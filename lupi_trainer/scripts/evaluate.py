"""`lupi evaluate`: what a student knows, what it forgot, what its teacher knows, and what the knowledge is worth."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..data.answers import MAX_ANSWER_TOKENS
from ..data.files import write_atomically
from .flags import add_loading_arguments, add_prompt_arguments, check_models, json_object


HELP = "ask a model closed-book questions, or measure its perplexity"
COLUMNS = {
    "strict": "an accepted answer is in the first sentence, and the model ended its answer by itself",
    "lenient": "an accepted answer is anywhere in what it wrote",
    "kept": "of what the model --before answered right, how much still is (strict / lenient); -: it answered nothing",
    "leaks": 'answers that speak of knowledge as of a text that was given ("according to the passage")',
    "questions": "asked; open-book, those that have knowledge",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "columns of the table:\n" + "\n".join(f"  {name}: {what}" for name, what in COLUMNS.items())
    add("--model", help="the student: a name, a path (of an adapter too), or lab:NAME")
    add("--server", metavar="URL", help="or the OpenAI-compatible server that it is on; a key is in VLLM_API_KEY")
    add("--served_model", metavar="NAME", help="of the student on the --server, where that has several")
    add("--compare", metavar="RUN", help="the trained student, beside the --server: which answers differ, and why")
    add("--in_flight", type=int, default=8, help="requests to the server at the same time")
    add("--server_timeout", type=float, default=240.0, help="seconds to wait for the server, and for each answer")
    several: Any = {"default": [], "nargs": "+", "action": "extend"}
    add("--probes", **several, help="questions with `answers`: JSON or JSONL files, or lab:NAME")
    add("--perplexity", **several, help="questions with contexts, in SQuAD's form: files, lab:NAME, squad")
    add("--max_samples", type=int, help="so many of them for the perplexity")
    add("--qa_template", help="their prompt, with {context} and {question}, as in training")
    add("--split", default="validation", help="of a dataset from the Hub, for the perplexity")
    add("--seq_len", type=int, default=1024, help="longer ones are dropped and counted")
    add("--teacher", help="also ask this model open-book: with each probe's knowledge")
    add("--records", help="records whose knowledge is read, found by the probes' record_id: id, or place")
    add("--open_book", **several, help="questions put to the student with their knowledge")
    add("--before", help="the student before it was trained: what it knew, and what of it is kept")
    add(
        "--privilege",
        action="store_true",
        help="what --records are worth to the teacher, in nats a token; acceptance",
    )
    add("--gold", help="column of --records with answers to measure that on, beside the student's own")
    add("--samples", type=int, default=64, help="records for --privilege")
    add("--teacher_system_prompt", help="persona of the teacher")
    add("--few_shot_examples", help="worked examples of the teacher: a JSON file")
    add_prompt_arguments(parser)
    parser.add_argument(
        "--teacher_chat_template_kwargs",
        type=json_object,
        metavar="JSON",
        help="for the chat template of the --teacher, where they are others",
    )
    add("--max_new_tokens", type=int, default=MAX_ANSWER_TOKENS, help="longest answer to a question")
    add("--batch_size", type=int, default=64)
    add_loading_arguments(parser)
    add("--output", type=Path, help="write marks and answers to this JSON file")


def main(args: argparse.Namespace) -> int:
    """Print what is asked for as tables; with `--output`, write it with every answer.

    Raises:
        ValueError: nothing is asked for, something lacks what it needs, or a server does not answer.
    """
    if not any((args.probes, args.perplexity, args.open_book, args.privilege)):
        raise ValueError("nothing to ask: --probes, --open_book, --privilege or --perplexity is needed")
    if args.privilege and not (args.teacher and args.records):
        raise ValueError("--privilege needs a --teacher, and --records whose knowledge it reads")
    for name in ("max_new_tokens", "batch_size"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.output is not None:
        check_file(args.output)
    check_server(args)
    names = ("model", "compare", "teacher", "before")
    check_models({f"--{name}": getattr(args, name) for name in names}, args.device)
    from ..teachers.remote import RemoteError

    try:
        return evaluate(args)
    except RemoteError as error:
        raise ValueError(str(error)) from error


def check_file(path: Path) -> None:
    """Refuse a file that could not be written once all is asked.

    Raises:
        ValueError: a folder has its name, or a file that of its folder.
    """
    if path.is_dir():
        raise ValueError(f"--output: {path} is a folder, and a file is wanted")
    if any(above.is_file() for above in path.absolute().parents):
        raise ValueError(f"--output: {path} cannot be written: it would lie inside of a file")


def check_server(args: argparse.Namespace) -> None:
    """Refuse what does not go with a server, or without one.

    Raises:
        ValueError: what it is, and what to do.
    """
    if args.server is None:
        if args.model is None:
            raise ValueError("whom to ask? Name a --model, or the --server that it is on")
        for name in ("served_model", "compare"):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name} needs a --server, whose answers are looked at")
        return
    if not args.server.strip():
        raise ValueError("--server: an address is needed, such as http://localhost:8000/v1")
    if args.model is not None:
        raise ValueError(
            "--server asks a model there in place of --model: leave one of them out, or name the trained "
            "student as --compare RUN"
        )
    for name in ("perplexity", "privilege"):
        if getattr(args, name):
            raise ValueError(f"--{name} needs a --model: a server's answers are text alone")
    if args.in_flight < 1:
        raise ValueError(f"--in_flight must be at least 1, got {args.in_flight}")
    if not 0 < args.server_timeout < float("inf"):
        raise ValueError(f"--server_timeout must be above 0, and a number of seconds, got {args.server_timeout:g}")


def evaluate(args: argparse.Namespace) -> int:
    """What is asked for, once it is known that it can be."""
    from ..data.records import load_probes, load_training_data
    from ..data.templates import check_template_kwargs
    from . import reports
    from .marks import marks

    check_template_kwargs(args.chat_template_kwargs)
    check_template_kwargs(args.teacher_chat_template_kwargs or {}, "teacher_chat_template_kwargs")
    probe_sets = {name: load_probes(name) for name in (*args.probes, *args.open_book)}
    rows = load_training_data(args.records) if args.records else None
    report: dict[str, dict] = {}
    if args.perplexity:
        report |= reports.perplexities(args)
    if probe_sets:
        report |= marks(args, probe_sets, rows)
    if args.privilege:
        report |= reports.privilege(args, rows)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(args.output, json.dumps(report, ensure_ascii=False, indent=1))
    return 0
