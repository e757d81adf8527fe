"""`lupi data check`: whether a file of records can be trained on, and what is wrong with it."""

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..data.wording import counted


if TYPE_CHECKING:
    from ..data.check import Problem

HELP = "name every fault of a file of records; exit status 1 if there is any"
SCHEMAS = ("training", "culture")
SCHEMA_HELP = (
    "training: what training and evaluation accept (default); culture: also the rules of the data sets on Korean "
    "culture that travel with the package, with their fields, lengths and near duplicates"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Whether training accepts a file. A record has `prompt` (text or messages) and `privileged_context` (text or "
        "null); `query` and `knowledge` are read too. A probe has `question`, `answers`, and `knowledge` or the "
        "`record_id` of a record. Exit status 1 if anything would be refused; doubts do not count."
    )
    add = parser.add_argument
    add("file", nargs="?", help="records: a JSON or JSONL file, or lab:NAME")
    add("--probes", help="closed-book questions about them, or without them general ones: a file, or lab:NAME")
    add("--schema", choices=SCHEMAS, default="training", help=SCHEMA_HELP)
    add("--min_words", type=int, help="shortest knowledge, in words, with --schema culture (80)")
    add("--max_words", type=int, help="longest knowledge, in words, with --schema culture (160)")
    add("--all", action="store_true", help="a line for every record, where one a fault would do")
    add("--json", action="store_true", help="print the faults as JSON, all of them")


def read(source: str) -> list[dict]:
    """The records of a file.

    Raises:
        ValueError: it cannot be read as a list of records, or holds none.
    """
    from ..data.records import LAB_PREFIX, load_lab_records, read_records

    rows = load_lab_records(source) if source.startswith(LAB_PREFIX) else read_records(source)
    if not rows:
        raise ValueError(f"{source}: there is no record in it")
    return rows


def lines(problems: list[tuple[str, "Problem"]], every: bool) -> list[str]:
    """A line for every fault of a file: how many records have it, and the first of them; or one for every record."""
    groups: dict[tuple, list[Problem]] = {}
    for number, (file, problem) in enumerate(problems):
        same = (file, problem.doubt, problem.kind, problem.message, number if every else 0)
        groups.setdefault(same, []).append(problem)
    found = []
    for (file, doubt, kind, message, _), members in sorted(groups.items(), key=lambda group: group[0][1]):
        first, where = members[0], f"{file}: {'doubt: ' if doubt else ''}"
        if len(members) == 1:
            found.append(f"{where}{first.record}: {kind}: {message}{first.found}")
            continue
        what = "probes" if first.record.startswith("probe of") else "records"
        name = first.record.removeprefix("probe of ").removeprefix("record ")
        found.append(f"{where}{len(members)} {what}: {kind}: {message}, first: {name}{first.found}")
    return found


def watched(rows: Sequence[Any], what: str) -> Iterator[Any]:
    """The rows, with a bar where there is a terminal."""
    from ..training.progress import WorkBar

    with WorkBar(what, len(rows)) as bar:
        for done, row in enumerate(rows):
            bar.update(done)
            yield row


def find(args: argparse.Namespace, records: list[dict] | None, probes: list[dict]) -> list[tuple[str, "Problem"]]:
    """(file, fault) by the rules of the schema that is asked for."""
    from ..data import check, check_culture

    limits = {name: value for name in ("min_words", "max_words") if (value := getattr(args, name)) is not None}
    if limits and args.schema != "culture":
        raise ValueError(
            f"--{next(iter(limits))} has no effect without --schema culture: training knows no such limit"
        )
    found = []
    if records is not None:
        culture = args.schema == "culture"
        checked = check_culture.check_records(records, watch=watched, **limits) if culture else []
        found += [(args.file, problem) for problem in checked or check.check_records(records, watch=watched)]
    asked = check_culture.check_probes if args.schema == "culture" else check.check_probes
    return found + [(args.probes, problem) for problem in asked(probes, records, watch=watched)]


def count(number: int, what: str) -> str:
    return counted(number, what) if number else f"no {what}s"


def main(args: argparse.Namespace) -> int:
    """Print what is wrong, by file, and return 1 if training would refuse it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no file is named, or one cannot be read as a list of records, holds none, or is one of probes.
    """
    if args.file is None and args.probes is None:
        raise ValueError("nothing to check: name a file of records, or one of probes with --probes")
    from dataclasses import asdict

    records = read(args.file) if args.file is not None else None
    if records and all({"question", "answers"} <= r.keys() and not {"query", "prompt"} & r.keys() for r in records):
        raise ValueError(f"{args.file}: this looks like probes; give it with --probes")
    probes = read(args.probes) if args.probes else []
    found = find(args, records, probes)
    problems = sum(not problem.doubt for _, problem in found)
    if args.json:
        counts = {"records": len(records or []), "probes": len(probes)}
        listed = [{"file": file, **asdict(problem)} for file, problem in found]
        print(json.dumps({**counts, "problems": listed}, ensure_ascii=False, indent=1))
    else:
        for line in lines(found, args.all):
            print(line)
        counts = [] if records is None else [count(len(records), "record")]
        counts += [count(len(probes), "probe")] if args.probes else []
        doubts = f", {count(len(found) - problems, 'doubt')}" if len(found) > problems else ""
        print(f"{' and '.join(counts)}: {count(problems, 'problem')}{doubts}")
    return 1 if problems else 0
