"""Texts that nobody writes while the student is trained: gold answers, and those of a teacher store."""

import hashlib
from typing import Any

import torch
from datasets import Dataset

from ..data.gold import gold_texts
from ..data.prompts import TeacherPrompt, Words, load_few_shot_examples
from ..data.records import record_name
from ..data.special_tokens import SpecialTokens
from ..data.wording import counted
from ..models.vocabulary import check_known_tokens
from ..speculative import Rollout
from ..speculative.loops.results import RolloutStats
from ..teachers.remote import RemoteTeacher
from ..training.settings import is_set
from .store import TeacherStore, Text, differences, key_of


def text_settings(args: Any, words: Words) -> dict[str, Any]:
    """Keys of a recipe that the texts of its teacher depend on, and their values, for JSON.

    Args:
        args: [`LUPISKDConfig`].
        words: how the teacher's prompts are written.
    """
    return {
        "rollout_policy": args.rollout_policy,
        "teacher_temperature": args.teacher_temperature if args.rollout_policy == "teacher" else None,
        "max_completion_length": args.max_completion_length,
        "teacher_system_prompt": args.teacher_system_prompt,
        "few_shot_examples": [list(pair) for pair in load_few_shot_examples(args.few_shot_examples)],
        "knowledge_template": args.knowledge_template,
        "teacher_chat_template": args.teacher_chat_template,
        "teacher_chat_template_kwargs": dict(words.template_kwargs),
    }


def _same_model(ours: str | None, theirs: str | None) -> bool:
    """Whether two names are of one model: a folder may lie elsewhere on another machine."""
    ours, theirs = ((name or "").rstrip("/") for name in (ours, theirs))
    is_folder = any(name.startswith(("/", ".", "~")) for name in (ours, theirs))
    return ours == theirs or (is_folder and ours.rpartition("/")[2] == theirs.rpartition("/")[2])


def open_store(args: Any) -> TeacherStore:
    """The store of a run, which must have been written as the run's recipe says.

    Args:
        args: [`LUPISKDConfig`]. Without a `teacher_model_name_or_path`, any teacher's store will do.

    Raises:
        ValueError: no complete store, or one that was written otherwise; what differs is named.
    """
    store = TeacherStore(args.teacher_store)
    known = store.manifest
    kwargs: Any = args.chat_template_kwargs if args.teacher_chat_template_kwargs is None else None
    words = Words(store.tokenizer, kwargs or args.teacher_chat_template_kwargs or {})
    found = differences(known.settings, text_settings(args, words))
    if args.loss_top_k > known.top_k:
        found.append(f"loss_top_k is {args.loss_top_k}, and the store has {known.top_k} tokens of each place")
    if args.teacher_model_name_or_path is not None:
        if not _same_model(known.model, args.teacher_model_name_or_path):
            found += differences(
                {"teacher_model_name_or_path": known.model},
                {"teacher_model_name_or_path": args.teacher_model_name_or_path},
            )
    if args.teacher_model_name_or_path is not None or is_set(args, "teacher_model_revision"):
        ours, theirs = ({"teacher_model_revision": r} for r in (known.revision, args.teacher_model_revision))
        found += differences(ours, theirs)
    if found:
        raise ValueError(f"teacher_store: {args.teacher_store} does not match the recipe: {'; '.join(found)}")
    return store


class GivenTexts:
    """Takes the place of the rollout: of each record a text that is there already.

    Args:
        args: [`LUPISKDConfig`].
        words: how the student's conversations are written.
        teacher_prompt: what the teacher reads, with its words.
        store: the texts; `None`: the gold answers, `rollout_policy="gold"`.
        vocab_size: token ids that both models have.
    """

    def __init__(
        self, args: Any, words: Words, teacher_prompt: TeacherPrompt, store: TeacherStore | None, vocab_size: int
    ):
        self.args, self.words, self.teacher_prompt, self.store = args, words, teacher_prompt, store
        self.vocab_size, self.is_gold = vocab_size, args.rollout_policy == "gold"
        self._special_tokens = SpecialTokens(words.tokenizer, args.allow_special_tokens)
        self.replace_rollout = self.is_gold or store is not None

    def gold(self, rows: list[dict[str, Any]], required: bool = False) -> list[list[int] | None]:
        """The gold answer of each record, in tokens.

        Args:
            rows: the records.
            required: whether each must have one.

        Raises:
            ValueError: an answer that is missing, too long, beyond the vocabulary, or with a special token; the
                record is named.
        """
        found, limit = gold_texts(self.words, rows), self.args.max_completion_length
        for row, ids in zip(rows, found):
            name = record_name(row)
            if ids is None:
                if required:
                    raise ValueError(f"{name}: it has no `answer`, which rollout_policy='gold' trains on")
                continue
            self._special_tokens.check(name, row["answer"])
            if len(ids) > limit:
                raise ValueError(
                    f"{name}: its answer has {counted(len(ids), 'token')}, its end among them, beyond "
                    f"max_completion_length={limit}. Raise the limit or shorten the answer; it is never cut"
                )
            check_known_tokens(ids, self.vocab_size, self.words.tokenizer, f"{name}: its answer")
        return found

    def keys(self, rows: list[dict[str, Any]], teacher_prompt_ids: list[list[int]]) -> list[str]:
        """Where the text of each record is in a store."""
        gold = self.gold(rows, required=True) if self.is_gold else [[] for _ in rows]
        return [key_of(prompt, ids or []) for prompt, ids in zip(teacher_prompt_ids, gold)]

    def check(self, dataset: Any, batch_size: int = 256) -> None:
        """Refuse records of which there is no text; a streaming dataset is looked at as it is read.

        Args:
            dataset: as [`ready_records`] leaves it.

        Raises:
            ValueError: a record without an answer, or one that is not in the store; it is named.
        """
        if isinstance(dataset, dict):
            for part in dataset.values():
                self.check(part, batch_size)
        if not isinstance(dataset, Dataset):
            return
        for start in range(0, len(dataset), batch_size):
            self.check_rows([dataset[i] for i in range(start, min(start + batch_size, len(dataset)))])

    def check_rows(self, rows: list[dict[str, Any]]) -> None:
        """As [`check`], of some records."""
        if self.store is not None:
            self._stored(rows, self._teacher_prompts(rows), [0] * len(rows))
        if self.is_gold or self.args.gold_alpha:
            self.gold(rows, required=self.is_gold)

    def _teacher_prompts(self, rows: list[dict[str, Any]]) -> list[list[int]]:
        words = self.teacher_prompt.words or self.words
        return words.encode([self.teacher_prompt.messages(r["prompt"], r["privileged_context"]) for r in rows])

    def _stored(
        self, rows: list[dict[str, Any]], teacher_prompt_ids: list[list[int]], addresses: list[int]
    ) -> list[Text]:
        assert self.store is not None
        texts = []
        for row, key, address in zip(rows, self.keys(rows, teacher_prompt_ids), addresses):
            if key not in self.store:
                raise ValueError(
                    f"{record_name(row)}: what its teacher reads is not in teacher_store {self.args.teacher_store}, "
                    "which was written of other records: run `lupi teach` for these"
                )
            texts.append(self.store.text(key, address % self.store.manifest.samples))
        return texts

    def rollout(
        self,
        rows: list[dict[str, Any]],
        teacher_prompt_ids: list[list[int]],
        teacher: Any,
        seed: int,
        row_ids: list[int],
    ) -> Rollout:
        """The text of each record, as a rollout that has drafted nothing.

        Args:
            rows: the records.
            teacher_prompt_ids: of each, what the teacher reads.
            teacher: of a gold answer: a remote one is asked for its likeliest tokens; any other is run by the loss.
            seed, row_ids: of several samples of a prompt in a store, these choose one.
        """
        if self.store is not None:
            texts = self._stored(rows, teacher_prompt_ids, [_draw(seed, row) for row in row_ids])
            top: Any = [text.top(self.args.loss_top_k) for text in texts]
            found, by_teacher = [text.ids for text in texts], not self.is_gold
        else:
            found, by_teacher = [ids or [] for ids in self.gold(rows, required=True)], False
            top = remote_top(teacher, teacher_prompt_ids, found) if isinstance(teacher, RemoteTeacher) else None
        writers = [[by_teacher] * len(ids) for ids in found]
        return Rollout(completion_ids=found, from_teacher=writers, stats=RolloutStats(), teacher_top=top)


def _draw(seed: int, row_id: int) -> int:
    """A number that is as good as drawn, and the same whenever it is asked for."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{row_id}".encode(), digest_size=8).digest(), "big")


def remote_top(teacher: RemoteTeacher, prompts: list[list[int]], texts: list[list[int]]) -> list[torch.Tensor]:
    """Of each text [T, 2 * top_k] float32: a remote teacher's likeliest tokens at its places, then how likely."""
    read = [[*prompt, *ids[:-1]] for prompt, ids in zip(prompts, texts)]
    answers = teacher.score(read, [len(ids) for ids in texts])
    k, absent = teacher.top_k, teacher.vocab_size
    found = []
    for places in answers:
        ids = torch.tensor([[*top[:k], *[absent] * (k - len(top))] for top, _ in places], dtype=torch.float32)
        values = [[*log_probs[:k], *[-torch.inf] * (k - len(log_probs))] for _, log_probs in places]
        log_probs = torch.tensor(values, dtype=torch.float32).masked_fill(ids >= absent, -torch.inf)
        found.append(torch.cat([ids.clamp(max=absent), log_probs], -1))
    return found
