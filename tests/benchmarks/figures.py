"""The figures, one function each: (setting, repeats) -> rows of the table."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from lupi_trainer.speculative import Goodput, skd_rollout
from lupi_trainer.speculative.runners.prompt_store import PromptStore
from lupi_trainer.speculative.runners.slots import Slots
from tests.benchmarks.lossless import lossless
from tests.benchmarks.measure import median, row, take_turns
from tests.benchmarks.peers import first_version, on_policy, read_once
from tests.benchmarks.recording import recording
from tests.benchmarks.setting import Scripted, Setting
from tests.benchmarks.training_step import training_step
from tests.speculative.scripted import scripted_lengths


class _Pair:
    """The models and prompts of a setting."""

    def __init__(self, setting: Setting):
        self.setting = setting
        self.models = setting.model("student"), setting.model("teacher")
        self.prompts = setting.prompts(setting.student_prompt), setting.prompts(setting.teacher_prompt)

    def roll(self, rows=slice(None), **options):
        options = {
            "max_new_tokens": self.setting.new_tokens,
            "gamma": self.setting.gamma,
            "acceptance": Scripted(self.setting.acceptance),
            "return_teacher_hidden": True,
            **options,
        }
        return skd_rollout(*self.models, *(column[rows] for column in self.prompts), **options)


def parallel_against_sequential(setting: Setting, repeats: int) -> Iterator[dict]:
    pair = _Pair(setting)
    contenders = {
        "sequential": lambda: pair.roll(verification="sequential"),
        "parallel": lambda: pair.roll(),
        "compiled": lambda: pair.roll(compile=True),
    }
    seconds = take_turns(contenders, repeats, without_prefill=True)
    wanted = 3.0 if setting.device == "cuda" else 1.4
    yield row("parallel over sequential verification, no prefill", seconds, "sequential", "parallel", ">=", wanted)
    yield row("the same, compiled", seconds, "sequential", "compiled")


def rollout_against_on_policy(setting: Setting, repeats: int) -> Iterator[dict]:
    pair = _Pair(setting)
    # each policy is one object for all turns: it keeps what it has learnt, as in a trainer
    chosen, compiled, again, compiled_again = ({"gamma": 8, "gamma_policy": Goodput(8, start=4)} for _ in range(4))
    for options in (again, compiled_again):  # read in the turn to warm up: the first epoch
        options["teacher_prompt_store"] = PromptStore(4 << 30)
    contenders = {
        "on-policy": lambda: on_policy(*pair.models, setting, *pair.prompts),
        "its prefill": lambda: read_once(pair.models[1], setting, pair.prompts[1]),
        f"gamma {setting.gamma}": lambda: pair.roll(),
        "rollout": lambda: pair.roll(**chosen),
        "compiled": lambda: pair.roll(compile=True, **compiled),
        "second epoch": lambda: pair.roll(**again),
        "second epoch, compiled": lambda: pair.roll(compile=True, **compiled_again),
    }
    seconds = take_turns(contenders, repeats)
    wanted = 1.0 if setting.device == "cuda" else 1.25
    yield row(
        "rollout with teacher states (goodput), time over on-policy", seconds, "rollout", "on-policy", "<=", wanted
    )
    yield row("the same, compiled", seconds, "compiled", "on-policy", "<=", 1.0)
    kept = "rollout whose teacher's prompts are kept, over on-policy"
    yield row(kept, seconds, "second epoch", "on-policy", "<=", 0.95)
    yield row("the same, compiled", seconds, "second epoch, compiled", "on-policy", "<=", 0.75)
    without = {
        name: [taken - prefill for taken, prefill in zip(seconds[name], seconds["its prefill"])]
        for name in ("on-policy", "rollout", "compiled")
    }
    yield row("rollout over on-policy, teacher's prefill left out of both", without, "rollout", "on-policy")
    yield row("the same, compiled", without, "compiled", "on-policy")


def rollout_against_first_version(setting: Setting, repeats: int) -> Iterator[dict]:
    pair = _Pair(setting)
    rule, texts = Scripted(setting.acceptance), {}
    chosen, compiled = ({"gamma": 8, "gamma_policy": Goodput(8, start=4)} for _ in range(2))

    def keep(name, write):
        def run():
            texts[name] = write()

        return run

    contenders = {
        "first version": keep("first version", lambda: first_version(*pair.models, setting, *pair.prompts, rule)),
        "rollout": keep("rollout", lambda: pair.roll(**chosen).completion_ids),
        "compiled": keep("compiled", lambda: pair.roll(compile=True, **compiled).completion_ids),
    }
    seconds = take_turns(contenders, repeats)
    for name, text in texts.items():
        if setting.device == "cpu" and text != texts["first version"]:  # in bfloat16 they may part at a tie
            raise AssertionError(f"the first version and the {name} rollout must write the same text")
    wanted = 6.0 if setting.device == "cuda" else 4.0
    yield row("rollout over the first version, prefill included", seconds, "first version", "rollout", ">=", wanted)
    yield row("the same, compiled", seconds, "first version", "compiled", ">=", wanted)


def refill_against_none(setting: Setting, repeats: int) -> Iterator[dict]:
    """A rollout of 64 long prompts takes half a minute on two cores: two turns, and a short one to warm up."""
    rows, longest = 64, round(2.5 * setting.new_tokens)
    pair = _Pair(replace(setting, rows=rows, new_tokens=longest))
    draw = random.Random(0)
    mean = math.log(0.285 * setting.new_tokens)  # e^3.6 tokens of 128
    lengths = [min(longest, max(4, round(draw.lognormvariate(mean, 0.9)))) for _ in range(rows)]
    pair.roll(rows=slice(0, 8), max_new_tokens=8)

    def refilled():
        with scripted_lengths(lengths):
            pair.roll(max_slots=8)

    def batches(fixed: bool):
        close = Slots._close

        def idle(slots, slot):
            slots.owner[slot], slots.idle[slot] = None, True

        Slots._close = idle if fixed else close
        try:
            for i in range(0, rows, 8):
                with scripted_lengths(lengths[i : i + 8]):
                    pair.roll(rows=slice(i, i + 8))
        finally:
            Slots._close = close

    contenders = {"refill": refilled, "idle": lambda: batches(True), "shrinking": lambda: batches(False)}
    seconds = take_turns(contenders, min(repeats, 2), warm_up=False)
    what = "64 log-normal rows, refill over 8 batches"
    yield row(f"{what} whose finished rows idle", seconds, "idle", "refill", ">=", 1.4)
    yield row(f"{what} that shrink", seconds, "shrinking", "refill")


def goodput_against_hindsight(setting: Setting, repeats: int) -> Iterator[dict]:
    """Each turn beside the fixed length that was best in the other turns: the quickest of many is partly luck."""
    pair = _Pair(replace(setting, teacher_prompt=64))
    for acceptance in (0.9, 0.7):
        roll = partial(pair.roll, acceptance=Scripted(acceptance))
        fixed = {f"gamma {g}": partial(roll, gamma=g) for g in (2, 3, 4, 5, 6, 7, 8, 10)}
        # one policy for all turns: it keeps what it has learnt, as in a trainer
        chosen = {"goodput": partial(roll, gamma=20, gamma_policy=Goodput(20))}
        chosen["cold"] = lambda roll=roll: roll(gamma=20, gamma_policy=Goodput(20))  # knows nothing yet
        seconds = take_turns(fixed | chosen, repeats, without_prefill=True)
        best = [
            min(fixed, key=lambda name: median(seconds[name][:turn] + seconds[name][turn + 1 :] or seconds[name]))
            for turn in range(repeats)
        ]
        seconds["hindsight"] = [seconds[name][turn] for turn, name in enumerate(best)]
        figure = f"goodput over the best fixed length ({', '.join(sorted(set(best)))}), acceptance {acceptance}"
        yield row(figure, seconds, "hindsight", "goodput", ">=", 0.95)
        yield row("the same, with a policy that is new in every rollout", seconds, "hindsight", "cold")


FIGURES = {
    "a": parallel_against_sequential,
    "b": rollout_against_on_policy,
    "c": rollout_against_first_version,
    "d": refill_against_none,
    "e": goodput_against_hindsight,
    "f": training_step,
    "g": lossless,
    "h": recording,
}
