"""A tokenizer as llama.cpp has it: only those of which it is known that llama.cpp splits texts in the same way."""

import json
from dataclasses import dataclass
from typing import Any


# regular expressions by which byte-level BPE splits texts, which differ in how many digits they keep together
_WORDS, _MARKS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|", r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = {  # -> llama.cpp's name of the same
    _WORDS + r"\p{N}{1,3}" + _MARKS + _SPACES: "llama-bpe",
    _WORDS + r"\p{N}" + _MARKS + _SPACES: "qwen2",
}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # llama.cpp's kinds of tokens


@dataclass(frozen=True)
class Vocabulary:
    """What a GGUF file says of a tokenizer.

    Attributes:
        model: llama.cpp's name of the algorithm.
        pre: its name of how texts are split before, or `None`.
        tokens, kinds: of every id.
        scores: of every id, or none.
        merges: of BPE, the better first, or none.
    """

    model: str
    pre: str | None
    tokens: list[str]
    kinds: list[int]
    scores: list[float]
    merges: list[str]


def unread(tokenizer: Any) -> str | None:
    """What of a tokenizer llama.cpp does not have, though it reads all other texts alike; `None`: nothing."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    if model["type"] == "Unigram" and model.get("byte_fallback"):
        return "llama.cpp reads letters for which the tokenizer has no token as unknown ones, and not byte by byte"
    return None


class UnknownTokenizer(ValueError):
    """A tokenizer that is not known to be the same in llama.cpp."""


def vocabulary(tokenizer: Any, size: int) -> Vocabulary:
    """The vocabulary of a tokenizer of transformers.

    Args:
        tokenizer: of the student.
        size: ids that the model has; those without a token are unused.

    Raises:
        UnknownTokenizer: another algorithm, or another way to split texts, than those that are known; it is named.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnknownTokenizer(f"{type(tokenizer).__name__} is no tokenizer of the library tokenizers")
    parts = json.loads(backend.to_str())
    kind = parts["model"]["type"]
    if kind == "BPE":
        return _bpe(parts, size)
    if kind == "Unigram":
        return _unigram(parts, size)
    raise UnknownTokenizer(f"a tokenizer of the kind {kind}")


def _table(parts: dict, size: int, ids: dict[str, int], normal: list[int] | None = None):
    """(tokens, kinds) of every id."""
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    added = {token["id"]: token for token in parts["added_tokens"]}
    beyond = [i for i in (*ids.values(), *added) if i >= size]
    if beyond:
        raise UnknownTokenizer(f"a tokenizer with the id {beyond[0]}, of which the model has none")
    for token, i in ids.items():
        tokens[i], kinds[i] = token, NORMAL if normal is None else normal[i]
    for i, token in added.items():
        tokens[i], kinds[i] = token["content"], CONTROL if token["special"] else USER_DEFINED
    return tokens, kinds


def _bpe(parts: dict, size: int) -> Vocabulary:
    model = parts["model"]
    if model.get("byte_fallback") or parts.get("decoder", {}).get("type") != "ByteLevel":
        raise UnknownTokenizer("a BPE tokenizer that is not on bytes")
    if not model["merges"]:
        raise UnknownTokenizer("a BPE tokenizer without merges")
    pre = _pre(parts["pre_tokenizer"])
    if bool(model.get("ignore_merges")) is not (pre == "llama-bpe"):
        raise UnknownTokenizer(f"ignore_merges={model.get('ignore_merges')} of a tokenizer that splits as {pre}")
    if (parts["normalizer"] or {}).get("type") not in (None, "NFC"):
        raise UnknownTokenizer(f"the normalizer {parts['normalizer']['type']}")
    tokens, kinds = _table(parts, size, model["vocab"])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if any(merge.count(" ") != 1 for merge in merges):
        raise UnknownTokenizer("a merge of tokens that hold a space")
    return Vocabulary("gpt2", pre, tokens, kinds, [], merges)


def _pre(found: dict | None) -> str:
    """llama.cpp's name of a pre-tokenizer.

    Raises:
        UnknownTokenizer: none that is known.
    """
    steps = (found or {}).get("pretokenizers", [found or {}])
    *before, last = steps
    if last.get("type") == "ByteLevel" and not last["add_prefix_space"]:
        if last["use_regex"]:
            if not before:
                return "gpt-2"
            if [(one["type"], one.get("individual_digits")) for one in before] == [("Digits", True)]:
                return "smollm"
        elif len(before) == 1 and before[0]["type"] == "Split" and before[0]["behavior"] == "Isolated":
            if not before[0]["invert"] and (name := _SPLITS.get(before[0]["pattern"].get("Regex"))) is not None:
                return name
    raise UnknownTokenizer(f"the pre-tokenizer {json.dumps(found)[:200]}")


def _unigram(parts: dict, size: int) -> Vocabulary:
    model, pre = parts["model"], parts["pre_tokenizer"] or {}
    spaces = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False}
    if pre != spaces:
        raise UnknownTokenizer(f"the pre-tokenizer {json.dumps(pre)[:200]}")
    if parts["normalizer"] is not None:
        raise UnknownTokenizer(f"the normalizer {parts['normalizer']['type']}")
    entries = [token for token, _ in model["vocab"]]
    kinds = [BYTE if len(t) == 6 and t.startswith("<0x") and t.endswith(">") else NORMAL for t in entries]
    if model["unk_id"] is not None:
        kinds[model["unk_id"]] = UNKNOWN
    tokens, kinds = _table(parts, size, {token: i for i, token in enumerate(entries)}, kinds)
    if model["unk_id"] is not None:
        kinds[model["unk_id"]] = UNKNOWN
    scores = [score for _, score in model["vocab"]] + [-1000.0] * (size - len(entries))
    return Vocabulary("t5", None, tokens, kinds, scores, [])
