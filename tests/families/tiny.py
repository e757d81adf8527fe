"""A tiny random-weight model of any causal language model that transformers maps to a configuration."""

import inspect

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PretrainedConfig

from tests.families.exceptions import NO_TEXT, OF_FAMILY, PART
from tests.families.sizes import SIZES
from tests.speculative.toy_models import perturbed


WEIGHTS = 0.1  # standard deviation of matrices: what a token is worth is then seen in all that follow
EMBEDDINGS = 0.2
LOGITS = 2.0  # standard deviation of logits: their distributions are neither flat nor certain
AMOUNT = 0.1  # of a matrix's own spread: by how much a student differs from its teacher
AS_DRAWN = ("A_log", "conv", "slstm")  # parameters that are no matrices to multiply with, by parts of their names


def families() -> dict[str, type[PretrainedConfig]]:
    """Of every family in transformers' mapping, by its name there: the class of its configuration."""
    return {config_class.model_type: config_class for config_class in MODEL_FOR_CAUSAL_LM_MAPPING.keys()}


def _inside(config_class: type[PretrainedConfig], name: str) -> type[PretrainedConfig]:
    inner = config_class.sub_configs[name]
    return (
        inner if hasattr(inner, "model_type") else CONFIG_MAPPING[config_class.sub_configs_defaults[name].model_type]
    )


def small(config_class: type[PretrainedConfig], **more) -> PretrainedConfig:
    """A configuration of a tiny model, and of what is inside it; `more`: what is as the caller says."""
    names = inspect.signature(config_class.__init__).parameters
    own = {**OF_FAMILY.get(config_class.model_type, {}), **more}
    sizes = {name: size for name, size in SIZES.items() if name in names}
    for name in config_class.sub_configs:
        if name in names:
            sizes[name] = small(_inside(config_class, name), **own.pop(name, {}))
    config = config_class(**sizes | own)
    return getattr(config, PART[config_class.model_type]) if config_class.model_type in PART else config


@torch.no_grad()
def tiny(config: PretrainedConfig, seed: int):
    """A random float32 model in eval mode, all of whose tokens and positions count.

    Returns:
        What transformers' AutoModelForCausalLM makes of the configuration.
    """
    torch.manual_seed(seed)
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        model = AutoModelForCausalLM.from_config(config)
    else:  # a part of a configuration in the mapping
        model = next(kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING.values() if kind.config_class is type(config))(
            config
        )
    model = model.float().eval()
    embedding, head = (
        getattr(part, "weight", None) for part in (model.get_input_embeddings(), model.get_output_embeddings())
    )
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and (spread := parameter.std()) > 0 and not any(part in name for part in AS_DRAWN):
            parameter.mul_((EMBEDDINGS if parameter is embedding else WEIGHTS) / spread)
    if head is not None and head is not embedding and config.model_type not in NO_TEXT:
        _sharpen(model)
    return model


def _sharpen(model) -> None:
    """Takes out of a head what all states have in common, which would make one token win everywhere, and scales it."""
    read, head = [], model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    texts = {"input_ids": torch.arange(3, 19)[None], "use_cache": False}
    model(**texts)
    hook.remove()
    common = torch.nn.functional.normalize(read[0].flatten(0, -2).mean(0), dim=0)
    head.weight.sub_(torch.outer(head.weight @ common, common))
    head.weight.mul_(LOGITS / model(**texts).logits.std())


def pair(config: PretrainedConfig):
    """A student and its teacher, which agree now and then."""
    teacher = tiny(config, seed=1)
    return perturbed(teacher, AMOUNT), teacher
