"""What follows the last tokens of many texts, in one request: a route for a vLLM server.

`vllm serve MODEL --middleware lupi_trainer.teachers.vllm_scores.Scores` loads it into the server, whose Python must
find this package; only vLLM and what it brings along are imported with it. By itself vLLM (0.20 to 0.32) returns
`prompt_logprobs` for all tokens of a prompt or none, and reads all of it anew for them. Here only those of a block are
wanted, whose tokens come after all that is in the prefix cache.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any


PATH = "/v1/lupi/scores"  # below `/v1`, for which a server wants its key


class Scores:
    """An ASGI middleware that gives its app the route `PATH`, and passes on every request.

    Its request is `{"model": name, "prompt": [[token id]], "counts": [int], "logprobs": top_k}`, its answer that of
    `/v1/completions`, where the n-th choice has as many places as the n-th count: what may follow each of the last
    tokens of the n-th prompt, natural log-probabilities by token id, the likeliest `top_k`, falling.

    Args:
        app: the server's.

    Example:

    ```python
    >>> from lupi_trainer.teachers.vllm_scores import Scores

    >>> print(f"vllm serve MODEL --middleware {Scores.__module__}.{Scores.__name__}")
    vllm serve MODEL --middleware lupi_trainer.teachers.vllm_scores.Scores
    ```
    """

    def __init__(self, app):
        self.app, self.added = app, False

    async def __call__(self, scope, receive, send) -> None:
        if not self.added:
            from starlette.routing import Route

            # not answered from here: what asks for the server's key comes after this middleware, and before routes
            scope["app"].router.routes.append(Route(PATH, _answer, methods=["POST"]))
            self.added = True
        await self.app(scope, receive, send)


async def _answer(request):
    """The route."""
    from starlette.responses import Response

    def reply(content: dict, status: int = 200) -> Response:
        # NaN, which is no JSON, passes: who asked names the text
        return Response(json.dumps(content), status, media_type="application/json")

    def refuse(message: str, status: int) -> Response:
        return reply({"error": {"message": message}}, status)

    state = request.app.state
    try:
        body = await request.json()
        models, name, top_k = state.openai_serving_models, body["model"], body["logprobs"]
        adapter = None if models.is_base_model(name) else models.lora_requests.get(name)
        if adapter is None and not models.is_base_model(name):
            return refuse(f"The model `{name}` does not exist.", 404)
        rows = zip(body["prompt"], body["counts"], strict=True)
        places = await _while_there(
            request, asyncio.gather(*(_row(state.engine_client, *row, top_k, adapter) for row in rows))
        )
    except (ValueError, KeyError, TypeError, IndexError) as error:
        return refuse(f"{type(error).__name__}: {error}", 400)
    if places is None:
        return refuse("nobody waits for it", 499)
    return reply({"choices": [{"index": i, "logprobs": {"top_logprobs": row}} for i, row in enumerate(places)]})


async def _while_there(request, work: asyncio.Future) -> Any:
    """The result of `work`; where who asks has gone, it is ended and `None` comes back."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    leaving = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return await work if work.done() else None
    finally:
        work.cancel()
        leaving.cancel()


async def _row(engine, text: list[int], count: int, top_k: int, adapter) -> list[dict[str, float]]:
    """The likeliest `top_k` after each of the last `count` tokens of a text."""
    prompt = [*text, text[-1]]  # the last token of a prompt is not looked at, only what might have been there
    first = len(text) - count  # the first token after which is asked
    places, cached = await _prompt_logprobs(engine, prompt, top_k, adapter, from_cache=True)
    if cached > first or len(places.start_indices) <= count:  # these very tokens have been read before
        places, _ = await _prompt_logprobs(engine, prompt, top_k, adapter, from_cache=False)
    if not 0 < count < len(places.start_indices):
        raise ValueError(f"{count} places of a text of {len(text)} tokens")
    # the first of a place is the prompt's own token
    spans = [slice(a + 1, b) for a, b in zip(places.start_indices[-count:], places.end_indices[-count:])]
    return [{str(i): value for i, value in zip(places.token_ids[at], places.logprobs[at])} for at in spans]


async def _prompt_logprobs(engine, prompt: list[int], top_k: int, adapter, from_cache: bool) -> tuple[Any, int]:
    """As vLLM returns them, and how many tokens came from the cache: for those, there is nothing, or noise."""
    from vllm import SamplingParams

    params = SamplingParams(
        max_tokens=1,
        temperature=0,
        prompt_logprobs=top_k,
        flat_logprobs=True,
        detokenize=False,
        skip_reading_prefix_cache=not from_cache,
    )
    asked = engine.generate({"prompt_token_ids": prompt}, params, f"scores-{uuid.uuid4().hex}", lora_request=adapter)
    (output,) = [output async for output in asked if output.finished]
    return output.prompt_logprobs, output.num_cached_tokens or 0
