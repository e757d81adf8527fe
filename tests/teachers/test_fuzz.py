"""Whatever a server answers: the numbers that it says, or one line that says what is wrong with them."""

import gzip
import json
import math
import zlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lupi_trainer.teachers import wire
from lupi_trainer.teachers.remote import RemoteStats, RemoteTeacher
from lupi_trainer.teachers.vllm import TeacherServer
from lupi_trainer.teachers.wire import TeacherServerError, Wire
from tests.fuzz import changed, check_refusal, examples, values
from tests.teachers.answers import Answers, http


TOP_K, TEXT = 3, [5, 6, 7]


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(wire, "_FIRST_PAUSE", 1e-4)


def top(shift: int) -> dict[str, float]:
    return {str(shift + i): -0.5 - i for i in range(TOP_K)}


# way to ask -> what a server would answer
RIGHT = {
    "_by_prompt": [
        {"index": 0, "prompt_logprobs": [None, *({i: {"logprob": v} for i, v in top(n).items()} for n in range(3))]}
    ],
    "_by_prefixes": [
        {"index": n, "logprobs": {"top_logprobs": [{f"token_id:{i}": v for i, v in top(n).items()}]}} for n in (0, 1)
    ],
    "_logprobs": [{"index": 0, "logprobs": {"top_logprobs": [{"token_id:4": -1.0, "token_id:8": -2.5}]}}],
}
ASKED = {"_by_prompt": (TEXT, 2), "_by_prefixes": (TEXT, 2), "_logprobs": (TEXT, [8, 4])}


def said(choices: list, way: str) -> list[dict[int, float]]:
    """The numbers in an answer, read by its form alone."""
    if way == "_by_prompt":
        places = [{i: entry["logprob"] for i, entry in place.items()} for place in choices[0]["prompt_logprobs"][-2:]]
    else:
        places = [c["logprobs"]["top_logprobs"][0] for c in sorted(choices, key=lambda choice: choice["index"])]
    return [{int(name.removeprefix("token_id:")): value for name, value in place.items()} for place in places]


@pytest.mark.parametrize("way", RIGHT)
def test_an_answer_is_read_as_it_is_or_named(way, monkeypatch):
    remote = TeacherServer.__new__(TeacherServer)
    RemoteTeacher.__init__(remote, 100, TOP_K)
    remote._wire, remote.name = Wire("http://127.0.0.1:9", 5.0, 5.0, RemoteStats()), "teacher"
    remote.url = remote._wire.url
    outcomes = {"read": 0, "named": 0}

    @examples(60)
    @given(changed({"choices": RIGHT[way]}))
    @example({"choices": RIGHT[way]})
    def check(answer):
        monkeypatch.setattr(remote._wire, "send", lambda *args, **options: answer)
        try:
            found = remote._wire.patiently(lambda: getattr(remote, way)(*ASKED[way]))
        except TeacherServerError as error:
            outcomes["named"] += 1
            return check_refusal(ValueError(str(error)).with_traceback(error.__traceback__))
        outcomes["read"] += 1
        places = said(answer["choices"], way)
        if way == "_logprobs":
            assert found == [min(float(places[0][token]), 0.0) for token in (8, 4)]
            found = [((8, 4), found)]
        assert len(found) == len(places)
        for (ids, numbers), place in zip(found, places):
            assert all(math.isfinite(x) and x <= 0 for x in numbers) and len({*ids}) == len(ids)
            assert [min(float(place[i]), 0.0) for i in ids] == list(numbers)
            if way != "_logprobs":
                assert len(ids) == TOP_K and list(numbers) == sorted(numbers, reverse=True)
                assert min(numbers) >= max(
                    [min(float(v), 0.0) for i, v in place.items() if i not in ids], default=-math.inf
                )

    check()
    assert min(outcomes.values()) > 0, outcomes


CODINGS = {None: bytes, "gzip": gzip.compress, "deflate": zlib.compress}
bodies = st.one_of(values.map(json.dumps).map(str.encode), st.binary(max_size=30), st.text(max_size=9).map(str.encode))


@st.composite
def answers(draw):
    """(bytes of an answer, its body where it is one that must be read)."""
    body, coding = draw(bodies), draw(st.sampled_from([*CODINGS, "br"]))
    headers = {} if coding is None else {"Content-Encoding": coding}
    content = http(CODINGS.get(coding, bytes)(body), headers=headers)
    if draw(st.booleans()):
        return content, body if coding != "br" else None
    place = draw(st.integers(0, len(content) - 1))
    return draw(
        st.sampled_from([content[:place], content[:place] + draw(st.binary(max_size=3)) + content[place:]])
    ), b""


def test_bytes_of_a_server_are_read_or_named():
    outcomes = {"read": 0, "named": 0}

    @examples(40)
    @given(answers())
    @example((http("[" * 100_000), None))
    @example((http(b"1e999"), b"1e999"))
    def check(sent):
        answer, body = sent
        with Answers(answer) as server:
            connection = Wire(server.url, 0.05, 0.5, RemoteStats())
            try:
                found = connection.patiently(lambda: connection.send("GET", "/v1/models"))
            except TeacherServerError as error:
                outcomes["named"] += 1
                message = str(error)
                assert message.strip() and len(message.splitlines()) == 1 and message.encode()
                if body:
                    with pytest.raises((ValueError, RecursionError)):
                        json.loads(body)
                return
        outcomes["read"] += 1
        if body:
            assert json.dumps(found) == json.dumps(json.loads(body))

    check()
    assert min(outcomes.values()) > 0, outcomes
