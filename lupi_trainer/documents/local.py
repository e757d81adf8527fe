"""A model that is loaded here, when it is first asked."""

import gc
import hashlib
from typing import Any

from .guided import fill_in
from .replies import Done, Model, Reply, Request, Unit


class LocalModel(Model):
    """A model by its name.

    Where JSON is wanted, it writes that by itself, and by [`fill_in`] where its unit has a passage: asked again.

    What it writes depends on the request alone and on those of its unit, never on what was asked before: a unit is
    one batch, in its order, and all of it is asked as soon as one of its replies is missing.

    Args:
        name: a name, a path, or lab:NAME.
        dtype, device: how it is loaded, and where.
    """

    def __init__(self, name: str, dtype: str = "auto", device: str | None = None):
        self.name, self.dtype, self.device = name, dtype, device
        self.identity = f"{name} ({dtype})"
        self.fills_in = True
        self.loaded: Any = None

    def pending(self, units: list[Unit], known: dict[str, Reply]) -> list[Unit]:
        batches = (Unit(unit.name, batch, unit.passage) for unit in units for batch in _batches(unit.requests))
        left = {tuple(request.hash for request in batch.requests): batch for batch in batches}
        return [batch for hashes, batch in left.items() if not known.keys() >= set(hashes)]

    def ask(self, units: list[Unit], schema: dict[str, Any] | None, done: Done) -> None:
        for unit in units:
            try:
                if schema is not None and unit.passage:
                    count = schema["properties"]["facts"]["maxItems"]
                    replies = [self._fill_in(request, unit.passage, count) for request in unit.requests]
                else:
                    replies = self._write(unit.requests, schema is not None)
            except ValueError as error:
                raise ValueError(f"{unit.name}: {self.name} cannot be asked about it: {error}") from error
            done(list(zip(unit.requests, replies)))

    def _prompts(self, requests: list[Request]) -> list[list[int]]:
        from ..data.prompts import check_turns, encode
        from ..models.loading import load_model

        if self.loaded is None:
            self.loaded = load_model(self.name, self.dtype, self.device)
        conversations, template = [request.messages for request in requests], requests[0].template
        ids = encode(self.loaded[1], conversations, **template)
        check_turns(self.loaded[1], conversations, **template)
        return ids

    def _write(self, requests: list[Request], as_json: bool = False) -> list[Reply]:
        from ..evaluation import generate_answers

        ids, first = self._prompts(requests), requests[0]
        if as_json:
            return [self._write_json(one, request.max_tokens) for one, request in zip(ids, requests)]
        if first.temperature == 0:
            answers = generate_answers(*self.loaded, ids, max_new_tokens=first.max_tokens, batch_size=len(ids))
            return [Reply(*answer) for answer in answers]
        return self._sample(ids, first.temperature, first.max_tokens, "".join(request.hash for request in requests))

    def _write_json(self, ids: list[int], tokens: int) -> Reply:
        """The likeliest text, cut off as soon as it cannot become JSON."""
        begun: list[int] = []

        def hopeless(row: int, new: list[int]) -> bool:
            begun.extend(new)
            text = self.loaded[1].decode(begun[:8], skip_special_tokens=True).lstrip()
            return bool(text) and not text.startswith(("{", "`"))

        return self._sample([ids], 0.0, tokens, "", on_tokens=hopeless)[0]

    def _fill_in(self, request: Request, passage: str, count: int) -> Reply:
        (ids,) = self._prompts([request])
        return Reply(fill_in(*self.loaded[:2], ids, passage, count), True)

    def _sample(self, ids: list[list[int]], temperature: float, tokens: int, address: str, **more: Any) -> list[Reply]:
        """What is drawn depends on the prompts and the address."""
        from ..models.generation import eos_token_ids
        from ..speculative import PromptLookup, speculative_generate

        model, tokenizer = self.loaded
        eos = set(eos_token_ids(model, tokenizer))
        output = speculative_generate(
            model,
            PromptLookup(),
            ids,
            max_new_tokens=tokens,
            temperature=temperature,
            eos_token_id=sorted(eos),
            seed=int(hashlib.sha256(address.encode()).hexdigest()[:8], 16) >> 1,
            pack_weights=False,
            **more,
        )
        replies = []
        for row in output.completion_ids:
            finished = bool(row) and row[-1] in eos
            text = tokenizer.decode(row[: len(row) - finished], skip_special_tokens=True).strip()
            replies.append(Reply(text, finished))
        return replies

    def close(self) -> None:
        if self.loaded is not None:
            self.loaded = None
            gc.collect()  # before another one is loaded


def _batches(requests: list[Request]) -> list[list[Request]]:
    """Requests that are written in one call, in their order."""
    batches: dict[tuple, list[Request]] = {}
    for request in requests:
        batches.setdefault((request.temperature, request.max_tokens, request.seed), []).append(request)
    return list(batches.values())
