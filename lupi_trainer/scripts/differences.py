"""What `lupi evaluate --compare` says of the answers of a server that are not those of the trained student."""

from collections import Counter
from dataclasses import asdict
from typing import Any

from ..evaluation.served_differences import Comparison


MOST = 20  # questions on the screen; all of them are in the JSON file
LONGEST = 200  # characters of an answer on the screen


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def compared_report(what: str, run: str, found: Comparison) -> dict[str, Any]:
    """Print the questions that a server answers otherwise, and why; returns the same for a JSON file.

    Args:
        what: which questions these are.
        run: the trained student's name.
        found: how its answers differ.
    """
    count = len(found.differences)
    print(f"\n{what}: {count} answer{'s' * (count != 1)} of the server differ{'s' * (count == 1)} from {run}'s")
    if found.prompt is not None:
        print(f"  {found.prompt}")
    elif not found.prompts_known:
        print("  the server says nothing of its prompts (no /tokenize, no usage): whether they differ is not known")
    kinds = Counter(one.kind for one in found.differences)
    for kind, number in kinds.most_common():
        print(f"  {number} x {kind}")
    for one in found.differences[:MOST]:
        print(f"  question number {one.number}: {_line(one.question)}")
        why = () if one.why == found.prompt else (("why", one.why),)  # which is said above
        for name, text in (("run", one.run), ("server", one.server), *why):
            print(f"    {name + ':':8}{_line(text)}")
    if count > MOST:
        print(f"  and {count - MOST} more: --output FILE has all of them")
    return asdict(found)
