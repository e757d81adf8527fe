"""How models and tokenizers are loaded where nobody asked for more: no code of theirs runs, no pickle is read.

Without a word on it, transformers *asks at the terminal* whether a repository's code may run, and falls back on
pickled weights; every `from_pretrained` of this package says something.
"""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file, find_adapter_config_file

from ..data.prompts import check_tokenizer
from ..lab import resolve_model


NO_CODE = {"trust_remote_code": False}
SAFE_WEIGHTS = {"trust_remote_code": False, "use_safetensors": True}


def repository_options(args: Any) -> dict[str, Any]:
    """Of a student's configuration and tokenizer: the revision that its weights are loaded from."""
    return {"revision": (args.model_init_kwargs or {}).get("revision"), "trust_remote_code": args.trust_remote_code}


def load_model(name: str, dtype: str = "auto", device: str | None = None, *, chat: bool = True):
    """A causal language model and its tokenizer, from a name or a folder, of a LoRA adapter too.

    Returns:
        (model in eval mode on its device, tokenizer).

    Raises:
        ValueError: the tokenizer has no chat template or pad token, where the model shall chat; or the model is code
            of its own.
        OSError: there is no such model, or its weights are not safetensors.
    """
    path = resolve_model(name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if find_adapter_config_file(path) is not None:
        from peft import AutoPeftModelForCausalLM

        cached_file(path, "adapter_model.safetensors")  # raises where there is none: PEFT would read a pickle
        model = AutoPeftModelForCausalLM.from_pretrained(path, dtype=dtype, **SAFE_WEIGHTS)
    else:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **SAFE_WEIGHTS)
    tokenizer = AutoTokenizer.from_pretrained(path, **NO_CODE)
    if chat:
        check_tokenizer(tokenizer)
    return model.to(device).eval(), tokenizer
