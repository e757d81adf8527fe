"""What a rollout asks of its models, as plain functions of a model and its cache, and how they are compiled.

They are module-level functions on purpose: what `torch.compile` made of them outlives a rollout, so the next one of
the same shapes runs at once.
"""

from __future__ import annotations

import functools
import warnings
import weakref

import torch

from ..rules.close_calls import sample_closely
from ..rules.logits import is_distribution
from ..rules.noise import STUDENT, sample
from .private import COMPILE_ERRORS, at_most_graphs, mark_dynamic, while_loop


_GRAPHS = 64  # shapes that one step may be compiled for
_BACKEND = "inductor"

# What must outlive a rollout, beside torch's own caches of compiled code: a model that could not be compiled is not
# tried again, and one that was asked for hidden states is not asked again. Models that are gone leave nothing here.
_refused: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()  # model -> functions that could not be compiled
_opened: weakref.WeakSet = weakref.WeakSet()  # models that have been asked for hidden states before


@functools.cache
def span(number: int) -> torch.Tensor:
    """A number as the length of a tensor: one graph serves them all, where the number itself would be compiled in."""
    spanned = torch.empty(number + 2, dtype=torch.bool)  # lengths of 0 and 1 would be compiled in, too
    mark_dynamic(spanned, 0)
    return spanned


def any_shape(*tensors: torch.Tensor) -> None:
    """Lets one graph serve all batch sizes and widths of these tensors, but for 1."""
    for tensor in tensors:
        mark_dynamic(tensor, list(range(tensor.ndim)))


def _number(spanned: int | torch.Tensor) -> int:
    return spanned if isinstance(spanned, int) else spanned.shape[0] - 2


def read(model, cache, tokens, offsets, visible, vocab_size, keep_hidden):
    """tokens [A, Q] at offsets [A] -> (logits [A, Q, V] float32, what lm_head read [A, Q, H] or None).

    For a single row `offsets` may be an int. `visible`: how many slots attention looks at, or their `span`.
    """
    if isinstance(offsets, int):
        positions = cache.seek_alone(offsets, tokens.shape[1], tokens.device)
    else:
        positions = cache.seek(offsets, tokens.shape[1], _number(visible))
    out = model(input_ids=tokens, **cache.arguments(positions), output_hidden_states=keep_hidden)
    cache.leave()
    return out.logits[..., :vocab_size].float(), out.hidden_states[-1] if keep_hidden else None


def write(model, cache, tokens, offsets, visible, vocab_size, temperature, keys, positions, resolution):
    """tokens [A, 1] at offsets [A] -> (the next token [A, 1], close calls [A] or None, logits [A, V] float32).

    The student's. Close calls are looked for where `resolution` (see `rules.close_calls`) is not 0.
    """
    logits = read(model, cache, tokens, offsets, visible, vocab_size, False)[0][:, -1]
    if not resolution:
        return sample(logits, temperature, keys, positions, STUDENT)[:, None], None, logits
    token, close = sample_closely(logits, temperature, keys, positions, STUDENT, resolution)
    return token[:, None], close, logits


def draft(
    model,
    cache,
    tokens,
    offsets,
    visible,
    vocab_size,
    steps,
    temperature,
    keys,
    positions,
    resolution,
    keep_logits,
    rows=None,
    step=write,
):
    """tokens [A, 1] at offsets [A] -> the tokens [A, steps] that the student writes from there on.

    Also which of them it drew from a distribution [A, steps] bool; with a `resolution`, which were close calls [A,
    steps] bool, else None; with `keep_logits`, its logits of `rows` [P, steps, V] (None: of all), else None; and the
    last token [A, 1]. `steps` may be a number or its `span`. Compiled, one graph holds the entire loop, and keeps all
    rows.
    """
    if torch.compiler.is_compiling():
        given = tokens, offsets, visible, vocab_size, steps, temperature, keys, positions, resolution, keep_logits
        return _loop(model, cache, *given)
    drafts, valid, close, kept = [], [], [], []
    for i in range(_number(steps)):
        given = offsets + i, visible, vocab_size, temperature, keys, positions + i, resolution
        tokens, near, logits = step(model, cache, tokens, *given)
        drafts.append(tokens)
        valid.append(is_distribution(logits))
        if resolution:
            close.append(near)
        if keep_logits:
            kept.append(logits if rows is None else logits[rows])
    stacked = (torch.stack(parts, 1) if parts else None for parts in (valid, close, kept))
    return torch.cat(drafts, 1), *stacked, tokens


def _loop(
    model, cache, tokens, offsets, visible, vocab_size, steps, temperature, keys, positions, resolution, keep_logits
):
    """What `draft` does, as `torch.compile` sees it."""
    a, steps, device = tokens.shape[0], _number(steps), tokens.device
    drafts = torch.zeros(a, steps, dtype=torch.long, device=device)
    valid = torch.zeros(a, steps, dtype=torch.bool, device=device)
    close = torch.zeros(a, steps, dtype=torch.bool, device=device) if resolution else None
    kept = torch.zeros(a, steps, vocab_size, device=device) if keep_logits else None
    end = torch.full((), steps, device=device)

    def going_on(token, i):
        return i < end

    def one(token, i):
        given = offsets + i, visible, vocab_size, temperature, keys, positions + i, resolution
        token, near, logits = write(model, cache.twin(), token, *given)
        drafts.index_copy_(1, i[None], token)
        valid.index_copy_(1, i[None], is_distribution(logits)[:, None])
        if close is not None:
            close.index_copy_(1, i[None], near[:, None])
        if kept is not None:
            kept.index_copy_(1, i[None], logits[:, None])
        return token.clone(), i + 1

    # a loop of whose results none is used would be left out, whatever it has written elsewhere
    last, _ = while_loop(going_on, one, (tokens.clone(), torch.zeros((), dtype=torch.long, device=device)))
    return drafts, valid, close, kept, last


@functools.cache
def _compiled(function):
    return torch.compile(function, fullgraph=True, dynamic=False, backend=_BACKEND)


def _open(model) -> None:
    """Lets transformers install what collects hidden states; it does so under a lock, which cannot be traced."""
    if model not in _opened:
        device = model.get_input_embeddings().weight.device
        token = torch.zeros(1, 1, dtype=torch.long, device=device)
        model(input_ids=token, use_cache=False, output_hidden_states=True)
        _opened.add(model)


def call(function, model, *args, compile: bool):
    """Calls `function(model, *args)`, compiled if wanted; where that fails, says so and runs it as it is."""
    if not compile or function in _refused.get(model, ()):
        return function(model, *args)
    _open(model)
    try:
        with at_most_graphs(_GRAPHS):
            return _compiled(function)(model, *args)
    except COMPILE_ERRORS as error:
        _refused.setdefault(model, set()).add(function)
        instead = "drafts in single compiled steps" if function is draft else "runs without compilation"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
        warnings.warn(
            f"compile=True: {type(model).__name__} {instead} from here on, because torch.compile failed "
            f"({type(error).__name__}: {reason})",
            RuntimeWarning,
        )
        return function(model, *args)


def compiled_write(model, cache, tokens, offsets, visible, vocab_size, temperature, keys, positions, resolution):
    """`write`, compiled; with a `span` of visible slots, for all batches."""
    if isinstance(visible, torch.Tensor):
        any_shape(tokens, offsets, keys, positions)
    given = tokens, offsets, visible, vocab_size, temperature, keys, positions, resolution
    return call(write, model, cache, *given, compile=True)
