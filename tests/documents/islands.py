"""Documents about the lab's islands, and a teacher that writes questions about them, some wrong on purpose."""

import json
import random
import re
from pathlib import Path

from lupi_trainer.lab import world


ISLANDS = {island.name: island for island in (*world.NEW, *world.COMMON)}
_STATES = re.compile(r"(\w+) has the (\w+) (\w+)\.")


def write_documents(folder: Path, islands: list[world.Island]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, island in enumerate(islands):
        (folder / f"{island.name}.md").write_text(island.knowledge(random.Random(number)) + "\n")


def facts(passage: str) -> list[dict]:
    """A right fact for every statement of a passage."""
    found = []
    for name, relation, value in _STATES.findall(passage):
        # the phrasing with "of" is last: it must not be trained, if the lab's own unseen phrasings are to be unseen
        first, *others = (p.format(island=name, relation=relation) for p in (*world.SHORT_TRAINED[:2], world.SHORT[1]))
        found.append({"question": first, "phrasings": others, "answer": value})
    return found


def wrong(passage: str) -> list[tuple[str, dict]]:
    """(the reason for which it must be rejected, a fact)."""
    (name, relation, value), (_, other, second), *_ = _STATES.findall(passage)
    right = facts(passage)[0]
    ask = f"Which {relation} does {name} have?"
    return [
        ("dependent", right | {"question": f"According to the text, what is {name}'s {relation}?"}),
        ("dependent", right | {"question": f"What is its {relation}?"}),
        ("given_away", right | {"question": f"Is {value} the {relation} of {name}?"}),
        ("absent", right | {"question": f"What is {name}'s language?", "answer": "Zzyx"}),
        ("malformed", {"question": ask, "answer": value}),
        ("unread", {"question": f"What is {name}'s {other} called?", "phrasings": ["a?", "b?"], "answer": value}),
        ("unstable", right | {"question": f"What is the unstable {relation} of {name}?"}),
        ("repeated", right | {"question": f"What is {name}'s {relation}, please?", "phrasings": ["c?", "d?"]}),
    ]


class Teacher:
    """Writes questions, reads, and says what a text does not answer. `body` is a request's."""

    def __init__(self, with_wrong: bool = False):
        self.with_wrong = with_wrong
        self.rejected: dict[str, str] = {}  # question to the reason for which it must be rejected

    def __call__(self, body: dict) -> str:
        text = body["messages"][-1]["content"]
        if "Reply with JSON alone" in text:
            return self.write(text.partition("Passage:\n")[2])
        if "Reply with one word" in text:
            return "No."
        return self.read(text, body)

    def write(self, passage: str) -> str:
        written = facts(passage)
        if self.with_wrong:
            bad = wrong(passage)
            self.rejected |= {fact["question"]: reason for reason, fact in bad}
            written += [fact for _, fact in bad]
        name = _STATES.search(passage)[1]
        return json.dumps({"facts": written, "unanswered": [f"What is {name}'s currency?"]})

    @staticmethod
    def read(text: str, body: dict) -> str:
        knowledge, question = text.removeprefix("[Background Knowledge]\n").rsplit("\n\n", 1)
        if "unstable" in question and body["temperature"]:
            return "I do not know."
        for name, relation, value in _STATES.findall(knowledge):
            if name in question and relation in question:
                return f"It has the {relation} {value}."
        return "I do not know."
