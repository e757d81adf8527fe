"""The chat template of another model, taken over without a change of the student's embeddings."""

import os
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import AutoConfig, AutoTokenizer

from ..lab import resolve_model
from .loading import repository_options


_STEP = 64  # TRL resizes embeddings to a multiple of it


def _check_template_file(path: str, tokenizer: Any) -> None:
    """Raise ValueError if a file holds no template that can be read."""
    try:
        with open(path, encoding="utf-8") as file:
            template = file.read()
        if not template.strip():
            raise ValueError("it is empty")
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], chat_template=template, tokenize=False)
    except (ValueError, TemplateSyntaxError) as error:
        raise ValueError(f"chat_template_path: {path} is no template: {error}") from error
    except TemplateError:
        pass  # one that refuses such a conversation


def adopt_chat_template(args: Any, student: Any, tokenizer: Any) -> None:
    """Give the student's tokenizer the template (and end token) of the model that `args.chat_template_path` names.

    TRL would resize the student's embeddings for it, to what the tokenizer needs: padded ones would shrink, and no
    longer be those of the teacher. Where no token is new, nothing needs to be resized: it is done here, and
    `chat_template_path` is cleared. New tokens beyond the embeddings are left to TRL, which grows them, and so is the
    path of a template.

    Args:
        args: the trainer's own configuration.
        student: a model, or its path or name on the Hub.
        tokenizer: the student's.

    Raises:
        ValueError: the model has no chat template, or tokens that the student's tokenizer lacks though its padded
            embeddings have room for them.
        OSError: there is no such file or model.
    """
    name = args.chat_template_path
    if name is None:
        return
    if os.path.isfile(name) and name.endswith((".jinja", ".j2")):
        _check_template_file(name, tokenizer)
        return
    try:
        args.chat_template_path = path = resolve_model(name, needs_model=False)
        source: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=args.trust_remote_code)
    except (OSError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, OSError) else ValueError
        raise kind(
            f"chat_template_path: {name} is neither the file of a template (.jinja or .j2) nor a model with a "
            f"tokenizer: {str(error).strip().splitlines()[0]}"
        ) from error
    if not source.chat_template:
        raise ValueError(f"chat_template_path: {name} has no chat template")
    known = tokenizer.get_vocab()
    new = [token.content for token in source.added_tokens_decoder.values() if token.content not in known]
    if new:
        named = isinstance(student, str)
        config = AutoConfig.from_pretrained(student, **repository_options(args)) if named else student.config
        columns, wanted = config.get_text_config().vocab_size, -(-(len(known) + len(new)) // _STEP) * _STEP
        if wanted < columns:
            raise ValueError(
                f"chat_template_path: {name} has {len(new)} tokens that the student's tokenizer lacks ({new[0]!r}, "
                f"...), and TRL would cut the student's {columns} embeddings to {wanted} for them: add the tokens to "
                "the tokenizer, or name a template that does without them (a .jinja file)"
            )
        return
    tokenizer.chat_template = source.get_chat_template()
    args.eos_token = args.eos_token or source.eos_token
    args.chat_template_path = None
