"""What is a secret: by the name of its variable, or by how it looks; never shown, never saved."""

import json
import logging
import os
import re
import sys
import threading
import traceback
from typing import Any
from urllib.parse import quote


_NAMES = re.compile(r"(.*_)?(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|KEY|PAT)|.*APIKEY", re.IGNORECASE)
SHORTEST = 6  # characters of a secret that is looked for in messages: a shorter one is in many words
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
    """The text with `***` in place of what [`looks_secret`] finds, and of the secrets in the environment.

    Those are found as they are, as text, bytes, JSON or an address quote them, and without the blanks around them.
    """
    for form in sorted(_forms(), key=len, reverse=True):
        text = text.replace(form, "***")
    return _LOOKS.sub("***", text)


def _forms() -> set[str]:
    """How the secrets in the environment may be written in a message."""
    forms = set()
    for name, value in os.environ.items():
        if is_secret_name(name):
            quoted = {repr(value)[1:-1], repr(value.encode("utf-8", "surrogateescape"))[2:-1], json.dumps(value)[1:-1]}
            address = quote(value, errors="surrogateescape")
            forms |= {value, value.strip(), address, *quoted, *re.split(r"[^\x21-\x7e]+", value)}
    return {form for form in forms if len(form) >= SHORTEST}


def header_secret(name: str) -> str | None:
    """The secret in an environment variable, which is to be sent in a header; `None` where there is none.

    Raises:
        ValueError: no header can hold it; the message names the variable and the place, and shows nothing of it.
    """
    value = os.environ.get(name)
    if not value:
        return None
    outer = {0, len(value) - 1}
    for place, character in enumerate(value):
        if not ("!" <= character <= "~" or (character in " \t" and place not in outer)):
            raise ValueError(
                f"{name} cannot be sent: its character {place + 1} of {len(value)} is U+{ord(character):04X}, and a "
                "header holds visible ASCII alone, without blanks or line ends around it. Set it without"
            )
    return value


_make_record = logging.getLogRecordFactory()
_excepthook, _thread_excepthook = sys.excepthook, threading.excepthook


def _record_without_secrets(*args: Any, **kwargs: Any) -> logging.LogRecord:
    record = _make_record(*args, **kwargs)
    try:
        said = record.getMessage()
    except Exception:  # arguments that do not fit the message: whoever handles it says so
        return record
    if (clean := without_secrets(said)) != said:
        record.msg, record.args = clean, ()
    if record.exc_info and record.exc_info[1] is not None:
        if (clean := without_secrets(said := _traceback(record.exc_info[1]))) != said:
            record.exc_info, record.exc_text = None, clean.rstrip("\n")
    return record


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error))


def _say_without_secrets(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if (clean := without_secrets(said := _traceback(error))) == said:
        _excepthook(kind, error, trace)
    else:
        print(clean, end="", file=sys.stderr)


def _say_of_thread(args: Any) -> None:
    said = "" if args.exc_value is None else _traceback(args.exc_value)
    if (clean := without_secrets(said)) == said:
        _thread_excepthook(args)
    else:
        print(clean, end="", file=sys.stderr)


def guard_logs() -> None:
    """From now on, no record of any logger of this process holds a secret, its traceback included."""
    global _make_record
    if logging.getLogRecordFactory() is not _record_without_secrets:
        _make_record = logging.getLogRecordFactory()
        logging.setLogRecordFactory(_record_without_secrets)


def guard_output() -> None:
    """[`guard_logs`], and the same for the tracebacks of errors that end the process or a thread."""
    global _excepthook, _thread_excepthook
    guard_logs()
    if sys.excepthook is not _say_without_secrets:
        _excepthook, sys.excepthook = sys.excepthook, _say_without_secrets
    if threading.excepthook is not _say_of_thread:
        _thread_excepthook, threading.excepthook = threading.excepthook, _say_of_thread


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
