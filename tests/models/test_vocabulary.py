"""What a tokenizer lacks, and what two tokenizers disagree on, is named."""

import copy

import pytest

from lupi_trainer.models.vocabulary import check_same_tokenizer, check_tokenizer, tokenizer_beside


@pytest.mark.parametrize("attribute", ["chat_template", "pad_token", "eos_token"])
def test_a_tokenizer_that_cannot_write_the_prompts_is_refused(tokenizer, attribute):
    setattr(tokenizer, attribute, None)
    word = {"chat_template": "chat template", "pad_token": "pad token", "eos_token": "end-of-sequence"}[attribute]
    with pytest.raises(ValueError, match=word):
        check_tokenizer(tokenizer)


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
