"""Documents to chunks: pieces of a section that end where a sentence ends, as long as the teacher reads well.

A chunk never goes over a heading, and what stands above it in the document is known of it. Where a document changes in
one section, the chunks of its other sections stay as they were.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ..data.special_tokens import SpecialTokens
from .blocks import Span, sections
from .read import Document


MOST_TIMES = 4  # the size that a sentence, row or line may have which is longer than a chunk should be
# what chat templates are made of, whichever model reads the text
_TEMPLATE = re.compile(r"<\|[a-z][\w-]*\|>|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>|<\uff5c[^\s>]{1,40}\uff5c>")
_ORDERS = re.compile(
    r"\b(?:ignore|disregard|forget|override)\b[^.!?\n]{0,30}\b(?:previous|prior|above|earlier|preceding|your|these)\b"
    r"[^.!?\n]{0,20}\b(?:instructions?|prompts?|rules|directions)\b"
    r"|\byou are (?:now )?an? (?:AI|assistant|language model|chatbot)\b|\bas an AI (?:language )?model\b"
    r"|\b(?:reveal|print|repeat|output)\b[^.!?\n]{0,20}\bsystem prompt\b"
    r"|(?:이전|위|앞|지금까지)의?\s*(?:모든\s*)?(?:지시|명령|지침)(?:사항)?[^.!?\n]{0,10}(?:무시|잊)|시스템\s*프롬프트를?\s*(?:출력|공개|알려)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Chunk:
    """A piece of a document.

    Attributes:
        file: name of the document.
        language: that of the document, `en` or `ko`.
        headings: what it stands under, the highest first.
        start, end: offsets into the document's text as Markdown, in characters.
        text: what stands there.
        tokens: of the text, by the teacher's tokenizer.
        fault: why nothing is asked about it, else empty.
    """

    file: str
    language: str
    headings: tuple[str, ...]
    start: int
    end: int
    text: str
    tokens: int
    fault: str = ""

    @property
    def knowledge(self) -> str:
        """What the teacher reads: the headings, and the text."""
        titles = "".join(f"{'#' * level} {title}\n" for level, title in enumerate(self.headings, 1))
        return f"{titles}\n{self.text}" if titles else self.text

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.knowledge.encode()).hexdigest()[:16]

    @property
    def source(self) -> dict[str, Any]:
        """Where it is from, for a record."""
        place = {"start": self.start, "end": self.end, "hash": self.hash}
        return {"file": self.file, "heading": " > ".join(self.headings), **place}


class Splitter:
    """Cuts documents.

    Args:
        tokenizer: of the teacher, by which sizes count.
        size: tokens that a chunk has at most, but for a single sentence that is longer.
        special: tokenizers whose control tokens no chunk may spell out.
        language: of all documents; each one's own unless given.
    """

    def __init__(self, tokenizer: Any, size: int, special: list[Any], language: str | None = None):
        self.tokenizer, self.size, self.language = tokenizer, size, language
        self.special = [SpecialTokens(one) for one in special]

    def count(self, text: str) -> int:
        return len(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def spells(self, text: str) -> str | None:
        """The first control token that a text spells out, of these tokenizers or of any known chat template."""
        found = next(filter(None, (special.found(text) for special in self.special)), None)
        return found or ((template := _TEMPLATE.search(text)) and template[0])

    def split(self, document: Document) -> list[Chunk]:
        """The chunks of a document, in order; those with a `fault` are to be left out."""
        language, found = self.language or document.language, []
        for section in sections(document.text):
            for start, end in pack(section.blocks, lambda a, b: self.count(document.text[a:b]) <= self.size):
                text = document.text[start:end]
                if not any(map(str.isalnum, text)):
                    continue
                place = (document.name, language, section.headings, start, end, text, self.count(text))
                found.append(Chunk(*place, fault=self._fault(Chunk(*place))))
        return found

    def _fault(self, chunk: Chunk) -> str:
        if chunk.tokens > MOST_TIMES * self.size:
            return f"one sentence or line with {chunk.tokens} tokens, more than {MOST_TIMES} times --chunk_tokens"
        read = f"{chunk.file}\n{chunk.knowledge}"  # the name is in a prompt, too
        if (token := self.spells(read)) is not None:
            return f"it spells out {token!r}, which a model reads as a control token"
        if (order := _ORDERS.search(read)) is not None:
            return f"it reads like an instruction to the model: {' '.join(order[0].split())!r}"
        return ""


def pack(blocks: list[list[Span]], fits: Callable[[int, int], bool]) -> Iterator[Span]:
    """As many blocks as fit into a chunk, in order; one that does not fit into any is cut between its parts.

    Args:
        blocks: the parts of each, spans that are never cut.
        fits: whether a span is short enough.
    """
    begin: int | None = None
    end = 0
    for parts in blocks:
        first, last = parts[0][0], parts[-1][1]
        if begin is not None and fits(begin, last):
            end = last
            continue
        if begin is not None:
            yield begin, end
        begin, end = first, last
        if fits(first, last):
            continue
        end = parts[0][1]
        for start, stop in parts[1:]:
            if not fits(begin, stop):
                yield begin, end
                begin = start
            end = stop
    if begin is not None:
        yield begin, end
