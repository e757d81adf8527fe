"""How models and tokenizers are loaded where nobody asked for more: no code of theirs runs, no pickle is read.

Without a word on it, transformers *asks at the terminal* whether a repository's code may run, and falls back on
pickled weights; every `from_pretrained` of this package says something.
"""

from typing import Any


NO_CODE = {"trust_remote_code": False}
SAFE_WEIGHTS = {"trust_remote_code": False, "use_safetensors": True}


def repository_options(args: Any) -> dict[str, Any]:
    """Of a student's configuration and tokenizer: the revision that its weights are loaded from."""
    return {"revision": (args.model_init_kwargs or {}).get("revision"), "trust_remote_code": args.trust_remote_code}
