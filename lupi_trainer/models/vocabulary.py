"""Whether a tokenizer can write the prompts, and whether two models speak of the same tokens."""

import os
from collections.abc import Iterable
from typing import Any

from transformers import AutoTokenizer

from .head_check import refuse_encoder_decoder


def tokenizer_beside(path: str, revision: str | None = None, trust_remote_code: bool = False):
    """The tokenizer of a model given by its path or its name on the Hub; `None` where a local folder holds none."""
    if os.path.isdir(path) and not any(name.startswith("tokenizer") for name in os.listdir(path)):
        return None
    return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse a tokenizer that cannot write the prompts, before anything is trained.

    One without a pad token pads with its end-of-sequence token, which no mask lets anything read.

    Raises:
        ValueError: no chat template, or no end-of-sequence token.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            "the tokenizer has no chat template, so the teacher's persona, examples and knowledge cannot be put into "
            "their roles: use the tokenizer of a chat model or set `tokenizer.chat_template`"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-sequence token: set `tokenizer.eos_token`")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token


def check_vocabularies(student_config, teacher_config, tokenizer, teacher_tokenizer=None, role="teacher") -> int:
    """The number of vocabulary columns that both models have: the first so many token ids mean the same to both.

    Padded sizes may differ inside a family; the extra columns of the larger model are then impossible tokens. A
    tokenizer may know more tokens than there are columns; a text must not have them ([`check_known_tokens`]).

    Args:
        student_config, teacher_config: configurations of the two models.
        tokenizer: the student's tokenizer.
        teacher_tokenizer: the teacher's, where it is known.
        role: what the teacher is called in errors.

    Raises:
        ValueError: an encoder-decoder, tokenizers that disagree, or a model that lacks the token that ends a text.
    """
    for name, config in (("student", student_config), (role, teacher_config)):
        refuse_encoder_decoder(config, name)
    sizes = {
        "student": student_config.get_text_config().vocab_size,
        role: teacher_config.get_text_config().vocab_size,
    }
    for name, size in sizes.items():
        if (tokenizer.eos_token_id or 0) >= size:
            raise ValueError(
                f"the {name} model has {size} vocabulary columns, but the tokenizer has {len(tokenizer)} tokens, and "
                f"ends texts with id {tokenizer.eos_token_id}: student and {role} must share one vocabulary (padding "
                "apart)"
            )
    known = min(sizes.values())
    if teacher_tokenizer is not None:
        ours, theirs = ({i: t for t, i in tok.get_vocab().items()} for tok in (tokenizer, teacher_tokenizer))
        differing = [i for i in sorted(ours.keys() & theirs.keys()) if ours[i] != theirs[i]]
        missing = min(ours.keys() - theirs.keys(), default=known)
        if differing or missing <= (-1 if tokenizer.eos_token_id is None else tokenizer.eos_token_id):
            i = differing[0] if differing else missing
            raise ValueError(
                f"the vocabularies do not match: {len(differing)} token ids differ, and the student's tokenizer has "
                f"{len(ours)} tokens, the {role}'s {len(theirs)} (id {i} is {ours.get(i)!r} for the student, "
                f"{theirs.get(i)!r} for the {role}). What both say of the next token is compared, so both must use "
                "the same tokenizer."
            )
        known = min(known, missing)
    return known


def check_known_tokens(ids: Iterable[int], known: int, tokenizer: Any, where: str) -> None:
    """Refuse a text with a token that a model does not have.

    Args:
        ids: of the text.
        known: token ids that the models have, from 0.
        tokenizer: names the token.
        where: what the message begins with.

    Raises:
        ValueError: there is one; it is named.
    """
    strange = next((i for i in ids if not 0 <= i < known), None)
    if strange is not None and 0 <= strange < len(tokenizer):
        raise ValueError(
            f"{where} holds the token {tokenizer.convert_ids_to_tokens(strange)!r} (id {strange}), but of the "
            f"tokenizer's {len(tokenizer)} tokens the models have the first {known} alone: take it out of the text, "
            "or use models with that token"
        )
    if strange is not None:
        raise ValueError(
            f"{where} holds the token id {strange}, but the models have those from 0 to {known - 1} alone: write its "
            "ids with the tokenizer of these models"
        )


def check_same_tokenizer(target, draft) -> None:
    """Refuse a draft whose token ids mean other tokens; vocabularies that differ in padding alone pass.

    Raises:
        ValueError: the vocabularies differ; the message names a token.
    """
    ours, theirs = target.get_vocab(), draft.get_vocab()
    if ours == theirs:
        return
    different = sorted(set(ours.items()) ^ set(theirs.items()), key=lambda item: (item[1], item[0]))
    token, number = different[0]
    raise ValueError(
        f"the tokenizers of target and draft differ, in {len(different)} entries: token {token!r} is "
        f"{ours.get(token, 'unknown')} to the target and {theirs.get(token, 'unknown')} to the draft (first at id "
        f"{number}); a draft must have the target's own tokens"
    )
