"""What every family does here: tried, printed, and written to its page."""

import argparse
import contextlib
import copy
import logging
import time
import warnings
from collections import Counter

import torch
import transformers

from tests.families.check import CHECKS, Row, Verdict, check_family
from tests.families.exceptions import NOT_BUILT
from tests.families.page import PAGE, written
from tests.families.tiny import families, pair, small


def row(name: str) -> Row:
    """What a family does here, tried now; where no models of it can be made, nothing but that."""
    if name in NOT_BUILT:
        return _same(name, Verdict("not built", NOT_BUILT[name]))
    try:
        config = small(families()[name])
        models = pair(copy.deepcopy(config))  # they may change theirs
    except Exception as error:  # in a new release of transformers, say: to be looked at
        return _same(name, Verdict("wrong", f"cannot be built: {type(error).__name__}: {error}"))
    return check_family(name, config, *models)


def _same(name: str, verdict: Verdict) -> Row:
    return Row(name, dict.fromkeys(CHECKS, verdict))


def main(arguments: list[str]) -> int:
    known = families()
    parser = argparse.ArgumentParser(prog="python -m tests.families", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="model types of transformers; all, if none is given")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    asked = parser.parse_args(arguments)
    if strange := sorted(set(asked.names) - set(known)):
        parser.error(f"transformers {transformers.__version__} has no causal language model {', '.join(strange)}")
    if asked.write and asked.names:
        parser.error("--write needs all families: give no names")
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows, began = [], time.process_time()
    for name in asked.names or sorted(known):
        start = time.process_time()
        with contextlib.redirect_stdout(None):  # some models print what they are not given
            rows.append(row(name))
        print(line(rows[-1], time.process_time() - start), flush=True)
    counts = Counter(each.word for each in rows)
    print(f"{len(rows)} families in {time.process_time() - began:.0f} s of one processor:", dict(counts))
    if asked.write:
        PAGE.write_text(written(rows), encoding="utf-8")
    return int(counts["wrong"] > 0)


def line(found: Row, seconds: float) -> str:
    whys = {f"{verdict.word} ({column}): {verdict.why}" for column, verdict in found.verdicts.items() if verdict.why}
    words = " ".join(verdict.word for verdict in found.verdicts.values())
    return "\n".join([f"{found.family:26} {words} {seconds:.1f} s", *(f"    {why}" for why in sorted(whys))])
