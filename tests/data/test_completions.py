"""The text of a row while it is written, and where it ends."""

from lupi_trainer.data.completions import Completions


class Letters:
    """A tokenizer whose token i is a letter; 30 is half a character."""

    def decode(self, ids, skip_special_tokens):
        return "".join("\ufffd" if i == 30 else chr(97 + i) for i in ids)


def test_streaming_holds_back_what_may_change():
    shown, ended = [], []
    rows = Completions(Letters(), 1, 20, {25}, ["def"], show=shown.append, done=ended.append)
    for tokens in ([0], [1, 2], [3], [30]):
        assert not rows(0, tokens)
    assert "".join(shown) == "ab" and not ended
    assert rows(0, [3, 4, 5, 6])
    assert "".join(shown) == rows.texts[0] == "abcd\ufffd" and rows.reasons == ["stop"] and ended == [0]
    assert rows.count(0) == 5
