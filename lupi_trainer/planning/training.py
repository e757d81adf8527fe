"""Bytes of a training step: forward, loss, backward and the optimizer's step."""

from __future__ import annotations

from ..losses.chunks import CHUNK_ELEMENTS
from .held import FLOAT32, buckets, gradients, master, optimizer, step_work, student_weights
from .moments import CONTEXT, Moment
from .rollout import forward_work, left_by_rollouts
from .run import STUDENT, Run


# of TRL's loss on a GPU (`trl/kernels/chunked_divergence.py`), whose logits are made tile by tile
_TILE_TOKENS, _TILE_COLUMNS = 4096, 32768
_READ_TOKENS = 8192  # of the teacher at a time, where it reads a batch by itself
_NORM = 9  # bytes of each hidden number that the last norm keeps in float32 and out of it


def loss_work(run: Run) -> int:
    """Bytes of the loss at the end of its backward: two tiles of logits, sums of gradients, and these once more in
    the type of what they belong to."""
    student, tokens = run.student, run.rows * run.completion
    sums = tokens * student.hidden + (student.head if student.trains_head else 0)
    if run.teacher is None or run.weighs:  # a few tokens at a time: logits, their softmax and its gradient
        return 3 * CHUNK_ELEMENTS * FLOAT32 + 2 * sums * FLOAT32
    tile = min(tokens, _TILE_TOKENS) * _TILE_COLUMNS
    last = min(tokens, _TILE_TOKENS) * (student.vocabulary % _TILE_COLUMNS or _TILE_COLUMNS)
    width = student.hidden + run.teacher.hidden
    again = sums * student.itemsize if student.itemsize < FLOAT32 else 0
    return 2 * tile * FLOAT32 + last * student.itemsize + sums * FLOAT32 + again + tokens * width * student.itemsize


def loss_forward_work(run: Run) -> int:
    """Bytes of the loss in its forward, where autocast still holds its copies of the weights."""
    student, tokens = run.student, run.rows * run.completion
    if run.teacher is None or run.weighs:
        return loss_work(run)
    tiles = 2 * min(tokens, _TILE_TOKENS) * _TILE_COLUMNS * FLOAT32
    copies = tokens * (student.hidden + run.teacher.hidden) * student.itemsize
    return tiles + copies + (student.cast if run.checkpointing else 0)


def activation_bytes(run: Run) -> tuple[int, int]:
    """(bytes that the forward keeps, bytes of the layer whose backward runs, beside those that are still kept)."""
    student = run.student
    tokens = run.rows * (run.student_prompt + run.completion)
    size, mask = student.itemsize, 0
    if run.attends_by_mask:  # bool, and as numbers
        mask = tokens * (run.student_prompt + run.completion) * (1 + size)
    work = tokens * size * 2 * (student.inner + student.hidden)
    if student.bits.bits:
        work += student.largest * size
    if not run.checkpointing:
        return round(student.kept * tokens) + student.cast + mask, work
    norm = tokens * student.hidden * _NORM  # which is done when the first layer's backward begins
    each = round((student.kept * tokens - norm) / student.layers)
    each += student.cast // student.layers
    return tokens * student.hidden * size * student.layers + norm + mask, each + work - norm


def training_moments(run: Run) -> dict[str, list[Moment]]:
    """Of each device, what it holds at the loss, in the first and the last layer's backward, and in the step."""
    student, teacher, home = run.student, run.teacher, run.home
    kept, layer = activation_bytes(run)
    grads, head = gradients(run), student.head * student.trained_width if student.trains_head else 0
    base = Moment("", "training")
    base.add("weights", student_weights(run, "training"))
    base.add("master weights", master(run))
    base.add("optimizer", optimizer(run))
    base.add("buckets", buckets(run))
    base.add("context", CONTEXT)
    base.add("prompts kept", run.kept_beside(STUDENT))
    if teacher is not None:
        if not run.own_device and not run.offloaded and not run.self_taught:
            base.add("teacher's weights", teacher.held)
        if run.own_device or run.offloaded:
            base.add("teacher's lm_head", teacher.head * teacher.itemsize)
        if run.keeps_states:
            base.add("states kept", run.texts * run.completion * teacher.hidden * teacher.itemsize)
    for other in run.others:
        base.add("other teachers' weights", other.held if other.home == STUDENT else 0)
        base.add("other teachers' lm_heads", other.head(STUDENT))
    left = [*left_by_rollouts(run)]
    for device, item, size in left:
        base.add(item, size if device == STUDENT else 0)
    before = grads if run.accumulation > 1 else 0  # of the micro-batches before
    tokens = run.rows * (run.student_prompt + run.completion)
    inputs = tokens * student.hidden * student.itemsize
    found = []
    for name, activations, gradient, loss in (
        ("loss", kept, before, loss_forward_work(run)),
        ("loss's backward", kept, before, loss_work(run)),
        ("first backward", kept + layer + inputs, max(before, head), 0),
        ("last backward", 2 * inputs + (layer if run.checkpointing else kept / student.layers), grads, 0),
        ("optimizer step", 0, grads + step_work(run), 0),
    ):
        moment = Moment(name, "training", dict(base.items))
        moment.add("gradients", gradient)
        moment.add("activations", activations)
        moment.add("loss", loss)
        found.append(moment)
    moments = {STUDENT: found}
    if teacher is not None and (run.own_device or run.weighs or not run.keeps_states):
        read = Moment("teacher's reading", "training", {} if home != STUDENT else dict(base.items))
        if run.own_device:
            read.add("teacher's weights", teacher.held)
            read.add("other teachers' weights", sum(other.held for other in run.others if other.home == home))
            read.add("context", CONTEXT)
            for device, item, size in left:
                read.add(item, size if device == home else 0)
            read.add("prompts kept", run.kept_beside(home))
        if run.weighs or not run.keeps_states:
            if home == STUDENT:  # after the student's forward
                read.add("activations", kept)
            if run.offloaded:
                read.add("teacher's weights", teacher.held)
            each = (run.student_prompt if run.keeps_states else run.teacher_prompt) + run.completion
            readings = int(run.weighs) + int(not run.keeps_states)
            read.add("states kept", readings * run.rows * run.completion * teacher.hidden * teacher.itemsize)
            read.add("prefill", forward_work(teacher, min(run.rows, max(_READ_TOKENS // each, 1)), each))
        moments.setdefault(home, []).append(read)
    return moments
