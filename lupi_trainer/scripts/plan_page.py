"""A plan as text for a terminal, and as data for JSON."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..planning.advice import Change
from ..planning.gpus import GPU
from ..planning.moments import gib
from ..planning.plan import DevicePlan
from ..planning.recipe import Lengths
from ..planning.rollout import rollout_moments
from ..planning.run import CPU, Run
from ..planning.speed import Speed
from ..planning.training import activation_bytes, training_moments
from .tables import table


def bytes_table(plans: list[DevicePlan], memory: int | None) -> str:
    """Of each device and phase, every item of its fullest moment, in GiB."""
    moments = [(plan.device, moment) for plan in plans for moment in (plan.rollout, plan.training) if moment.items]
    columns = [(f"{device}, {moment.phase}", moment) for device, moment in moments]
    items = dict.fromkeys(item for _, moment in columns for item in moment.items)
    rows = [[item, *(gib(m.items[item]) if item in m.items else "" for _, m in columns)] for item in items]
    rows.append(["peak", *(gib(moment.total) for _, moment in columns)])
    rows.append(["fullest at", *(moment.name for _, moment in columns)])
    if memory is not None:
        rows.append(["of", *("" if name.startswith(CPU) else gib(memory) for name, _ in columns)])
    return table(["GiB", *(name for name, _ in columns)], rows)


def moments_table(run: Run) -> str:
    """Every moment of a step: what each device holds then, and what most of it is for."""
    rows = []
    for part in (rollout_moments(run), training_moments(run)):
        for device, moments in part.items():
            fullest = {moment.name: moment for moment in sorted(moments, key=lambda moment: moment.total)}
            for name, moment in fullest.items():
                items = sorted(moment.items.keys() - {"context"}, key=lambda item: -moment.items[item])[:4]
                most = ", ".join(f"{item} {gib(moment.items[item])}" for item in items)
                rows.append([f"{moment.phase}: {name}", device, gib(moment.total), most])
    return table(["moment", "", "GiB", "most of it"], rows)


def activations_line(run: Run) -> str:
    """What a forward keeps with and without checkpointing."""
    kept = [gib(activation_bytes(replace(run, checkpointing=on))[0]) for on in (True, False)]
    return f"a forward keeps {kept[0]} GiB of activations with activation_checkpointing, {kept[1]} GiB without"


def models_table(run: Run) -> str:
    """Both models: weights, how they are held, and what a token of their texts is."""
    rows = []
    every = [("student", run.student, False), ("teacher", run.teacher, run.self_taught)]
    every += [(f"teacher {other.name},", other.model, other.self_taught) for other in run.others]
    for role, model, self_taught in every:
        if model is None:
            rows.append([role, "on a server" if run.writes else "not here", "", "", ""])
            continue
        kind = f"{model.bits.bits} bits" if model.bits.bits else str(model.dtype).removeprefix("torch.")
        if self_taught:
            kind = "the student's"
        trained = f"{model.trained / 1e6:,.1f} M" if role == "student" else ""
        numbers = [f"{model.weights / 1e9:.2f} G", trained, kind, f"{model.slot / 1024:.1f}"]
        rows.append([f"{role} {model.name}", *numbers])
    return table(["", "weights", "trained", "held in", "KiB of K/V a token"], rows)


def estimate_line(run: Run) -> str:
    """What is not counted of the student; nothing where all is."""
    if not run.student.estimated:
        return ""
    return (
        f"The activations of {run.student.name} are an estimate from its widths: it cannot be run without numbers.\n"
    )


def lengths_line(lengths: Lengths) -> str:
    """What texts the plan is for."""
    shared = f" ({lengths.prefix} of them shared by all)" if lengths.prefix else ""
    return (
        f"prompts of {lengths.student} tokens (student) and {lengths.teacher}{shared} (teacher), {lengths.source}; "
        f"texts of up to {lengths.completion}"
    )


def batch_line(run: Run, rows: int, gpu: GPU) -> str:
    """The largest batch beside that of the recipe."""
    if rows == 0:
        return f"not even per_device_train_batch_size: 1 fits a {gpu.name}"
    return f"largest per_device_train_batch_size that fits a {gpu.name}: {rows} (the recipe has {run.rows})"


def as_data(plans: list[DevicePlan]) -> list[dict[str, Any]]:
    """The bytes for JSON."""
    return [
        {
            "device": plan.device,
            **{
                moment.phase: {"fullest_at": moment.name, "bytes": moment.items, "peak": moment.total}
                for moment in (plan.rollout, plan.training)
                if moment.items
            },
        }
        for plan in plans
    ]


def duration(seconds: float) -> str:
    """Seconds, readable."""
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 60:.0f} min"


def speed_lines(speed: Speed, best: Speed, said: list[str]) -> str:
    """Tokens, forwards and seconds of a step, and what they rest on."""
    each, parts = duration(speed.draft + speed.verification), (speed.prompts, speed.rollout, speed.training)
    prompts, rollout, training = map(duration, parts)
    lines = [
        f"A step of a process: {speed.written:,} tokens written, {speed.read:,} of prompts read, {speed.trained:,} "
        f"trained on; {speed.rounds:,} rounds of {each}, in each of which a row writes {speed.a_round:.1f} tokens; "
        f"{speed.student_forwards:,} forwards of the student and {speed.teacher_forwards:,} of the teacher",
        f"About {duration(speed.step)}: prompts {prompts}, rollout {rollout}, training {training}; computed, if",
        *(f"- {sentence}" for sentence in said),
    ]
    if best.rollout < 0.95 * speed.rollout:
        lines.append(f"gamma: {best.gamma} would make it a rollout of {duration(best.rollout)}")
    return "\n".join(lines)


def change_lines(found: list[Change], gpu: GPU) -> str:
    """What to change where it does not fit."""
    if not found:
        return f"It does not fit a {gpu.name}, and no key that is known here would change that: take a larger GPU"
    rows = [[str(change), gib(change.total), "fits" if change.fits else "does not fit"] for change in found]
    return f"It does not fit a {gpu.name}. What needs less, and what the fullest GPU then holds:\n" + table(
        ["keys", "GiB", ""], rows
    )
