"""A rollout that one model writes alone, by transformers' own `generate`: for models that take nothing back.

The caches are the model's own, whatever they hold, and the noise is that of every other rollout: so are the texts.
Rows of equal length run together, so that none is padded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ...models.private import is_stateful
from ..rules.close_calls import sample_closely
from ..rules.logits import is_distribution
from ..rules.noise import STUDENT, TEACHER, row_keys, sample
from ..runners.support import active, base_model, resolution, rounding
from .report import Report
from .request import Request
from .results import Rollout, RolloutStats


_tried: WeakKeyDictionary = WeakKeyDictionary()  # models that were tried -> their fault, or None


class _Draws(LogitsProcessor):
    """Puts the token that the noise of each row draws in the place of the logits."""

    def __init__(self, keys, start: int, temperature: float, writer: int, vocab_size: int, resolution: float):
        self.keys, self.start, self.temperature, self.writer = keys, start, temperature, writer
        self.vocab_size, self.resolution = vocab_size, resolution
        self.valid: list[torch.Tensor] = []  # of each token: [R] bool, whether there was a distribution
        self.close: list[torch.Tensor] = []  # of each token: [R] bool, whether it was a close call; in half precision

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        logits = scores[:, : self.vocab_size].float()
        self.valid.append(is_distribution(logits))
        positions = torch.full_like(self.keys, input_ids.shape[1] - self.start)
        drawn = logits.nan_to_num(), self.temperature, self.keys, positions, self.writer
        if self.resolution:
            token, close = sample_closely(*drawn, self.resolution)
            self.close.append(close)
        else:
            token = sample(*drawn)
        return torch.full_like(scores, -torch.inf).scatter_(1, token[:, None], 0.0)


@contextmanager
def _plain_generation(model) -> Generator[None]:
    """Takes a model's own generation config away, whose penalties and limits would be mixed in."""
    inner = base_model(model)
    own, inner.generation_config = inner.generation_config, GenerationConfig()
    try:
        yield
    finally:
        inner.generation_config = own


@torch.no_grad()
def _fault(model) -> str | None:
    """What is wrong with what `generate` reads of a short text, as the rest of a sentence; tried once for each model.

    Some models count positions from their padding token, and differently with a cache.
    """
    inner = base_model(model)
    if inner not in _tried:
        ids = torch.tensor([[3, 1, 2, 4]], device=model.get_input_embeddings().weight.device)
        settings = GenerationConfig(
            max_new_tokens=3, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        _tried[inner] = None
        try:
            with active(model) as module, _plain_generation(model):
                out = module.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
                whole = module(input_ids=out.sequences[:, :-1], use_cache=False).logits[0, ids.shape[1] - 1 :]
            ours = torch.cat(out.logits).to(whole)
            off = (ours - whole).abs().max()
            if off > rounding(model) * whole.abs().max():
                _tried[inner] = f" is off by {off.item():.2g} from the logits of the text read at once"
        except torch.OutOfMemoryError:
            raise
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            _tried[inner] = f" fails ({error})"
    return _tried[inner]


def _groups(prompts: list[list[int]], most: int) -> list[list[int]]:
    """Rows of equal prompt length together, at most so many."""
    of_length: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        of_length.setdefault(len(prompt), []).append(row)
    return [rows[i : i + most] for rows in of_length.values() for i in range(0, len(rows), most)]


def write_by_generate(model, request: Request, on_round: Callable[[RolloutStats], None] | None) -> Rollout:
    """Completes the prompts of `request` with its writer's model.

    Returns:
        A `Rollout` without hidden states; every text is what the same model would write in any other rollout of which
        nothing is rejected.

    Raises:
        ValueError: the model's `generate` does not write what the model reads; it is named.
    """
    writer = request.writer
    assert request.vocab_size is not None and writer is not None  # it was `checked`
    mine = writer == STUDENT
    if (fault := _fault(model)) is not None:
        who = "student" if mine else "teacher"
        raise ValueError(f"the {who} {type(base_model(model)).__name__} cannot write alone: its `generate`{fault}")
    prompts = request.student_prompts if mine else request.teacher_prompts
    temperature = request.student_temperature if mine else request.teacher_temperature
    device = model.get_input_embeddings().weight.device
    keys = row_keys(request.seed, request.row_ids, device)
    settings = GenerationConfig(
        max_new_tokens=request.max_new_tokens,
        do_sample=False,
        eos_token_id=request.eos_token_ids or None,
        pad_token_id=(request.eos_token_ids or [0])[0],
        use_cache=True,
    )
    texts: list[list[int]] = [[] for _ in prompts]
    near: list[list[bool]] = [[] for _ in prompts]
    broken, stats = {}, RolloutStats()
    # RWKV mixes the states of rows that it reads together
    for rows in _groups(prompts, 1 if is_stateful(base_model(model)) else request.slots):
        ids = torch.tensor([prompts[row] for row in rows], device=device)
        draws = _Draws(keys[rows], ids.shape[1], temperature, writer, request.vocab_size, resolution(model))
        started = time.perf_counter()
        with active(model) as module, _plain_generation(model):
            out = module.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=settings,
                logits_processor=LogitsProcessorList([draws]),
            )
        written, valid = out[:, ids.shape[1] :].tolist(), torch.stack(draws.valid, 1).tolist()
        seconds = time.perf_counter() - started
        close = torch.stack(draws.close, 1).tolist() if draws.close else [[]] * len(rows)
        for row, tokens, known, calls in zip(rows, written, valid, close):
            ends = [i + 1 for i, token in enumerate(tokens) if token in request.eos_token_ids]
            whole = known.index(False) if False in known else len(tokens)
            texts[row] = tokens[: min([*ends, whole])]
            near[row] = calls[: len(texts[row])]
            if whole < min([*ends, len(tokens)]):
                broken[row] = "student" if mine else "teacher"
        _count(stats, {row: texts[row] for row in rows}, broken, writer, seconds)
        if on_round is not None:
            on_round(stats)
    stats.close_calls = sum(map(sum, near))
    return Rollout(
        completion_ids=texts,
        from_teacher=[[not mine] * len(text) for text in texts],
        stats=stats,
        broken=broken,
        close_calls=near if resolution(model) else None,
    )


def _count(
    stats: RolloutStats, texts: dict[int, list[int]], broken: dict[int, str], writer: int, seconds: float
) -> None:
    """Counts a token of every row as a round; all of these rounds together took `seconds`."""
    mine = int(writer == STUDENT)
    steps = max(len(text) + (row in broken) for row, text in texts.items())
    for i in range(steps):
        reports = {
            row: Report(
                drafted=mine * (i < len(text)),
                accepted=mine * (i < len(text)),
                rejected=int(writer == TEACHER and i < len(text)),
                committed=int(i < len(text)),
                remaining=max(len(text) + (row in broken) - i - 1, 0),
                broken=int(row in broken and i == len(text)),
                invalid=0,
            )
            for row, text in texts.items()
            if i < len(text) + (row in broken)
        }
        stats.count_round(mine, reports, seconds / steps)
    if mine:
        stats.student_forwards += steps
    else:
        stats.teacher_forwards += steps
