"""A round in one request: how often a server is asked, and the route that our middleware gives it."""

import asyncio
import json
import math
import random
import sys
from types import SimpleNamespace

import httpx
import pytest
from starlette.applications import Starlette

from lupi_trainer.teachers.vllm_scores import PATH, Scores
from lupi_trainer.teachers.wire import TeacherServerError
from tests.teachers.test_vllm import LOOKED, connect, roll


ours = pytest.mark.parametrize("server", ["ours"], indirect=True)
BLOCK, TOP_K, VOCAB = 4, 3, 50


def test_a_round_is_one_request_and_a_block_one_prompt(server, student, tokenizer, prompts):
    remote = connect(server, tokenizer)
    requests, read = remote.stats.requests, remote.stats.prompts
    stats = roll(student, remote, prompts, gamma=6).stats
    requests, read = remote.stats.requests - requests, remote.stats.prompts - read
    assert requests == stats.teacher_requests
    look = len(LOOKED[server.scores]) + 1, 1 + 1 if server.scores else 1 + 1 + 4 + 1  # prompts of each way to ask
    if server.scores:
        assert (requests, read) == (look[0] + stats.rounds, look[1] + stats.blocks)
        assert requests / stats.committed < 0.3
    else:
        assert requests == look[0] + stats.blocks
        assert read > 2 * stats.blocks


def test_what_is_missing_is_said_once(server, tokenizer, caplog):
    connect(server, tokenizer)
    said = [record.message for record in caplog.records if "--middleware" in record.message]
    assert len(said) == (0 if server.scores else 1)
    assert all("--middleware lupi_trainer.teachers.vllm_scores.Scores is asked once a round" in line for line in said)


@ours
@pytest.mark.parametrize("model", ["the same", "another"])
def test_a_server_that_is_back_without_it(server, student, teacher, tokenizer, prompts, model):
    """It is asked as one that never had it, once it has been seen to be the same model."""
    remote = connect(server, tokenizer)

    def restart(block):
        server.scores = False
        server.model = teacher if model == "the same" else student.eval()

    if model == "another":
        with pytest.raises(TeacherServerError, match="another model answers"):
            roll(student, remote, prompts, on_block=restart, gamma=2)
        return
    rolled = roll(student, remote, prompts, on_block=restart, gamma=2)
    assert rolled.completion_ids == roll(student, teacher, prompts, gamma=2).completion_ids
    tried = ["looks of the server and the rollout", "", "its first round", "its second", "the look after that"]
    assert sum("counts" in body for body in server.requests) == len(tried)
    server.scores = True
    again = roll(student, remote, prompts, gamma=2)
    assert again.completion_ids == rolled.completion_ids
    assert again.stats.teacher_requests < rolled.stats.teacher_requests / 2, "what is there again is used again"


class Engine:
    """The part of vLLM's engine that the route asks, with a prefix cache of blocks of tokens.

    A token's log-probabilities are a function of the tokens up to it. `kind` says what is returned for tokens that
    came from the cache: of vLLM's first model runner places that were never written, of its second none.
    """

    def __init__(self, kind: str):
        self.kind, self.blocks, self.read, self.asked, self.aborted = kind, set(), [], [], 0
        self.waits: asyncio.Event | None = None

    @staticmethod
    def after(text: list[int]) -> list[tuple[int, float]]:
        draw = random.Random(str(text))
        ids = draw.sample(range(VOCAB), TOP_K)
        return list(zip(ids, sorted((math.log(draw.uniform(0.01, 0.3)) for _ in ids), reverse=True)))

    async def generate(self, prompt, params, request_id, *, lora_request=None):
        ids = prompt["prompt_token_ids"]
        if params.prompt_logprobs > TOP_K:
            raise ValueError(f"Requested prompt logprobs of {params.prompt_logprobs}, greater than max allowed: 3")
        if max(ids) >= VOCAB:
            raise ValueError(f"Token id {max(ids)} is out of vocabulary")
        self.asked.append((request_id, lora_request))
        if self.waits is not None:
            try:
                await self.waits.wait()
            except asyncio.CancelledError:
                self.aborted += 1
                raise
        cached = 0
        if not params.skip_reading_prefix_cache:
            while cached + BLOCK < len(ids) and tuple(ids[: cached + BLOCK]) in self.blocks:
                cached += BLOCK
        self.read.append(len(ids) - cached)
        self.blocks |= {tuple(ids[:end]) for end in range(BLOCK, len(ids) + 1, BLOCK)}
        places = [[]]  # nothing comes before the first token
        for n in range(1, len(ids)):
            if n > cached:
                places.append([(ids[n], -20.0), *self.after(ids[:n])])
            elif self.kind == "first":
                places.append([(7, float("nan"))] * (TOP_K + 1))
        flat = SimpleNamespace(start_indices=[], end_indices=[], token_ids=[], logprobs=[])
        for place in places:
            flat.start_indices.append(len(flat.token_ids))
            flat.token_ids += [token for token, _ in place]
            flat.logprobs += [value for _, value in place]
            flat.end_indices.append(len(flat.token_ids))
        yield SimpleNamespace(finished=True, prompt_logprobs=flat, num_cached_tokens=cached)


class Keyed:
    """As vLLM's own middleware that asks for a key, which comes after all others."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http" and scope["path"].startswith("/v1"):
            if dict(scope["headers"]).get(b"authorization") != b"Bearer secret":
                await send({"type": "http.response.start", "status": 401, "headers": []})
                return await send({"type": "http.response.body", "body": b""})
        await self.app(scope, receive, send)


@pytest.fixture(params=["first", "second"])
def served(request, monkeypatch):
    """An app as vLLM makes it, with an engine: `ask(body)` returns status and answer."""
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))
    app = Starlette()
    app.add_middleware(Keyed)
    app.add_middleware(Scores)
    app.state.engine_client = engine = Engine(request.param)
    models = SimpleNamespace(is_base_model=lambda name: name == "teacher", lora_requests={"adapter": "its weights"})
    app.state.openai_serving_models = models

    def ask(key="secret", **body):
        async def post():
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                headers = {"Authorization": f"Bearer {key}"}
                answer = await client.post(PATH, json={"model": "teacher", "logprobs": TOP_K, **body}, headers=headers)
                return answer.status_code, json.loads(answer.content or "null")

        return asyncio.run(post())

    return SimpleNamespace(app=app, engine=engine, ask=ask)


def expected(text, count):
    return [
        {str(i): value for i, value in Engine.after(text[:end])} for end in range(len(text) - count + 1, len(text) + 1)
    ]


def check(served, texts, counts):
    status, answer = served.ask(prompt=texts, counts=counts)
    assert status == 200
    assert [choice["index"] for choice in answer["choices"]] == list(range(len(texts)))
    found = [choice["logprobs"]["top_logprobs"] for choice in answer["choices"]]
    assert found == [expected(text, count) for text, count in zip(texts, counts)]


def test_only_what_is_new_is_read(served):
    """Rounds of growing texts, as an engine asks, some of whose tokens are replaced."""
    draw = random.Random(0)
    texts = [[draw.randrange(VOCAB) for _ in range(length)] for length in (9, 14, 30)]
    check(served, texts, [3, 1, 5])
    assert served.engine.read == [10, 15, 31]
    for _ in range(20):
        served.engine.read.clear()
        counts = [draw.randint(1, 6) for _ in texts]
        texts = [
            [*text[: len(text) - draw.randint(0, 1)], *draw.choices(range(VOCAB), k=c)]
            for text, c in zip(texts, counts)
        ]
        check(served, texts, counts)
        assert all(read <= count + BLOCK + 2 for read, count in zip(served.engine.read, counts))


def test_what_was_read_before_is_read_again(served):
    """A cache that has the places that are asked about has not their log-probabilities."""
    text = list(range(1, 18))
    for count in (1, 4, 17, 2):
        check(served, [text], [count])
    check(served, [text, text, text[:9]], [3, 17, 9])


def test_places_that_a_preempted_prompt_has_lost_are_asked_for_again(served):
    """vLLM's second model runner forgets what it had when it lets another prompt go first."""
    generate, lost = served.engine.generate, []

    async def preempted(*args, **options):
        async for output in generate(*args, **options):
            if not lost:
                lost.append(output)
                flat = output.prompt_logprobs
                del flat.start_indices[1:-2], flat.end_indices[1:-2]
            yield output

    served.engine.generate = preempted
    check(served, [[1, 2, 3, 4, 5, 6]], [4])
    assert len(served.engine.read) == 2


def test_who_may_ask_and_what(served):
    text = [1, 2, 3, 4, 5]
    assert served.ask(key="wrong", prompt=[text], counts=[2])[0] == 401 and not served.engine.asked
    status, answer = served.ask(model="adapter", prompt=[text], counts=[2])
    assert status == 200 and served.engine.asked[-1][1] == "its weights"
    assert len({name for name, _ in served.engine.asked}) == len(served.engine.asked)
    assert served.ask(model="nobody", prompt=[text], counts=[2])[0] == 404
    for wrong, message in (
        ({"prompt": [text], "counts": [2], "logprobs": 4}, "greater than max allowed: 3"),
        ({"prompt": [[99]], "counts": [1]}, "99 is out of vocabulary"),
        ({"prompt": [text], "counts": [6]}, "6 places of a text of 5 tokens"),
        ({"prompt": [text], "counts": [0]}, "0 places of a text"),
        ({"prompt": [text], "counts": []}, "argument 2 is shorter"),
        ({"prompt": [[]], "counts": [1]}, "IndexError"),
        ({"prompt": 3, "counts": [1]}, "TypeError"),
        ({"counts": [1]}, "KeyError"),
    ):
        status, answer = served.ask(**wrong)
        assert status == 400 and message in answer["error"]["message"], (wrong, answer)


def test_numbers_that_are_none_pass(served, monkeypatch):
    monkeypatch.setattr(Engine, "after", staticmethod(lambda text: [(i, float("nan")) for i in range(TOP_K)]))
    status, answer = served.ask(prompt=[[1, 2]], counts=[1])
    assert status == 200 and all(math.isnan(v) for v in answer["choices"][0]["logprobs"]["top_logprobs"][0].values())


def test_work_ends_where_nobody_waits_for_it(served):
    async def leave():
        served.engine.waits = asyncio.Event()
        body = json.dumps({"model": "teacher", "prompt": [[1, 2], [3, 4]], "counts": [1, 1], "logprobs": 3}).encode()
        messages = [{"type": "http.request", "body": body}]

        async def receive():
            if messages:
                return messages.pop()
            while len(served.engine.asked) < 2:
                await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}

        async def send(message):
            pass

        scope = {"type": "http", "method": "POST", "path": PATH, "headers": [(b"authorization", b"Bearer secret")]}
        await asyncio.wait_for(served.app(scope | {"query_string": b"", "root_path": ""}, receive, send), 20)
        await asyncio.sleep(0.05)

    asyncio.run(leave())
    assert served.engine.aborted == 2


def test_the_middleware_passes_on_what_is_not_for_it():
    """Also several requests at the same time, of which the first adds the route."""
    app = Starlette()
    app.add_middleware(Scores)

    async def get():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return [answer.status_code for answer in await asyncio.gather(*(client.get(PATH) for _ in range(4)))]

    assert asyncio.run(get()) == [405] * 4
    assert [route.path for route in app.routes] == [PATH]
