"""Facts from a model that does not write JSON of its own: the form is given, and it fills in the texts.

Of every sentence several questions are written, each with another beginning, and then the answer to each, which is a
span of the sentence. How likely the model finds that answer tells the better questions from the worse.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

import torch

from ..data.answers import contains, normalize
from .blocks import sections
from .duplicates import SMALL
from .standing import dependence, is_question


OPENINGS = 4  # questions of a sentence
MOST_TOKENS = 32  # of one question
MOST_WORDS = 5  # of an answer
# as the examples in `fill.txt` have it
SENTENCE, QUESTION, ANSWER = "Sentence: ", '\nQuestion: "', '"\nAnswer: "'
_EDGE = " \t\n.,;:!?()[]{}*_`'\u2018\u2019\u201c\u201d\""
_INSIDE = re.compile(r"[\"\\\n;:!?()\[\]{}\u201c\u201d]|,(?!\d)(?! \d)|\.(?!\S)")
_TELLS = re.compile(r"\d|\A\s\W*[A-Z]|[\uac00-\ud7a3]")  # a number, or a name that does not begin the sentence


@dataclass(frozen=True)
class Asked:
    """A question about a sentence, the answer that the model finds likeliest, and the log-probability of that."""

    sentence: int
    question: str
    answer: str
    score: float

    @property
    def usable(self) -> bool:
        stands = is_question(self.question) and not dependence(self.question)
        return stands and not contains(self.question, self.answer)


def spans(sentence: str) -> list[str]:
    """What may be an answer: a few words that begin with a name or a number and do not end with a small word."""
    words = [(word.start(), word.end()) for word in re.finditer(r"\S+", sentence)]
    found: dict[str, None] = {}
    for first, (start, stop) in enumerate(words):
        if not _TELLS.search(sentence[max(start - 1, 0) : stop]):
            continue
        for _, end in words[first : first + MOST_WORDS]:
            text = sentence[start:end].strip(_EDGE)
            ends = {word.casefold() for word in (*text.split()[:1], *text.split()[-1:])}
            if text and not _INSIDE.search(text) and not ends & SMALL:
                found[text] = None
    return list(found)


def sentences(passage: str, most: int) -> list[str]:
    """Those of a passage that have an answer in them, in order; of more than `most`, from all over it."""
    found = [passage[a:b] for part in sections(passage) for block in part.blocks for a, b in block]
    found = [text for text in (" ".join(text.split()) for text in found) if spans(text)]
    return [found[n * len(found) // most] for n in range(most)] if len(found) > most else found


def fill_in(model: Any, tokenizer: Any, ids: list[int], passage: str, count: int) -> str:
    """JSON of up to `count` facts of a passage, in the form that `write.txt` asks for.

    Args:
        model, tokenizer: who writes.
        ids: the prompt.
        passage: what it is about.
        count: facts.
    """
    about = sentences(passage, 2 * count)
    if not about:
        return json.dumps({"facts": [], "unanswered": []})
    rows = [number for number in range(len(about)) for _ in range(OPENINGS)]
    writer = Writer(model, tokenizer, ids, len(rows))
    writer.put([f"{SENTENCE}{about[number]}{QUESTION}" for number in rows])
    questions = writer.write(rows)
    writer.put([ANSWER] * len(rows))
    answers = writer.choose([spans(about[number]) for number in rows])
    asked = [Asked(number, text, *answer) for number, text, answer in zip(rows, questions, answers) if text]
    return json.dumps({"facts": best(asked, count), "unanswered": []}, ensure_ascii=False)


def best(asked: list[Asked], count: int) -> list[dict[str, Any]]:
    """The facts with the likeliest answers, at most one of a sentence, in the order of the sentences."""
    ordered = sorted(asked, key=lambda one: (not one.usable, -one.score))
    chosen: dict[int, dict[str, Any]] = {}
    said: set[str] = set()
    for one in ordered:
        others = [other for other in ordered if other.sentence == one.sentence and other is not one]
        others.sort(key=lambda other: other.answer != one.answer)
        if (
            len(chosen) < count
            and one.sentence not in chosen
            and len(others) > 1
            and normalize(one.question) not in said
        ):
            said.add(normalize(one.question))
            phrasings = [other.question for other in others[:2]]
            chosen[one.sentence] = {"question": one.question, "phrasings": phrasings, "answer": one.answer}
    return [chosen[sentence] for sentence in sorted(chosen)]


class Writer:
    """B texts after one prompt, which a model writes on, the likeliest token each time.

    Args:
        model, tokenizer: who writes.
        ids: the prompt.
        rows: B.
    """

    def __init__(self, model: Any, tokenizer: Any, ids: list[int], rows: int):
        self.model, self.tokenizer, self.rows = model, tokenizer, rows
        self.device = model.get_input_embeddings().weight.device
        self.mask = torch.zeros(1, 0, dtype=torch.long)  # [B, S]: what of a row is text
        self.cache: Any = None
        self._read([ids[:-1]])
        self.cache.batch_repeat_interleave(rows)
        self.mask = self.mask.repeat(rows, 1)
        self.unread = [ids[-1:] for _ in range(rows)]  # tokens of each row

    def put(self, texts: list[str]) -> None:
        """What follows in each row without the model's doing."""
        self.unread = [tokens + self._ids(text) for tokens, text in zip(self.unread, texts)]

    def write(self, groups: list[int]) -> list[str]:
        """A question in each row, up to its mark, a quotation mark, or a line.

        Args:
            groups: of each row; no two rows of a group begin with the same token.
        """
        tokens: list[list[int]] = [[] for _ in range(self.rows)]
        written = [""] * self.rows
        begun: set[tuple[int, int]] = set()
        running = list(range(self.rows))
        for _ in range(MOST_TOKENS):
            logits = self._next()
            for row in running:
                if not tokens[row]:
                    logits[row, [token for group, token in begun if group == groups[row]]] = -torch.inf
                token = int(logits[row].argmax())
                if not tokens[row]:
                    begun.add((groups[row], token))
                before = self.tokenizer.decode(tokens[row])
                tokens[row].append(token)
                text = self.tokenizer.decode(tokens[row])
                end = next((n for n, c in enumerate(text) if c in '"\n\\?\uff1f'), None)
                if end is None:
                    self.unread[row] = [token]
                    continue
                end += text[end] in "?\uff1f"
                written[row], tokens[row] = text[:end].strip(), []
                self.unread[row] = self._ids(text[len(before) : end])
                running = [other for other in running if other != row]
            if not running:
                break
        for row in running:
            written[row] = self.tokenizer.decode(tokens[row]).strip()
        return written

    def choose(self, options: list[list[str]]) -> list[tuple[str, float]]:
        """One of each row's options, by the likeliest token each time that leads to one; and its log-probability."""
        coded = [{tuple(self._ids(text + '"')): text for text in texts} for texts in options]
        chosen: list[tuple[int, ...]] = [()] * self.rows
        scores = [0.0] * self.rows
        while any(ids not in known for ids, known in zip(chosen, coded)):
            logits = self._next().log_softmax(-1)
            for row, known in enumerate(coded):
                ids = chosen[row]
                if ids in known:
                    continue
                follow = sorted({k[len(ids)] for k in known if k[: len(ids)] == ids and len(k) > len(ids)})
                token = follow[int(logits[row, follow].argmax())]
                scores[row] += float(logits[row, token])
                chosen[row] = (*ids, token)
                self.unread[row] = [token]
        return [(known[ids], score) for ids, known, score in zip(chosen, coded, scores)]

    def _next(self) -> torch.Tensor:
        logits = self._read(self.unread)
        self.unread = [[] for _ in range(self.rows)]
        return logits

    @torch.no_grad()
    def _read(self, texts: list[list[int]]) -> torch.Tensor:
        """Logits [B, V] behind the last token of each row's text; an empty text leaves its row as it is."""
        width = max(map(len, texts))
        ids = torch.tensor([text + [0] * (width - len(text)) for text in texts])
        new = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts])
        self.mask = torch.cat([self.mask, new], 1)
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)[:, -width:]
        last, where = (new.sum(1) - 1).clamp(min=0).unique(return_inverse=True)
        output = self.model(
            input_ids=ids.to(self.device),
            attention_mask=self.mask.to(self.device),
            position_ids=positions.to(self.device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=last.to(self.device),
        )
        self.cache = output.past_key_values
        return output.logits[torch.arange(len(texts)), where].float().cpu()

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]
