"""How long a step takes, from bytes, FLOPs and launches: a model with assumptions, all of which it says.

A draft reads the student's weights once a token, a verification the teacher's once a block; both wait for memory, for
the multiplications, or, without recorded graphs, for Python to launch their kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .gpus import GPU
from .held import optimizer_state
from .run import CPU, Run
from .sizes import ModelSize


BUSY_READING = 0.6  # share of the published FLOP/s that a forward over many tokens reaches
BUSY_TRAINING = 0.4  # share that forward and backward reach
OVERHEAD = 1.2  # of what memory alone would take
FIXED = 1.2e-3  # seconds of a forward that are neither
LAUNCHING = 0.53e-3  # seconds a layer in which Python launches its kernels: 56 of them, counted in the engine
_PASSES = 3  # a backward is two forwards; with checkpointing one more


@dataclass(frozen=True)
class Speed:
    """One step.

    Attributes:
        gamma: tokens of a draft.
        a_round: tokens that a row writes in a round, on average.
        rounds: of the rollout; `draft` and `verification`: seconds of one.
        prompts, rollout, training: seconds of a step's parts; the rollout without the prompts.
        student_forwards, teacher_forwards: of the rollout.
        written, read, trained: tokens that are written, read as prompts, and trained on, by one process.
    """

    gamma: int
    a_round: float
    rounds: int
    draft: float
    verification: float
    prompts: float
    rollout: float
    training: float
    student_forwards: int
    teacher_forwards: int
    written: int
    read: int
    trained: int

    @property
    def step(self) -> float:
        """Seconds of all of it."""
        return self.prompts + self.rollout + self.training


def tokens_a_round(acceptance: float, gamma: int) -> float:
    """Tokens that a row writes in a round of `gamma` drafted ones (arXiv 2211.17192, eq. 1, without the bonus)."""
    return (1 - acceptance**gamma) / (1 - acceptance)


def _weights_read(model: ModelSize) -> int:
    """Bytes that one forward reads of the weights; 4 and 8 bits are unpacked into memory, and read from there."""
    plain = model.read * model.itemsize
    if not model.bits.bits:
        return plain
    return model.bits.bytes(model.linear, model.itemsize) + plain + model.linear * model.itemsize


def _forward(run: Run, gpu: GPU, model: ModelSize, tokens: int, before: int) -> float:
    """Seconds of a forward of `tokens` tokens of each running row behind `before` others."""
    memory = (_weights_read(model) + run.running * before * model.slot) / gpu.bandwidth
    flops = 2 * model.read * run.running * tokens / (BUSY_READING * gpu.flops)
    seconds = OVERHEAD * max(memory, flops) + FIXED
    return seconds if run.compiled else max(seconds, LAUNCHING * model.layers)


def _training(run: Run, gpu: GPU, trained: int) -> float:
    student, whole = run.student, run.student.trained == run.student.weights
    passes = _PASSES - (not whole) + run.checkpointing
    heads = 3 * student.head + (2 * run.teacher.head if run.teacher is not None else 0)
    flops = 2 * trained * (passes * (student.read - student.head) + heads)
    # each number is read and written: the weight, its gradient, and what the optimizer keeps of it
    moved = 2 * student.trained * student.trained_width * (2 + optimizer_state(run.optimizer)[0])
    if run.teacher is not None and not run.keeps_states:
        flops += 2 * run.teacher.read * run.texts * (run.teacher_prompt + run.completion)
    moved = run.sharding.share(moved, "zero1", "zero2", "zero3", "fsdp2")
    return flops / (BUSY_TRAINING * gpu.flops) + moved / gpu.bandwidth


def speed_of(run: Run, gpu: GPU, mean: int, acceptance: float) -> Speed:
    """What a step takes.

    Args:
        run: one process.
        gpu: on which student and teacher are, each on one of its own or both on the same.
        mean: tokens of a text, on average.
        acceptance: share of drafted tokens that the teacher accepts.
    """
    gamma, teacher = (run.gamma if run.drafts else 1), run.teacher if run.writes else None
    a_round = min(tokens_a_round(acceptance, gamma), mean) if run.drafts else 1.0
    rounds = math.ceil(mean / a_round) * math.ceil(run.texts / run.running) * run.writes
    draft = gamma * _forward(run, gpu, run.writer, 1, run.student_prompt + mean // 2) if run.drafts else 0.0
    verification, read = 0.0, run.texts * run.student_prompt if run.drafts else 0
    prompts = 2 * run.student.read * read / (BUSY_READING * gpu.flops)
    if teacher is not None:
        verification = _forward(run, gpu, teacher, gamma, run.teacher_prompt + mean // 2)
        tokens = run.prefix + run.texts * (run.teacher_prompt - run.prefix)
        prompts += 2 * teacher.read * tokens / (BUSY_READING * gpu.flops)
        read += tokens
    trained = run.texts * (run.student_prompt + mean)
    return Speed(
        gamma=gamma,
        a_round=a_round,
        rounds=rounds,
        draft=draft,
        verification=verification,
        prompts=prompts,
        rollout=rounds * (draft + verification),
        training=_training(run, gpu, trained),
        student_forwards=rounds * gamma if run.drafts else 0,
        teacher_forwards=rounds if teacher is not None else 0,
        written=run.texts * mean * run.writes,
        read=read,
        trained=trained,
    )


def best_gamma(run: Run, gpu: GPU, mean: int, acceptance: float, most: int = 32) -> Speed:
    """The step with the draft length that makes its rollout shortest."""
    speeds = (speed_of(replace(run, gamma=gamma), gpu, mean, acceptance) for gamma in range(1, most + 1))
    return min(speeds, key=lambda speed: speed.rollout)


def assumptions(run: Run, gpu: GPU, mean: int, acceptance: float) -> list[str]:
    """What the seconds rest on, a sentence each."""
    drafts = f"{acceptance:.0%} of the drafts are accepted, and " if run.drafts else ""
    found = [
        f"{drafts}texts have {mean} tokens on average",
        f"{gpu.name}: {gpu.bandwidth / 1e12:.2f} TB/s, {gpu.flops / 1e12:.0f} TFLOP/s, of which {BUSY_READING:.0%} "
        f"are reached in reading and {BUSY_TRAINING:.0%} in training",
    ]
    if not run.compiled:
        found.append(f"without compile_rollout a layer's kernels are launched in {LAUNCHING * 1e3:.2f} ms")
    if run.teacher is None and run.writes:
        found.append("the server's own time is not in it")
    if run.sharding.kind or run.sharding.processes > 1:
        found.append("what processes send one another is not in it")
    if run.home == CPU:
        found.append("the teacher is on the CPU, whose speed is not known: its forwards are timed as on the GPU")
    if run.offloaded:
        found.append("moving the teacher between the CPU's memory and the GPU is not in it")
    return found
