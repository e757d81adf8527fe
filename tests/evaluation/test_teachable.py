"""Which questions can be taught, and how many of them there are."""

from lupi_trainer.evaluation.teachable import count


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
