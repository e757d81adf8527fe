"""How models and tokenizers are loaded where nobody asked for more: no code of theirs runs, no pickle is read.

Without a word on it, transformers *asks at the terminal* whether a repository's code may run, and falls back on
pickled weights; every `from_pretrained` of this package says something.
"""

import copy
import json
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file, find_adapter_config_file

from ..lab import resolve_model
from .adapters import check_adapters, refuse_adapter, refuse_tied, trains_tokens_alone
from .hub_code import refuse_hub_code
from .vocabulary import check_tokenizer


NO_CODE: dict[str, Any] = {"trust_remote_code": False}
SAFE_WEIGHTS: dict[str, Any] = {"trust_remote_code": False, "use_safetensors": True}


@contextmanager
def key_named(key: str) -> Generator[None]:
    """Put the key that names a file or model before what is wrong where there is none, or it cannot be read.

    Raises:
        OSError, ValueError: as inside, with the key; an OSError in one line.
    """
    try:
        yield
    except ValueError as error:
        if key in str(error):
            raise
        raise ValueError(f"{key}: {error}") from error
    except StrictDataclassError as error:  # values that a model's config.json cannot have
        raise ValueError(f"{key}: {' '.join(str(error).split())}") from error
    except OSError as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
        raise kind(f"{key}: {str(error).strip().splitlines()[0]}") from error


def own_arguments(args: Any) -> Any:
    """A copy of a run's configuration, on which a trainer may write: the caller's stays as it is."""
    own = copy.copy(args)
    for key, value in vars(args).items():
        if isinstance(value, (dict, list)) or key == "accelerator_config":
            setattr(own, key, copy.deepcopy(value))
    return own


def resolve_student(
    model: Any, args: Any, default_args: Callable[[str], Any], peft_config: Any = None, trains_more: bool = False
) -> tuple[Any, str, Any]:
    """What a trainer's constructor knows of its student first of all.

    A student given by name is loaded from safetensors; `model_init_kwargs: {use_safetensors: false}` reads pickles.

    Args:
        model: a name, a path, `lab:NAME`, or a model.
        args: the run's configuration, or `None`.
        default_args: from the last part of the student's name to the configuration of a run that has none.
        peft_config: of the adapter that the student is to get, or `None`.
        trains_more: whether something is trained that is not in the model yet.

    Returns:
        `(model, name, args)`: the model, or the path that its name stands for; its name; the trainer's own copy of the
        configuration.

    Raises:
        ValueError: the folder of an adapter, an adapter that cannot be trained, or a model that is all frozen.
    """
    if isinstance(model, str):
        model = name = resolve_model(model)
    else:
        name = model.config.name_or_path or "student"
    args = default_args(name.split("/")[-1]) if args is None else own_arguments(args)
    check_adapters(model, peft_config)
    if not isinstance(model, str) and trains_tokens_alone(model, peft_config):
        refuse_tied(model.config)
    if isinstance(model, str):
        init_kwargs: dict[str, Any] = {"use_safetensors": True} | (args.model_init_kwargs or {})
        args.model_init_kwargs = init_kwargs
        refuse_adapter(model, "student", init_kwargs.get("revision"))
        refuse_hub_code(model, init_kwargs.get("revision"))
        if trains_tokens_alone(model, peft_config):
            refuse_tied(AutoConfig.from_pretrained(model, **repository_options(args)))
    elif peft_config is None and not trains_more and not any(p.requires_grad for p in model.parameters()):
        how = ": load it with `is_trainable=True`" if hasattr(model, "peft_config") else ", and it gets no adapter"
        raise ValueError(f"the student {name} has nothing to train: all of its weights are frozen{how}")
    return model, name, args


def repository_options(args: Any) -> dict[str, Any]:
    """Of a student's configuration and tokenizer: the revision that its weights are loaded from."""
    return {"revision": (args.model_init_kwargs or {}).get("revision"), "trust_remote_code": args.trust_remote_code}


def check_device(name: str | None) -> None:
    """Whether this machine has a device, before anything is loaded onto it.

    Raises:
        ValueError: it has not; the message says what there is.
    """
    try:
        device = torch.device(name or "cpu")
    except RuntimeError:
        raise ValueError(f"there is no device {name!r}: cpu, cuda, cuda:NUMBER and mps are known") from None
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    count = counts.get(device.type, 1)
    if (device.index or 0) >= count:
        here = f"{count} of them" if count else "none"
        raise ValueError(
            f"the device {name!r} is not there: this machine has {here}, as far as PyTorch can see; 'cpu' is there"
        )


def load_tokenizer(path: str, *, chat: bool = True):
    """The tokenizer of a model.

    Raises:
        ValueError: it has no chat template or pad token, where the model shall chat.
    """
    tokenizer = AutoTokenizer.from_pretrained(path, **NO_CODE)
    if chat:
        check_tokenizer(tokenizer)
    return tokenizer


def load_model(name: str, dtype: str = "auto", device: str | None = None, *, chat: bool = True):
    """A causal language model and its tokenizer, from a name or a folder, of a LoRA adapter too.

    Returns:
        (model in eval mode on its device, tokenizer).

    Raises:
        ValueError: the tokenizer has no chat template or pad token, where the model shall chat; the model is code
            of its own; there is no such device, no such folder, or no model in it; its
            weights are not complete; or an adapter's base is gone.
        OSError: the Hub has no such model, or its weights are not safetensors.
    """
    check_device(device)
    path = resolve_model(name)
    tokenizer = load_tokenizer(path, chat=chat)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with weights_named(name):
        if (adapter := find_adapter_config_file(path)) is not None:
            from peft import AutoPeftModelForCausalLM

            refuse_hub_code(_check_base(name, adapter))
            if Path(path).is_dir() and not (Path(path) / "adapter_model.safetensors").is_file():
                raise FileNotFoundError(f"{name} has no adapter_model.safetensors")
            cached_file(path, "adapter_model.safetensors")  # raises where there is none: PEFT would read a pickle
            model = AutoPeftModelForCausalLM.from_pretrained(path, dtype=dtype, **SAFE_WEIGHTS)
        else:
            refuse_hub_code(path)
            model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **SAFE_WEIGHTS)
    return model.to(device).eval(), tokenizer


@contextmanager
def weights_named(name: str) -> Generator[None]:
    """Name the model whose weights cannot be read, or are of other shapes than its configuration says.

    Raises:
        ValueError: in place of what safetensors and transformers raise.
    """
    try:
        yield
    except SafetensorError as error:
        raise ValueError(f"the weights of {name} are no complete safetensors file ({error})") from error
    except RuntimeError as error:
        if "mismatch" not in str(error):
            raise
        raise ValueError(f"the weights of {name} have other shapes than its configuration says") from error


def _check_base(name: str, config: str) -> str:
    """The base model of an adapter; a ValueError where its configuration file names one that is not where it was."""
    try:
        base = json.loads(Path(config).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (AttributeError, RecursionError, ValueError) as error:
        raise ValueError(f"{config}: not a configuration of an adapter ({error})") from error
    try:
        return resolve_model(base or "")
    except ValueError as error:
        raise ValueError(f"{name} is an adapter, and its base model is not here: {error}") from error


def refuse_quantized(config: Any, role: str) -> None:
    """Raise ValueError for a model that is quantized, whose layers cannot be saved again as they are."""
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"the {role} is quantized: its layers would not be saved as they are; take the original")


def load_complete(name: str, role: str, **model_kwargs: Any):
    """A causal language model, to be changed and saved: every weight of it is its files', and none of these is lost.

    Args:
        name: a name, a path, or `lab:NAME`.
        role: what the model is called in errors.
        **model_kwargs: of `from_pretrained` (`dtype`, `revision`, ...).

    Raises:
        ValueError: an adapter, a quantized model, or one whose files lack weights or have others; it names some.
        OSError: there is no such model, or its weights are not safetensors.
    """
    path, revision = resolve_model(name), model_kwargs.get("revision")
    refuse_adapter(path, role, revision)
    refuse_hub_code(path, revision)
    options = SAFE_WEIGHTS | {key: value for key, value in model_kwargs.items() if value is not None}
    known = {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
    refuse_quantized(AutoConfig.from_pretrained(path, **known), role)
    with weights_named(f"the {role} {name}"):  # those of other shapes are named below
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    model, info = loaded
    for kind, verb in (
        ("missing_keys", "lack"),
        ("mismatched_keys", "have another shape of"),
        ("unexpected_keys", "have"),
    ):
        if names := sorted(one if isinstance(one, str) else str(one[0]) for one in info[kind]):
            raise ValueError(
                f"the {role} {name} is no complete {type(model).__name__}: its files {verb} {len(names)} weights that "
                f"do not fit ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
            )
    return model


def keep_4bit_exact(model: nn.Module) -> None:
    """Have bitsandbytes compute a model's 4-bit layers with their dequantized weights, on every CPU alike.

    On a CPU with AVX512-BF16 it would pack such a layer the first time that it is run in eval mode, for good: scales
    are rounded to bfloat16 and so is the product, which has no backward, so that an adapter would learn nothing;
    widths that are no multiples of a block fail. Layers that are packed already are unpacked, with a warning, since
    their scales stay rounded (by 2**-8 of each at most). Call it before the first forward.
    """
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    packed = 0
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False
        state: Any = getattr(layer.weight, "quant_state", None)
        if getattr(state, "packing_format_for_cpu", False):
            layer.weight.data, state.absmax = _unpacked(layer.weight.data, state.absmax)
            layer.weight.data = layer.weight.data.reshape(state.original_qshape)
            if getattr(state, "original_storage_type", None) is not None:
                layer.weight.data = layer.weight.data.view(state.original_storage_type)
            state.dtype, state.packing_format_for_cpu = state.original_dtype, False
            packed += 1
    if packed:
        warnings.warn(
            f"{packed} 4-bit layers of {type(model).__name__} were run in eval mode before, and their scales rounded "
            "to bfloat16 by bitsandbytes; load the model anew for its exact weights",
            stacklevel=2,
        )


def _unpacked(weight: torch.Tensor, scales: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """bitsandbytes' layout for AVX512-BF16 -> its own: (two weights a byte, the first in the high half; scales).

    weight: [N, K / 2] uint8; of 32 rows and two columns at a time, the low halves hold the first 16 rows (two columns
    of a row side by side), the high halves the others. scales: [K / block, N].
    """
    rows, half = weight.shape
    blocks = weight.reshape(rows // 32, half, 32)
    values = torch.cat([blocks & 15, blocks >> 4], dim=-1).reshape(rows // 32, half, 32, 2).transpose(1, 2)
    return values[..., 0] << 4 | values[..., 1], scales.T.reshape(-1).float()
