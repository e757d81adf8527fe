"""How models and tokenizers are loaded where nobody asked for more: no code of theirs runs, no pickle is read.

Without a word on it, transformers *asks at the terminal* whether a repository's code may run, and falls back on
pickled weights; every `from_pretrained` of this package says something.
"""

from typing import Any


NO_CODE = {"trust_remote_code": False}
SAFE_WEIGHTS = {"trust_remote_code": False, "use_safetensors": True}


def refuse_secrets(args: Any) -> None:
    """Refuse a token where it would be logged: the loading options are reported and saved as they stand.

    Raises:
        ValueError: `model_init_kwargs` or `teacher_model_init_kwargs` holds a token; the token is not shown.
    """
    for key in ("model_init_kwargs", "teacher_model_init_kwargs"):
        options = getattr(args, key, None)
        if isinstance(options, dict) and {"token", "use_auth_token"} & options.keys():
            raise ValueError(f"a token in {key} would be logged and saved: set HF_TOKEN in the environment instead")
