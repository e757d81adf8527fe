"""A teacher on a server: the same text as with the teacher here, whatever happens on the way."""

import copy
import threading
import time

import pytest
import torch

from lupi_trainer import TeacherServer
from lupi_trainer.lupi_skd.health import errors_named
from lupi_trainer.speculative import AcceptNone, TopK, skd_rollout
from lupi_trainer.teachers.wire import OneTextFails, TeacherServerError, check_url
from tests.teachers.conftest import ROWS
from tests.teachers.vllm_stand_in import Refused, VLLMStandIn


LIMIT = 24
LOOKED = {False: [None] * 4, True: [None] * 2}  # the requests that a rollout begins with, to see who answers


stock = pytest.mark.parametrize("server", ["stock"], indirect=True)  # which is asked about each row by itself


def connect(server, tokenizer, **options):
    return TeacherServer(server.url, tokenizer, **{"timeout": 30.0, "request_timeout": 30.0, **options})


def roll(student, teacher, prompts, **options):
    options = {"max_new_tokens": LIMIT, "gamma": 5, "eos_token_id": 2, "acceptance": TopK(5, 0.05), **options}
    return skd_rollout(student, teacher, *prompts, **options)


def test_the_text_is_the_local_teachers(server, student, teacher, tokenizer, prompts):
    remote = connect(server, tokenizer)
    server.requests.clear()
    for options in ({"gamma": 3}, {"gamma": 20, "max_slots": 4}, {"gamma": 4, "verification": "sequential"}):
        ours, theirs = roll(student, remote, prompts, **options), roll(student, teacher, prompts, **options)
        assert ours.completion_ids == theirs.completion_ids
        assert ours.from_teacher == theirs.from_teacher
        assert 0.2 < sum(map(sum, ours.from_teacher)) / sum(map(len, ours.from_teacher)) < 0.9
    unread = prompts[0], prompts[0]  # short texts
    assert roll(student, remote, unread).completion_ids == roll(student, teacher, unread).completion_ids
    ways = {"prompt_logprobs" if "prompt_logprobs" in body else "logprobs" for body in server.requests}
    others = set() if server.scores else {"prompt_logprobs"}
    assert ways == {"logprobs"} | others, "both ways of asking must have been tried"
    assert all(isinstance(body["prompt"][0], int | list) for body in server.requests), "token ids, never text"


@stock
def test_what_a_server_cuts_beside_anothers_question_is_asked_in_the_other_way(server, student, tokenizer, prompts):
    """vLLM returns two tokens to those whom it reads together with a question for tokens by their ids."""
    whole, sampled = roll(student, connect(server, tokenizer), prompts), server._sampled
    cuts = []

    def cut(row, body):
        answer = sampled(row, body)
        if not body.get("logprob_token_ids") and len(server.requests) % 3 < 2:
            cuts.append(answer["top_logprobs"][0])
            answer["top_logprobs"] = [dict(list(cuts[-1].items())[:2])]
        return answer

    server._sampled = cut
    remote = connect(server, tokenizer)
    assert roll(student, remote, prompts).completion_ids == whole.completion_ids
    assert remote.stats.retries == 0 and len(cuts) > 20


@stock
def test_a_server_that_is_back_is_looked_at_once(server, student, tokenizer, prompts):
    """Not by every row that waits for it: their looks would be read together."""
    remote, looks = connect(server, tokenizer), []
    check = remote._check_same
    remote._check_same = lambda: [looks.append(threading.get_ident()), check()]
    server.faults = [503] * ROWS
    server.together = None
    with remote._looking:  # until all wait
        rows = threading.Thread(target=remote.score, args=([[3, 4, 5]] * ROWS, [1] * ROWS))
        rows.start()
        deadline = time.monotonic() + 20
        while remote.stats.retries < ROWS and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.6)  # the first pause
    rows.join(20)
    assert remote.stats.retries == ROWS and len(looks) == 1


@stock
def test_rows_are_asked_about_at_the_same_time(server, student, tokenizer, prompts):
    remote = connect(server, tokenizer, timeout=60.0, request_timeout=60.0)
    remote.begin = lambda: None
    server.together = threading.Barrier(ROWS, timeout=20)
    roll(student, remote, prompts, max_new_tokens=5)  # one block, so that every row is in every round
    assert not server.together.broken, "a request was sent only after another was answered"


@pytest.mark.parametrize("top_k, acceptance", [(1, TopK(1, 0.0)), (2, TopK(1, 0.9)), (20, AcceptNone())])
@pytest.mark.grid(3)
def test_replacements_from_a_warm_teacher(server, student, teacher, tokenizer, prompts, top_k, acceptance):
    """Few returned tokens and much to replace: those that were not returned are asked for when they could win."""
    remote = connect(server, tokenizer, top_k=top_k)
    options = {"acceptance": acceptance, "teacher_temperature": 1.8, "max_new_tokens": 12}
    assert (
        roll(student, remote, prompts, **options).completion_ids
        == roll(student, teacher, prompts, **options).completion_ids
    )
    assert remote.stats.asked_tokens > 0


@pytest.mark.parametrize("faults", [[503, 503], ["drop"], ["hang"], [429, "drop", 502]], ids=str)
@pytest.mark.grid(2)
def test_a_server_that_stumbles_changes_nothing(server, student, teacher, tokenizer, prompts, faults):
    remote = connect(server, tokenizer, request_timeout=0.5)
    server.faults = [*LOOKED[server.scores], *faults]
    ours = roll(student, remote, prompts)
    assert not server.faults and remote.stats.retries >= 1
    assert ours.completion_ids == roll(student, teacher, prompts).completion_ids


def test_a_restart_in_the_middle_changes_nothing(server, student, teacher, tokenizer, prompts):
    remote = connect(server, tokenizer)
    again = []

    def restart(block):
        if not again:
            server.stop()
            again.append(None)
            like = {"port": server.port, "scores": server.scores}
            threading.Timer(0.6, lambda: again.append(VLLMStandIn(server.model, tokenizer, **like))).start()

    ours = roll(student, remote, prompts, on_block=restart, gamma=2)
    assert again[1].requests and remote.stats.retries >= 1
    again[1].stop()
    assert ours.completion_ids == roll(student, teacher, prompts, gamma=2).completion_ids


@pytest.mark.parametrize("when", ["between rollouts", "in one"])
def test_another_model_after_a_restart_is_noticed(server, student, tokenizer, prompts, when):
    remote = connect(server, tokenizer)

    def restart(_=None):
        server.model = copy.deepcopy(student).eval()
        server.faults = ["drop"] if when == "in one" else []

    if when == "between rollouts":
        restart()
    with pytest.raises(TeacherServerError, match="another model answers.*its probabilities are not those"):
        roll(student, remote, prompts, on_block=restart if when == "in one" else None)


@pytest.mark.parametrize(
    "fault, message",
    [
        ("nan", "nan as a log-probability: the served model computes NaN"),
        (500, "fails at this text again and again: HTTP 500"),
    ],
)
def test_what_one_text_breaks_is_named_with_its_row(server, student, tokenizer, prompts, fault, message, monkeypatch):
    monkeypatch.setattr("lupi_trainer.teachers.wire._FIRST_PAUSE", 1e-3)
    remote = connect(server, tokenizer)
    knowledge = prompts[1][4]

    def change(scores, body):
        texts = body["prompt"] if isinstance(body["prompt"][0], list) else [body["prompt"]]
        if texts[0][: len(knowledge)] != knowledge:
            return scores
        if fault == 500:
            raise Refused(500, "engine")
        return scores * float("nan")

    server.change = change
    with pytest.raises(OneTextFails, match=message) as error:
        roll(student, remote, prompts, max_slots=3)
    assert error.value.row == 4 and remote.stats.retries <= (8 if server.scores else 4)  # together, then by itself
    with (
        pytest.raises(TeacherServerError, match="^record 'e': .*" + message),
        errors_named([{"id": i} for i in "abcdef"]),
    ):
        roll(student, remote, prompts)


@stock
def test_when_one_question_fails_for_good_nobody_asks_the_others_again(server, student, tokenizer, prompts):
    """A process ends when its threads have: it would hang for `timeout` seconds after its error."""
    remote = connect(server, tokenizer, timeout=600.0)
    refused = set()

    def change(scores, body):
        text = body["prompt"][0] if isinstance(body["prompt"][0], list) else body["prompt"]
        row = next((i for i, prompt in enumerate(prompts[1]) if text[: len(prompt)] == prompt), None)
        if row is None:  # a look at who answers
            return scores
        if row == 4 and len(refused) == ROWS:
            return scores * float("nan")
        refused.add(row)
        raise Refused(503, "busy")

    server.change = change
    with pytest.raises(OneTextFails, match="nan as a log-probability") as error:
        roll(student, remote, prompts)
    assert error.value.row == 4
    end = threading.Thread(target=remote._pool.shutdown, daemon=True)
    end.start()
    end.join(20)
    assert not end.is_alive() and remote.stats.retries > 0


def test_a_server_that_is_gone_ends_the_rollout(server, student, tokenizer, prompts):
    remote = connect(server, tokenizer, timeout=1.0)
    server.stop()
    with pytest.raises(TeacherServerError, match=r"has not answered for .* seconds \(teacher_server_timeout=1\)"):
        roll(student, remote, prompts)


@pytest.mark.parametrize("fault, match", [("garbage", "in JSON: is it a vLLM"), ("empty", "not answer as a vLLM")])
def test_strange_answers_are_asked_for_again_and_then_named(
    server, student, teacher, tokenizer, prompts, fault, match, monkeypatch
):
    monkeypatch.setattr("lupi_trainer.teachers.wire._FIRST_PAUSE", 1e-3)
    remote = connect(server, tokenizer)
    server.faults = [*LOOKED[server.scores], fault]
    assert roll(student, remote, prompts).completion_ids == roll(student, teacher, prompts).completion_ids
    assert remote.stats.retries == 1
    server.faults = [*LOOKED[server.scores], *[fault] * 100]
    with pytest.raises(TeacherServerError, match=match):
        roll(student, remote, prompts)


def first(choice: dict, way: str) -> dict:
    """Of a choice, where the ids and numbers of its first place are."""
    return choice["prompt_logprobs"][-1] if way == "_by_prompt" else choice["logprobs"]["top_logprobs"][0]


def set_value(value):
    def change(choices: list, way: str) -> None:
        place = first(choices[0], way)
        name = next(iter(place))
        place[name] = {"logprob": value} if way == "_by_prompt" else value

    return change


def rename(name: str, keep: bool = False):
    def change(choices: list, way: str) -> None:
        place = first(choices[0], way)
        old = next(iter(place))
        place[name.format(old.removeprefix("token_id:"))] = place[old] if keep else place.pop(old)

    return change


def set_index(value):
    return lambda choices, way: choices[0].update(index=value)


WRONG = {
    "NaN": (set_value(float("nan")), "nan as a log-probability"),
    "infinite": (set_value(float("inf")), "inf as a log-probability"),
    "no probability at all": (set_value(-float("inf")), "-inf as a log-probability"),
    "above 0": (set_value(0.5), "0.5 as a log-probability"),
    "together above 1": (lambda choices, way: [set_value(0)(choices, way), rename("7", True)(choices, way)], "sum to"),
    "null": (set_value(None), "'None' is not a number"),
    "text": (set_value("-1.0"), "'-1.0' is not a number"),
    "a switch": (set_value(False), "'False' is not a number"),
    "a list": (set_value([-1.0]), "is not a number"),
    "too long a number": (set_value(-(10**400)), "OverflowError"),
    "a negative id": (rename("-3"), "'-3' is not the id of a token"),
    "an id with a space": (rename(" 3"), "' 3' is not the id of a token"),
    "an id that no tensor holds": (rename("9" * 30), "is not the id of a token"),
    "an id twice": (rename("0{}", keep=True), "is there twice"),
    "an index too large": (set_index(9), "KeyError"),
    "an index of another type": (set_index("0"), "choices for"),
    "an index that is a switch": (set_index(False), "choices for"),
    "no index": (lambda choices, way: choices[0].pop("index"), "KeyError"),
    "one choice too few": (lambda choices, way: choices.pop(), "choices for"),
    "one choice twice": (lambda choices, way: choices.append(choices[0]), "choices for"),
    "no choice": (lambda choices, way: choices.clear(), "choices for"),
    "text for a choice": (lambda choices, way: choices.__setitem__(0, "x"), "TypeError"),
}
OF_ONE_WAY = {
    "_by_prefixes": {
        "fewer than asked for": (lambda choices, way: first(choices[0], way).popitem(), "19 of the 20"),
        "two tokens": (lambda choices, way: choices[0]["logprobs"]["top_logprobs"].append({}), "too many values"),
    },
    "_by_prompt": {"a part": (lambda choices, way: choices[0]["prompt_logprobs"].pop(1), "places for a prompt")},
    "_logprobs": {
        "other ids": (lambda choices, way: first(choices[0], way).pop("token_id:4"), "does not know logprob")
    },
    "_by_round": {
        "fewer than asked for": (lambda choices, way: first(choices[0], way).popitem(), "19 of the 20"),
        "a place too few": (lambda choices, way: choices[0]["logprobs"]["top_logprobs"].pop(), "places where"),
    },
}


@pytest.mark.parametrize(
    "server, way",
    [("stock", "_by_prompt"), ("stock", "_by_prefixes"), ("stock", "_logprobs"), ("ours", "_by_round")],
    indirect=["server"],
)
@pytest.mark.grid(4)
def test_every_number_of_every_answer_is_checked(server, tokenizer, prompts, monkeypatch, way):
    monkeypatch.setattr("lupi_trainer.teachers.wire._FIRST_PAUSE", 1e-4)
    monkeypatch.setattr(TeacherServer, "_look", lambda self: [])
    answers = "score" if way == "_by_round" else "complete"
    remote, text, complete = connect(server, tokenizer), prompts[1][0], getattr(server, answers)
    remote._check_same = lambda: None
    remote._takes_rounds = server.scores

    def ask():
        if way == "_by_round":
            return remote.score([text], [2])
        return remote.logprobs([text], [[4]]) if way == "_logprobs" else remote._all(getattr(remote, way), [text], [2])

    right = ask()
    for name, (change, message) in (WRONG | OF_ONE_WAY[way]).items():

        def lie(body, change=change):
            answer = complete(body)
            answer["choices"].sort(key=lambda choice: choice["index"])
            change(answer["choices"], way)
            return answer

        setattr(server, answers, lie)
        with pytest.raises(TeacherServerError, match=message):
            raise AssertionError(f"{name}: {ask()}")
        setattr(server, answers, complete)
    assert ask() == right


def test_nan_is_named(server, student, tokenizer, prompts):
    remote = connect(server, tokenizer)
    server.change = lambda scores, body: scores * float("nan")
    with pytest.raises(TeacherServerError, match="nan as a log-probability: the served model computes NaN"):
        roll(student, remote, prompts)


def test_it_waits_for_a_server_that_is_not_up_yet(server, teacher, tokenizer):
    server.stop()
    later = []
    threading.Timer(0.7, lambda: later.append(VLLMStandIn(teacher, tokenizer, port=server.port))).start()
    assert connect(server, tokenizer).name == "teacher"
    later[0].stop()


def test_what_is_wrong_with_a_server_is_said_when_it_is_connected(server, student, tokenizer, monkeypatch):
    def refused(match, tokenizer=tokenizer, **options):
        with pytest.raises(TeacherServerError, match=match):
            connect(server, tokenizer, **options)

    refused("serves teacher, and the teacher is Qwen/Qwen3-32B", model="Qwen/Qwen3-32B")
    refused("max allowed: 20.* --max-logprobs 30", top_k=30)
    server.names = ["teacher", "adapter"]
    refused("serves teacher, adapter, and the teacher is not named")
    assert connect(server, tokenizer, model="adapter").name == "adapter"
    server.names = ["teacher"]

    larger = copy.deepcopy(tokenizer)
    larger.add_tokens(["<new>"])
    refused("569 tokens, more than the teacher knows|another tokenizer", tokenizer=larger)
    from tests.models.families import train_tokenizer

    refused("another tokenizer than the student", tokenizer=train_tokenizer(["another text entirely"] * 3))

    server.change = lambda scores, body: scores / 0.7 if "logprobs" in body else scores
    refused("other probabilities as prompt_logprobs than as logprobs")
    server.change, server.key = None, "secret"
    refused("set VLLM_API_KEY")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert connect(server, tokenizer).name == "teacher"
    assert connect(server, tokenizer, model="/elsewhere/teacher").name == "teacher"


def test_nobody_there(tokenizer):
    with pytest.raises(TeacherServerError, match="127.0.0.1:9 has not answered"):
        TeacherServer("http://127.0.0.1:9", tokenizer, timeout=0.5)


def test_addresses():
    assert check_url("http://host:8000/v1/") == "http://host:8000"
    for url in ("host:8000", "ftp://host", "http://", 8000):
        with pytest.raises(ValueError, match="like http://host:8000"):
            check_url(url)
    for url in ("http://user:hunter2@host:8000", "http://host:8000/?key=hunter2", "user:hunter2@host:8000"):
        with pytest.raises(ValueError, match="must not hold a password, a key") as error:
            check_url(url)
        assert "hunter2" not in str(error.value)


def test_texts_too_long_for_the_server_are_named(teacher, tokenizer, student, prompts):
    with VLLMStandIn(teacher, tokenizer, max_model_len=128) as server:
        remote = connect(server, tokenizer)
        with pytest.raises(ValueError, match="teacher prompt 0 has .* beyond the teacher's 127 positions"):
            roll(student, remote, prompts, max_new_tokens=100)
        longest = max(map(len, prompts[1]))
        rollout = roll(student, remote, prompts, max_new_tokens=127 - longest, eos_token_id=None)
        assert {len(row) for row in rollout.completion_ids} == {127 - longest}


def test_top_probabilities_equal_transformers(server, teacher, tokenizer, prompts):
    remote = connect(server, tokenizer)
    text = prompts[1][0]
    with torch.no_grad():
        expected = teacher(torch.tensor([text])).logits[0].log_softmax(-1)[-8:].topk(20)
    ways = [remote._by_prompt, remote._by_prefixes]
    ways += [lambda *row: remote._by_round(*([part] for part in row))[0]] if server.scores else []
    for count in (1, 8):
        for by in ways:
            for (ids, values), row, top in zip(by(text, count), expected.indices[-count:], expected.values[-count:]):
                assert ids == row.tolist()
                torch.testing.assert_close(torch.tensor(values), top, atol=1e-4, rtol=0)
