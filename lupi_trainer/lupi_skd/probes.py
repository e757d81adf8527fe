"""Closed-book questions at every evaluation; and before the first step, open-book questions to the teacher."""

import math
from typing import Any

from ..data.answers import score_answer
from ..data.probe_knowledge import KnowledgeOf, knowledge_in
from ..data.prompts import TeacherPrompt, Words, encode
from ..speculative import AcceptNone, Lockstep, skd_rollout
from ..speculative.runners.packed_weights import pack_setting
from ..teachers.self_taught import AdapterDisabled
from ..training.private import DistillationHooks, unwrap_model_for_generation
from ..training.probing import Probed
from .checks import ready_records
from .config import LUPISKDConfig
from .texts import GivenTexts


OPEN_BOOK_PROBES = 16  # asked of the teacher: enough to tell "most" from "few", in one batch
OPEN_BOOK_TOKENS = 128  # of each answer at most: an answer of a sentence or two


def with_knowledge(probes: list[dict[str, Any]], records: Any) -> list[dict[str, Any]]:
    """At most `OPEN_BOOK_PROBES` of the probes, spread over all of them, with the `knowledge` that they are about.

    Args:
        probes: `question`, `answers`, and `knowledge` or the `record_id` of a record.
        records: in the order of their file; read where a probe has no knowledge of its own.
    """
    own = [probe for probe in probes if knowledge_in(probe) is not None]
    known = KnowledgeOf([] if own else records)
    found = [(probe, known.look_up(probe)[0]) for probe in own or probes]
    asked = [probe | {"knowledge": text} for probe, text in found if text is not None]
    count = min(len(asked), OPEN_BOOK_PROBES)
    return [asked[i * len(asked) // count] for i in range(count)]


class ProbedEvaluation(Probed, DistillationHooks):
    """For [`LUPISKDTrainer`]: an evaluation asks the probes, too; `ask_teacher` asks its teacher some of them."""

    args: LUPISKDConfig
    teacher_model: Any
    teacher_prompt: TeacherPrompt
    teacher_words: Words
    context_lengths: tuple[int | None, int | None]
    shared_vocab_size: int
    max_completion_length: int
    eos_token_ids: list[int]
    open_book_probes: list[dict[str, Any]] | None = None
    """Probes with their `knowledge`, for `ask_teacher`."""
    _lockstep: Lockstep | None
    _teacher_on_device: Any  # of `PrivilegedLoss`
    _given: GivenTexts

    def ready(self, dataset: Any) -> Any:
        limits = self.context_lengths, self.shared_vocab_size
        ready = ready_records(dataset, self.processing_class, self.teacher_prompt, self.args, *limits)
        self._given.check(ready)
        return ready

    def ask_teacher(self) -> tuple[int, int]:
        """Ask the teacher `open_book_probes`, as it is asked in training; every process asks all of them.

        Returns:
            (answered right by the lenient mark, asked); probes whose prompt is too long for the run are not asked.
        """
        tokens = min(OPEN_BOOK_TOKENS, self.max_completion_length)
        student_limit, teacher_limit = (math.inf if n is None else n - tokens for n in self.context_lengths)
        teacher_limit = min(teacher_limit, self.args.max_teacher_prompt_length)
        probes = self.open_book_probes or []
        questions = [[{"role": "user", "content": probe["question"]}] for probe in probes]
        messages = [self.teacher_prompt.messages(q, p["knowledge"]) for q, p in zip(questions, probes)]
        prompts = self.teacher_words.encode(messages) if probes else []
        bare = encode(self.processing_class, questions, **self.chat_template_kwargs) if probes else []
        asked = [i for i, ids in enumerate(prompts) if len(ids) <= teacher_limit and len(bare[i]) <= student_limit]
        if not asked or self.args.teacher_store is not None:  # where there is nobody to ask
            return 0, 0
        with (
            unwrap_model_for_generation(
                self.model_wrapped, self.accelerator, gather_deepspeed3_params=self.args.ds3_gather_for_generation
            ) as student,
            self.dist.summon_full_params(self.model_wrapped, recurse=False),
            self._teacher_on_device(),
            self._bar("the teacher, open-book", len(asked)) as bar,
        ):
            rollout = skd_rollout(
                student,
                AdapterDisabled(student) if isinstance(self.teacher_model, AdapterDisabled) else self.teacher_model,
                [bare[i] for i in asked],
                [prompts[i] for i in asked],
                max_new_tokens=tokens,
                gamma=1,
                acceptance=AcceptNone(),
                teacher_temperature=0.0,
                eos_token_id=self.eos_token_ids,
                vocab_size=self.shared_vocab_size,
                max_slots=self.args.max_slots,
                pack_weights=pack_setting(self.args.pack_weights),
                lockstep=self._lockstep,
                on_round=bar.on_round,
            )
        texts = self.processing_class.batch_decode(rollout.completion_ids, skip_special_tokens=True)
        right = sum(score_answer(text, probes[i]["answers"])[1] for i, text in zip(asked, texts))
        return right, len(asked)
