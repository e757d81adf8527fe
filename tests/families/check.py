"""What a family does here, beside what it writes when it reads every text anew."""

import functools
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import LlamaConfig

import lupi_trainer
from lupi_trainer.models.head_check import check_head
from lupi_trainer.models.lm_head import Head
from lupi_trainer.speculative import AcceptNone, TopK, skd_rollout, speculative_generate
from lupi_trainer.speculative.rules.noise import STUDENT, TEACHER, row_keys
from lupi_trainer.speculative.runners.prompt_store import PromptStore
from lupi_trainer.speculative.runners.support import require_config_support
from tests.families.bench import (
    CLOSE,
    INFORMED,
    LIMIT,
    QUERIES,
    ROWS,
    RULE,
    TEMPERATURE,
    Bench,
    Uncached,
    Wrong,
    ended,
    gap,
    noisy,
)
from tests.families.sizes import VOCAB
from tests.families.tiny import small, tiny


@dataclass
class Verdict:
    """`exact`, `refused` or `wrong`, and the sentence that says why not the first."""

    word: str = "exact"
    why: str = ""


@dataclass
class Row:
    """A family's verdicts, by what was done: see `CHECKS`."""

    family: str
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    @property
    def word(self) -> str:
        """The worst of them."""
        words = {verdict.word for verdict in self.verdicts.values()}
        return next((word for word in ("wrong", "refused", "not built") if word in words), "exact")


def rollout(bench: Bench, rule=RULE, **given):
    return skd_rollout(
        *bench.models,
        QUERIES,
        INFORMED,
        max_new_tokens=LIMIT,
        gamma=4,
        acceptance=rule,
        eos_token_id=bench.eos,
        max_slots=2,
        vocab_size=VOCAB,
        **given,
    )


def drafting(bench: Bench) -> None:
    """A student drafts and a teacher verifies, twice with the same store of the teacher's prompts."""

    def decided(row: int, before: list[int]) -> float:
        key = row_keys(0, range(ROWS))[row : row + 1]
        mine, yours = bench.own[0].after(QUERIES[row] + before), bench.own[1].after(INFORMED[row] + before)
        least = (yours / TEMPERATURE).softmax(-1) - RULE.min_prob
        draws = [gap(noisy(mine, key, len(before), STUDENT)), gap(noisy(yours, key, len(before), TEACHER))]
        return min([*draws, gap(yours, RULE.k), float(least.abs().min())])

    store = PromptStore(1 << 24)
    for kept in (None, store, store):
        out = rollout(bench, return_teacher_hidden=True, teacher_prompt_store=kept)
        if bench.unread is not None:
            raise bench.unread
        expected = [ended(text, bench.eos) for text in bench.rollout]
        bench.compare(out.completion_ids, expected, decided)
        for text, right, wrote, teacher in zip(out.completion_ids, expected, out.from_teacher, bench.by_teacher):
            if text == right and wrote != teacher[: len(text)]:
                raise Wrong("the tokens are right, and their writers are not")
        if not 0 < out.stats.accepted < out.stats.drafted:
            raise Wrong(f"nothing is shown: {out.stats.accepted} of {out.stats.drafted} drafted tokens were accepted")
        bench.kept += zip(range(ROWS), out.completion_ids, out.teacher_hidden)


def near(found: torch.Tensor, right: torch.Tensor, what: str) -> None:
    off = (found - right).abs().max() / right.abs().max()
    if not off <= CLOSE:
        raise Wrong(f"{what} differ from the model's by up to {off:.2g} of the largest")


@functools.cache
def plain() -> Uncached:
    """A model without peculiarities, to draft for others and to be drafted for."""
    return Uncached(tiny(small(LlamaConfig), seed=3))


def lossless(bench: Bench) -> None:
    """The student drafts for its teacher, a plain model does, and the teacher for a plain model."""
    student, teacher = bench.models
    given = {"max_new_tokens": LIMIT, "num_draft_tokens": 4, "eos_token_id": bench.eos, "max_slots": 2}
    for target, draft in ((bench.own[1], student), (bench.own[1], plain().model), (plain(), teacher)):
        out = speculative_generate(target.model, draft, INFORMED, **given)
        decided = functools.partial(lambda own, row, before: gap(own.after(INFORMED[row] + before)), target)
        bench.compare(out.completion_ids, bench.alone(target, INFORMED, None), decided)


def _alone(bench: Bench, writer: int, rule) -> None:
    model, starts = (bench.own[writer], (QUERIES, INFORMED)[writer])
    keys = row_keys(0, range(ROWS))

    def decided(row: int, before: list[int]) -> float:
        return gap(noisy(model.after(starts[row] + before), keys[row : row + 1], len(before), writer))

    out = rollout(bench, rule)
    bench.compare(out.completion_ids, bench.alone(model, starts, writer), decided)


def student_alone(bench: Bench) -> None:
    _alone(bench, STUDENT, TopK(k=VOCAB, min_prob=0.0))


def teacher_alone(bench: Bench) -> None:
    _alone(bench, TEACHER, AcceptNone())


def loss_head(bench: Bench) -> None:
    """The package finds that losses can be computed; they are, from the states that a rollout keeps."""
    for model, role in zip(bench.models, ("student", "teacher")):
        require_config_support(model.config, role, drafts=False)  # as trainers do
        check_head(model, role)
    head = Head(bench.models[1], VOCAB)
    for row, text, states in bench.kept:
        own = [bench.own[1].after(INFORMED[row] + text[:i]) for i in range(len(text))]
        near(head.logits(states), torch.stack(own), "the logits of the states that a rollout keeps")


# what is tried of a family, by the column of the table
CHECKS = {
    "drafts and verifies": drafting,
    "lossless": lossless,
    "student alone": student_alone,
    "teacher alone": teacher_alone,
    "loss head": loss_head,
}


def verdict(check, bench: Bench) -> Verdict:
    try:
        check(bench)
    except Exception as error:
        said = " ".join(str(error).split())
        where = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        if isinstance(error, ValueError) and Path(lupi_trainer.__file__).parent in where.parents:
            return Verdict("refused", said)
        return Verdict("wrong", said if isinstance(error, Wrong) else f"{type(error).__name__}: {said} ({where.name})")
    return Verdict()


def check_family(name: str, config, student, teacher) -> Row:
    """Tries everything with two models of a family; what is refused from its configuration must not work."""
    bench = Bench(student, teacher)
    verdicts = {column: verdict(check, bench) for column, check in CHECKS.items()}
    for column, drafts in {"drafts and verifies": True, "student alone": False, "teacher alone": False}.items():
        early = verdict(lambda _, drafts=drafts: require_config_support(config, "student", drafts), bench)
        if early.word != "exact" and verdicts[column].word == "exact":
            verdicts[column] = Verdict("wrong", f"works, and is {early.word} from its configuration: {early.why}")
    return Row(name, verdicts)
