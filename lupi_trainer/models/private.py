"""What this package uses of transformers' models and configurations though it is not public.

A name that begins with an underscore may change in any release. All of those that concern models are here, under names
of this package, and `tests/training/test_private.py` fails when one of them is not as it is used here:
`_attn_implementation` and `_get_generation_parameters` of a configuration, `_supports_sdpa`, `_supports_flash_attn`,
`_is_stateful` and `_keys_to_ignore_on_save` of a model, `_hf_deepspeed_config_weak_ref` of transformers' integration
of DeepSpeed, `_n_gpu` of training arguments, and what accelerate puts on a module, `_hf_hook` and `_original_forward`.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import transformers
from torch import nn
from transformers import cache_utils
from transformers.integrations import deepspeed


def attn_implementation(config: Any) -> str | None:
    """The name of the attention that a model with this configuration runs."""
    return config._attn_implementation


def set_attn_implementation(config: Any, name: str | None) -> None:
    """Set it for the configuration and those inside it, without the checks of `model.set_attn_implementation`."""
    config._attn_implementation = name


def generation_settings(config: Any) -> dict[str, Any]:
    """What a model's configuration holds that belongs into its generation config, so that neither can be saved."""
    return config._get_generation_parameters()


def supports_sdpa(model: Any) -> bool:
    """Whether the model hands to transformers' attention functions what `sdpa` needs."""
    return getattr(model, "_supports_sdpa", False)


def supports_flash_attention(model: Any) -> bool:
    """Whether the model hands to transformers' attention functions what flash attention needs."""
    return getattr(model, "_supports_flash_attn", False)


def is_stateful(model: Any) -> bool:
    """Whether the model keeps a state that tokens cannot be removed from."""
    return getattr(model, "_is_stateful", False)


_STATES = ("conv", "linear_attention", "hybrid", "hybrid_sliding")  # types of layers that keep them


def layer_types(config: Any) -> list[tuple[str, int]]:
    """The type of each layer's cache, as transformers names it, and its number of states (0: it keeps none)."""
    if getattr(config, "num_hidden_layers", None) is None:  # of a model elsewhere, of which less is known
        return []
    names, given = cache_utils.get_layer_types_and_kwargs(config)
    if isinstance(given, dict):  # an older release: one for all layers, without those that have no cache of their own
        older = f"a kind that transformers {transformers.__version__} does not describe"
        given, names = [given] * len(names), names + [older] * (config.num_hidden_layers - len(names))
    given = [*given, *[{} for _ in names[len(given) :]]]
    return [(name, each.get("number_of_states", 1) if name in _STATES else 0) for name, each in zip(names, given)]


def leave_out_of_saves(model: Any, names: Iterable[str]) -> None:
    """Make the model's `save_pretrained` leave these entries of its state out; nothing for a module without one."""
    if getattr(model, "_keys_to_ignore_on_save", None) is not None:
        model._keys_to_ignore_on_save.update(names)


def deepspeed_config() -> Any:
    """The `HfDeepSpeedConfig` that transformers loads models by, or `None`."""
    reference = deepspeed._hf_deepspeed_config_weak_ref
    return None if reference is None else reference()


def use_one_gpu_at_most(args: Any) -> None:
    """Keep a `Trainer` that no launcher has started from copying its model to every visible GPU."""
    args._n_gpu = min(args.n_gpu, 1)


def has_hook(module: nn.Module) -> bool:
    """Whether accelerate moves or gathers something around this module's forward."""
    return hasattr(module, "_hf_hook")


def has_mixed_precision(model: Any) -> bool:
    """Whether accelerate has put mixed precision around the model's forward."""
    return hasattr(model, "_original_forward")


@contextmanager
def without_mixed_precision(model: Any) -> Generator[None]:
    """Inside, the model's forward is the one that accelerate has put mixed precision around, and nothing else."""
    if not has_mixed_precision(model):
        yield
        return
    mixed, original = model.forward, model._original_forward
    del model._original_forward
    model.forward = original
    try:
        yield
    finally:
        model.forward, model._original_forward = mixed, original
