"""What follows a text, asked of a vLLM server.

A server that was started with the middleware of `vllm_scores.py` is sent a round in one request, and reads of each
text what it has not read before. Others are asked over `/v1/completions`, where there are two ways, which give the
same numbers. With `prompt_logprobs` one prompt answers for all drafted tokens, but vLLM then reads all of it again and
returns the likeliest tokens of every place in it, so this is for short texts. Else every drafted token ends a prompt
of its own, and one more token is asked for: these prompts share all but their ends, which the prefix cache holds.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any

from .remote import MOST_ASKED, RemoteTeacher, Top
from .served_model import differ, probe_text, same_name
from .vllm_scores import PATH, Scores
from .wire import OneTextFails, RequestRefused, TeacherServerError, Wire


logger = logging.getLogger(__name__)

_SHORT = 6  # tokens of text for each place asked about, up to which `prompt_logprobs` is faster (measured)
_IN_FLIGHT = 32  # requests at the same time
_TRIES = 20


class Cut(ValueError):
    """Fewer of the likeliest tokens than were asked for.

    vLLM (0.32) returns two where it reads a prompt together with one whose tokens are asked for by their ids, as
    another process may do; `prompt_logprobs` are not cut.
    """


_ROUNDED = 0.02  # by how much a sum of probabilities of half precision may be off


class TeacherServer(RemoteTeacher):
    """The teacher behind an address, as `skd_rollout` and [`LUPISKDTrainer`] take it.

    Args:
        url: base address of a vLLM server, such as `"http://gpu-2:8000"`. If it wants a key, that is taken from the
            environment variable `VLLM_API_KEY`.
        tokenizer: the student's tokenizer, which must be the served model's too.
        model: name of the served model. Needed where the server has several; where it has one, that must be it.
        vocab_size: token ids that count; `len(tokenizer)` unless given.
        top_k: how many likeliest tokens are returned for each place (a vLLM server gives up to 20 unless started with
            `--max-logprobs`).
        timeout: seconds to wait for the server to be up, or back.
        request_timeout: seconds until the last byte of an answer, after which the request is sent again.

    Raises:
        TeacherServerError: nobody answers in time, or not as vLLM does; the model, its vocabulary, its tokenizer or
            its probabilities are not what they should be, now or later: every rollout begins with a look at that.
        ValueError: an address that cannot be right.

    Example:

    ```python
    >>> from lupi_trainer import TeacherServer

    >>> served = TeacherServer("http://localhost:8000", tokenizer)
    >>> rollout = skd_rollout(student, served, prompt_ids, prompt_ids, max_new_tokens=4)
    ```
    """

    def __init__(
        self,
        url: str,
        tokenizer,
        *,
        model: str | None = None,
        vocab_size: int | None = None,
        top_k: int = 20,
        timeout: float = 240.0,
        request_timeout: float = 120.0,
    ):
        super().__init__(vocab_size or len(tokenizer), top_k)
        self._wire = Wire(url, timeout, request_timeout, self.stats)
        self.url = self._wire.url
        self._pool = ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="teacher-server")
        card = self._wire.patiently(lambda: self._card(model))
        self.name = card["id"]
        self.max_length = card["max_model_len"] - 1  # it writes one token more
        self._probe = probe_text(tokenizer)
        self._wire.patiently(lambda: self._check_tokenizer(tokenizer))
        self._looking, self._looked = threading.Lock(), -math.inf  # when it was last seen to be the same
        self._takes_rounds = False  # whether a round is one request
        self._fingerprint = self._wire.patiently(self._look)
        if not self._takes_rounds:
            logger.warning(
                f"{self.url} is asked about every drafted token by itself; a server that is started with --middleware "
                f"{Scores.__module__}.{Scores.__name__} is asked once a round"
            )

    # What the engine asks

    def begin(self) -> None:
        self._wire.patiently(self._check_same)

    def score(self, texts: list[list[int]], counts: list[int]):
        if not self._takes_rounds:
            return self._all(self._score, texts, counts)
        try:
            return self._wire.patiently(lambda: self._by_round(texts, counts), self._check_back)
        except RequestRefused as error:
            if error.status != 404:
                raise
            self._wire.patiently(self._check_same)  # it is back without the middleware, and is asked as others are
            return self._all(self._score, texts, counts)
        except OneTextFails as error:
            if error.place is not None:
                raise
            return self._all(lambda *row: self._by_round(*([part] for part in row))[0], texts, counts)

    def logprobs(self, texts: list[list[int]], tokens: list[list[int]]):
        return self._all(self._logprobs, texts, tokens)

    # What a teacher store asks

    def write(
        self,
        prompts: list[list[int]],
        seeds: list[int],
        ends: list[int],
        *,
        max_new_tokens: int,
        temperature: float,
    ) -> list[tuple[list[int], list[Top]]]:
        """A text after each prompt, sampled by the server, and the likeliest tokens at each of its places.

        Args:
            prompts: token ids; all are under way at the same time.
            seeds: of the server's noise, one a prompt.
            ends: tokens that end a text; the one that did is kept.
            max_new_tokens: the longest text.
            temperature: 0: the likeliest token each time.
        """
        # all that a served model's own generation config may set is said, and its own ends are not read
        plain: dict[str, Any] = {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
        plain |= {"presence_penalty": 0.0, "frequency_penalty": 0.0, "skip_special_tokens": False, "ignore_eos": True}
        plain |= {"max_tokens": max_new_tokens, "temperature": temperature, "stop_token_ids": ends}

        def ask(prompt: list[int], seed: int) -> tuple[list[int], list[Top]]:
            choice = self._complete(prompt, logprobs=self.top_k, seed=seed, **plain)[0]
            ids = list(self._checked_ids(choice["logprobs"]["tokens"], ends))
            try:
                places = [self._top(values) for values in self._by_ids(choice)]
            except Cut:
                places = self._score([*prompt, *ids[:-1]], len(ids))
            if len(places) != len(ids):
                raise ValueError(f"{len(places)} places for a text of {len(ids)} tokens")
            return ids, places

        return self._all(ask, prompts, seeds)

    def _checked_ids(self, names: list[str], ends: list[int]) -> Iterator[int]:
        """The tokens of a text by their ids, if it is one."""
        for place, name in enumerate(names, start=1):
            token = int(name.removeprefix("token_id:"))
            if not 0 <= token < self.vocab_size:
                raise OneTextFails(f"{self.url} wrote the token {token}, which the student's tokenizer does not have")
            if token in ends and place < len(names):
                raise ValueError(f"a text that goes on after its end, at token {place} of {len(names)}")
            yield token
        if not names:
            raise ValueError("a text of no token")

    def _all(self, ask: Callable, *columns) -> list:
        """One request a row, many in flight at once; where one fails for good, the others are given up."""
        given_up = threading.Event()
        futures = [
            self._pool.submit(self._wire.patiently, lambda row=row: ask(*row), self._check_back, given_up)
            for row in zip(*columns)
        ]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for place, future in enumerate(futures):
                if future in done and (error := future.exception()) is not None:
                    if isinstance(error, OneTextFails):
                        error.place = place
                    raise error
            return [future.result() for future in futures]
        finally:
            given_up.set()  # the process would wait for those that try again before it ends
            for future in futures:
                future.cancel()

    def _score(self, text: list[int], count: int):
        if len(text) > _SHORT * count:
            try:
                return self._by_prefixes(text, count)
            except Cut:  # the other way has the same probabilities, which `_look` has compared
                pass
        return self._by_prompt(text, count)

    def _by_prompt(self, text: list[int], count: int):
        # the last token of the prompt is not looked at, only what might have been there
        prompt = [*text, text[-1]]
        choice = self._complete(prompt, prompt_logprobs=self.top_k)[0]
        if len(places := choice["prompt_logprobs"]) != len(prompt):
            raise ValueError(f"{len(places)} places for a prompt of {len(prompt)} tokens")
        return [
            self._top(self._checked((name, entry["logprob"]) for name, entry in place.items()))
            for place in places[-count:]
        ]

    def _by_prefixes(self, text: list[int], count: int):
        prefixes = [text[: len(text) - i] for i in reversed(range(count))]
        return [self._top(self._by_id(choice)) for choice in self._complete(prefixes, logprobs=self.top_k)]

    def _by_round(self, texts: list[list[int]], counts: list[int]):
        body = {"model": self.name, "prompt": texts, "counts": counts, "logprobs": self.top_k}
        found = []
        for place, choice in enumerate(self._choices(PATH, body, texts, (self.top_k + 2) * sum(counts))):
            try:
                found.append([self._top(values) for values in self._by_ids(choice)])
            except OneTextFails as error:
                error.place = place
                raise
        if [len(places) for places in found] != counts:
            raise ValueError(f"{[len(places) for places in found]} places where {counts} were asked for")
        return found

    def _logprobs(self, text: list[int], tokens: list[int]) -> list[float]:
        values = self._by_id(self._complete(text, logprobs=1, logprob_token_ids=tokens)[0])
        if not values.keys() >= set(tokens):
            raise TeacherServerError(f"{self.url} does not know logprob_token_ids: a newer vLLM is needed")
        return [values[token] for token in tokens]

    def _by_id(self, choice: dict[str, Any]) -> dict[int, float]:
        """Token ids and log-probabilities of a choice of one token."""
        (values,) = self._by_ids(choice)
        return values

    def _by_ids(self, choice: dict[str, Any]) -> list[dict[int, float]]:
        """Of each token of a choice, ids and log-probabilities."""
        return [
            self._checked((name.removeprefix("token_id:"), value) for name, value in values.items())
            for values in choice["logprobs"]["top_logprobs"]
        ]

    def _checked(self, entries: Iterable[tuple[str, Any]]) -> dict[int, float]:
        """Token ids and log-probabilities as they were returned, if they can be such.

        Raises:
            ValueError: what should be a number is none.
            OneTextFails: a number is not a log-probability, or all together are more than 1.
        """
        values: dict[int, float] = {}
        for name, value in entries:
            if not (name.isascii() and name.isdecimal() and len(name) < 10) or int(name) in values:
                raise ValueError(f"{name[:20]!r} is not the id of a token, or is there twice")
            if type(value) not in (int, float):
                raise ValueError(f"{str(value)[:20]!r} is not a number")
            if not -math.inf < value <= 1e-3:  # NaN is not, either; a rounded 0 may be above it
                raise self._no_probability(f"{value} as a log-probability")
            values[int(name)] = min(float(value), 0.0)
        if (total := math.fsum(map(math.exp, values.values()))) > 1 + _ROUNDED:
            raise self._no_probability(f"probabilities that sum to {total:.3g}")
        return values

    def _no_probability(self, what: str) -> OneTextFails:
        return OneTextFails(
            f"{self.url} returned {what}: the served model computes NaN, or the server was started with another "
            "--logprobs-mode than raw_logprobs"
        )

    def _top(self, values: dict[int, float]):
        """The likeliest `top_k`, falling.

        Raises:
            Cut: there are fewer.
        """
        if len(values) < self.top_k:
            raise Cut(f"{len(values)} of the {self.top_k} likeliest tokens")
        ids = sorted(values, key=values.__getitem__, reverse=True)[: self.top_k]
        return ids, [values[i] for i in ids]

    def _complete(self, prompt, **options) -> list[dict[str, Any]]:
        """One choice for each prompt, in their order."""
        body = {"model": self.name, "prompt": prompt, "max_tokens": 1, "temperature": 0, **options}
        if "logprobs" in options:
            body["return_tokens_as_token_ids"] = True
        prompts = prompt if isinstance(prompt[0], list) else [prompt]
        each = max(options.get("logprobs", 0), len(options.get("logprob_token_ids", ()))) + 2
        each *= body["max_tokens"]
        places = sum(map(len, prompts)) * (options.get("prompt_logprobs", 0) + 2)
        return self._choices("/v1/completions", body, prompts, each * len(prompts) + places)

    def _choices(self, path: str, body: dict[str, Any], prompts: list, numbers: int) -> list[dict[str, Any]]:
        """One choice for each prompt, in their order; of all together so many numbers at most."""
        answered = self._wire.send("POST", path, body, count=numbers, prompts=len(prompts))["choices"]
        choices = {choice["index"]: choice for choice in answered}
        if len(answered) != len(prompts) or any(type(index) is not int for index in choices):
            raise ValueError(f"{len(answered)} choices for {len(prompts)} prompts")
        return [choices[index] for index in range(len(prompts))]

    # Is it the right model?

    def _card(self, wanted: str | None) -> dict[str, Any]:
        """What `/v1/models` says of the model to ask."""
        cards = self._wire.send("GET", "/v1/models")["data"]
        for card in cards:
            if not isinstance(card["id"], str) or type(card["max_model_len"]) is not int or card["max_model_len"] < 2:
                raise ValueError(f"a model with id={card['id']!r}, max_model_len={card['max_model_len']!r}")
        named = [card for card in cards if wanted is None or same_name(wanted, card)]
        if len(named) != 1:
            served = ", ".join(card["id"] for card in cards)
            raise TeacherServerError(f"{self.url} serves {served}, and the teacher is {wanted or 'not named'}")
        return named[0]

    def _check_tokenizer(self, tokenizer) -> None:
        text, expected = self._probe
        found = self._complete(text, add_special_tokens=False, return_token_ids=True)[0]["prompt_token_ids"]
        if found != expected:
            at = next(i for i, (a, b) in enumerate(zip([*found, None], [*expected, None])) if a != b)
            raise TeacherServerError(
                f"{self.name} at {self.url} has another tokenizer than the student: token {at} of {text[:40]!r}... "
                f"is {found[at : at + 1]} for it, {expected[at : at + 1]} for the student. Distillation compares "
                "next-token distributions, so both must use the same."
            )
        try:
            self._complete([len(tokenizer) - 1])
        except TeacherServerError as error:
            raise TeacherServerError(
                f"the student's tokenizer has {len(tokenizer)} tokens, more than the teacher knows: {error}"
            ) from None

    def _look(self) -> list[dict[int, float]]:
        """Log-probabilities after the last tokens of the probe, asked for in every way that will be used."""
        text = self._probe[1]
        try:
            ways = self._if_taken(lambda: self._by_round([text], [4]))
            if not self._takes_rounds:
                ways = [self._by_prompt(text, 4), self._uncut(lambda: self._by_prefixes(text, 4))]
            likeliest = ways[-1][-1][0][:MOST_ASKED]
            asked = self._logprobs(text, likeliest)
        except TeacherServerError as error:
            if "max allowed" in str(error):
                raise TeacherServerError(f"{error}. Start the server with --max-logprobs {self.top_k}") from None
            raise
        *others, last = ([dict(zip(*top)) for top in way] for way in ways)
        if any(differ(way, last) for way in others) or differ([dict(zip(likeliest, asked))], last[-1:]):
            raise TeacherServerError(
                f"{self.url} gives other probabilities as prompt_logprobs than as logprobs: start it with "
                "--logprobs-mode raw_logprobs"
            )
        return last

    def _if_taken(self, ask: Callable[[], list]) -> list:
        """What `ask()` returns, if the server takes rounds; from now on it is known whether it does."""
        try:
            found = ask()
        except RequestRefused as error:
            if error.status != 404:
                raise
            self._takes_rounds = False
            return []
        self._takes_rounds = True
        return found

    def _uncut(self, ask: Callable):
        """What `ask()` returns once no other process asks for tokens by their ids at the same moment."""
        for _ in range(_TRIES):
            try:
                return ask()
            except Cut:
                time.sleep(random.uniform(0.02, 0.2))
        return ask()

    def _check_back(self) -> None:
        """`_check_same`, by one of all rows that wait for the server: the others need not look again."""
        waits = time.monotonic()
        with self._looking:
            if self._looked < waits:
                self._check_same()
                self._looked = time.monotonic()

    def _check_same(self) -> None:
        """The model that answers now must be the one that answered when it was connected."""
        # twice: with other work beside it, a server in half precision may be off by much once
        if self._card(self.name)["id"] != self.name or all(differ(self._look(), self._fingerprint) for _ in range(2)):
            raise TeacherServerError(
                f"another model answers at {self.url} by now, under the name {self.name}: its probabilities are not "
                "those that this run began with"
            )
