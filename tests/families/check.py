"""What a family does here, beside its un-cached reading of one token at a time."""

import traceback
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import torch

import lupi_trainer
from lupi_trainer.models.head_check import check_head
from lupi_trainer.models.lm_head import Head
from lupi_trainer.speculative import AcceptNone, TopK, skd_rollout, speculative_generate
from lupi_trainer.speculative.rules.noise import STUDENT, TEACHER, gumbel, row_keys
from lupi_trainer.speculative.runners.prompt_store import PromptStore
from lupi_trainer.speculative.runners.support import require_config_support
from tests.families.sizes import VOCAB
from tests.speculative.reference import reference_rollout
from tests.speculative.toy_models import prompts


ROWS, LIMIT, GAMMA, SLOTS = 4, 10, 4, 2
RULE = TopK(k=3, min_prob=0.05)
TEMPERATURE = 0.7
CLOSE = 1e-4  # two numbers that decide what is written and differ by less may change places through rounding
QUERIES, KNOWLEDGE = prompts(ROWS, 2, 6, seed=1), prompts(ROWS, 5, 9, seed=2)
INFORMED = [knowledge + query for knowledge, query in zip(KNOWLEDGE, QUERIES)]


class Wrong(Exception):
    """What was written is not what the reference writes."""


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
        return next((word for word in ("wrong", "refused") if word in words), "exact")


class Uncached:
    """A model that reads every text from its beginning, and keeps the logits of each."""

    def __init__(self, model):
        self.model, self.config, self.device = model, model.config, model.device
        self.logits: dict[tuple[int, ...], torch.Tensor] = {}

    def after(self, ids: list[int]) -> torch.Tensor:
        """[V] logits of the token after a text."""
        if (key := tuple(ids)) not in self.logits:
            with torch.no_grad():
                out = self.model(input_ids=torch.tensor([ids], device=self.device), use_cache=False)
            self.logits[key] = out.logits[0, -1, :VOCAB].float()
        return self.logits[key]

    def __call__(self, input_ids, **given):
        logits = self.after(input_ids[0].tolist())[None, None]
        return SimpleNamespace(logits=logits, hidden_states=[logits])


class Bench:
    """Two models of a family, their texts, and what the reference makes of them."""

    def __init__(self, student, teacher):
        self.models, self.own = (student, teacher), (Uncached(student), Uncached(teacher))
        self.kept: list[tuple[torch.Tensor, list[int]]] = []  # of a rollout: the teacher's states, the text
        given = {"max_new_tokens": LIMIT, "acceptance": RULE, "vocab": VOCAB}
        try:
            self.rollout, self.by_teacher, _ = reference_rollout(*self.own, QUERIES, INFORMED, **given)
        except Exception as error:  # it reads no text: then it must be refused
            self.unread, self.eos = error, []
        else:
            # tokens that end a row early, one within a draft
            self.unread, self.eos = None, sorted({self.rollout[0][3], self.rollout[2][6]})

    def ended(self, text: list[int]) -> list[int]:
        return text[: next((i + 1 for i, token in enumerate(text) if token in self.eos), len(text))]

    def alone(self, model: Uncached, starts: list[list[int]], writer: int | None) -> list[list[int]]:
        """Texts that one model writes: drawn with the noise of a writer, or (None) the likeliest tokens."""
        texts = []
        for key, start in zip(row_keys(0, range(ROWS)).split(1), starts):
            text: list[int] = []
            while len(text) < LIMIT and not (text and text[-1] in self.eos):
                text.append(int(noisy(model.after(start + text), key, len(text), writer).argmax()))
            texts.append(text)
        return texts

    def compare(self, found, expected, decided) -> None:
        """Raises `Wrong` where a text differs from its reference, but for a close call.

        decided: of a row and the tokens before, how far apart what decided on the next one was.
        """
        for row, (text, right) in enumerate(zip(found, expected, strict=True)):
            if text == right:
                continue
            at = next((i for i, pair in enumerate(zip(text, right)) if pair[0] != pair[1]), min(len(text), len(right)))
            if at == min(len(text), len(right)) or (gap := decided(row, right[:at])) > CLOSE:
                raise Wrong(f"row {row} writes {text}, and the reference {right}")
            print(f"    a close call: {gap:.2g}")


def noisy(logits: torch.Tensor, key: torch.Tensor, position: int, writer: int | None) -> torch.Tensor:
    if writer is None:
        return logits
    return logits / TEMPERATURE + gumbel(key, torch.tensor([position]), writer, VOCAB)[0].to(logits)


def gap(scores: torch.Tensor, k: int = 1) -> float:
    """How far the k-th largest is from the next."""
    first, second = scores.topk(k + 1).values[-2:]
    return float(first - second)


def rollout(bench: Bench, rule=RULE, **given):
    return skd_rollout(
        *bench.models,
        QUERIES,
        INFORMED,
        max_new_tokens=LIMIT,
        gamma=GAMMA,
        acceptance=rule,
        eos_token_id=bench.eos,
        max_slots=SLOTS,
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
    for given in ({"return_teacher_hidden": True}, {"teacher_prompt_store": store}, {"teacher_prompt_store": store}):
        out = rollout(bench, **given)
        if bench.unread is not None:
            raise bench.unread
        expected = [bench.ended(text) for text in bench.rollout]
        bench.compare(out.completion_ids, expected, decided)
        for text, right, wrote, teacher in zip(out.completion_ids, expected, out.from_teacher, bench.by_teacher):
            if text == right and wrote != teacher[: len(text)]:
                raise Wrong("the tokens are right, and their writers are not")
        if out.teacher_hidden is not None:
            bench.kept = list(zip(out.teacher_hidden, out.completion_ids))


def near(found: torch.Tensor, right: torch.Tensor, what: str) -> None:
    off = (found - right).abs().max() / right.abs().max()
    if not off <= CLOSE:
        raise Wrong(f"{what} differ from the model's by up to {off:.2g} of the largest")


def lossless(bench: Bench) -> None:
    """The student drafts for the teacher, whose greedy text it is."""
    target, draft = bench.own[1], bench.models[0]
    given = {"num_draft_tokens": GAMMA, "eos_token_id": bench.eos, "max_slots": SLOTS}
    out = speculative_generate(bench.models[1], draft, INFORMED, max_new_tokens=LIMIT, **given)
    expected = bench.alone(target, INFORMED, None)
    bench.compare(out.completion_ids, expected, lambda row, before: gap(target.after(INFORMED[row] + before)))


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
    for row, (states, text) in enumerate(bench.kept):
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
