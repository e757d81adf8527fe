"""The work itself: chunks are asked about, what comes back is filtered, and nothing is asked twice."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

from .chunks import Chunk, Splitter
from .duplicates import contradicted, repeated
from .facts import Broken, parse
from .prompts import Prompts, schema
from .replies import Model, Replies, Reply, Request, Unit
from .standing import dependence, is_question
from .verdicts import Verdict, by_form, by_knowing, by_reading, by_reading_again


ATTEMPTS = 3  # at a reply that can be read
TOKENS_A_FACT = 160
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Settings:
    """How chunks are asked about.

    Attributes:
        facts: at most, of a chunk.
        samples: of the teacher's open-book answer, all of which must be right.
        temperature: of all samples but the first.
        seed: of the samples, and of what is held out.
        mark: how the teacher must be right, `strict` or `lenient`.
        max_new_tokens: of an answer.
        keep_known: keep what the student knows already, marked.
        never: questions that no document answers, at most.
        fill_in: a local writer is given the form at once, not only where it wrote no JSON.
        chat_template_kwargs: for the chat template of both models.
    """

    facts: int = 5
    samples: int = 3
    temperature: float = 0.7
    seed: int = 0
    mark: str = "strict"
    max_new_tokens: int = 64
    keep_known: bool = False
    never: int = 20
    fill_in: bool = False
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class Made:
    """A chunk, and what was made of it.

    Attributes:
        fault: why there are no facts, where the teacher's replies could not be read.
        verdicts: of its facts.
        unanswered: a question that it does not answer; empty: none can be used.
    """

    chunk: Chunk
    fault: str = ""
    verdicts: list[Verdict] = field(default_factory=list)
    unanswered: str = ""


class Maker:
    """Asks, and keeps.

    Args:
        settings: how.
        prompts: of every language.
        splitter: that made the chunks.
        replies: where they are kept.
        progress: shows how far it is.
    """

    def __init__(
        self, settings: Settings, prompts: dict[str, Prompts], splitter: Splitter, replies: Replies, progress: Progress
    ):
        self.s, self.prompts, self.splitter, self.replies = settings, prompts, splitter, replies
        self.progress = progress

    def make(self, chunks: list[Chunk], writer: Model, reader: Model, student: Model) -> list[Made]:
        """What is made of each chunk, in order; models are let go of as soon as they have been asked everything."""
        made = [Made(chunk) for chunk in chunks]
        try:
            self._write(made, writer)
            if reader is not writer:
                writer.close()
            self._read(made, reader)
            reader.close()
            self._know(made, student)
        finally:
            for model in (writer, reader, student):
                model.close()
        across(made)
        return made

    def _ask(self, what: str, model: Model, units: list[Unit], wanted: dict[str, Any] | None = None) -> None:
        """Has a reply to every request of the units in `replies`."""
        left = model.pending(units, self.replies.known)
        if not left:
            return
        with self.progress(what, sum(len(unit.requests) for unit in left)) as advance:

            def done(given: list[tuple[Request, Reply]]) -> None:
                self.replies.add(given)
                advance(len(given))

            model.ask(left, wanted, done)

    def _request(self, model: Model, messages: list[dict[str, str]], tokens: int, sample: int = 0) -> Request:
        """The first sample is the likeliest text; the others are drawn."""
        drawn = (self.s.temperature, self.s.seed + sample) if sample else (0.0, 0)
        return Request(model.identity, messages, tokens, *drawn, self.s.chat_template_kwargs)

    def _answer(self, request: Request) -> Reply:
        return self.replies.known[request.hash]

    def _write(self, made: list[Made], writer: Model) -> None:
        tokens = TOKENS_A_FACT * (self.s.facts + 1)
        left = made
        for attempt in range(ATTEMPTS):
            asked = []
            for one in left:
                prompts, form = self.prompts[one.chunk.language], writer.fills_in and (attempt > 0 or self.s.fill_in)
                messages = prompts.fill_in(one.chunk) if form else prompts.write(one.chunk, self.s.facts)
                passage = one.chunk.knowledge if form else ""
                request = self._request(writer, messages, tokens, 0 if form else attempt)
                asked.append((one, request, passage))
            units = [Unit(one.chunk.file, [request], passage) for one, request, passage in asked]
            self._ask("questions", writer, units, schema(self.s.facts))
            left = []
            for one, request, _ in asked:
                try:
                    facts, unanswered = parse(*self._answer(request), self.s.facts)
                except Broken as error:
                    one.fault = f"no reply of {ATTEMPTS} could be read: {error}"
                    left.append(one)
                else:
                    one.fault = ""
                    one.verdicts = [by_form(fact, one.chunk, self.splitter) for fact in facts]
                    one.unanswered = next((text for text in unanswered if self._usable(text)), "")

    def _usable(self, text: str) -> bool:
        return is_question(text) and not dependence(text) and not self.splitter.spells(text)

    def _read(self, made: list[Made], reader: Model) -> None:
        """The likeliest answer to each question first; samples and phrasings of those alone that it is right for."""
        likeliest = []  # (chunk, a request for each verdict, request about what is not answered)
        for one in made:
            prompts = self.prompts[one.chunk.language]
            rows = [
                (verdict, self._read_request(reader, prompts.read(one.chunk, verdict.fact.question)))
                for verdict in one.verdicts
                if not verdict.reason
            ]
            absent = prompts.absent(one.chunk, one.unanswered) if one.unanswered else None
            likeliest.append((one, rows, [self._read_request(reader, absent)] if absent else []))
        units = [Unit(one.chunk.file, [*(r for _, r in rows), *absent]) for one, rows, absent in likeliest]
        self._ask("open-book", reader, [unit for unit in units if unit.requests])
        for one, rows, absent in likeliest:
            for verdict, request in rows:
                by_reading(verdict, self._answer(request), self.s.mark)
            if absent and not self._says_no(self.prompts[one.chunk.language], self._answer(absent[0])):
                one.unanswered = ""
        self._read_again(made, reader)

    def _read_again(self, made: list[Made], reader: Model) -> None:
        plans = []  # (chunk, verdict, further samples, a request for each phrasing)
        for one in made:
            for verdict in (v for v in one.verdicts if not v.reason):
                first, *others = (self.prompts[one.chunk.language].read(one.chunk, text) for text in verdict.questions)
                samples = [self._read_request(reader, first, n) for n in range(1, self.s.samples)]
                plans.append((one, verdict, samples, [self._read_request(reader, messages) for messages in others]))
        units: dict[int, Unit] = {}
        for one, _, samples, phrased in plans:
            units.setdefault(id(one), Unit(one.chunk.file, [])).requests.extend([*samples, *phrased])
        self._ask("open-book again", reader, [unit for unit in units.values() if unit.requests])
        for _, verdict, samples, phrased in plans:
            by_reading_again(verdict, [*map(self._answer, samples)], [*map(self._answer, phrased)], self.s.mark)

    def _read_request(self, reader: Model, messages: list[dict[str, str]], sample: int = 0) -> Request:
        return self._request(reader, messages, self.s.max_new_tokens, sample)

    @staticmethod
    def _says_no(prompts: Prompts, reply: Reply) -> bool:
        return reply.text.casefold().lstrip(" \"'*").startswith(tuple(w.casefold() for w in prompts.lines("no.txt")))

    def _know(self, made: list[Made], student: Model) -> None:
        plans = []
        for one in made:
            for verdict in (v for v in one.verdicts if not v.reason):
                asked = [[{"role": "user", "content": text}] for text in verdict.questions]
                requests = [self._request(student, messages, self.s.max_new_tokens) for messages in asked]
                plans.append((one, verdict, requests))
        units: dict[int, Unit] = {}
        for one, _, requests in plans:
            units.setdefault(id(one), Unit(one.chunk.file, [])).requests.extend(requests)
        self._ask("closed-book", student, list(units.values()))
        for _, verdict, requests in plans:
            by_knowing(verdict, dict(zip(verdict.questions, map(self._answer, requests))), self.s.keep_known)


def across(made: list[Made]) -> None:
    """Reject, of all that is left in the folder, what contradicts or repeats another; the first of several stays."""
    left = [(one, verdict) for one in made for verdict in one.verdicts if not verdict.reason]

    def where(number: int) -> str:
        one, verdict = left[number]
        return f"{one.chunk.file}: {verdict.fact.question} {verdict.fact.answer}"

    def both() -> tuple[list[tuple[str, ...]], list[str]]:
        return [verdict.questions for _, verdict in left], [verdict.fact.answer for _, verdict in left]

    against = {number: where(other) for number, other in contradicted(*both()).items()}
    for number, detail in against.items():
        left[number][1].reject("contradicted", detail)
    left = [entry for entry in left if not entry[1].reason]
    for i, j in sorted(repeated(*both())):
        if not left[i][1].reason and not left[j][1].reason:
            left[j][1].reject("repeated", where(i))
    for _, verdict in left:
        verdict.reason = verdict.reason or "kept"
