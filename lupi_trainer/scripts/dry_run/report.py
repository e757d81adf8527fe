"""What a dry run has found, as a short table."""

import re
import sys
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field

from ...data.credentials import without_secrets


MOST = 20  # records with one fault that are listed


@dataclass
class Report:
    """Rows of what is well, and what is not.

    Attributes:
        rows: (a word for what was looked at, what was found).
        faults: what would stop the run, a line each.
    """

    rows: list[tuple[str, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def add(self, what: str, text: str) -> None:
        self.rows.append((what, text))

    def refuse(self, *faults: str) -> None:
        self.faults += (fault for fault in faults if fault not in self.faults)

    def refuse_records(self, source: str, faults: Iterable[tuple[str, str]]) -> None:
        """Take what is wrong with records, (name, message that begins with it): what is true of many is said once."""
        kinds: dict[str, list[tuple[str, str]]] = {}
        for name, message in faults:
            fault = message.removeprefix(f"{name}: ")
            kinds.setdefault(re.sub(r"\d+", "0", fault), []).append((name, fault))
        for found in kinds.values():
            names, fault = [name for name, _ in found], found[0][1]
            end = "" if fault.endswith((".", "!", "?")) else "."
            if len(found) == 1:
                self.refuse(f"{source}: {names[0]}: {fault}")
                continue
            what = "probes" if names[0].startswith("probe of ") else "records"
            others = f", and {len(names) - MOST} more" if len(names) > MOST else ""
            self.refuse(
                f"{source}: {len(names)} {what}, the first: {fault}{end} They are {', '.join(names[:MOST])}{others}"
            )

    def show(self) -> int:
        """Print it; returns the exit status: 1 where there are faults."""
        for what, text in self.rows:
            print(f"{what:<10} " + textwrap.fill(text, 108, subsequent_indent=" " * 11))
        for fault in self.faults:
            print(f"error: {without_secrets(fault)}", file=sys.stderr)
        found = len(self.faults)
        print(f"{found} {'fault' if found == 1 else 'faults'}: nothing was written" if found else "all well")
        return 1 if found else 0


def amount(size: float) -> str:
    """Bytes, readable."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1e3:.0f} kB"


def duration(seconds: float) -> str:
    """Seconds, readable."""
    if seconds < 1:
        return f"{seconds:.2g} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
