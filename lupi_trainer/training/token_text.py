"""The text that each token of a completion adds, so that tokens can be shown one by one."""

from __future__ import annotations

from collections.abc import Sequence


_CONTEXT = 4  # tokens before a token that may still share a character with it: UTF-8 has at most four bytes
_BROKEN = "\ufffd"


def _decode(tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def token_texts(tokenizer, ids: Sequence[int]) -> list[str]:
    """The text that each of `ids` adds; joined, they are the decoded text, special tokens included.

    A character whose bytes are spread over several tokens belongs to the last of them; the others add nothing.
    """
    texts, start, shown = [], 0, 0  # text before `shown` is out; decoding begins at `start`, one text earlier
    for end in range(1, len(ids) + 1):
        before, text = _decode(tokenizer, ids[start:shown]), _decode(tokenizer, ids[start:end])
        if text.endswith(_BROKEN) and end < len(ids) and end - shown < _CONTEXT:
            texts.append("")
            continue
        texts.append(text[len(before) :])
        start, shown = shown, end
    return texts


def text_instead(tokenizer, ids: Sequence[int], place: int, token: int) -> str:
    """The text that `token` would have added in the place of `ids[place]`."""
    context = list(ids[max(0, place - _CONTEXT) : place])
    before, text = _decode(tokenizer, context), _decode(tokenizer, [*context, token])
    return text[len(before.rstrip(_BROKEN)) :]


def mark_teacher(texts: Sequence[str], from_teacher: Sequence[bool]) -> str:
    """The text in one string, every token that the teacher wrote in brackets (white space left outside)."""
    marked = []
    for text, by_teacher in zip(texts, from_teacher):
        bare = text.strip()
        marked.append(text.replace(bare, f"[{bare}]", 1) if by_teacher and bare else text)
    return "".join(marked)
