"""Adapters: what of them cannot be trained here, and how a trained one comes back, exactly as it was trained."""

from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import find_adapter_config_file


# of LoRA's starts, those that leave the base model as it is; the others move a part of its weights into the adapter
LEAVE_THE_BASE = ("gaussian", "eva", "orthogonal", "mica")
# and those that move what loading finds again: of the base's weights alone, without chance or data
FOUND_AGAIN = ("pissa", "olora")
# PEFT's kinds that a student is trained, taught by itself, saved, loaded and merged with, each as it was trained
KINDS = frozenset(
    (
        *("BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD", "GLORA", "GRALORA", "HIRA", "HRA", "IA3", "LN_TUNING"),
        *("LOHA", "LOKR", "LORA", "MISS", "OFT", "OSF", "PEANUT", "PSOFT", "PVERA", "RANDLORA", "ROAD", "SHIRA"),
        *("SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS", "UNILORA", "VBLORA", "VERA", "WAVEFT"),
    )
)
# settings of LoRA that cannot be honored -> why
UNSUPPORTED = {
    "alora_invocation_tokens": "it changes a text only behind these tokens, which drafting, losses and merging do not "
    "look for",
    "arrow_config": "it mixes adapters that are trained already",
    "kasa_config": "its own terms of the loss are not computed here, and it changes the base model",
    "monteclora_config": "its own term of the loss is not computed here",
}


def refuse_adapter(name: str, role: str, revision: str | None = None) -> None:
    """Refuse the folder of an adapter where a model is wanted, before anything of it is loaded.

    transformers loads one as its base model with the adapter's layers inside, which is neither the model nor a
    `PeftModel`.

    Args:
        name: a path or a name on the Hub.
        role: what the model is called in errors.
        revision: of a model on the Hub.

    Raises:
        ValueError: an adapter is there.
    """
    if find_adapter_config_file(name, revision=revision) is not None:
        raise ValueError(
            f"the {role} {name} is an adapter, and a model is wanted: fold the adapter into its base model first "
            f"(`lupi merge --model BASE --adapter {name} --out FOLDER`), and name that"
        )


def adapter_configs(model: object, peft_config: object | None = None) -> list[Any]:
    """The configurations of the adapters that a model has, and of the one that it is to get."""
    configs = [peft_config, *getattr(model, "peft_config", {}).values()]
    return [config for config in configs if config is not None]


def _start(config: Any) -> str | None:
    """The name of LoRA's start where it changes the base model, else None."""
    start = getattr(config, "init_lora_weights", None)
    return start if isinstance(start, str) and start.lower() not in LEAVE_THE_BASE else None


def check_adapters(model: object, peft_config: object | None) -> None:
    """Refuse adapters that cannot be trained, or that would not be loaded as they were trained.

    Raises:
        ValueError: virtual tokens, which the backbone's states know nothing of; a kind or a setting that does not
            come back as it was trained; or a start that depends on chance or data, which loading would repeat with
            another outcome.
    """
    for config in adapter_configs(model, peft_config):
        name = type(config).__name__
        if getattr(config, "is_prompt_learning", False):
            raise ValueError(f"{name} is not supported: the loss reads the backbone's states")
        kind = getattr(config.peft_type, "value", config.peft_type)
        if kind not in KINDS:
            why = (
                "nothing here moves its ranks while it trains"
                if kind in ("ADALORA", "ADAMSS")
                else ("a student with it would not be trained, loaded and merged as it is")
            )
            raise ValueError(f"{name} is not supported: {why}. Take LORA, or one of {', '.join(sorted(KINDS))}")
        for key, why in UNSUPPORTED.items():
            if getattr(config, key, None):
                raise ValueError(f"{key} of {name} is not supported: {why}. Leave it out")
        start = _start(config)
        if start is not None and start.lower() not in FOUND_AGAIN:
            raise ValueError(
                f"init_lora_weights={start!r} takes out of the base model what loading cannot find again, so the "
                "saved student would not be the trained one: use 'pissa', 'olora', or one that leaves the base alone "
                f"(True, {', '.join(map(repr, LEAVE_THE_BASE))})"
            )


def trains_tokens_alone(model: object, peft_config: object | None) -> bool:
    """Whether an adapter of the kind that holds nothing but trained tokens is there, or is to come."""
    return any(config.peft_type == "TRAINABLE_TOKENS" for config in adapter_configs(model, peft_config))


def refuse_tied(config: Any) -> None:
    """Raise ValueError where the embeddings of a model, whose tokens alone are to be trained, are its `lm_head`, too:
    TRL takes what PEFT puts there for an adapter on the `lm_head`."""
    if config.get_text_config().tie_word_embeddings:
        raise ValueError(
            "TrainableTokensConfig is not supported on a model whose embeddings are tied to its lm_head: take "
            "LoraConfig with `trainable_token_indices`, which trains these tokens in both"
        )


def check_base_untouched(model: Any, peft_config: object | None) -> None:
    """Refuse adapters that, switched off, do not leave the original model: a self-taught student's teacher.

    Raises:
        ValueError: an adapter that changes the base model from its start, or trains a part of it; or a merged one.
    """
    for config in adapter_configs(model, peft_config):
        key, value = "", None
        if _start(config) is not None:
            key, value = "init_lora_weights", _start(config)
        elif getattr(config, "layer_replication", None):
            key, value = "layer_replication", config.layer_replication
        elif getattr(config, "bias", "none") not in ("none", None, False):
            key, value = "bias", config.bias
        if key:
            raise ValueError(
                f"a student that teaches itself must be the original model with its adapter switched off, and "
                f"{key}={value!r} changes that model: choose another, or name a teacher"
            )
    if not isinstance(model, str) and is_peft_model(model):
        _check_parts(model)


def _check_parts(model: nn.Module) -> None:
    """Raise ValueError for a trainable parameter that is no adapter's, or an adapter that is merged."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    for name, module in model.named_modules():
        if merged := getattr(module, "merged_adapters", None):
            raise ValueError(f"the adapter {merged[0]!r} is merged into {name}: call unmerge_adapter() first")
    own: set[int] = set()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            parts = [getattr(module, name, None) for name in module.adapter_layer_names]
        elif isinstance(module, AuxiliaryTrainingWrapper):
            parts = [part for name, part in module.named_children() if name != "original_module"]
        else:
            continue
        for part in parts:
            own |= {id(p) for p in (part.parameters() if isinstance(part, nn.Module) else [part])}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in own:
            raise ValueError(
                "a student that teaches itself must be the original model with its adapter switched off, and "
                f"{name!r} would be trained, which is no adapter's: freeze it, or name a teacher"
            )


def check_mergeable(model: nn.Module) -> None:
    """Raise ValueError for an adapter whose biases have none below them that they could be folded into."""
    for name, module in model.named_modules():
        biases = getattr(module, "lora_bias", None)  # adapter -> whether it has one
        if isinstance(biases, dict) and any(biases.values()) and getattr(module, "bias", None) is None:
            raise ValueError(
                f"lora_bias=True: {name} has no bias of its own, so that the student could not be merged; leave "
                "lora_bias out, or that module out of `target_modules`"
            )


def load_adapter(model: Any, folder: str) -> Any:
    """A `PeftModel` of this model with all of the weights in an adapter's folder, and no others.

    Where the adapter was trained with new tokens, the model's embeddings grow to its number.

    Raises:
        ValueError: the adapter lacks weights that its configuration wants for this model, or has others.
    """
    from peft import PeftConfig, PeftModel

    try:
        config = PeftConfig.from_pretrained(folder)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: PEFT cannot read its adapter_config.json ({error!r})") from error
    try:
        _resize_embeddings(model, folder)
        made: Any = PeftModel(model, config)
        result = made.load_adapter(folder, "default", is_trainable=False)
    except SafetensorError as error:
        raise ValueError(f"the weights of the adapter {folder} are no complete safetensors file ({error})") from error
    except RuntimeError as error:  # other shapes; torch lists each in a line of its own
        why = str(error).strip().splitlines()[-1].strip()
        raise ValueError(f"the adapter {folder} does not belong to this {type(model).__name__}: {why}") from error
    if strange := [*_missing(made, result.missing_keys), *result.unexpected_keys]:
        raise ValueError(
            f"the adapter {folder} does not belong to this {type(model).__name__}: {len(strange)} weights are missing "
            f"or unknown ({', '.join(strange[:3])})"
        )
    return made


def _resize_embeddings(model: Any, folder: str) -> None:
    """Give the model as many embeddings as the adapter has, which was trained with new tokens, and saved with them."""
    own = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is own)
    path = Path(folder) / "adapter_model.safetensors"
    if not path.is_file():
        return
    with safe_open(path, framework="pt") as weights:
        rows = {weights.get_slice(key).get_shape()[0] for key in weights.keys() if key.endswith(f"{name}.weight")}
    if rows and rows != {own.weight.shape[0]}:
        model.resize_token_embeddings(max(rows), mean_resizing=False)


def _missing(model: nn.Module, names: list[str]) -> list[str]:
    """Those of `names` that no file has brought: one parameter may have several names, of which a file has one."""
    named = dict(model.named_parameters(remove_duplicate=False))
    there = {id(named[name]) for name in named.keys() - set(names)}
    return [name for name in names if name not in named or id(named[name]) not in there]


def merge_adapter(model: Any) -> Any:
    """The model that a `PeftModel` is, its adapter folded into its weights.

    Raises:
        ValueError: an adapter that PEFT cannot fold in.
    """
    _untie_embeddings(model)
    _part_replicas(model)
    try:
        return model.merge_and_unload()
    except (NotImplementedError, RuntimeError, AttributeError) as error:
        kind = type(model.active_peft_config).__name__
        raise ValueError(f"this adapter ({kind}) cannot be merged: {error}") from error


def _untie_embeddings(model: Any) -> None:
    """Give embeddings and `lm_head` weights of their own where an adapter is on one of them (they may be tied)."""
    base = model.get_base_model()
    read, written = base.get_input_embeddings(), base.get_output_embeddings()
    if not (hasattr(read, "base_layer") or hasattr(written, "base_layer")):
        return
    written = getattr(written, "base_layer", written)
    if getattr(written, "weight", None) is not getattr(read, "base_layer", read).weight:
        return
    written.weight = nn.Parameter(written.weight.detach().clone(), requires_grad=False)
    for config in (base.config, base.config.get_text_config()):
        config.tie_word_embeddings = False


def _part_replicas(model: Any) -> None:
    """Give replicas of one layer (`layer_replication`) weights of their own, since what is folded in differs."""
    if not any(getattr(config, "layer_replication", None) for config in adapter_configs(model)):
        return
    seen: set[int] = set()
    tied = {id(p) for m in (model.get_input_embeddings(), model.get_output_embeddings()) for p in m.parameters()}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in seen and id(parameter) not in tied:
                setattr(module, name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
            seen.add(id(parameter))
