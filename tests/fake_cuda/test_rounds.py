"""What the engine launches and asks of GPUs: the student on `cuda:0`, the teacher on `cuda:1`, neither of them there.

Operations that mix devices end a rollout there, so that one that comes to its end has none.
"""

from functools import cache

import pytest

from tests.fake_cuda.device import UNABLE
from tests.fake_cuda.rollout import rolled
from tests.fake_cuda.shapes import PROMPTS, qwen3


pytestmark = pytest.mark.skipif(UNABLE is not None, reason=str(UNABLE))
ROUND = {"round", "draft", "verify", "commit", "report", "move"}


@cache
def counted(layers: int):
    """Three rows in two slots: the third takes the place of the second, and is moved when the first ends."""
    models = qwen3(layers), qwen3(layers)
    options = {"max_slots": 2, "trace_rows": [0, 2], "return_teacher_hidden": True}
    return rolled(*models, *PROMPTS, lengths=[4, 2, 9], accepted=2, **options)


def test_a_round_asks_one_question_and_is_told_nothing():
    rollout, seen = counted(1)
    assert [len(text) for text in rollout.completion_ids] == [4, 2, 9] and seen.launched("move") > 0
    asked = {where: number for where, number in seen.questions.items() if where[0] not in ("end", "load")}
    assert asked == {("report", "tolist", where): rollout.stats.rounds for _, _, where in asked} and len(asked) == 1
    assert sum(number for (phase, _, _), number in seen.questions.items() if phase == "end") <= 3, (
        "the text, the trace"
    )
    assert not [where for where in seen.uploads if where[0] in ROUND]


def test_a_new_row_is_told_its_prompt_alone():
    _, seen = counted(1)
    told = {where: number for where, number in seen.uploads.items() if where[0] in ("admit", "prefill")}
    # the prefix, which the teacher's prompts share, and two groups of each model: the first two rows, and the third
    assert list(told.values()) == [5] and next(iter(told))[2].startswith("prefill.py")
