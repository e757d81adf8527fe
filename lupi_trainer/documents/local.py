"""A model that is loaded here, when it is first asked."""

import gc
import hashlib
from typing import Any

from .replies import Done, Model, Reply, Request, Unit


class LocalModel(Model):
    """A model by its name.

    What it writes depends on the request alone and on those of its unit, never on what was asked before: a unit is
    one batch, in its order, and all of it is asked as soon as one of its replies is missing.

    Args:
        name: a name, a path, or lab:NAME.
        dtype, device: how it is loaded, and where.
    """

    def __init__(self, name: str, dtype: str = "auto", device: str | None = None):
        self.name, self.dtype, self.device = name, dtype, device
        self.identity = f"{name} ({dtype})"
        self.loaded: Any = None

    def pending(self, units: list[Unit], known: dict[str, Reply]) -> list[Unit]:
        batches = (Unit(unit.name, batch) for unit in units for batch in _batches(unit.requests))
        left = {tuple(request.hash for request in batch.requests): batch for batch in batches}
        return [batch for hashes, batch in left.items() if not known.keys() >= set(hashes)]

    def ask(self, units: list[Unit], schema: dict[str, Any] | None, done: Done) -> None:
        for unit in units:
            try:
                replies = self._write(unit.requests)
            except ValueError as error:
                raise ValueError(f"{unit.name}: {self.name} cannot be asked about it: {error}") from error
            done(list(zip(unit.requests, replies)))

    def _write(self, requests: list[Request]) -> list[Reply]:
        from ..data.prompts import check_turns, encode
        from ..evaluation import generate_answers
        from ..models.generation import eos_token_ids
        from ..models.loading import load_model
        from ..models.vocabulary import check_tokenizer
        from ..speculative import PromptLookup, speculative_generate

        if self.loaded is None:
            self.loaded = load_model(self.name, self.dtype, self.device)
        model, tokenizer = self.loaded
        check_tokenizer(tokenizer)
        first, conversations = requests[0], [request.messages for request in requests]
        ids = encode(tokenizer, conversations, **first.template)
        check_turns(tokenizer, conversations, **first.template)
        if first.temperature == 0:
            answers = generate_answers(model, tokenizer, ids, max_new_tokens=first.max_tokens, batch_size=len(ids))
            return [Reply(*answer) for answer in answers]
        eos = set(eos_token_ids(model, tokenizer))
        address = hashlib.sha256("".join(request.hash for request in requests).encode()).digest()
        output = speculative_generate(
            model,
            PromptLookup(),
            ids,
            max_new_tokens=first.max_tokens,
            temperature=first.temperature,
            eos_token_id=sorted(eos),
            seed=int.from_bytes(address[:4], "big") >> 1,
            pack_weights=False,
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
