"""What properties over odd input share: values that nobody would write, and what a refusal looks like.

`TEST_EXAMPLES` in the environment is how many examples of each property are tried, anew each time; without it there
are few, the same ones each time. What was found stays, as an `@example`.
"""

import json
import os
import traceback
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import lupi_trainer


HERE = str(Path(lupi_trainer.__file__).parent)
EXAMPLES = os.environ.get("TEST_EXAMPLES")


def examples(few: int) -> settings:
    """How many examples of a property are tried."""
    return settings(
        max_examples=int(EXAMPLES or few),
        derandomize=EXAMPLES is None,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


# Texts that break things: half characters, null bytes, line separators, jinja, very long ones.
odd_texts = st.sampled_from(
    [
        "",
        " ",
        "\ud800",
        "\x00",
        "\u2028",
        "{{ 7 * 7 }}",
        "{% raw %}",
        "{query}{privileged_context}",
        "<|end|>",
        "질문",
        "é",
        "\n" * 5,
        "a" * 5000,
        "nan",
        "null",
        "../../etc/passwd",
        "lab:new",
        "\u202e",
        "<|user|>",
    ]
)
texts = st.one_of(odd_texts, st.text(max_size=8))
numbers = st.one_of(
    st.integers(-3, 3), st.integers(-(2**70), 2**70), st.floats(), st.sampled_from([10**400, 1e308, -0.0, 2**63])
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
messages = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.sampled_from(["user", "system", "assistant", "tool", 3]), "content": texts}),
        st.dictionaries(st.sampled_from(["role", "content", "x"]), values, max_size=3),
        values,
    ),
    max_size=3,
)
good = st.fixed_dictionaries({}).map(
    lambda _: {
        "id": "r",
        "query": "Why?",
        "knowledge": "Because.",
        "answer": "So.",
        "question": "Why?",
        "answers": ["So"],
        "record_id": "r",
    }
)
fields = st.sampled_from(
    [
        "id",
        "query",
        "prompt",
        "knowledge",
        "privileged_context",
        "answer",
        "question",
        "answers",
        "record_id",
        "row_id",
    ]
)


@st.composite
def records(draw):
    record = draw(good)
    for _ in range(draw(st.integers(0, 3))):
        field = draw(fields)
        if draw(st.booleans()):
            record.pop(field, None)
        else:
            record[field] = draw(st.one_of(values, texts, messages))
    return record


def as_bytes(value, suffix: str) -> bytes:
    """As a program would write it that keeps characters as they are, where they can be written at all."""

    def dump(one) -> str:
        text = json.dumps(one, ensure_ascii=False)
        return json.dumps(one) if any("\ud800" <= c <= "\udfff" for c in text) else text

    return ("\n".join(map(dump, value)) if suffix == "jsonl" and isinstance(value, list) else dump(value)).encode()


@st.composite
def files(draw):
    """(suffix, content of a file, the records in it, or `None` where it is no list of objects)."""
    suffix = draw(st.sampled_from(["json", "jsonl"]))
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return suffix, draw(st.one_of(st.binary(max_size=20), st.just(b"[" * 100_000), st.just(b"\xef\xbb\xbf[]")))
    if kind == 1:
        return suffix, as_bytes(draw(values), suffix)
    content = as_bytes(draw(st.lists(records(), min_size=1, max_size=3)), suffix)
    if kind == 2:
        return suffix, content[: draw(st.integers(0, len(content)))]
    return suffix, content


def ours(error: BaseException) -> bool:
    """Whether the error was raised by a line of this package."""
    return traceback.extract_tb(error.__traceback__)[-1].filename.startswith(HERE)


def check_refusal(error: BaseException) -> None:
    message = str(error)
    assert isinstance(error, (ValueError, OSError)) and ours(error), traceback.format_exception(error)
    assert message.strip() and "\n" not in message and "\r" not in message, repr(message)
    message.encode()  # it can be printed


def places(value, keys=()):
    """The keys that lead to each part of what JSON holds."""
    yield keys
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in parts:
        yield from places(inner, (*keys, key))


def part(value, keys):
    """What the keys lead to."""
    for key in keys:
        value = value[key]
    return value


@st.composite
def changed(draw, value, most: int = 2):
    """What JSON holds with up to `most` of its parts replaced, left out, doubled or renamed."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(0, most))):
        everywhere = [keys for keys in places(value) if keys]
        if not everywhere:
            return draw(values)
        in_floats = [keys for keys in everywhere if isinstance(part(value, keys), float)]
        *keys, last = draw(st.sampled_from(in_floats if in_floats and draw(st.booleans()) else everywhere))
        holder = part(value, keys)
        how, old = draw(st.integers(0, 7)), holder[last]
        if how == 0:
            del holder[last]
        elif how == 1 and isinstance(holder, list):
            holder.insert(last, holder[last])
        elif how == 1:
            holder[draw(texts)] = holder.pop(last)
        elif how > 3 and isinstance(old, float) and abs(old) < 1e9:  # as likely as what it was
            holder[last] = draw(st.floats(min(2 * old, 0.0), max(2 * old, 0.0)))
        else:
            holder[last] = draw(st.one_of(values, numbers, texts))
    return value
