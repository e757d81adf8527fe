"""The teacher on a real vLLM server against the same teacher here (`make test-vllm`)."""

import json
import signal
import threading
import time

import httpx
import pytest
import torch

from lupi_trainer import TeacherServer
from lupi_trainer.data.prompts import TeacherPrompt, encode
from lupi_trainer.lab import load_lab_records, world
from lupi_trainer.speculative import TopK, skd_rollout
from lupi_trainer.speculative.rules.noise import STUDENT, TEACHER, gumbel, row_keys
from lupi_trainer.teachers.wire import TeacherServerError
from tests.lupi_skd.training import make_trainer
from tests.vllm.server import Server


pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1800)]

PROMPTS, LIMIT, TEMPERATURE, RULE = 200, 40, 0.7, TopK(5, 0.05)
TIE = 1e-3  # in logits, probabilities or noisy scores: closer than this, rounding decides


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("vllm") / "server.log").wait()
    yield server
    server.stop()
    with pytest.raises(httpx.TransportError):
        httpx.get(server.url + "/health", timeout=2)


@pytest.fixture
def prompts(tokenizer):
    """200 of the lab's questions, with knowledge and without."""
    records = load_lab_records("lab:mixed")
    records = records[:: len(records) // PROMPTS][:PROMPTS]
    prompt = TeacherPrompt(world.PERSONA)
    asked = [[{"role": "user", "content": r["query"]}] for r in records]
    informed = [prompt.messages(q, r["knowledge"]) for q, r in zip(asked, records)]
    assert len(records) == PROMPTS and 20 < sum(r["knowledge"] is None for r in records) < 180
    return encode(tokenizer, asked), encode(tokenizer, informed)


def roll(student, teacher, prompts, **options):
    started = time.perf_counter()
    options = {"max_new_tokens": LIMIT, "gamma": 10, "eos_token_id": 2, "acceptance": RULE, "max_slots": 32, **options}
    return skd_rollout(student, teacher, *prompts, **options), time.perf_counter() - started


@torch.no_grad()
def how_close(student, teacher, prompts, row, at, text):
    """The smallest of the margins by which the local models decided place `at` of a row."""
    s, t = (m(torch.tensor([p[row] + text[:at]])).logits[0, -1] for m, p in zip((student, teacher), prompts))
    key, place = row_keys(0, [row]), torch.tensor([at])
    student_scores, teacher_scores = (
        (x / TEMPERATURE + gumbel(key, place, who, len(x))[0]).topk(2) for x, who in ((s, STUDENT), (t, TEACHER))
    )
    draft = int(student_scores.indices[0])
    ordered = t.sort(descending=True).values
    margins = {
        "student's draw": student_scores.values.diff().abs().item(),
        "teacher's draw": teacher_scores.values.diff().abs().item(),
        "top k": min((t[draft] - ordered[i]).abs().item() for i in (RULE.k - 1, RULE.k) if t[draft] != ordered[i]),
        "min_prob": ((t / TEMPERATURE).softmax(-1)[draft] - RULE.min_prob).abs().item(),
    }
    return min(margins.items(), key=lambda item: item[1])


@pytest.mark.parametrize("top_k, middleware", [(20, True), (568, True), (20, False)])
def test_the_same_tokens_are_accepted_for_200_prompts(
    served, student, teacher, tokenizer, prompts, top_k, middleware, monkeypatch
):
    if not middleware:  # asks for a route that no server has
        monkeypatch.setattr("lupi_trainer.teachers.vllm.PATH", "/v1/none")
    remote = TeacherServer(served.url, tokenizer, top_k=top_k, timeout=60)
    before = remote.stats.prompts
    theirs, local_seconds = roll(student, teacher, prompts)
    ours, seconds = roll(student, remote, prompts)
    ties = []
    for row in range(PROMPTS):
        a, b = (list(zip(r.completion_ids[row], r.from_teacher[row])) for r in (ours, theirs))
        if a != b:
            at = next(i for i, pair in enumerate(zip([*a, None], [*b, None])) if pair[0] != pair[1])
            what, margin = how_close(student, teacher, prompts, row, at, theirs.completion_ids[row])
            ties.append({"row": row, "place": at, "server": a[at : at + 1], "here": b[at : at + 1], what: margin})
    tokens = sum(map(len, theirs.completion_ids))
    figures = {
        "top_k": top_k,
        "middleware": middleware,
        "prompts": PROMPTS,
        "rows equal": PROMPTS - len(ties),
        "tokens": tokens,
        "accepted, server": ours.stats.accepted,
        "accepted, here": theirs.stats.accepted,
        "teacher's share": round(sum(map(sum, theirs.from_teacher)) / tokens, 3),
        "requests": ours.stats.teacher_requests,
        "requests a committed token": round(ours.stats.teacher_requests / ours.stats.committed, 3),
        "prompts a committed token": round((remote.stats.prompts - before) / ours.stats.committed, 3),
        "asked_tokens": remote.stats.asked_tokens,
        "normalizer_error": remote.stats.normalizer_error,
        "seconds, server": round(seconds, 1),
        "seconds, here": round(local_seconds, 1),
    }
    print("\n" + json.dumps(figures, indent=1))
    print("ties:", json.dumps(ties, indent=1))
    if middleware:
        assert ours.stats.teacher_requests == ours.stats.rounds + 3  # and the look at who answers
        assert remote.stats.prompts - before == ours.stats.blocks + 2
    assert tokens > 2000 and 0.1 < figures["teacher's share"] < 0.8
    assert len(ties) < PROMPTS // 20, "ties are rare"
    assert all(list(tie.values())[-1] < TIE for tie in ties), "what differs must be a tie"
    if not ties:
        assert (ours.stats.accepted, ours.stats.drafted) == (theirs.stats.accepted, theirs.stats.drafted)


def test_all_ways_of_asking_agree_and_cost(served, tokenizer):
    """8 rows, 20 drafted tokens, the third round of a growing text: what the choice between them rests on.

    In a round, prompts come from the server's cache, in blocks of 128 tokens, and once all of the text does.
    """
    remote = TeacherServer(served.url, tokenizer)
    for length in (60, 120, 450):
        texts = [
            torch.randint(5, 500, (length,), generator=torch.Generator().manual_seed(i)).tolist() for i in range(8)
        ]
        seconds, answers = {}, {}
        for _ in range(3):
            texts = [text + [9, 8, 7] for text in texts]
            ways = {
                "a round": lambda *rows: remote._by_round(*rows),
                "by prompt": lambda *rows: remote._all(remote._by_prompt, *rows),
                "by prefixes": lambda *rows: remote._all(remote._by_prefixes, *rows),
                "a round again": lambda *rows: remote._by_round(*rows),
            }
            for name, way in ways.items():
                started = time.perf_counter()
                answers[name] = way(texts, [20] * 8)
                seconds[name] = round(time.perf_counter() - started, 3)
        print(f"\ntexts of {length} tokens, seconds: {seconds}")
        for name in ("a round", "by prefixes", "a round again"):
            for a, b in zip(sum(answers["by prompt"], []), sum(answers[name], [])):
                first, second = dict(zip(*a)), dict(zip(*b))
                assert all(abs(first[token] - second[token]) < 1e-3 for token in first.keys() & second.keys())
                assert len(first.keys() & second.keys()) >= 19  # the last may be a tie


def test_replacements_beyond_what_is_returned(served, student, teacher, tokenizer, prompts):
    """A warm teacher and three returned tokens: what wins besides is asked for, and is what it would be here."""
    few = [column[:24] for column in prompts]
    remote = TeacherServer(served.url, tokenizer, top_k=3)
    options = {"teacher_temperature": 1.6, "acceptance": TopK(2, 0.0), "max_new_tokens": 16}
    ours, theirs = (roll(student, by, few, **options)[0] for by in (remote, teacher))
    equal = sum(a == b for a, b in zip(ours.completion_ids, theirs.completion_ids))
    print(f"\nwarm teacher, 3 tokens returned: {equal} of 24 rows equal, {remote.stats.asked_tokens} tokens asked for")
    assert equal >= 23 and remote.stats.asked_tokens > 10


def test_training_has_the_losses_of_the_teacher_here(served, tmp_path):
    logs = []
    for name, options in (
        ("here", {}),
        ("served", {"teacher_model": None, "config_teacher_model_server_url": served.url, "config_loss_top_k": 568}),
    ):
        trainer, losses = make_trainer(tmp_path / name, **options)
        trainer.train()
        logs.append(losses.losses)
    print(f"\nlosses here {logs[0]}, served {logs[1]}")
    assert logs[1] == pytest.approx(logs[0], abs=1e-3)


@pytest.mark.parametrize("comes_back", ["lab:teacher", "lab:student"])
def test_killed_in_the_middle(tmp_path, student, teacher, tokenizer, prompts, comes_back):
    """The same server back: the same text. Another model behind the same name and address: an error."""
    few = [column[:16] for column in prompts]
    first = Server(tmp_path / "first.log").wait()
    servers = [first]

    def kill(block):
        if len(servers) == 1:
            first.stop(signal.SIGKILL)
            servers.append(Server(tmp_path / "second.log", comes_back, port=first.port))

    try:
        remote = TeacherServer(first.url, tokenizer, timeout=240, request_timeout=20)
        if comes_back == "lab:teacher":
            ours = roll(student, remote, few, on_block=kill, gamma=3)[0]
            assert remote.stats.retries > 0
            assert ours.completion_ids == roll(student, teacher, few, gamma=3)[0].completion_ids
            print(f"\nkilled and back: {remote.stats.retries} retries, the same text")
        else:
            with pytest.raises(TeacherServerError, match="another model answers"):
                roll(student, remote, few, on_block=kill, gamma=3)
    finally:
        for server in servers:
            server.stop()
        assert threading.active_count() < 100


def test_a_store_s_texts_are_written_by_the_server_alone(served, teacher, tokenizer, prompts):
    """All at the same time; what it says of each place is what the same teacher says here."""
    server, asked = TeacherServer(served.url, tokenizer, top_k=20), prompts[1][:32]
    options: dict = {"max_new_tokens": LIMIT, "temperature": 2.0}  # at which the lab's teacher is not sure
    found = server.write(asked, list(range(32)), [tokenizer.eos_token_id], **options)
    for prompt, (ids, places) in zip(asked, found):
        assert len(ids) == len(places) <= LIMIT and (len(ids) == LIMIT or ids[-1] == tokenizer.eos_token_id)
        with torch.no_grad():
            logits = teacher(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1].float()
        log_probs = logits.log_softmax(-1)
        for row, (top, values) in zip(log_probs, places):
            assert len(top) == 20
            torch.testing.assert_close(torch.tensor(values), row[torch.tensor(top)], atol=1e-3, rtol=0)
            torch.testing.assert_close(torch.tensor(values), row.topk(20).values, atol=1e-3, rtol=0)
    others = server.write(asked, list(range(100, 132)), [tokenizer.eos_token_id], **options)
    assert sum(a[0] != b[0] for a, b in zip(found, others)) > 24
    again = server.write(asked, list(range(32)), [tokenizer.eos_token_id], **options)
    assert sum(a[0] == b[0] for a, b in zip(found, again)) > 24  # but for rounding, in other batches
