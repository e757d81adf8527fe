"""Closed-book questions at every evaluation; and before the first step, open-book questions to the teacher."""

import math
from typing import Any

from ..data.answers import score_answer
from ..data.probe_knowledge import KnowledgeOf, knowledge_in
from ..data.prompts import encode
from ..data.teacher_names import RUN
from ..speculative import AcceptNone, Lockstep
from ..speculative.runners.packed_weights import pack_setting
from ..training.private import DistillationHooks, unwrap_model_for_generation
from ..training.probing import Probed
from .checks import ready_records
from .config import LUPISKDConfig
from .row_rollouts import roll_out_rows
from .teachers import Teachers
from .texts import GivenTexts


OPEN_BOOK_PROBES = 16  # asked of the teacher: enough to tell "most" from "few", in one batch
OPEN_BOOK_TOKENS = 128  # of each answer at most: an answer of a sentence or two


def with_knowledge(probes: list[dict[str, Any]], records: Any) -> list[dict[str, Any]]:
    """At most `OPEN_BOOK_PROBES` of the probes, spread over all of them, with the `knowledge` that they are about, and
    the `teacher` that their record names.

    Args:
        probes: `question`, `answers`, and `knowledge` or the `record_id` of a record.
        records: in the order of their file; read where a probe has no knowledge of its own.
    """
    own = [probe for probe in probes if knowledge_in(probe) is not None]
    known = KnowledgeOf([] if own else records)
    found = [(probe, known.look_up(probe)[0]) for probe in own or probes]
    whose = {str(row.get("id") or place): row.get("teacher") for place, row in enumerate(records or [])}
    asked = [
        probe | {"knowledge": text, "teacher": whose.get(str(probe.get("record_id")))}
        for probe, text in found
        if text is not None
    ]
    count = min(len(asked), OPEN_BOOK_PROBES)
    return [asked[i * len(asked) // count] for i in range(count)]


class ProbedEvaluation(Probed, DistillationHooks):
    """For [`LUPISKDTrainer`]: an evaluation asks the probes, too; `ask_teacher` asks its teacher some of them."""

    args: LUPISKDConfig
    teachers: Teachers
    max_completion_length: int
    open_book_probes: list[dict[str, Any]] | None = None
    """Probes with their `knowledge`, for `ask_teacher`."""
    _lockstep: Lockstep | None
    _given: GivenTexts

    def ready(self, dataset: Any) -> Any:
        ready = ready_records(dataset, self.processing_class, self.teachers, self.args)
        self._given.check(ready)
        return ready

    def ask_teacher(self) -> tuple[int, int]:
        """Ask the teacher `open_book_probes`, as it is asked in training; every process asks all of them.

        Returns:
            (answered right by the lenient mark, asked); probes whose prompt is too long for the run are not asked.
        """
        tokens = min(OPEN_BOOK_TOKENS, self.max_completion_length)
        known = [*self.teachers.names, *([None] if self.teachers.first.name == RUN else [])]
        probes = [probe for probe in self.open_book_probes or [] if probe.get("teacher") in known]
        rows: list[dict[str, Any]] = [
            {
                "prompt": [{"role": "user", "content": probe["question"]}],
                "privileged_context": probe["knowledge"],
                "teacher": probe.get("teacher"),
            }
            for probe in probes
        ]
        prompts = self.teachers.encode(rows)
        questions = [row["prompt"] for row in rows]
        bare = encode(self.processing_class, questions, **self.chat_template_kwargs) if probes else []

        def fits(row: dict[str, Any], bare_ids: list[int], ids: list[int]) -> bool:
            lengths = self.teachers.of(row).pair.context_lengths
            most, most_of_teacher = (math.inf if length is None else length - tokens for length in lengths)
            return len(bare_ids) <= most and len(ids) <= min(most_of_teacher, self.args.max_teacher_prompt_length)

        asked = [i for i, row in enumerate(rows) if fits(row, bare[i], prompts[i])]
        if not asked or self.args.teacher_store is not None:  # where there is nobody to ask
            return 0, 0
        with (
            unwrap_model_for_generation(
                self.model_wrapped, self.accelerator, gather_deepspeed3_params=self.args.ds3_gather_for_generation
            ) as student,
            self.dist.summon_full_params(self.model_wrapped, recurse=False),
            self._bar("the teacher, open-book", len(asked)) as bar,
        ):
            rollout = roll_out_rows(
                self.teachers,
                [rows[i] for i in asked],
                student,
                [bare[i] for i in asked],
                [prompts[i] for i in asked],
                row_ids=list(range(len(asked))),
                max_new_tokens=tokens,
                gamma=1,
                acceptance=AcceptNone(),
                teacher_temperature=0.0,
                max_slots=self.args.max_slots,
                pack_weights=pack_setting(self.args.pack_weights),
                lockstep=self._lockstep,
                on_round=bar.on_round,
            )
        texts = self.processing_class.batch_decode(rollout.completion_ids, skip_special_tokens=True)
        right = sum(score_answer(text, probes[i]["answers"])[1] for i, text in zip(asked, texts))
        return right, len(asked)
