"""Whether layers at other places are still what they were.

In some configurations a number means a layer's place (`mlp_only_layers`, `first_k_dense_replace`,
`scale_attn_by_inverse_layer_idx`), so that a layer that moves is built as another one. Nothing here knows the names of
such keys: what is built is compared, module by module and state by state.
"""

from typing import Any

import torch
from torch import nn


Layers = dict[int, nn.Module]  # by original number
PLAIN = (bool, int, float, str, tuple, type(None))
READ = 8  # tokens of the text that two models are compared on


def _settings(module: nn.Module) -> dict[str, Any]:
    """A module's own settings, without what a run changes."""
    return {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, PLAIN) and not key.startswith("_") and key not in ("training", "gradient_checkpointing")
    }


def _same_setting(ours: Any, theirs: Any, places: tuple[int, int]) -> bool:
    """Whether an attribute of a module is the same; a layer's own place changes with it."""
    if type(ours) is int and (ours, theirs) == places:
        return True
    return type(ours) is type(theirs) and ours == theirs


def _difference(ours: nn.Module, theirs: nn.Module, places: tuple[int, int]) -> str | None:
    """What two layers differ in (a module, weight or setting of it), or None."""
    ours_in, theirs_in = dict(ours.named_modules()), dict(theirs.named_modules())
    if names := sorted(ours_in.keys() ^ theirs_in.keys()):
        return names[0]
    for name, module in ours_in.items():
        other, begin = theirs_in[name], f"{name}." if name else ""
        if type(module) is not type(other):
            return name or type(module).__name__
        a, b = _settings(module), _settings(other)
        for key in sorted(a.keys() | b.keys()):
            if key not in a or key not in b or not _same_setting(a[key], b[key], places):
                return begin + key
    shapes_a, shapes_b = ({k: v.shape for k, v in layer.state_dict().items()} for layer in (ours, theirs))
    return next(
        (key for key in sorted(shapes_a.keys() | shapes_b.keys()) if shapes_a.get(key) != shapes_b.get(key)), None
    )


def check_same_layers(ours: Layers, theirs: Layers) -> None:
    """Refuse to move layers that would be others at their new places.

    Args:
        ours: the layers of a model, in their order.
        theirs: those of the model with layers dropped or put back; weights may be missing (on `meta`).

    Raises:
        ValueError: a layer of both that differs; what in it is named.
    """
    for place, number in enumerate(theirs):
        if number in ours:
            before = list(ours).index(number)
            if what := _difference(ours[number], theirs[number], (before, place)):
                raise ValueError(
                    f"layer {number} would be another one at place {place} of {len(theirs)} ({what!r} differs): the "
                    "configuration says what a layer is by its place; drop or restore others with it, or none"
                )


@torch.no_grad()
def _states(model: Any, layers: Layers, passed: set[int], ids: torch.Tensor) -> list[torch.Tensor]:
    """[1, READ, H] what every layer but those passed through writes, and the logits [1, READ, V]."""
    states: list[torch.Tensor] = []

    def write(number: int, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        if number in passed:
            read = args[0] if args else kwargs["hidden_states"]
            return type(output)([read, *output[1:]]) if isinstance(output, (tuple, list)) else read
        states.append(output[0] if isinstance(output, (tuple, list)) else output)
        return None

    hooks = [
        layer.register_forward_hook(lambda _, *call, n=number: write(n, *call), with_kwargs=True)
        for number, layer in layers.items()
    ]
    was_training = model.training
    model.eval()
    try:
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return [*states, logits]


@torch.no_grad()
def _failure(model: Any, ids: torch.Tensor) -> Exception | None:
    """Why a model does not read a text as `generate` has it read, with a cache; `None`: it does."""
    was_training = model.training
    model.eval()
    try:
        model(input_ids=ids.to(model.device))
    except Exception as error:  # of code that a model comes with
        return error
    finally:
        model.train(was_training)
    return None


def check_same_states(ours: Any, our_layers: Layers, theirs: Any, their_layers: Layers) -> None:
    """Refuse a model whose layers do not compute what they did, where those that it lacks or has in addition pass on
    what they read.

    Raises:
        ValueError: a hidden state or the logits differ by more than rounding, or the other model does not run.
    """
    common = our_layers.keys() & their_layers.keys()
    ids = torch.arange(READ)[None] % ours.config.get_text_config().vocab_size
    if _failure(ours, ids) is None and (error := _failure(theirs, ids)) is not None:
        raise ValueError(
            f"{type(theirs).__name__} does not run on the layers {sorted(their_layers)} alone: "
            f"{' '.join(str(error).split())}"
        ) from error
    pairs = zip(
        _states(ours, our_layers, set(our_layers) - common, ids),
        _states(theirs, their_layers, set(their_layers) - common, ids),
    )
    for place, (a, b) in enumerate(pairs):
        off, rounding = (a - b).abs().max().item(), 32 * torch.finfo(a.dtype).eps * a.abs().max().item()
        if not off <= rounding:
            what = f"layer {sorted(common)[place]}" if place < len(common) else "the logits"
            raise ValueError(
                f"{what} would be off by {off:.2g} in the {len(their_layers)} layers, where other layers only pass "
                f"on what they read: {type(ours).__name__} computes by the place or the number of its layers"
            )
