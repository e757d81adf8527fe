"""A plan as text for a terminal, and as data for JSON."""

from __future__ import annotations

from typing import Any

from ..planning.gpus import GPU
from ..planning.moments import gib
from ..planning.plan import DevicePlan
from ..planning.recipe import Lengths
from ..planning.run import CPU, Run
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


def models_table(run: Run) -> str:
    """Both models: weights, how they are held, and what a token of their texts is."""
    rows = []
    for role, model in (("student", run.student), ("teacher", run.teacher)):
        if model is None:
            rows.append([role, "on a server", "", "", ""])
            continue
        kind = f"{model.bits.bits} bits" if model.bits.bits else str(model.dtype).removeprefix("torch.")
        if role == "teacher" and run.self_taught:
            kind = "the student's"
        trained = f"{model.trained / 1e6:,.1f} M" if role == "student" else ""
        numbers = [f"{model.weights / 1e9:.2f} G", trained, kind, f"{model.slot / 1024:.1f}"]
        rows.append([f"{role} {model.name}", *numbers])
    return table(["", "weights", "trained", "held in", "KiB of K/V a token"], rows)


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
