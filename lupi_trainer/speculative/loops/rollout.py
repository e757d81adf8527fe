"""SKD rollouts, the way in: the student writes, the privileged teacher corrects."""

from __future__ import annotations

from collections.abc import Sequence

from ...teachers.remote import RemoteTeacher
from ..rules.acceptance import AcceptanceRule, AcceptNone, TopK
from ..rules.noise import STUDENT
from ..runners.attention import ragged_attention
from ..runners.float32_logits import float32_logits
from ..runners.kept import KeptRunners
from ..runners.lockstep import Alone, Lockstep
from ..runners.packed_weights import PackWeights, packed_weights
from ..runners.probe import reading_fault
from ..runners.prompt_store import PromptStore
from ..runners.support import base_model, can_draft, evaluating
from .by_generate import write_by_generate
from .checks import integer, prompt_lists, token_ids
from .request import Request
from .results import Rollout
from .skd import SKD
from .teacher_only import TeacherOnly


DEFAULT_RULE = TopK(k=5, min_prob=0.05)


def skd_rollout(
    student,
    teacher,
    student_prompt_ids: list[list[int]],
    teacher_prompt_ids: list[list[int]],
    *,
    max_new_tokens: int,
    gamma: int = 20,
    gamma_policy="fixed",
    acceptance: AcceptanceRule = DEFAULT_RULE,
    student_temperature: float = 0.7,
    teacher_temperature: float = 0.7,
    eos_token_id: int | list[int] | None = None,
    seed: int = 0,
    row_ids: list[int] | None = None,
    max_slots: int | None = None,
    verification: str = "parallel",
    compile: bool = False,
    pack_weights: PackWeights = "auto",
    on_block=None,
    on_round=None,
    trace_rows: Sequence[int] = (),
    vocab_size: int | None = None,
    return_teacher_hidden: bool = False,
    lockstep: Lockstep | None = None,
    teacher_prompt_store: PromptStore | None = None,
    bare_teacher_prompt_ids: list[list[int]] | None = None,
    kept: KeptRunners | None = None,
) -> Rollout:
    """Completes B prompts by speculative knowledge distillation (arXiv 2410.11325, algorithm 1).

    Every token is drawn from the student; one that the teacher's rule rejects is drawn again, from the full
    teacher distribution. The result is a pure function of the models, prompts, rule, temperatures, `seed` and
    `row_ids`: every other argument changes the speed alone. That holds in float32; in half precision other shapes may
    write another token where a logit's rounding decides, which `stats.close_calls` counts.

    Args:
        student, teacher: causal language models of transformers (or a PeftModel, or `AdapterDisabled` of one), on any
            device and in any dtype; logits are compared in float32, over the first columns that both have. The teacher
            may be a `RemoteTeacher`, whose likeliest tokens are all that is known of it: then `acceptance` must be
            a `TopK` within them (or accept all, or none), and nothing is compiled.
        student_prompt_ids, teacher_prompt_ids: B ragged lists of token ids; the same text completes row i of both.
        max_new_tokens: the longest completion, in tokens.
        gamma: the draft length, in tokens; where a policy chooses it, the longest.
        gamma_policy: "fixed", "adaptive", "goodput", or a policy object.
        acceptance: the rule that accepts drafted tokens. `AcceptNone()`: the teacher writes alone, and the student is
            not run, unless drafts are asked for (`on_block`, `trace_rows`, `lockstep`, a remote teacher).
        student_temperature, teacher_temperature: at 0 the largest logit wins.
        eos_token_id: tokens that end a row; the one that did is kept.
        seed, row_ids: address of the noise; `row_ids` are 0 to B-1 unless given. Of equal ones each has noise of its
            own, in their order.
        max_slots: how many rows run at a time; the others take the places of those that have ended.
        verification: "parallel" (a block in one teacher forward) or "sequential" (a token at a time).
        compile: compile the student's loop over a block and the teacher's verification; on a GPU, record them as CUDA
            graphs besides. On CPUs one graph each serves all draft lengths and batches, but for those of 1.
        pack_weights: "auto" lays the larger linear layers of models on CPUs (in float32, and in bfloat16 where the
            processor has it) out as it wants them until the rollout has ended, with LoRA merged into them; True
            insists on it, for every model; False leaves all as they are. Texts are the same but for rounding.
        on_block: called with every row's `Block` after every round; reads more from the device. Neither it nor
            `on_round` may read or save a model's weights: packed ones are NaN until the rollout has ended.
        on_round: called with the `RolloutStats` so far after every round; reads nothing more.
        trace_rows: rows (0 to B-1) to be recorded token by token in `Rollout.traces`.
        vocab_size: use only the first so many columns of the logits.
        return_teacher_hidden: keep what the teacher's lm_head read at every completion token; of a remote teacher, the
            likeliest tokens that it returned.
        lockstep: where weights are sharded over processes, and each has rows of its own: keeps their numbers of
            forwards equal.
        teacher_prompt_store: keeps what the teacher has read of its prompts for later rollouts, which read only what
            theirs have beyond it; for a teacher whose weights stay as they are. Texts are the same but for rounding.
        bare_teacher_prompt_ids: the teacher's prompts without the knowledge, for the rules that look at them
            (`Knowledge`), and for no other.
        kept: what an earlier rollout of the same models has left; caches and CUDA graphs serve this one, too, if they
            fit, and are left there for the next. Between rollouts they take memory.

    Raises:
        ValueError: an argument, prompt or model that cannot work, by name, before anything runs.

    Example:

    ```python
    >>> from lupi_trainer import TopK, skd_rollout

    >>> rollout = skd_rollout(
    ...     student, teacher, prompt_ids, prompt_ids, max_new_tokens=8, gamma=4, acceptance=TopK(k=5, min_prob=0.05)
    ... )
    >>> len(rollout.completion_ids)
    2
    ```
    """
    rows = len(student_prompt_ids)
    request = Request(
        student_prompts=prompt_lists("student_prompt_ids", student_prompt_ids),
        teacher_prompts=prompt_lists("teacher_prompt_ids", teacher_prompt_ids),
        max_new_tokens=max_new_tokens,
        gamma=gamma,
        gamma_policy=gamma_policy,
        acceptance=acceptance,
        student_temperature=float(student_temperature),
        teacher_temperature=float(teacher_temperature),
        eos_token_ids=token_ids("eos_token_id", eos_token_id),
        seed=integer("seed", seed),
        row_ids=list(range(rows)) if row_ids is None else token_ids("row_ids", row_ids),
        slots=rows if max_slots is None else min(max_slots, rows),
        verification=verification,
        vocab_size=None if vocab_size is None else integer("vocab_size", vocab_size),
        return_teacher_hidden=return_teacher_hidden,
        trace_rows=sorted(set(token_ids("trace_rows", trace_rows))),
        lockstep=Alone() if lockstep is None else lockstep,
        compile=compile,
        teacher_prompt_store=teacher_prompt_store,
        bare_prompts=None
        if bare_teacher_prompt_ids is None
        else prompt_lists("bare_teacher_prompt_ids", bare_teacher_prompt_ids),
        kept=kept,
    ).checked(student, teacher)
    # another process in lockstep may run the student
    drafts_matter = on_block is not None or request.trace_rows or request.lockstep.together
    remote = isinstance(teacher, RemoteTeacher)
    alone = isinstance(acceptance, AcceptNone) and not drafts_matter and not remote
    models = {"student": student} if remote else {"student": student, "teacher": teacher}
    used = list(models.values())
    runs = [teacher] if alone else used
    if unable := [type(base_model(model)).__name__ for model in runs if not can_draft(model) or reading_fault(model)]:
        who, writer = ("student", student) if request.writer == STUDENT else ("teacher", teacher)
        if drafts_matter:
            raise ValueError(
                f"{' and '.join(unable)} cannot draft and verify, so the {who} writes alone, by transformers' "
                "generate: there are no blocks for on_block and trace_rows, and no lockstep with other processes"
            )
        with evaluating(*used), packed_weights({who: writer}, pack_weights):
            return write_by_generate(writer, request, on_round)
    with evaluating(*used), ragged_attention(*used), float32_logits(*used), packed_weights(models, pack_weights):
        # nothing holds the caches when weights are put back
        return (TeacherOnly if alone else SKD)(student, teacher, request, on_block, on_round).run()
