"""Training on texts that are there already: what takes the place of a rollout, and gold answers beside one."""

from typing import Any

from datasets import Dataset

from ..data.prompts import TeacherPrompt, Words
from ..training.private import DistillationHooks
from .config import LUPISKDConfig
from .gold import gold_columns
from .health import rollout_health
from .metrics import RolloutTotals
from .setup import ModelPair
from .store import TeacherStore
from .texts import GivenTexts


def given_texts(
    args: LUPISKDConfig, tokenizer: Any, teacher_prompt: TeacherPrompt, pair: ModelPair, datasets: tuple[Any, Any]
) -> GivenTexts:
    """The gold answers and the store of a run, looked up for every record that it trains or evaluates on.

    Args:
        args: the run's configuration.
        tokenizer: the student's.
        teacher_prompt: what the teacher reads.
        pair: the two models.
        datasets: training records and evaluation records, as they are ready.

    Raises:
        ValueError: a record that is not in the store, or has no answer where all need one (it is named); or
            `gold_alpha`, and no record has an answer.
    """
    kwargs: Any = args.chat_template_kwargs or {}  # parsed by now
    given = GivenTexts(args, Words(tokenizer, kwargs), teacher_prompt, pair.store, pair.vocab_size)
    for dataset in datasets:
        given.check(dataset)
    records, _ = datasets
    if args.gold_alpha and isinstance(records, Dataset) and "answer" not in records.column_names:
        raise ValueError(f"gold_alpha={args.gold_alpha}: no training record has an `answer`")
    return given


def store_ends(store: TeacherStore, ends: list[int]) -> list[int]:
    """The tokens at which the texts of a store end.

    Args:
        store: of the run.
        ends: those at which the run's student and its template end texts.

    Raises:
        ValueError: one of these is not an end in the store; it is named.
    """
    own = store.manifest.end_token_ids
    if strange := sorted(set(ends) - set(own)):
        raise ValueError(
            f"teacher_store: end_token_ids of {store.folder} are {own}, and the student's texts end at {strange} too: "
            "write a store with this student's recipe"
        )
    return own


class TakenTexts(DistillationHooks):
    """For [`LUPISKDTrainer`]."""

    args: LUPISKDConfig
    model: Any
    processing_class: Any
    teacher_model: Any
    eos_token_ids: list[int]
    _given: GivenTexts
    _rollout: Any
    _rows: list[dict[str, Any]]
    _rollout_totals: dict[str, RolloutTotals]

    @property
    def writes_texts(self) -> bool:
        """Whether texts are written in training, and not there already."""
        return not self._given.replace_rollout

    def take_texts(self, teacher_prompt_ids: list[list[int]], seed: int, row_ids: list[int]) -> list[list[int]]:
        """The completion of each record that is at hand, as `write_completions` returns them; nobody writes it.

        Args:
            teacher_prompt_ids: of each record, what its teacher reads.
            seed, row_ids: of several samples of a prompt, these choose one.
        """
        rollout = self._given.rollout(self._rows, teacher_prompt_ids, self.teacher_model, seed, row_ids)
        mode = "train" if self.model.training else "eval"
        totals = self._rollout_totals[mode]
        health, left_out = rollout_health(rollout, self._rows, self.eos_token_ids, totals, self.accelerator)
        self.metric_lists[mode]["rollout/unfinished"].append(health["rollout/unfinished"])
        self._rollout = rollout, teacher_prompt_ids, left_out
        return rollout.completion_ids

    def add_gold_columns(self, batch: dict[str, Any], records: list[dict[str, Any]]) -> None:
        """Puts the gold answers of the records into their batch, if they count in its loss."""
        if self.args.gold_alpha and self.model.training:
            gold = self._given.gold(records)
            batch |= gold_columns(batch, gold, self.processing_class.pad_token_id, self.accelerator)
