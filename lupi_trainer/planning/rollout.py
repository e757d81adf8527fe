"""Bytes of a rollout, as the engine reserves and uses them."""

from __future__ import annotations

from collections.abc import Iterator

from .held import master, optimizer, student_weights
from .moments import CONTEXT, Moment
from .run import STUDENT, Run
from .sizes import ModelSize


_FLOAT = 4  # logits are compared in float32
_GRAPHS = 512 << 20  # bytes of recorded graphs; an assumption


def forward_work(model: ModelSize, rows: int, tokens: int, before: int = 0) -> int:
    """Bytes that a forward of `tokens` new tokens a row needs besides, where nothing is kept for a backward.

    The MLP holds three rows of its inner width and four of the hidden one; attention queries, keys, values and its
    result, and behind `before` tokens, where no kernel takes lengths, a copy of all keys and values, and a mask, once
    as bool and once as numbers. Of a quantized model one layer is there in its own type.
    """
    size, every = model.itemsize, rows * tokens
    mlp = every * size * (3 * model.inner + 4 * model.hidden)
    states = every * size * model.width * 2 * (model.heads + model.groups)
    gathered = 0
    if before:
        seen = rows * (before + tokens)
        mask = seen * tokens * (model.heads // model.groups) * (1 + size)
        gathered = 2 * seen * model.groups * model.width * size + mask
    attention = states + every * size * 4 * model.hidden + gathered
    return max(mlp, attention) + (model.largest * size if model.bits.bits else 0)


def prefill_work(run: Run, model: ModelSize, prompt: int, prefix: int) -> int:
    """Bytes of the largest forward in which prompts are read."""
    rows, each = run.read_at_once(model, prompt, prefix)
    before = 0 if run.by_length(model) else prefix
    return max(forward_work(model, rows, each, before), forward_work(model, 1, prefix) if prefix else 0)


def verify_work(run: Run) -> tuple[int, int]:
    """(bytes while the teacher reads a draft, bytes while it is judged)."""
    assert run.teacher is not None
    model, places = run.teacher, run.running * (run.gamma if run.drafts else 1)
    logits = places * min(run.student.vocabulary, model.vocabulary) * _FLOAT
    out = places * model.vocabulary * model.itemsize
    states = places * model.hidden * model.itemsize if run.keeps_states else 0
    read = logits + out + states * (model.layers + 1)
    # a rule that compares ranks makes one more copy, at the temperature; one that makes distributions three
    students = logits if run.judges_student else 0
    bare = logits + out if run.judges_bare else 0
    return read + students + bare, (2 if run.plain_rule else 4) * logits + states + students + bare


def draft_work(run: Run) -> int:
    """Bytes of one step of the draft, whose noise is made of whole numbers as wide as the logits."""
    model = run.writer
    kept = run.running * run.gamma * model.vocabulary * _FLOAT if run.judges_student else 0
    step = run.running * model.vocabulary * (5 * _FLOAT + model.itemsize // 2)
    return kept + step + (model.largest * model.itemsize if model.bits.bits else 0)


def cache_bytes(run: Run, model: ModelSize, prompt: int) -> int:
    """Bytes of keys, values and recurrent states; of states there is a copy, to take drafts back."""
    return run.running * (run.slots_of(model, prompt) * model.slot + 2 * model.states)


def left_by_rollouts(run: Run) -> Iterator[tuple[str, str, int]]:
    """(device, item, bytes) of what a recorded rollout leaves for the next, and training has beside it."""
    if not run.leaves_graphs:
        return
    for device in {STUDENT} if run.teacher is None else {STUDENT, run.home}:
        yield device, "graphs", _GRAPHS
    if run.writes_rounded:
        yield STUDENT, "bfloat16 copy", run.student.weights * run.writer.itemsize
    if run.drafts:
        yield STUDENT, "K/V of the student", cache_bytes(run, run.writer, run.student_prompt)
    if run.teacher is not None:
        yield run.home, "K/V of the teacher", cache_bytes(run, run.teacher, run.teacher_prompt)
        if run.judges_bare:
            yield run.home, "K/V without the knowledge", cache_bytes(run, run.teacher, run.student_prompt)


def growth_work(run: Run, model: ModelSize, prompt: int) -> int:
    """Bytes of the keys, or values, that are there twice while a cache grows; those of compiled forwards do not."""
    fixed = run.compiled and not model.states
    return 0 if fixed else run.running * run.slots_of(model, prompt) * model.part


def rollout_moments(run: Run) -> dict[str, list[Moment]]:
    """Of each device, what it holds while prompts are read, drafts written and verified; nothing of texts that are
    there already."""
    if not run.writes:
        return {}
    teacher, home = run.teacher, run.home
    base: dict[str, Moment] = {STUDENT: Moment("", "rollout")}
    if teacher is not None and run.own_device:
        base[home] = Moment("", "rollout")
    mine = base[STUDENT]
    mine.add("weights", student_weights(run, "rollout"))
    if run.writes_rounded:
        mine.add("bfloat16 copy", run.student.weights * run.writer.itemsize)
    mine.add("master weights", master(run))
    mine.add("optimizer", optimizer(run))
    if run.drafts:
        mine.add("K/V of the student", cache_bytes(run, run.writer, run.student_prompt))
    if teacher is not None:
        its = base[home]
        if not run.self_taught:
            its.add("teacher's weights", teacher.held)
        its.add("K/V of the teacher", cache_bytes(run, teacher, run.teacher_prompt))
        if run.judges_bare:
            its.add("K/V without the knowledge", cache_bytes(run, teacher, run.student_prompt))
        if run.own_device or run.offloaded:
            mine.add("teacher's lm_head", teacher.head * teacher.itemsize)
    for other in run.others:
        base.setdefault(other.home, Moment("", "rollout")).add("other teachers' weights", other.held)
        mine.add("other teachers' lm_heads", other.head(STUDENT))
    works: list[tuple[str, str, str, int]] = []  # (device, moment, item, bytes)
    if run.drafts:
        works.append((STUDENT, "prompts", "prefill", prefill_work(run, run.writer, run.student_prompt, 0)))
        works.append((STUDENT, "draft", "logits", draft_work(run)))
        works.append((STUDENT, "growth", "K/V twice", growth_work(run, run.writer, run.student_prompt)))
    kept = 0
    if teacher is not None:
        works.append((home, "prompts", "prefill", prefill_work(run, teacher, run.teacher_prompt, run.prefix)))
        works += [(home, "verification", "logits", size) for size in verify_work(run)]
        works.append((home, "growth", "K/V twice", growth_work(run, teacher, run.teacher_prompt)))
        if run.keeps_states:
            kept = run.texts * (run.completion + 1) * teacher.hidden * teacher.itemsize
    found: dict[str, list[Moment]] = {}
    for device, start in base.items():
        start.add("context", CONTEXT)
        start.add("prompts kept", run.kept_beside(device))
        if run.compiled:
            start.add("graphs", _GRAPHS)
        for place, name, item, size in works:
            if place == device:
                moment = Moment(name, "rollout", dict(start.items))
                moment.add(item, size)
                # made with the first verification
                moment.add("states kept", kept if device == home and name != "prompts" else 0)
                found.setdefault(device, []).append(moment)
    return found
