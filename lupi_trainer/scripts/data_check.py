"""`lupi data check`: a line for every fault of a file of records."""

import argparse
import json
from dataclasses import asdict

from ..data import read_records
from ..data_check import check_probes, check_records


def main(args: argparse.Namespace) -> int:
    """Print every problem, named by file and record, and return 1 if there is any.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read as a list of records, or holds none.
    """
    records = read_records(args.file)
    if not records:
        raise ValueError(f"{args.file}: there is no record in it")
    problems = [(args.file, p) for p in check_records(records, min_words=args.min_words, max_words=args.max_words)]
    probes = read_records(args.probes) if args.probes else []
    problems += [(args.probes, p) for p in check_probes(probes, records)]
    if args.json:
        counts = {"records": len(records), "probes": len(probes)}
        found = [{"file": str(file), **asdict(problem)} for file, problem in problems]
        print(json.dumps({**counts, "problems": found}, ensure_ascii=False, indent=1))
    else:
        for file, problem in problems:
            print(f"{file}: {problem.record}: {problem.kind}: {problem.message}")
        asked = f" and {len(probes)} probes" if args.probes else ""
        print(f"{len(records)} records{asked}: {len(problems) or 'no'} problem{'s' * (len(problems) != 1)}")
    return 1 if problems else 0
