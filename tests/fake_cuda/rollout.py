"""Rollouts of any size on devices that are not there: the engine is the real one, and a script says what it reads."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import astuple
from unittest.mock import patch

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lupi_trainer.speculative import TopK, skd_rollout
from lupi_trainer.speculative.loops import rollout as loop
from lupi_trainer.speculative.loops.report import Report
from lupi_trainer.speculative.loops.skd import SKD
from lupi_trainer.speculative.runners import runner
from tests.fake_cuda.device import Counted, fake_cuda


def model_on(device: str, config: PreTrainedConfig, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    """A model without numbers, for use inside `fake_cuda`."""
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa", dtype=dtype).eval()


def _wrapped(counted: Counted, phase: str, function):
    def run(*args, **kwargs):
        with counted.within(phase):
            return function(*args, **kwargs)

    return run


class Recorder:
    """Takes the place of `CUDARecorder`: nothing is recorded, and a replay is counted."""

    def __init__(self, counted: Counted):
        self.counted = counted

    def record(self, function):
        outputs = function()
        self.counted.replayed["recorded"] += 1

        def replay():
            self.counted.replayed[self.counted.phase] += 1

        return replay, outputs


@contextmanager
def scripted(counted: Counted, lengths: list[int], accepted: int):
    """Inside, rollouts run on tensors without numbers.

    In each round every row has `accepted` tokens accepted and one rejected, until it has written lengths[row] tokens.
    Phases: "draft", "verify", "commit", "report" (what the device is asked), "prefill" (the forwards and copies of
    prompts), "admit" (what else a new row needs), "move" (of a row to another slot), "start" and "end".
    """

    class Scripted(SKD):
        def __init__(self, *args):
            with counted.within("start"):
                super().__init__(*args)
            for phase in ("draft", "verify", "commit"):
                setattr(self, phase, _wrapped(counted, phase, getattr(self, phase)))
            for one in self.slots.runners:
                one.prefill.admit = _wrapped(counted, "prefill", one.prefill.admit)
            self.slots.admit = _wrapped(counted, "admit", self.slots.admit)
            self.slots._close = _wrapped(counted, "move", self.slots._close)
            self.result = _wrapped(counted, "end", self.result)

        def _round(self, gamma, started):
            def told(columns):
                assert counted.phase == "report" and len(columns) == self.slots.used
                return [astuple(self.said(slot, row, gamma)) for slot, row in enumerate(self.slots.owner)]

            before, counted.answer = counted.answer, told
            with counted.within("round"), patch.object(Report, "read", _wrapped(counted, "report", Report.read)):
                super()._round(gamma, started)
            counted.answer = before
            counted.rounds.append({phase: counted.launched(phase) for phase in ("draft", "verify", "commit")})

        def said(self, slot: int, row: int | None, gamma: int) -> Report[int]:
            if row is None:  # the slot idles
                return Report(0, 0, 0, 0, 0, 0, 0)
            left = lengths[row] - self.slots.written[slot]
            kept = min(accepted, gamma, left)
            rejected = int(kept < min(gamma, left))
            drafted = kept + rejected
            return Report(drafted, kept, rejected, drafted, left - drafted, 0, 0)

    with patch.object(loop, "SKD", Scripted), patch.object(runner, "recorder_for", lambda model: Recorder(counted)):
        yield


def rolled(
    student: PreTrainedConfig,
    teacher: PreTrainedConfig,
    student_prompts: list[list[int]],
    teacher_prompts: list[list[int]],
    *,
    devices: tuple[str, str] = ("cuda:0", "cuda:1"),
    dtype: torch.dtype = torch.bfloat16,
    lengths: list[int] | None = None,
    accepted: int = 3,
    **options,
):
    """Rolls out on two devices that are not there, (the student's, the teacher's).

    Args:
        student, teacher: the models' configurations.
        lengths: tokens that each row writes; `max_new_tokens` unless given.
        accepted: tokens of a draft that are accepted in each round.
        options: of `skd_rollout`.

    Returns:
        (Rollout, Counted); the phase "load" is the models alone.
    """
    options = {"max_new_tokens": 16, "gamma": 4, "acceptance": TopK(5, 0.05), **options}
    lengths = [options["max_new_tokens"]] * len(student_prompts) if lengths is None else lengths
    with fake_cuda() as counted:
        with counted.within("load"):
            models = [model_on(*given, dtype) for given in zip(devices, (student, teacher))]
        with scripted(counted, lengths, accepted):
            rollout = skd_rollout(*models, student_prompts, teacher_prompts, **options)
    return rollout, counted
