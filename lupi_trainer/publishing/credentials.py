"""What is a secret: by the name of its variable, or by how it looks; never shown, never saved."""

import os
import re
from typing import Any


_NAMES = re.compile(r"(.*_)?(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|KEY|PAT)|.*APIKEY", re.IGNORECASE)
# tokens of the Hub, of W&B and of others that give theirs a prefix; a user and a password before a host
_LOOKS = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|wandb_v1_\w{30,}|gh[opsu]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|sk-[\w-]{20,}"
    r"|AKIA[A-Z0-9]{16})\b|(?<=://)[\w.~%!$+-]+:[\w.~%!$+-]+(?=@)"
)


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name holds a secret: `HF_TOKEN`, `WANDB_API_KEY`, `AWS_SECRET_ACCESS_KEY`, ..."""
    return _NAMES.fullmatch(name) is not None


def looks_secret(text: str) -> bool:
    """Whether a token of a known form, or a password in an address, is in a text."""
    return _LOOKS.search(text) is not None


def without_secrets(text: str) -> str:
    """The text with `***` in place of what [`looks_secret`] finds."""
    return _LOOKS.sub("***", text)


def known_secrets() -> dict[str, str]:
    """Secrets that this process knows, with a name that may be shown: the Hub's token, keys in the environment."""
    from huggingface_hub import get_token

    secrets = {value: f"the value of ${name}" for name, value in os.environ.items() if is_secret_name(name)}
    if token := get_token():
        secrets.setdefault(token, "the Hub token of this machine")
    return {value: name for value, name in secrets.items() if len(value) >= 8}


def refuse_secrets(args: Any) -> None:
    """Refuse a token where it would be logged: the loading options are reported and saved as they are.

    Raises:
        ValueError: `model_init_kwargs` or `teacher_model_init_kwargs` holds a token; the token is not shown.
    """
    for key in ("model_init_kwargs", "teacher_model_init_kwargs"):
        options = getattr(args, key, None)
        if isinstance(options, dict) and {"token", "use_auth_token"} & options.keys():
            raise ValueError(f"a token in {key} would be logged and saved: set HF_TOKEN in the environment instead")
