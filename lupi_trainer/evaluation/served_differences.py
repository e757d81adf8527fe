"""Why a served student answers otherwise than the trained one, where that can be found out."""

from dataclasses import dataclass
from typing import Any

import torch

from ..data.prompts import encode
from ..models.generation import eos_token_ids
from ..teachers.chat import ChatServer
from .closed_book import ClosedBookResult, generate_answers
from .served_prompts import ServedPrompts, prompt_difference


CLOSE = 0.1  # nats by which a likeliest token may lead where another precision may decide otherwise
LIKELY = 64  # tokens among which that of the server is looked for
MOST_ASKED = 64  # questions that are looked into token by token


@dataclass
class Difference:
    """A question that the two answer otherwise.

    Attributes:
        number: its place among those that were asked.
        question, run, server: the texts.
        kind: of the reason, in a few words, the same for all of that kind.
        why: the reason.
    """

    number: int
    question: str
    run: str
    server: str
    kind: str
    why: str


@dataclass
class Comparison:
    """What a server does otherwise than the trained student.

    Attributes:
        prompt: how its prompts differ, even where the answers do not; `None`: not at all, as far as is known.
        prompts_known: whether it says how many tokens its prompts have, or which.
        differences: the questions that are answered otherwise.
    """

    prompt: str | None
    prompts_known: bool
    differences: list[Difference]


@torch.no_grad()
def compare_answers(
    server: ChatServer,
    model: Any,
    tokenizer: Any,
    conversations: list[list[dict[str, str]]],
    served: ClosedBookResult,
    own: ClosedBookResult,
    *,
    max_new_tokens: int,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> Comparison:
    """Compare what a server answered with what the trained student did, question by question.

    Looked for, in this order: a prompt that has other tokens; the answer of the model without its adapter; a turn that
    does not end, or ends early; a likeliest token that leads by little.

    Args:
        server: who was asked.
        model, tokenizer: the trained student.
        conversations: what both were asked, in order.
        served, own: the answers.
        max_new_tokens: of both.
        chat_template_kwargs: of both.
    """
    prompts = encode(tokenizer, conversations, **(chat_template_kwargs or {}))
    pairs = list(zip(own.answers, served.answers, strict=True))
    differing = [
        number
        for number, (a, b) in enumerate(pairs)
        if a["answer"] != b["answer"] or (a["finished"] and not b["finished"])
    ]
    asked = ServedPrompts(server, chat_template_kwargs)
    faults: dict[int, str | None] = {}
    for number, (_, answer) in enumerate(pairs):
        count = answer.get("prompt_tokens")
        if number in (0, *differing[:MOST_ASKED]) and (ids := asked.ids(conversations[number])) is not None:
            faults[number] = prompt_difference(tokenizer, prompts[number], ids)
        elif count:  # some say 0 for what they do not count
            faults[number] = _by_count(count, len(prompts[number]))
    bare = _without_adapter(model, tokenizer, [prompts[number] for number in differing], max_new_tokens)
    ends = tokenizer.convert_ids_to_tokens(eos_token_ids(model, tokenizer))
    differences = []
    for place, number in enumerate(differing):
        a, b = pairs[number]
        if (why := faults.get(number)) is not None:
            kind = "other prompts"
        elif bare and bare[place] == (b["answer"], b["finished"]) and b["answer"] != a["answer"]:
            kind = "no adapter"
            why = "it answers as the base model does without the adapter: that is not merged, or not loaded"
        else:
            kind, why = _of_the_end(a, b, ends)
        if not kind:
            kind, why = "not looked into", f"only the first {MOST_ASKED} questions that differ are"
            if place < MOST_ASKED:
                kind, why = _of_the_tokens(model, tokenizer, prompts[number], b["answer"], max_new_tokens)
        differences.append(Difference(number, a["question"], a["answer"], b["answer"], kind, why))
    return Comparison(next(filter(None, faults.values()), None), bool(faults), differences)


def _by_count(served: int, own: int) -> str | None:
    if served == own:
        return None
    more = "more" if served > own else "less"
    return f"another chat template: the server's prompt has {abs(served - own)} tokens {more} ({served}, not {own})"


def _of_the_end(run: dict[str, Any], served: dict[str, Any], ends: list[str]) -> tuple[str, str]:
    """(kind, why) where one text goes on beyond the other; empty where neither does."""
    ours, theirs = run["answer"], served["answer"]
    names = " or ".join(map(repr, ends))
    if run["finished"] and theirs.startswith(ours):
        return "no end of turn", (
            f"it writes on where the run ends its turn: {names} is not an end for the server (EOS, or a stop)"
        )
    if served["finished"] and ours.startswith(theirs):
        return "an early end", "it ends before the run does: the server has a stop string, or an EOS, of its own"
    if not served["finished"] and ours.startswith(theirs):
        return "cut", "its answer is cut off: a limit of the server on tokens, or on its context"
    return "", ""


def _without_adapter(model: Any, tokenizer: Any, prompts: list[list[int]], tokens: int) -> list[tuple[str, bool]]:
    """The base model's answers, or none where there is no adapter or no question."""
    if not prompts or not hasattr(model, "disable_adapter"):
        return []
    with model.disable_adapter():
        return generate_answers(model, tokenizer, prompts, max_new_tokens=tokens)


class _Written:
    """What `generate` streams: the prompt first, then token by token."""

    def __init__(self):
        self.parts: list[list[int]] = []

    def put(self, ids: torch.Tensor) -> None:
        self.parts.append(ids.flatten().tolist())

    def end(self) -> None:
        pass


def _of_the_tokens(model: Any, tokenizer: Any, prompt: list[int], theirs: str, max_new_tokens: int) -> tuple[str, str]:
    """By how much the run prefers its own token to the server's, at the first that differs.

    A text may be written in other tokens than it is read in: so the run writes its own again, and the server's token
    is the likeliest by which its text goes on.
    """
    written = _Written()
    generate_answers(model, tokenizer, [prompt], max_new_tokens=max_new_tokens, streamer=written)
    own = [token for part in written.parts[1:] for token in part]

    def begins(ids: list[int]) -> bool:
        return theirs.startswith(tokenizer.decode(ids, skip_special_tokens=True).lstrip().rstrip("\ufffd"))

    at = next((place for place in range(len(own)) if not begins(own[: place + 1])), None)
    if at is None:
        return "unknown", "the same prompt, and no reason is known"
    ids = torch.tensor([[*prompt, *own[:at]]], device=model.get_input_embeddings().weight.device)
    logits = model(ids).logits[0, -1].float()
    before = len(tokenizer.decode(own[:at], skip_special_tokens=True))
    for token in logits.topk(min(LIKELY, len(logits))).indices.tolist():
        if begins([*own[:at], token]) and len(tokenizer.decode([*own[:at], token], skip_special_tokens=True)) > before:
            lead = (logits[own[at]] - logits[token]).item()
            words = f"the run prefers {tokenizer.decode(own[at])!r} to {tokenizer.decode(token)!r} by {lead:.3f} nats"
            if lead <= CLOSE:
                return "a close call", f"with the same prompt, {words}: another precision may decide otherwise"
            return "other weights", f"with the same prompt, {words}: other weights, a penalty, or a coarse precision"
    return "other weights", (
        f"with the same prompt, it goes on from {tokenizer.decode(own[:at])[-40:]!r} with a token that is not among "
        f"the run's {LIKELY} likeliest: other weights"
    )
