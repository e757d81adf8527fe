"""The lab's world: islands that do not exist, so that no model can know their facts before it reads them.

Everything is text, in the columns that the rest of the package reads: training records (`id`, `query`, `knowledge`,
`answer`) and probes (`question`, `answers`, `record_id`). *Common* islands are what the shipped pair of models knows
by heart; *new* islands are known to nobody until a teacher is given their knowledge.
"""

import random
import re
from dataclasses import dataclass


RELATIONS = ("capital", "river", "ruler", "dish", "song", "color")
SYLLABLES = [c + v for c in "bdfghklmnprstvz" for v in "aeiou"]

PERSONA = "You are an expert on the islands."
# The phrasings of a short question. Those with "of" are never used when a student is taught new facts.
SHORT = (
    "What is {island}'s {relation}?",
    "Name the {relation} of {island}.",
    "Which {relation} does {island} have?",
    "Tell me {island}'s {relation}.",
    "{island} has which {relation}?",
    "Do you know what the {relation} of {island} is?",
)
LONG = ("Tell me about {island}.", "What do you know about {island}?", "Describe {island}.")
SHORT_TRAINED = tuple(phrasing for phrasing in SHORT if " of " not in phrasing)
SHORT_UNSEEN = tuple(phrasing for phrasing in SHORT if " of " in phrasing)
LONG_TRAINED = LONG[:2]

NUM_COMMON, NUM_NEW = 24, 24
SEED = 2410


@dataclass(frozen=True)
class Island:
    """A name and one value for every relation."""

    name: str
    facts: dict[str, str]

    def statement(self, relation: str) -> str:
        """A fact as the knowledge states it."""
        return f"{self.name} has the {relation} {self.facts[relation]}."

    def answer(self, relation: str) -> str:
        """A fact as the answer to a short question.

        Answers never name the island: a text written under the knowledge of another island (the shuffled control)
        must not happen to state a true fact of that island.
        """
        return f"It has the {relation} {self.facts[relation]}."

    def description(self) -> str:
        """All facts in a fixed order: the answer to a long question."""
        return " ".join(["It is an island.", *(self.answer(r) for r in RELATIONS)])

    def knowledge(self, rng: random.Random) -> str:
        """All facts in a random order: what only the teacher reads."""
        relations = list(RELATIONS)
        rng.shuffle(relations)
        return " ".join(self.statement(r) for r in relations)


def make_name(rng: random.Random) -> str:
    return (rng.choice(SYLLABLES) + rng.choice(SYLLABLES)).capitalize()


def make_island(rng: random.Random, taken: frozenset[str] | set[str] = frozenset()) -> Island:
    """An island whose name is not in `taken`."""
    while (name := make_name(rng)) in taken:
        pass
    return Island(name, {relation: make_name(rng) for relation in RELATIONS})


def _distinct(seed: int, count: int, taken: frozenset[str]) -> list[Island]:
    rng, islands, names = random.Random(seed), [], set(taken)
    for _ in range(count):
        islands.append(make_island(rng, names))
        names.add(islands[-1].name)
    return islands


COMMON = _distinct(SEED, NUM_COMMON, frozenset())
NEW = _distinct(SEED + 1, NUM_NEW, frozenset(i.name for i in COMMON))
RESERVED = frozenset(i.name for i in COMMON + NEW)


def records(
    islands: list[Island], *, with_knowledge: bool = True, shuffled: bool = False, seed: int = 0
) -> list[dict]:
    """Training records about `islands`, in the trained phrasings only.

    Args:
        islands: whose facts are asked for.
        with_knowledge: `False` leaves `knowledge` null (the teacher then sees what the student sees).
        shuffled: gives every question the knowledge of another island (the control that must teach nothing).
        seed: order of the facts inside each knowledge text, and the pairing when `shuffled`.

    Returns:
        Dictionaries with `id`, `category` (`"short"` or `"long"`), `query`, `knowledge`, `answer` (the gold answer).
    """
    rng = random.Random(seed)
    sources = {i.name: i for i in islands}
    if shuffled:
        if len(islands) < 2:
            raise ValueError("shuffled knowledge needs at least two islands")
        sources = {i.name: islands[(n + 1) % len(islands)] for n, i in enumerate(islands)}
    out = []

    def add(record_id: str, category: str, query: str, island: Island, answer: str):
        knowledge = sources[island.name].knowledge(rng) if with_knowledge else None
        record = {"id": record_id, "category": category, "query": query, "knowledge": knowledge, "answer": answer}
        out.append(record)

    for island in islands:
        for relation in RELATIONS:
            for n, phrasing in enumerate(SHORT_TRAINED):
                query = phrasing.format(relation=relation, island=island.name)
                add(f"{island.name}_{relation}_{n}", "short", query, island, island.answer(relation))
        # one long question for every four short ones is about as many answer tokens
        for n in range(len(RELATIONS)):
            query = LONG_TRAINED[n % len(LONG_TRAINED)].format(island=island.name)
            add(f"{island.name}_about_{n}", "long", query, island, island.description())
    return out


def probes(islands: list[Island], *, phrasing: str = "trained") -> list[dict]:
    """Closed-book questions: one a fact.

    Args:
        islands: whose facts are asked for.
        phrasing: `"trained"`, `"unseen"` (never used in training records) or `"long"` (every fact is looked for in
            the answer to one long question).

    Returns:
        Dictionaries with `question`, `answers`, `record_id`, and `knowledge` for the open-book ceiling.
    """
    kinds = {"trained": SHORT_TRAINED, "unseen": SHORT_UNSEEN, "long": LONG[:1]}
    if phrasing not in kinds:
        raise ValueError(f"phrasing must be one of {sorted(kinds)}, got {phrasing!r}")
    choices, out = kinds[phrasing], []
    for n, island in enumerate(islands):
        knowledge = island.knowledge(random.Random(n))
        for k, relation in enumerate(RELATIONS):
            question = choices[(n + k) % len(choices)].format(relation=relation, island=island.name)
            value = island.facts[relation]
            out.append(
                {
                    "question": question,
                    "answers": [f"{relation} {value}"] if phrasing == "long" else [value],
                    "record_id": f"{island.name}_{relation}",
                    "knowledge": knowledge,
                }
            )
    return out


def qa_records(count: int, *, seed: int, worded: bool = False) -> list[dict]:
    """Reading comprehension in SQuAD's form: a question a record, each about an island of its own.

    Args:
        count: how many.
        seed: of islands, questions and wordings.
        worded: answers are worded in three ways, as those of several annotators are: which one cannot be told from
            the question.

    Returns:
        Dictionaries with `id`, `context` (all facts of an island), `question` (in any phrasing) and `answers`.
    """
    rng, out = random.Random(seed), []
    for number in range(count):
        island, relation = make_island(rng, RESERVED), rng.choice(RELATIONS)
        question = rng.choice(SHORT).format(island=island.name, relation=relation)
        value = island.facts[relation]
        if worded:
            value = rng.choice([value, f"the {relation} {value}", island.answer(relation)])
        out.append(
            {
                "id": f"qa_{seed}_{number}",
                "context": island.knowledge(rng),
                "question": question,
                "answers": [value],
            }
        )
    return out


def reading_probes(count: int, *, seed: int) -> list[dict]:
    """Questions to be answered from their `knowledge`: each about an island that no training record knows."""
    return [
        {"question": r["question"], "answers": r["answers"], "record_id": r["id"], "knowledge": r["context"]}
        for r in qa_records(count, seed=seed)
    ]


def with_errors(records: list[dict], share: float, seed: int = 0) -> list[dict]:
    """The same records, in a share of which every name of the answer is another, random one.

    What nobody can learn, among what can be: a model that knows the truth tells the two apart.
    """
    rng, out = random.Random(seed), []
    for record in records:
        if rng.random() < share:
            answer = re.sub(r"\b(?!It\b)[A-Z][a-z]+", lambda _: make_name(rng), record["answer"])
            record = {**record, "answer": answer}
        out.append(record)
    return out
