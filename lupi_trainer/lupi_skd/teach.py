"""Writing a teacher store: the teacher's texts of every record, and its likeliest tokens at each place of them."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from ..data.prompts import TeacherPrompt, Words
from ..data.records import record_name
from ..models.backbone import completion_states_by_rows
from ..models.lm_head import Head
from ..speculative import AcceptNone, skd_rollout
from ..speculative.runners.packed_weights import pack_setting
from ..teachers.vllm import TeacherServer
from ..training.private import pad
from ..training.progress import WorkBar
from .loss import rows_at_once
from .store import Manifest, StoreWriter, Text, key_of, vocabulary_sha256
from .texts import GivenTexts, remote_top, text_settings


_LOGITS = 1 << 24  # elements at a time
_ROUNDED = 0.02  # by how much half precision and another batch may change a probability


@dataclass(frozen=True)
class Entry:
    """A prompt of a store.

    Attributes:
        name: of the first record that has it, for messages.
        prompt: what the teacher reads, in tokens.
        gold: the answer that is its text; empty where the teacher writes one.
    """

    name: str
    prompt: list[int]
    gold: list[int]

    @property
    def key(self) -> str:
        return key_of(self.prompt, self.gold)

    def address(self, sample: int) -> int:
        """Of the noise of a sample: a function of the prompt, wherever its record stands."""
        digest = hashlib.blake2b(f"{self.key}/{sample}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") >> 2


def entries_of(datasets: Sequence[Any], given: GivenTexts, teacher_prompt: TeacherPrompt, own: Words) -> list[Entry]:
    """Every prompt of the records once, in their order.

    Args:
        datasets: records, as they are ready.
        given: reads the gold answers, where these are the texts.
        teacher_prompt: what the teacher reads.
        own: the student's words, which are the teacher's unless it has others.

    Raises:
        ValueError: a streaming dataset, or a record without an answer where all need one (it is named).
    """
    found: dict[str, Entry] = {}
    words = teacher_prompt.words or own
    for dataset in datasets:
        if not isinstance(dataset, Dataset):
            raise ValueError("a store is written of records that are all there, not of a streaming dataset")
        rows = [dataset[i] for i in range(len(dataset))]
        prompts = words.encode([teacher_prompt.messages(r["prompt"], r["privileged_context"]) for r in rows])
        gold = given.gold(rows, required=True) if given.is_gold else [[] for _ in rows]
        for row, prompt, answer in zip(rows, prompts, gold):
            entry = Entry(record_name(row), prompt, answer or [])
            found.setdefault(entry.key, entry)
    return list(found.values())


class Writer(ABC):
    """Who writes the texts, and says what may follow each of their tokens: the `k` likeliest."""

    k: int

    @abstractmethod
    def write(self, prompts: list[list[int]], addresses: list[int]) -> list[list[int]]:
        """A text after each prompt, drawn with the noise of its address.

        Raises:
            ValueError: the teacher's logits are no distribution; `args[1]` is the place of the prompt.
        """

    @abstractmethod
    def top(self, prompts: list[list[int]], texts: list[list[int]]) -> list[torch.Tensor]:
        """Of each text [T, 2 * K] float32: the likeliest token ids at each place, then their log-probabilities."""

    def both(self, prompts: list[list[int]], addresses: list[int]) -> tuple[list[list[int]], list[torch.Tensor]]:
        """[`write`], and [`top`] of what was written."""
        texts = self.write(prompts, addresses)
        return texts, self.top(prompts, texts)


class LoadedWriter(Writer):
    """A teacher that is loaded here.

    Args:
        teacher: a causal language model, frozen and in evaluation mode.
        args: [`LUPISKDConfig`].
        vocab_size: token ids that both models have.
        ends: tokens that end a text.
        pad_token_id: between texts of different lengths.
    """

    def __init__(self, teacher: Any, args: Any, vocab_size: int, ends: list[int], pad_token_id: int):
        self.teacher, self.args, self.vocab_size, self.ends = teacher, args, vocab_size, ends
        self.pad_token_id, self.k = pad_token_id, min(args.loss_top_k, vocab_size)
        self.device = next(teacher.parameters()).device
        self.head = Head(teacher, vocab_size)

    def write(self, prompts, addresses):
        with WorkBar("texts", len(prompts)) as bar:
            rollout = skd_rollout(
                self.teacher,
                self.teacher,
                prompts,
                prompts,
                max_new_tokens=self.args.max_completion_length,
                acceptance=AcceptNone(),
                teacher_temperature=self.args.teacher_temperature,
                eos_token_id=self.ends,
                seed=self.args.seed,
                row_ids=addresses,
                max_slots=self.args.max_slots or self.args.per_device_train_batch_size,
                pack_weights=pack_setting(self.args.pack_weights),
                on_round=bar.on_round,
                vocab_size=self.vocab_size,
            )
        if rollout.broken:
            raise ValueError("the teacher's logits are NaN or infinite", min(rollout.broken))
        return rollout.completion_ids

    @torch.no_grad()
    def top(self, prompts, texts):
        found, rows = [], rows_at_once(self.args)
        for start in range(0, len(texts), rows):
            found += self._top(prompts[start : start + rows], texts[start : start + rows])
        return found

    def _top(self, prompts: list[list[int]], texts: list[list[int]]) -> Iterator[torch.Tensor]:
        given = []
        for ids, side in ((prompts, "left"), (texts, "right")):
            rows = [torch.tensor(one) for one in ids]
            given += [pad(rows, self.pad_token_id, side), pad([torch.ones_like(row) for row in rows], 0, side)]
        states = completion_states_by_rows(self.teacher, len(texts), *(part.to(self.device) for part in given))
        states = torch.cat([row[: len(ids)] for row, ids in zip(states, texts)])
        size, parts = max(1, _LOGITS // self.vocab_size), []
        head = self.head.cast(states.dtype)
        for start in range(0, len(states), size):
            log_probs = head.logits(states[start : start + size]).log_softmax(-1)
            values, ids = log_probs.topk(self.k, dim=-1)
            parts.append(torch.cat([ids.float(), values], -1).cpu())
        yield from torch.cat(parts).split([len(ids) for ids in texts])


class ServedWriter(Writer):
    """A teacher on a vLLM server, which writes all texts that it is given at the same time.

    Args:
        server: connected.
        args: [`LUPISKDConfig`].
        ends: tokens that end a text.
    """

    def __init__(self, server: TeacherServer, args: Any, ends: list[int]):
        self.server, self.args, self.ends, self.k = server, args, ends, server.top_k

    def both(self, prompts, addresses):
        self.server.begin()
        seeds = [(self.args.seed + address) % 2**31 for address in addresses]
        options = {"max_new_tokens": self.args.max_completion_length, "temperature": self.args.teacher_temperature}
        written = self.server.write(prompts, seeds, self.ends, **options)
        return [ids for ids, _ in written], [self._tensor(places) for _, places in written]

    def _tensor(self, places: list[tuple[list[int], list[float]]]) -> torch.Tensor:
        ids = torch.tensor([ids for ids, _ in places], dtype=torch.float32)
        return torch.cat([ids, torch.tensor([values for _, values in places], dtype=torch.float32)], -1)

    def write(self, prompts, addresses):
        return self.both(prompts, addresses)[0]

    def top(self, prompts, texts):
        self.server.begin()
        return remote_top(self.server, prompts, texts)


def make_manifest(
    entries: Sequence[Entry],
    args: Any,
    tokenizer: Any,
    words: Words,
    *,
    model: str,
    revision: str | None,
    server: bool,
    samples: int,
    top_k: int,
    vocab_size: int,
    ends: list[int],
    shard_rows: int,
) -> Manifest:
    """What a store is made of; see [`Manifest`]. The seed is among its settings, since it decides what is drawn."""
    keys = hashlib.sha256("".join(entry.key for entry in entries).encode())
    return Manifest(
        model=model,
        revision=revision,
        server=server,
        tokenizer_sha256=vocabulary_sha256(tokenizer),
        prompts_sha256=keys.hexdigest(),
        prompts=len(entries),
        samples=samples,
        seed=args.seed,
        settings=text_settings(args, words),
        top_k=top_k,
        vocab_size=vocab_size,
        end_token_ids=ends,
        shard_rows=shard_rows,
    )


def write_store(folder: Path, manifest: Manifest, entries: Sequence[Entry], writer: Writer, tokenizer: Any) -> int:
    """Write the shards that a store lacks; returns how many those were.

    Args:
        folder: of the store; one that a killed writing has left is completed.
        manifest: how it is made.
        entries: its prompts.
        writer: the teacher.
        tokenizer: that wrote the prompts.

    Raises:
        ValueError: the folder holds something else (named), another teacher's shards, or the teacher fails at a
            record (named).
    """
    store = StoreWriter(folder, manifest, tokenizer)
    rows = [(entry, sample) for entry in entries for sample in range(manifest.samples)]
    keys = [(entry.key, sample) for entry, sample in rows]
    missing = store.missing(keys)
    kept = next((number for number, _ in manifest.shards() if number not in dict(missing)), None)
    if missing and kept is not None:
        entry, _ = rows[kept * manifest.shard_rows]
        _check_same(entry, store.first(kept), writer)
    with WorkBar("shards", len(missing)) as bar:
        for done, (number, part) in enumerate(missing):
            texts = _texts(rows[part], writer)
            store.write(number, keys[part], texts)
            bar.update(done + 1)
    return len(missing)


def _check_same(entry: Entry, text: Text, writer: Writer) -> None:
    """Refuse a teacher that is not the one that has written a text.

    Raises:
        ValueError: it finds the text's likeliest tokens by more than rounding likelier or less likely.
    """
    (top,) = writer.top([entry.prompt], [text.ids])
    ids, values = top.chunk(2, -1)
    likeliest = torch.from_numpy(text.top_ids[:, :1].copy())
    found = values.masked_fill(ids != likeliest, -torch.inf).exp().amax(-1)
    if ((found - torch.from_numpy(text.top_log_probs[:, 0].copy()).exp()).abs() > _ROUNDED).any():
        raise ValueError(
            f"{entry.name}: another teacher answers than the one that wrote the shards which are there already, "
            "though the manifest has its name: take another folder, or remove the store"
        )


def _texts(rows: Sequence[tuple[Entry, int]], writer: Writer) -> list[Text]:
    prompts, gold = [entry.prompt for entry, _ in rows], [entry.gold for entry, _ in rows]
    try:
        if any(gold):
            ids, tops = gold, writer.top(prompts, gold)
        else:
            ids, tops = writer.both(prompts, [entry.address(sample) for entry, sample in rows])
    except ValueError as error:
        if len(error.args) != 2:
            raise
        raise ValueError(f"{rows[error.args[1]][0].name}: {error.args[0]}") from error
    return [Text(text, *(part.numpy() for part in top.chunk(2, -1))) for text, top in zip(ids, tops)]
