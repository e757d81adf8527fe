"""Which questions can be taught, and how many of them there are."""

import pytest

from lupi_trainer.evaluation.teachable import count, reason


@pytest.mark.parametrize(
    "opened, closed, mark, found",
    [
        ("It is Paris.", "It is Rome.", "strict", "kept"),
        ("It is Rome.", None, "strict", "unread"),
        ("It is far. Paris.", None, "strict", "unread"),
        ("It is far. Paris.", "It is Rome.", "lenient", "kept"),
        ("It is Paris.", "It is far. Paris.", "strict", "known"),
    ],
)
def test_a_question_is_kept_if_the_teacher_reads_it_and_the_student_does_not_know_it(opened, closed, mark, found):
    replies = [text and {"answer": text, "finished": True} for text in (opened, closed)]
    assert reason({"answers": ["Paris"]}, *replies, mark) == found


def test_questions_are_counted_by_reason_and_by_category():
    reasons = ["kept", "unread", "known", "kept"]
    total = {"asked": 4, "kept": 2, "unread": 1, "known": 1}
    assert count(reasons, [None] * 4) == total, "no category has a name"
    assert count(reasons, ["sea", None, "land", "sea"]) == {
        **total,
        "categories": {
            "land": {"asked": 1, "kept": 0, "unread": 0, "known": 1},
            "sea": {"asked": 2, "kept": 2, "unread": 0, "known": 0},
        },
    }
