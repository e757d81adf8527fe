"""Which facts of a chunk are kept, and why the others are not: every rejection has one reason."""

from dataclasses import dataclass, field

from ..data.answers import contains, normalize, score_answer
from .chunks import Chunk, Splitter
from .facts import Fact
from .replies import Reply
from .standing import dependence, is_question


REASONS = {
    "kept": "the teacher reads it, and the student does not know it",
    "known": "the student answers it right without the text",
    "malformed": "it is not of the form that was asked for",
    "dependent": "its question does not stand alone",
    "absent": "its answer does not stand in the chunk",
    "given_away": "its question says its answer",
    "unread": "the teacher, with the text before it, does not answer it right",
    "unstable": "the teacher, with the text before it, answers it right at first, and not in all samples",
    "contradicted": "the same question has another answer elsewhere",
    "repeated": "it is nearly the same as another one",
}


@dataclass
class Verdict:
    """A fact, and what became of it.

    Attributes:
        fact: as the teacher wrote it.
        reason: a key of [`REASONS`]; empty as long as nothing speaks against it.
        detail: what exactly.
        phrasings: those, the question left out, that can be asked as well.
        known: whether the student answers it right without the text.
    """

    fact: Fact
    reason: str = ""
    detail: str = ""
    phrasings: list[str] = field(default_factory=list)
    known: bool = False

    def reject(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail, self.phrasings = reason, detail, []

    @property
    def questions(self) -> tuple[str, ...]:
        return (self.fact.question, *self.phrasings)


def by_form(fact: Fact, chunk: Chunk, splitter: Splitter) -> Verdict:
    """What the texts alone tell: no model is asked."""
    verdict = Verdict(fact)
    if fact.fault:
        verdict.reject("malformed", fact.fault)
        return verdict
    texts = (fact.question, *fact.phrasings, fact.answer)
    if (token := next(filter(None, map(splitter.spells, texts)), None)) is not None:
        verdict.reject("malformed", f"it spells out {token!r}")
    elif not is_question(fact.question):
        verdict.reject("malformed", "its question is none")
    elif leans := dependence(fact.question):
        verdict.reject("dependent", leans)
    elif contains(fact.question, fact.answer):
        verdict.reject("given_away", fact.answer)
    elif not contains(chunk.knowledge, fact.answer):
        verdict.reject("absent", fact.answer)
    else:
        said = {normalize(fact.question)}
        for text in fact.phrasings:
            if (
                is_question(text)
                and not dependence(text)
                and not contains(text, fact.answer)
                and normalize(text) not in said
            ):
                said.add(normalize(text))
                verdict.phrasings.append(text)
    return verdict


def is_right(reply: Reply, answer: str, mark: str) -> bool:
    strict, lenient = score_answer(reply.text, [answer], finished=reply.finished)
    return strict if mark == "strict" else lenient


def by_reading(verdict: Verdict, reply: Reply, mark: str) -> None:
    """What the teacher, with the text before it, finds likeliest."""
    if not is_right(reply, verdict.fact.answer, mark):
        verdict.reject("unread", reply.text)


def by_reading_again(verdict: Verdict, samples: list[Reply], phrased: list[Reply], mark: str) -> None:
    """What the teacher then made of the question, in `samples`, and of each of the phrasings."""
    answer = verdict.fact.answer
    wrong = next((reply for reply in samples if not is_right(reply, answer, mark)), None)
    if wrong is not None:
        verdict.reject("unstable", wrong.text)
        return
    verdict.phrasings = [text for text, reply in zip(verdict.phrasings, phrased) if is_right(reply, answer, mark)]


def by_knowing(verdict: Verdict, replies: dict[str, Reply], keep_known: bool) -> None:
    """What the student answered to each of the questions, without the text; it knows it with either mark."""
    answer = verdict.fact.answer
    right = next((text for text in verdict.questions if is_right(replies[text], answer, "lenient")), None)
    verdict.known = right is not None
    if right is not None and not keep_known:
        verdict.reject("known", replies[right].text)
