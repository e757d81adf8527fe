"""What a tokenizer lacks, and what two tokenizers disagree on, is named."""

import copy

import pytest
from transformers import AutoConfig

from lupi_trainer.models.vocabulary import (
    check_known_tokens,
    check_same_tokenizer,
    check_tokenizer,
    check_vocabularies,
    tokenizer_beside,
)


@pytest.mark.parametrize("attribute", ["chat_template", "eos_token"])
def test_a_tokenizer_that_cannot_write_the_prompts_is_refused(tokenizer, attribute):
    setattr(tokenizer, attribute, None)
    word = {"chat_template": "chat template", "eos_token": "end-of-sequence"}[attribute]
    with pytest.raises(ValueError, match=word):
        check_tokenizer(tokenizer)


def test_a_tokenizer_without_a_pad_token_pads_with_its_end(tokenizer):
    check_tokenizer(tokenizer)
    assert tokenizer.pad_token == "<|pad|>"
    tokenizer.pad_token = None
    check_tokenizer(tokenizer)
    assert tokenizer.pad_token == tokenizer.eos_token == "<|end|>"


def test_what_two_models_share_ends_at_the_first_token_that_one_lacks(tokenizer):
    def sized(columns):
        return AutoConfig.for_model("llama", vocab_size=columns)

    more = copy.deepcopy(tokenizer)
    more.add_tokens(["<image>", "<audio>"])
    size = len(tokenizer)
    for student, teacher, ours, theirs, known in (
        (size, size + 8, tokenizer, None, size),
        (size + 8, size + 16, tokenizer, tokenizer, size + 8),  # padding
        (size, size + 2, more, more, size),
        (size + 2, size, more, more, size),
        (size + 8, size + 8, more, tokenizer, size),  # columns that the teacher has no token for
        (size + 8, size + 8, tokenizer, more, size + 8),
    ):
        assert check_vocabularies(sized(student), sized(teacher), ours, theirs) == known
    check_known_tokens([0, size - 1], size, more, "record 'a'")
    message = (
        f"record 'a' holds the token '<audio>' .id {size + 1}., but of the tokenizer's {size + 2} tokens .* {size} a"
    )
    with pytest.raises(ValueError, match=message):
        check_known_tokens([0, size + 1], size, more, "record 'a'")
    with pytest.raises(
        ValueError, match=f"the reference model has 2 vocabulary columns, but the tokenizer has {size}"
    ):
        check_vocabularies(sized(size), sized(2), tokenizer, None, role="reference")


def test_a_draft_with_a_token_more_than_the_target_is_refused_by_that_token(tokenizer):
    check_same_tokenizer(tokenizer, copy.deepcopy(tokenizer))
    more = copy.deepcopy(tokenizer)
    more.add_tokens(["sebae"])
    message = f"in 1 entries: token 'sebae' is unknown to the target and {len(tokenizer)} to the draft"
    with pytest.raises(ValueError, match=message):
        check_same_tokenizer(tokenizer, more)


def test_a_folder_without_a_tokenizer_has_none(tokenizer, tmp_path):
    assert tokenizer_beside(str(tmp_path)) is None
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_beside(str(tmp_path)).get_vocab() == tokenizer.get_vocab()


def test_tokenizers_without_an_end_of_text_are_compared_too(tokenizer):
    config, more = AutoConfig.for_model("llama", vocab_size=len(tokenizer)), copy.deepcopy(tokenizer)
    tokenizer.eos_token = None
    assert check_vocabularies(config, config, tokenizer, more) == len(tokenizer)
    more.add_tokens(["<image>"])
    assert check_vocabularies(config, config, more, tokenizer) == len(tokenizer)
