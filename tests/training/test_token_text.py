from lupi_trainer.training.token_text import mark_teacher, text_instead, token_texts
from tests.models.families import train_tokenizer


TEXT = "설날에 세배를 드립니다. It is Kuzu, naïve café 🎎."


def test_texts_join_to_the_text_and_a_character_belongs_to_its_last_token(tokenizer):
    few_merges = train_tokenizer(["It is so."], vocab_size=270)  # Korean falls to single bytes
    for tok, text in ((few_merges, TEXT), (tokenizer, "It has the capital Kuzu.")):
        ids = [*tok(text, add_special_tokens=False).input_ids, tok.eos_token_id]
        texts = token_texts(tok, ids)
        assert len(texts) == len(ids) and "".join(texts) == text + tok.eos_token
        assert "\ufffd" not in "".join(texts)
    assert token_texts(few_merges, few_merges("설").input_ids) == ["", "", "설"]
    assert token_texts(few_merges, []) == []


def test_bytes_that_are_no_text_are_shown_as_such():
    tok = train_tokenizer(["It is so."], vocab_size=270)
    broken = tok("설", add_special_tokens=False).input_ids[:2]
    texts = token_texts(tok, broken * 5)
    assert len(texts) == 10 and set("".join(texts)) == {"\ufffd"}


def test_text_instead(tokenizer):
    ids = tokenizer("It has the capital Kuzu.", add_special_tokens=False).input_ids
    texts = token_texts(tokenizer, ids)
    for place, token in enumerate(ids):
        assert text_instead(tokenizer, ids, place, token) == texts[place]
    assert text_instead(tokenizer, ids, 1, ids[2]) == texts[2]


def test_marks_leave_white_space_outside():
    assert mark_teacher(["It", " is", " ", "", " Ku"], [False, True, True, True, True]) == "It [is]  [Ku]"
