"""Decoder layers dropped from a model into bundles, and put back: a model served small first and grown later.

Dropping layers leaves a base model A in which a hidden state passes the places of the dropped layers unchanged: a
model of that many layers fewer, which `from_pretrained` loads as it is. The dropped layers are bundles (B, C, ...): a
folder with one safetensors file a layer and `bundle_meta.json`. Layers are counted from 0 in the model that nothing
was dropped from; the base keeps the numbers of its own under `kept_layers` in its configuration.
"""

import copy
import json
from collections.abc import Iterable, Set
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from ..models.generation import make_savable
from ..models.head_check import refuse_rescaled
from ..models.loading import refuse_quantized
from ..models.private import attn_implementation, set_attn_implementation
from .checks import check_same_layers, check_same_states


META = "bundle_meta.json"
State = dict[str, torch.Tensor]


def layers_prefix(model: PreTrainedModel) -> str:
    """What the names of a model's decoder layers begin with in its state dict (`model.layers.`).

    Raises:
        ValueError: no such list of layers, several, or a model of several parts.
    """
    config = model.config.get_text_config()
    lists = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers
    ]
    found = [name for name in lists if name.endswith("layers")] or lists
    if config is not model.config or len(found) != 1:
        raise ValueError(f"{type(model).__name__} has {len(found)} lists of decoder layers: none can be dropped")
    return f"{found[0]}."


def check_prunable(model: Any) -> None:
    """Refuse a model whose layers cannot be taken apart as they are.

    Raises:
        ValueError: adapters in it, quantized weights, weights that change with what the model is used for, or no
            single list of decoder layers.
    """
    refuse_rescaled(model.config, type(model).__name__)
    if getattr(model, "peft_config", None):
        raise ValueError(f"{type(model).__name__} has an adapter in its layers: merge it first (`merge_and_unload`)")
    refuse_quantized(model.config, type(model).__name__)
    layers_prefix(model)


def whole_numbers(numbers: Iterable[Any], where: str) -> list[int]:
    """Layers or stages as they are counted; `where` begins the message of the error.

    Raises:
        ValueError: one is no whole number.
    """
    numbers = list(numbers)
    for number in numbers:
        if not isinstance(number, Integral) or isinstance(number, bool):
            raise ValueError(f"{where}: {number!r} is no whole number")
    return [int(number) for number in numbers]


def kept_layers(config: Any) -> list[int]:
    """Original numbers of the layers that a model of this configuration has."""
    return list(getattr(config, "kept_layers", None) or range(config.num_hidden_layers))


def original_depth(config: Any) -> int:
    """Number of layers before anything was dropped."""
    return getattr(config, "original_num_hidden_layers", None) or config.num_hidden_layers


def describe_numbers(numbers: list[int]) -> str:
    """`0-3, 7` for [0, 1, 2, 3, 7]."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _entries(config: Any) -> dict[str, dict[int, Any]]:
    """Configuration lists with one entry a layer (as `layer_types`), by name and original number."""
    numbers, found = kept_layers(config), {}
    for name, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == len(numbers) and name not in ("kept_layers", "architectures"):
            if not name.endswith("token_id"):
                found[name] = dict(zip(numbers, value))
    return found


def _split(model: PreTrainedModel) -> tuple[State, dict[int, State]]:
    """A model's weights: those outside its layers, and those of each layer by original number."""
    prefix, numbers = layers_prefix(model), kept_layers(model.config)
    rest, layers = {}, {number: {} for number in numbers}
    for key, value in model.state_dict().items():
        if key.startswith(prefix):
            index, name = key.removeprefix(prefix).split(".", 1)
            layers[numbers[int(index)]][name] = value
        else:
            rest[key] = value
    return rest, layers


def _layers(model: PreTrainedModel) -> dict[int, nn.Module]:
    """A model's decoder layers by original number, in their order."""
    modules = model.get_submodule(layers_prefix(model).rstrip("."))
    return dict(zip(kept_layers(model.config), modules.children()))


def _config(config: Any, numbers: list[int], entries: dict[str, dict[int, Any]]) -> Any:
    """A model's configuration with the layers of these original numbers."""
    if getattr(config, "is_heterogeneous", False):
        raise ValueError(
            f"a {type(config).__name__} with numbers for single layers (per_layer_config), which it finds by their "
            "places, cannot lose layers"
        )
    depth = original_depth(config)
    made = {k: v for k, v in config.to_dict().items() if k not in ("kept_layers", "original_num_hidden_layers")}
    made |= {name: [entry[number] for number in numbers] for name, entry in entries.items()}
    made["num_hidden_layers"] = len(numbers)
    if len(numbers) < depth:
        made |= {"kept_layers": numbers, "original_num_hidden_layers": depth}
    try:
        return type(config).from_dict(made)
    except StrictDataclassError as error:
        raise ValueError(
            f"no {type(config).__name__} has the layers {describe_numbers(numbers)} alone: {error}"
        ) from error


def _skeleton(model: PreTrainedModel, numbers: list[int], entries: dict[str, dict[int, Any]]) -> dict[int, nn.Module]:
    """The layers of a model of the same class with these layers, by original number, without weights."""
    config = _config(model.config, numbers, entries)
    set_attn_implementation(config, attn_implementation(model.config))
    with torch.device("meta"):
        return _layers(type(model)(config))


def _built(model: PreTrainedModel) -> dict[int, nn.Module]:
    """A model's layers as its configuration builds them, without weights and without what its forwards have left."""
    return _skeleton(model, kept_layers(model.config), _entries(model.config))


def _check_same_weights(model: PreTrainedModel, state: State) -> None:
    made = model.state_dict()
    if strange := sorted(made.keys() ^ state.keys()):
        raise ValueError(
            f"{type(model).__name__} of {model.config.num_hidden_layers} layers lacks weights or wants others: "
            f"{strange[:3]}"
        )
    for name, value in made.items():
        if state[name].dtype != value.dtype:
            raise ValueError(
                f"{name!r} is {state[name].dtype} in a model of {model.dtype}, which loading would not keep: bring "
                "the model to one dtype first"
            )
        if not torch.equal(state[name].to(value.device), value):
            raise ValueError(f"{name!r} does not come back as it was: {type(model).__name__} cannot lose layers")


def _assemble(
    model: PreTrainedModel, rest: State, layers: dict[int, State], entries: dict[str, dict[int, Any]]
) -> PreTrainedModel:
    """A model of the same class with these layers (by original number, in any order).

    Raises:
        ValueError: weights that loading would change, or a layer of `model` that would be another one.
    """
    numbers, prefix, state = sorted(layers), layers_prefix(model), {**rest}
    for index, number in enumerate(numbers):
        state |= {f"{prefix}{index}.{name}": value for name, value in layers[number].items()}
    config = _config(model.config, numbers, entries)
    with torch.device("meta"):
        wanted = type(model)(config).state_dict()
    if strange := [name for name in wanted.keys() & state.keys() if wanted[name].shape != state[name].shape]:
        raise ValueError(
            f"a {type(model).__name__} of {len(numbers)} layers has another shape of {min(strange)!r}: it cannot lose "
            "layers"
        )
    made = type(model).from_pretrained(
        None,
        config=config,
        state_dict={name: value.clone() for name, value in state.items()},  # loading keeps and initializes in place
        dtype=model.dtype,
        attn_implementation=attn_implementation(model.config),
    )
    _check_same_weights(made, state)
    made.generation_config = copy.deepcopy(model.generation_config)
    made.config.name_or_path = model.config.name_or_path
    make_savable(made)
    made.to(model.device).train(model.training)
    check_same_layers(_built(model), _layers(made))
    check_same_states(model, _layers(model), made, _layers(made))
    return made


def _check_restorable(model: PreTrainedModel, bundles: dict[str, list[int]]) -> None:
    """Refuse bundles of which one could not be put back: alone, or after those that are before it by name.

    Raises:
        ValueError: a layer would be another one on the way.
    """
    ours, entries = _built(model), _entries(model.config)
    base = set(ours) - {number for numbers in bundles.values() for number in numbers}
    names = sorted(bundles)
    for together in ((), *((name,) for name in names), *(names[:end] for end in range(2, len(names)))):
        numbers = sorted(base.union(*(bundles[name] for name in together)))
        check_same_layers(ours, _skeleton(model, numbers, entries))


def drop_layers(model: PreTrainedModel, bundles: dict[str, list[int]]) -> PreTrainedModel:
    """The base A: the model without these layers.

    Args:
        model: a causal language model; it is left as it is.
        bundles: name to original layer numbers.

    Raises:
        ValueError: a number that the model does not have or that is in two bundles, no layer left, or layers that
            would not be the same in the base, or with a bundle put back.
    """
    check_prunable(model)
    numbers, owner = kept_layers(model.config), {}
    bundles = {name: whole_numbers(dropped, f"bundle {name!r}") for name, dropped in bundles.items()}
    for name, dropped in bundles.items():
        for number in dropped:
            if number not in numbers:
                raise ValueError(
                    f"bundle {name!r}: layer {number} is out of range; the model has the layers "
                    f"{describe_numbers(numbers)}"
                )
            if number in owner:
                raise ValueError(f"layer {number} is in the bundles {owner[number]!r} and {name!r}")
            owner[number] = name
    if len(owner) == len(numbers):
        raise ValueError("no layer would be left in the base")
    _check_restorable(model, bundles)
    rest, layers = _split(model)
    return _assemble(model, rest, {n: layers[n] for n in numbers if n not in owner}, _entries(model.config))


def layer_file(number: int) -> str:
    return f"layer_{number:03d}.safetensors"


def save_bundle(folder: Path, name: str, model: PreTrainedModel, numbers: list[int]) -> None:
    """Write layers of a model as a bundle: a safetensors file a layer, and `bundle_meta.json`.

    Args:
        folder: where it goes; made if it is not there.
        name: of the bundle.
        model: a model that has these layers.
        numbers: their original numbers.

    Raises:
        FileExistsError: there is a bundle already; nothing is written.
        ValueError: what should be a number is none.
    """
    if (folder / META).exists():
        raise FileExistsError(f"there is a bundle in {folder} already; nothing was written")
    numbers = whole_numbers(numbers, f"bundle {name!r}")
    folder.mkdir(parents=True, exist_ok=True)
    layers, config = _split(model)[1], model.config
    for number in numbers:
        save_file({k: v.detach().cpu().contiguous() for k, v in layers[number].items()}, folder / layer_file(number))
    meta = {
        "name": name,
        "layers": sorted(numbers),
        "num_hidden_layers": original_depth(config),
        "model_type": config.model_type,
        "hidden_size": config.hidden_size,
        "config_entries": {key: {str(n): entry[n] for n in numbers} for key, entry in _entries(config).items()},
    }
    (folder / META).write_text(json.dumps(meta, indent=1), encoding="utf-8")


def read_meta(folder: Path) -> dict[str, Any]:
    """A bundle's `bundle_meta.json`.

    Raises:
        FileNotFoundError: no bundle there.
        ValueError: the file is not of that form.
    """
    path = folder / META
    if not path.is_file():
        raise FileNotFoundError(f"no bundle in {folder}: there is no {META}")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        return {**meta, "layers": [int(number) for number in meta["layers"]]}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not describe a bundle ({error!r})") from error


def _check_fits(folder: Path, meta: dict[str, Any], config: Any, present: Set[int]) -> None:
    depth = original_depth(config)
    of = (meta.get("model_type"), meta.get("hidden_size"), meta.get("num_hidden_layers"))
    if of != (config.model_type, config.hidden_size, depth):
        raise ValueError(
            f"bundle {folder} is of a {of[0]} model of width {of[1]} and {of[2]} layers; this one is a "
            f"{config.model_type} model of width {config.hidden_size} and {depth} layers"
        )
    for number in meta["layers"]:
        if not 0 <= number < depth:
            raise ValueError(f"bundle {folder}: layer {number} is out of range for a model of {depth} layers")
        if number in present:
            raise ValueError(f"bundle {folder}: the model has layer {number} already")
        if not (folder / layer_file(number)).is_file():
            raise FileNotFoundError(f"bundle {folder}: the file of layer {number} is missing ({layer_file(number)})")


def restore_bundle(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """[`restore_bundles`] of one."""
    return restore_bundles(model, [folder])


def restore_bundles(model: PreTrainedModel, folders: list[Path]) -> PreTrainedModel:
    """The model with the layers of bundles back at their places.

    Args:
        model: the base, or the base with other bundles restored; it is left as it is.
        folders: the bundles, in any order.

    Raises:
        FileNotFoundError: no bundle there, or a layer's file is missing.
        ValueError: one belongs to another model, a number is out of range or there already, weights are missing, or a
            layer would be another one.
    """
    check_prunable(model)
    rest, layers = _split(model)
    entries, files = _entries(model.config), {}
    for folder in folders:
        meta = read_meta(folder)
        _check_fits(folder, meta, model.config, layers.keys() | files.keys())
        # a list that is as long as this base by chance has no entry for a layer
        entries = {key: entry for key, entry in entries.items() if key in meta["config_entries"]}
        for number in meta["layers"]:
            files[number] = folder / layer_file(number)
            for key, entry in entries.items():
                entry[number] = meta["config_entries"][key][str(number)]
    wanted = _skeleton(model, sorted(layers.keys() | files.keys()), entries)
    check_same_layers(_built(model), wanted)
    layers |= {number: _read_layer(path, wanted[number]) for number, path in files.items()}
    return _assemble(model, rest, layers, entries)


def _read_layer(path: Path, wanted: nn.Module) -> State:
    """The weights in a bundle's file, which must be those of this layer.

    Raises:
        ValueError: the file is broken, or holds other weights.
    """
    try:
        layer = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    ours, theirs = ({name: value.shape for name, value in state.items()} for state in (layer, wanted.state_dict()))
    if different := sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name)):
        raise ValueError(f"{path}: these weights are missing or unknown, or have another shape: {different}")
    return layer


def positions(model: PreTrainedModel, folder: Path) -> list[int]:
    """Where a bundle's layers are in a model that they have been restored to, counted from 0."""
    numbers = kept_layers(model.config)
    return [numbers.index(number) for number in read_meta(folder)["layers"]]
