"""Controls: training sets from which nothing about the questions can be learned."""

from datasets import Dataset, Features, Value

from ..data.teacher_names import RUN


def _with_contexts(records: Dataset, contexts: list[str | None]) -> Dataset:
    rows = [row | {"privileged_context": context} for row, context in zip(records, contexts)]
    return Dataset.from_list(rows, features=records.features)


def without_knowledge(records: Dataset) -> Dataset:
    """The same questions, all without knowledge: the same teacher reads what the student reads."""
    rows = [row | {"privileged_context": None, "teacher": row.get("teacher") or RUN} for row in records]
    return Dataset.from_list(rows, features=Features(records.features | {"teacher": Value("string")}))


def shuffled_knowledge(records: Dataset) -> Dataset:
    """The same questions, each with the knowledge of another subject.

    The different texts of knowledge are put in a ring, and every record gets the one half way round.
    Records of one subject must have the same knowledge, or knowledge about it would stay with it; use a data set of
    its own (as `lab:new-shuffled`) where that is not so.

    Raises:
        ValueError: fewer than two different texts.
    """
    texts = [row["privileged_context"] for row in records]
    ring = list(dict.fromkeys(text for text in texts if text is not None))
    if len(ring) < 2:
        raise ValueError("shuffled knowledge needs at least two records with different knowledge")
    half = {text: ring[(n + len(ring) // 2) % len(ring)] for n, text in enumerate(ring)}
    return _with_contexts(records, [half.get(text) for text in texts])
