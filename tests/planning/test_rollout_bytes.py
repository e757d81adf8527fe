"""The bytes that a plan gives a rollout, beside those that the engine takes on devices that are not there."""

import pytest
import torch

from lupi_trainer.planning.moments import peak
from lupi_trainer.planning.rollout import cache_bytes, growth_work, rollout_moments
from lupi_trainer.planning.run import STUDENT, TEACHER, Run
from lupi_trainer.planning.sizes import size_of
from lupi_trainer.speculative.runners import runner
from lupi_trainer.speculative.runners.attention import ragged_attention
from tests.fake_cuda.device import UNABLE, fake_cuda
from tests.fake_cuda.rollout import model_on, rolled
from tests.planning.shapes import qwen3_06b, qwen3_4b, qwen3_32b


pytestmark = pytest.mark.skipif(UNABLE is not None, reason=str(UNABLE))
NOT_IN_A_ROLLOUT = ("context", "teacher's lm_head")  # of the process, and of the loss before


@pytest.mark.parametrize("home, student, teacher, rows, prefix", [
    (STUDENT, qwen3_06b(1), qwen3_4b(2), 4, 0),
    (TEACHER, qwen3_4b(1), qwen3_32b(1), 4, 1900),
], ids=["one device", "two devices"])  # fmt: skip
@pytest.mark.grid(2)
def test_a_rollout_takes_the_bytes_that_are_planned(home, student, teacher, rows, prefix, monkeypatch):
    monkeypatch.setattr(runner, "_PAGE", 2048)  # as if the longest text had been written
    prompts = [[5] * 47] * rows, [[4] * prefix + [5 + row] * (2460 - prefix) for row in range(rows)]
    devices = "cuda:0", "cuda:0" if home == STUDENT else "cuda:1"
    given = {"max_new_tokens": 2048, "gamma": 4, "lengths": [4] * rows, "return_teacher_hidden": True}
    counted = rolled(student, teacher, *prompts, devices=devices, accepted=3, **given)[1]
    sizes = [size_of(config, "model", torch.bfloat16) for config in (student, teacher)]
    run = Run(*sizes, home, False, False, rows, 1, rows, 47, 2460, prefix, 2048, 4)
    for place, moments in rollout_moments(run).items():
        # of few layers, that of one which grows is much
        planned = peak([moment for moment in moments if moment.name != "growth"], "rollout").items
        weights = sum(size for item, size in planned.items() if "weights" in item)
        wanted = sum(size for item, size in planned.items() if item not in NOT_IN_A_ROLLOUT)
        device = devices[place == TEACHER]
        taken = max(most for (phase, its), most in counted.phase_peak.items() if its == device and phase != "load")
        assert wanted == pytest.approx(taken, rel=0.1)
        assert wanted - weights == pytest.approx(taken - weights, rel=0.1)  # what is more than the weights, too


def test_a_cache_that_grows_stays_within_what_is_planned():
    prompts, config = [[5 + row] * 600 for row in range(4)], qwen3_06b(2)
    size = size_of(config, "model", torch.bfloat16)
    run = Run(size, size, STUDENT, False, False, 4, 1, 4, 47, 600, 0, 2048, 4)
    with fake_cuda() as counted, torch.no_grad():
        model = model_on("cuda:0", config)
        weights = counted.live["cuda:0"]
        with ragged_attention(model):
            teacher = runner.Runner(model, prompts, 4, 2048, config.vocab_size, widest=4)
            teacher.admit([0, 1, 2, 3], [0, 1, 2, 3])
            begun = counted.live["cuda:0"] - weights
            with counted.within("growth"):
                teacher.cache.grow(teacher.capacity, 4)
        taken = counted.phase_peak["growth", "cuda:0"] - weights
    assert not [where for where in (*counted.questions, *counted.uploads) if where[0] == "growth"]
    whole, twice = cache_bytes(run, size, 600), growth_work(run, size, 600)
    assert begun < whole / 2 and whole < taken <= whole + twice
