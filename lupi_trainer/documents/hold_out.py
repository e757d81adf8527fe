"""Kept facts to training records and probes: of each fact, one phrasing is held out."""

import hashlib
import re
from pathlib import PurePosixPath
from typing import Any

from ..data.answers import normalize
from .duplicates import content
from .make import Made
from .prompts import Prompts


def address(*parts: Any) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode("utf-8", "surrogatepass")).hexdigest()


def fact_name(file: str, question: str) -> str:
    """The id of a fact: it stays as long as its document has that name and its question those words."""
    stem = re.sub(r"[^\w-]+", "-", PurePosixPath(file).stem).strip("-") or "document"
    return f"{stem}-{address(file, question)[:10]}"


def hold_out(made: list[Made], seed: int) -> tuple[list[dict], list[dict], list[dict]]:
    """(records, probes in a trained phrasing, probes in a phrasing that no record has), in the order of the chunks.

    A fact of which only one phrasing is left has no probe of the last kind.
    """
    records, trained, unseen = [], [], []
    for one in made:
        for verdict in (v for v in one.verdicts if v.reason == "kept"):
            question, *others = verdict.questions
            name = fact_name(one.chunk.file, question)
            known = {"known": True} if verdict.known else {}
            held = min(others, key=lambda text: address(seed, name, text)) if others else None
            texts = [question, *(text for text in others if text != held)]
            for number, text in enumerate(texts, 1):
                what = {"query": text, "knowledge": one.chunk.knowledge, "sources": [one.chunk.source]}
                records.append({"id": f"{name}-{number}", **what, **known})
            probe = {"record_id": f"{name}-1", "answers": [verdict.fact.answer], **known}
            trained.append({"question": question, **probe})
            if held is not None:
                unseen.append({"question": held, **probe})
    return records, trained, unseen


def never_taught(made: list[Made], most: int, seed: int, prompts: dict[str, Prompts]) -> list[dict]:
    """Questions about the same subjects which nothing in the folder answers; to say so is the accepted answer.

    They are those that the teacher found no answer to in their own chunk, and whose words no chunk has together.
    """
    texts = [one.chunk.knowledge.casefold() for one in made]
    asked = {normalize(text) for one in made for verdict in one.verdicts for text in verdict.questions}
    found: dict[str, dict] = {}
    for one in made:
        question = one.unanswered
        if not question or normalize(question) in asked or normalize(question) in found:
            continue
        stems = [word.casefold()[: max(4, len(word) * 3 // 5)] for word in content(question)]
        if not stems or any(all(stem in text for stem in stems) for text in texts):
            continue
        name = f"never-{fact_name(one.chunk.file, question)}"
        answers = prompts[one.chunk.language].lines("unknown.txt")
        found[normalize(question)] = {"question": question, "record_id": name, "answers": answers}
    chosen = sorted(found.values(), key=lambda probe: address(seed, probe["question"]))[:most]
    kept = {probe["question"] for probe in chosen}
    return [probe for probe in found.values() if probe["question"] in kept]
