"""Whether two models speak of the same tokens."""

import os

from transformers import AutoTokenizer

from ..lab import resolve_model


def tokenizer_beside(model: str, revision: str | None = None, trust_remote_code: bool = False):
    """The tokenizer beside a model given by name, or `None` where a local folder holds none."""
    path = resolve_model(model)
    if os.path.isdir(path) and not any(name.startswith("tokenizer") for name in os.listdir(path)):
        return None
    return AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=trust_remote_code)


def check_vocabularies(student_config, teacher_config, tokenizer, teacher_tokenizer=None, role="teacher") -> int:
    """The number of vocabulary columns that both models have.

    Padded sizes may differ inside a family; the extra columns of the larger model are then impossible tokens.

    Args:
        student_config, teacher_config: configurations of the two models.
        tokenizer: the student's tokenizer.
        teacher_tokenizer: the teacher's, where it is known.
        role: what the teacher is called in errors.

    Raises:
        ValueError: a model with fewer columns than the tokenizer has tokens, or two tokenizers that disagree.
    """
    sizes = {
        "student": student_config.get_text_config().vocab_size,
        role: teacher_config.get_text_config().vocab_size,
    }
    for name, size in sizes.items():
        if size < len(tokenizer):
            raise ValueError(
                f"the {name} model has {size} vocabulary columns, but the tokenizer has {len(tokenizer)} tokens: "
                f"student and {role} must share one vocabulary (padding apart)"
            )
    if teacher_tokenizer is not None:
        ours, theirs = ({i: t for t, i in tok.get_vocab().items()} for tok in (tokenizer, teacher_tokenizer))
        differing = [i for i in sorted(ours.keys() & theirs.keys()) if ours[i] != theirs[i]]
        if differing or len(theirs) < len(ours):
            i = differing[0] if differing else len(theirs)
            raise ValueError(
                f"the vocabularies do not match: {len(differing)} token ids differ, and the student's tokenizer has "
                f"{len(ours)} tokens, the {role}'s {len(theirs)} (id {i} is {ours.get(i)!r} for the student, "
                f"{theirs.get(i)!r} for the {role}). What both say of the next token is compared, so both must use "
                "the same tokenizer."
            )
    return min(sizes.values())
