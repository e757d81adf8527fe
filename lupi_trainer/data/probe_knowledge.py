"""Which record's knowledge a probe is about."""

from collections.abc import Iterable
from typing import Any

from .probes import ALIASES


NAMES = ("privileged_context", *(alias for alias, column in ALIASES.items() if column == "privileged_context"))


def knowledge_in(record: dict[str, Any]) -> str | None:
    """The knowledge of a record, or what a probe brings of its own; `None` where there is none."""
    texts = (record.get(name) for name in NAMES)
    return next((text for text in texts if isinstance(text, str) and text.strip()), None)


class KnowledgeOf:
    """The knowledge of records, found by what a probe's `record_id` says: an `id`, or the place, from 0, of a record
    that has none.

    Args:
        records: in the order of their file.
    """

    def __init__(self, records: Iterable[dict[str, Any]]):
        self.called: dict[str, set[str | None]] = {}
        self.by_place = True
        for place, record in enumerate(records):
            name = record.get("id")
            self.by_place &= name in (None, "")
            self.called.setdefault(str(place if name in (None, "") else name), set()).add(knowledge_in(record))

    def look_up(self, probe: dict[str, Any]) -> tuple[str | None, str]:
        """(the knowledge that a probe is about, or `None` and why there is none)."""
        own = knowledge_in(probe)
        if own is not None:
            return own, ""
        if probe.get("record_id") in (None, ""):
            return None, "it has no `knowledge`, and no `record_id` to find a record by"
        if not self.called:
            return None, "it has no `knowledge`, and there are no records to find it in"
        found = self.called.get(str(probe["record_id"]))
        if found is None:
            place = ": these have no `id`, and are found by their place, from 0" if self.by_place else ""
            return None, f"there is no record of its `record_id`{place}"
        if len(found) > 1:
            return None, "several records have the `id` that it names, with different knowledge"
        (knowledge,) = found
        return knowledge, "" if knowledge is not None else "its record has no knowledge"
