"""`lupi data check`: a line for every fault of a file of records."""

import argparse
import json
from pathlib import Path


HELP = "name every fault of a file of records; exit status 1 if there is any"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", type=Path, nargs="?", help="records: a JSON or JSONL file")
    add("--probes", type=Path, help="closed-book questions about them, or without them general ones: a file")
    add("--min_words", type=int, default=80, help="shortest knowledge, in words")
    add("--max_words", type=int, default=160, help="longest knowledge, in words")
    add("--json", action="store_true", help="print the faults as JSON")


def read(path: Path) -> list[dict]:
    """The records of a file.

    Raises:
        ValueError: it cannot be read as a list of records, or holds none.
    """
    from ..data.records import read_records

    rows = read_records(path)
    if not rows:
        raise ValueError(f"{path}: there is no record in it")
    return rows


def main(args: argparse.Namespace) -> int:
    """Print every problem, named by file and record, and return 1 if there is any.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no file is named, or one cannot be read as a list of records, holds none, or is one of probes.
    """
    if args.file is None and args.probes is None:
        raise ValueError("nothing to check: name a file of records, or one of probes with --probes")
    from dataclasses import asdict

    from ..data.check import check_probes, check_records

    records, problems = None, []
    if args.file is not None:
        records = read(args.file)
        if all("question" in record and "answers" in record and "query" not in record for record in records):
            raise ValueError(f"{args.file}: this looks like probes; give it with --probes")
        found = check_records(records, min_words=args.min_words, max_words=args.max_words)
        problems += [(args.file, problem) for problem in found]
    probes = read(args.probes) if args.probes else []
    problems += [(args.probes, problem) for problem in check_probes(probes, records)]
    if args.json:
        counts = {"records": len(records or []), "probes": len(probes)}
        found = [{"file": str(file), **asdict(problem)} for file, problem in problems]
        print(json.dumps({**counts, "problems": found}, ensure_ascii=False, indent=1))
    else:
        for file, problem in problems:
            print(f"{file}: {problem.record}: {problem.kind}: {problem.message}")
        counts = [] if records is None else [f"{len(records)} records"]
        counts += [f"{len(probes)} probes"] if args.probes else []
        print(f"{' and '.join(counts)}: {len(problems) or 'no'} problem{'s' * (len(problems) != 1)}")
    return 1 if problems else 0
