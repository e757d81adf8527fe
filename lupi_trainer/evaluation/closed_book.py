"""Ask a model short questions and mark its answers against lists of accepted strings."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig

from ..data.answers import MAX_ANSWER_TOKENS, score_answer
from ..data.prompts import TeacherPrompt, check_turns, encode
from ..data.records import record_name
from ..data.special_tokens import SpecialTokens
from ..models.generation import eos_token_ids, without_generation_config
from ..models.vocabulary import check_tokenizer
from ..speculative.runners.packed_weights import packed_weights
from ..speculative.runners.support import usable_positions
from .leakage import mentions_context


@dataclass
class ClosedBookResult:
    """Marks over a set of probes (fractions of 1), and every answer that was marked."""

    strict: float
    lenient: float
    num_probes: int
    answers: list[dict[str, Any]]
    leakage: float = 0.0  # answers that speak of a given text

    def metrics(self) -> dict[str, float]:
        return {k: v for k, v in asdict(self).items() if k != "answers"}


def last_logits(model: Any) -> dict[str, torch.Tensor]:
    """For `generate`: that of a prompt only the last logits are wanted, as an index.

    By a number, which `generate` would give, the model takes a slice of its states, whose rows lie apart in memory;
    with each of them torch multiplies a copy of the lm_head on a CPU (64 times 57 MB for SmolLM2-135M).
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "logits_to_keep" not in inspect.signature(inner.forward).parameters:
        return {}
    return {"logits_to_keep": torch.tensor([-1], device=model.get_input_embeddings().weight.device)}


@torch.no_grad()
def generate_answers(
    model,
    tokenizer,
    prompt_ids: list[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
    on_batch: Callable[[int, int], None] | None = None,
    streamer: Any = None,
) -> list[tuple[str, bool]]:
    """Greedy answers: the likeliest token each time, whatever the model's generation config says.

    Args:
        model: a causal language model (or a `PeftModel`).
        tokenizer: its tokenizer.
        prompt_ids: unpadded token ids, a list for every prompt.
        max_new_tokens: cut an answer after so many tokens; all of them earlier where the model's positions end.
        batch_size: prompts generated together, longest prompts first.
        on_batch: called after every batch with the answers and the tokens so far.
        streamer: gets the tokens as they are written, as in `generate`, of a single prompt.

    Returns:
        (text, finished) for every prompt, in order; `finished` is whether the model ended the answer itself.

    Raises:
        ValueError: a prompt that fills the model's positions (its number is named).
    """
    positions = usable_positions(model)
    for number, ids in enumerate(prompt_ids):
        if positions is not None and len(ids) >= positions:
            raise ValueError(f"question {number} has {len(ids)} tokens, and the model reads and writes {positions}")
        if positions is not None:
            max_new_tokens = min(max_new_tokens, positions - len(ids))
    was_training = model.training
    model.eval()
    device = model.get_input_embeddings().weight.device
    eos = eos_token_ids(model, tokenizer)
    pad = tokenizer.pad_token_id or 0  # masked, or after an end
    greedy = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=pad, eos_token_id=eos)
    order = sorted(range(len(prompt_ids)), key=lambda i: -len(prompt_ids[i]))
    out: dict[int, tuple[str, bool]] = {}
    tokens = 0
    try:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            length = max(len(prompt_ids[i]) for i in rows)
            input_ids = torch.full((len(rows), length), pad)
            attention_mask = torch.zeros_like(input_ids)
            for row, i in enumerate(rows):
                input_ids[row, length - len(prompt_ids[i]) :] = torch.tensor(prompt_ids[i])
                attention_mask[row, length - len(prompt_ids[i]) :] = 1
            with without_generation_config(model), packed_weights({"model": model}):
                texts = model.generate(
                    input_ids=input_ids.to(device),
                    attention_mask=attention_mask.to(device),
                    generation_config=greedy,
                    streamer=streamer,
                    **last_logits(model),
                )
            generated = texts[:, length:].tolist()
            for i, ids in zip(rows, generated):
                end = next((n for n, token in enumerate(ids) if token in eos), None)
                out[i] = (tokenizer.decode(ids[:end], skip_special_tokens=True).strip(), end is not None)
                tokens += len(ids) if end is None else end + 1
            if on_batch is not None:
                on_batch(len(out), tokens)
    finally:
        model.train(was_training)
    return [out[i] for i in range(len(prompt_ids))]


def ask(
    model,
    tokenizer,
    probes: list[dict[str, Any]],
    messages: Callable[[dict[str, Any]], list[dict[str, str]]],
    *,
    max_new_tokens: int = MAX_ANSWER_TOKENS,
    batch_size: int = 64,
    chat_template_kwargs: dict[str, Any] | None = None,
    allow_special_tokens: bool = False,
    on_batch: Callable[[int, int], None] | None = None,
) -> ClosedBookResult:
    """Put every probe to the model, as the conversation that `messages(probe)` makes of it, and mark the answers.

    Raises:
        ValueError: a probe spells out a special token (named), unless `allow_special_tokens`.
    """
    check_tokenizer(tokenizer)
    SpecialTokens(tokenizer, allow_special_tokens).check_probes(probes)
    conversations = [messages(p) for p in probes]
    prompt_ids = encode(tokenizer, conversations, **(chat_template_kwargs or {}))
    check_turns(tokenizer, conversations, **(chat_template_kwargs or {}))
    replies = generate_answers(
        model, tokenizer, prompt_ids, max_new_tokens=max_new_tokens, batch_size=batch_size, on_batch=on_batch
    )
    return mark(probes, replies)


def mark(probes: list[dict[str, Any]], replies: Iterable[tuple[str, bool]]) -> ClosedBookResult:
    """Mark an answer to every probe, in their order: (text, whether the model ended it by itself)."""
    answers: list[dict[str, Any]] = []
    for probe, (text, finished) in zip(probes, replies, strict=True):
        strict, lenient = score_answer(text, probe["answers"], finished=finished)
        answers.append(
            {
                "record_id": probe.get("record_id"),
                "question": probe["question"],
                "accepted": probe["answers"],
                "answer": text,
                "finished": finished,
                "strict": strict,
                "lenient": lenient,
                "leaks": mentions_context(text),
            }
        )
    count = len(answers)
    return ClosedBookResult(
        strict=sum(a["strict"] for a in answers) / count,
        lenient=sum(a["lenient"] for a in answers) / count,
        num_probes=count,
        answers=answers,
        leakage=sum(a["leaks"] for a in answers) / count,
    )


class Kept(NamedTuple):
    """Of the questions that were answered before (`known`), how many still are."""

    still: int
    known: int

    @property
    def share(self) -> float | None:
        """A fraction of 1; `None` where nothing was known."""
        return self.still / self.known if self.known else None

    @property
    def text(self) -> str:
        """For people: "3 of 4", or "-" where nothing was known."""
        return f"{self.still} of {self.known}" if self.known else "-"


def kept(before: ClosedBookResult, after: ClosedBookResult, mark: str = "lenient") -> Kept:
    """What of the answers before is still answered, by the `strict` or the `lenient` mark, for the same questions."""
    known = [answer[mark] for answer in before.answers]
    return Kept(sum(a[mark] for a, b in zip(after.answers, known, strict=True) if b), sum(known))


def closed_book(
    model, tokenizer, probes: list[dict[str, Any]], *, teacher_prompt: TeacherPrompt | None = None, **kwargs: Any
) -> ClosedBookResult:
    """Ask without the knowledge, or, with `teacher_prompt`, open-book: with each probe's own `knowledge`.

    Args:
        model: the student, or the teacher for the open-book ceiling.
        tokenizer: its tokenizer; not read where `teacher_prompt` has words of its own, which write all prompts.
        probes: dictionaries with `question`, `answers` (and `knowledge` for open-book).
        teacher_prompt: how the knowledge is put; `None` asks closed-book.
        **kwargs: `max_new_tokens`, `batch_size`, `chat_template_kwargs`, `allow_special_tokens`, `on_batch`, as for
            [`ask`].

    Raises:
        ValueError: open-book, and a probe has no knowledge (named).
    """
    if teacher_prompt is not None and teacher_prompt.words is not None:
        tokenizer = teacher_prompt.words.tokenizer
        kwargs["chat_template_kwargs"] = dict(teacher_prompt.words.template_kwargs)
    return ask(model, tokenizer, probes, lambda probe: conversation(probe, teacher_prompt), **kwargs)


def conversation(probe: dict[str, Any], teacher_prompt: TeacherPrompt | None = None) -> list[dict[str, str]]:
    """The messages of a probe: its question alone, or, with `teacher_prompt`, with its own `knowledge`.

    Raises:
        ValueError: open-book, and the probe has no knowledge (it is named).
    """
    prompt = [{"role": "user", "content": probe["question"]}]
    if teacher_prompt is None:
        return prompt
    if not probe.get("knowledge"):
        raise ValueError(f"probe of {record_name(probe)} has no `knowledge`, so it cannot be asked open-book")
    return teacher_prompt.messages(prompt, probe["knowledge"])
