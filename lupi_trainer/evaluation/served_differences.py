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
        number for number, (a, b) in enumerate(pairs) if _read(a) != _read(b) or (a["finished"] and not b["finished"])
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
    ends = eos_token_ids(model, tokenizer)
    names = " or ".join(map(repr, tokenizer.convert_ids_to_tokens(ends)))
    differences = []
    for place, number in enumerate(differing):
        a, b = pairs[number]
        kind, why = "other prompts", faults.get(number)
        if why is None and bare and bare[place] == (b["answer"], b["finished"]) and b["answer"] != a["answer"]:
            kind = "no adapter"
            why = "it answers as the base model does without the adapter: that is not merged, or not loaded"
        elif why is None:
            looked = place < MOST_ASKED
            lead = _lead(model, tokenizer, prompts[number], b, ends, max_new_tokens) if looked else None
            kind, why = _reason(a, b, names, lead, looked)
        differences.append(Difference(number, a["question"], a["answer"], b["answer"], kind, why))
    return Comparison(next(filter(None, faults.values()), None), bool(faults), differences)


def _read(answer: dict[str, Any]) -> str:
    """An answer's text, but for a letter that was cut in the middle at its end."""
    return answer["answer"].rstrip("\ufffd").rstrip()


def _by_count(served: int, own: int) -> str | None:
    if served == own:
        return None
    more = "more" if served > own else "less"
    return f"another chat template: the server's prompt has {abs(served - own)} tokens {more} ({served}, not {own})"


def _reason(
    run: dict[str, Any], served: dict[str, Any], ends: str, lead: tuple[float, str] | None, looked: bool
) -> tuple[str, str]:
    """(kind, why) of an answer to the same prompt; `lead`: of [`_lead`], where it was `looked` for."""
    if lead is not None and lead[0] <= CLOSE:
        return "a close call", f"{lead[1]}: another precision may decide otherwise"
    ours, theirs = _read(run), _read(served)
    if run["finished"] and theirs.startswith(ours):
        return "no end of turn", (
            f"it writes on where the run ends its turn: {ends} is not an end for the server (EOS, or a stop)"
        )
    if ours.startswith(theirs):
        if served["finished"]:
            return "an early end", "it ends before the run does: the server has a stop string, or an EOS, of its own"
        return "cut", "its answer is cut off: a limit of the server on tokens, or on its context"
    if lead is not None:
        return "other weights", f"{lead[1]}: other weights, a penalty, or a coarse precision"
    if looked:
        return "unknown", "the same prompt, and no reason is known"
    return "not looked into", f"only the first {MOST_ASKED} questions that differ are"


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


def _lead(
    model: Any, tokenizer: Any, prompt: list[int], served: dict[str, Any], ends: list[int], max_new_tokens: int
) -> tuple[float, str] | None:
    """By how many nats the run prefers its token to the server's, at the first that differs, and the same in words.

    A text may be written in other tokens than it is read in: so the run writes its own again, and the server's token
    is the likeliest by which its text goes on, or an end. `None` where no token differs.
    """
    written = _Written()
    generate_answers(model, tokenizer, [prompt], max_new_tokens=max_new_tokens, streamer=written)
    own = [token for part in written.parts[1:] for token in part]
    theirs = _read(served)

    def text(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=True).lstrip().rstrip("\ufffd")

    def fits(ids: list[int]) -> bool:
        if ids[-1] in ends:
            return bool(served["finished"]) and text(ids).rstrip() == theirs
        return theirs.startswith(text(ids)) or text(ids).rstrip() == theirs  # which was stripped

    at = next((place for place in range(len(own)) if not fits(own[: place + 1])), None)
    if at is None:
        return None
    before = text(own[:at])
    ids = torch.tensor([[*prompt, *own[:at]]], device=model.get_input_embeddings().weight.device)
    logits = model(ids).logits[0, -1].float()
    for token in logits.topk(min(LIKELY, len(logits))).indices.tolist():
        if token != own[at] and fits([*own[:at], token]) and (token in ends or text([*own[:at], token]) != before):
            lead = (logits[own[at]] - logits[token]).item()
            ours, other = (tokenizer.decode(one) for one in (own[at], token))
            return lead, f"with the same prompt, the run prefers {ours!r} to {other!r} by {lead:.3f} nats"
    lead = (logits[own[at]] - logits.topk(min(LIKELY, len(logits))).values[-1]).item()
    words = f"with the same prompt, the run prefers {tokenizer.decode(own[at])!r} to the server's token, which is not "
    return lead, f"{words}among its {LIKELY} likeliest, by more than {lead:.3f} nats"
