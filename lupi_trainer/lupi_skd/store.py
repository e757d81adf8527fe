"""A teacher store: texts and what a teacher makes of them, written once, and trained on without the teacher.

A folder of Arrow files, a manifest that says how they were made, and the tokenizer that wrote the teacher's prompts:

- `manifest.json`: [`Manifest`];
- `shard-00000.arrow` and so on: a row a text, with `key` (of the teacher's prompt), `sample`, `completion_ids` (T
  tokens), `top_ids` and `top_log_probs` (T x K each, the teacher's likeliest tokens at every place, falling);
- `tokenizer/`.

A shard is written under another name and then renamed, so what has its name is complete.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoTokenizer, PreTrainedConfig

from ..data.files import write_atomically


MANIFEST, TOKENIZER, VERSION = "manifest.json", "tokenizer", 1
SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "sample": pa.int32(),
        "completion_ids": pa.list_(pa.int32()),
        "top_ids": pa.list_(pa.int32()),
        "top_log_probs": pa.list_(pa.float32()),
    }
)


class Text(NamedTuple):
    """A text: its tokens [T], and the teacher's likeliest tokens [T, K] with their log-probabilities [T, K]."""

    ids: list[int]
    top_ids: np.ndarray
    top_log_probs: np.ndarray

    def top(self, most: int) -> torch.Tensor:
        """[T, 2 * most] float32: ids, then log-probabilities, as `Rollout.teacher_top` has them."""
        parts = (torch.tensor(part[:, :most], dtype=torch.float32) for part in (self.top_ids, self.top_log_probs))
        return torch.cat([*parts], -1)


@dataclass(frozen=True)
class Manifest:
    """How a store was made; a run, and a second `lupi teach`, compare it with their own settings.

    Attributes:
        model, revision: the teacher, by the name that the recipe has for it.
        server: whether a vLLM server wrote the texts, whose noise is its own.
        tokenizer_sha256: of the vocabulary that all token ids are of.
        prompts_sha256: of all keys, in their order; `prompts`, how many there are.
        samples: texts of each prompt; `seed`, of their noise.
        settings: keys of the recipe that the texts depend on, and their values.
        top_k: likeliest tokens at each place.
        temperature: of the log-probabilities, always 1.
        vocab_size: token ids that they are normalized over.
        end_token_ids: tokens that end a text.
        shard_rows: rows of every shard but the last.
    """

    model: str | None
    revision: str | None
    server: bool
    tokenizer_sha256: str
    prompts_sha256: str
    prompts: int
    samples: int
    seed: int
    settings: dict[str, Any]
    top_k: int
    vocab_size: int
    end_token_ids: list[int]
    shard_rows: int
    temperature: float = 1.0
    version: int = VERSION

    @property
    def rows(self) -> int:
        """Texts of a complete store."""
        return self.prompts * self.samples

    def shards(self) -> Iterator[tuple[int, slice]]:
        """The number of every shard, and which rows it has."""
        for number, start in enumerate(range(0, self.rows, self.shard_rows)):
            yield number, slice(start, min(start + self.shard_rows, self.rows))


def vocabulary_sha256(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer's tokens and their ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def key_of(teacher_prompt_ids: Sequence[int], gold_ids: Sequence[int] = ()) -> str:
    """How a text's prompt is found in a store: a hash of the teacher's prompt and, where there is one, the answer."""
    digest = hashlib.blake2b(np.asarray(teacher_prompt_ids, "<i8").tobytes(), digest_size=16)
    digest.update(b"/" + np.asarray(gold_ids, "<i8").tobytes())
    return digest.hexdigest()


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.arrow"


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a store.

    Raises:
        ValueError: the folder is no store, or one of another version; a store of another tool is named.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"teacher_store: {folder} has no {MANIFEST}: it is no teacher store{_made_by(folder)}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = found.get("version")
        known = {key: found[key] for key in (field.name for field in fields(Manifest))}
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"teacher_store: {path} cannot be read ({error})") from error
    if version != VERSION:
        raise ValueError(f"teacher_store: {folder} is of version {version}, and {VERSION} is read here")
    return Manifest(**known)


_OTHERS = {
    "compressed_logprobs": "DistillKit's: a fitted curve with quantized remains, which the log-probabilities that it "
    "was made of cannot be read from again",
    "packed_indices": "DistillKit's older one: a fitted curve, which the log-probabilities that it was made of cannot "
    "be read from again",
    "target_logprobs": "axolotl's prepared one, whose likeliest tokens are scaled to sum to 1: how likely all others "
    "are, which this loss reads, is lost. `lupi teach --axolotl` reads what axolotl itself reads, before that",
}


def _made_by(folder: Path) -> str:
    """The end of the message about a folder that is no store: whose it is, if its columns tell."""
    from datasets import Dataset, load_from_disk

    columns: set[str] = set()
    try:
        if files := sorted(folder.rglob("*.parquet")):
            columns = set(Dataset.from_parquet(str(files[0])).column_names)
        elif (folder / "dataset_info.json").is_file():
            columns = set(getattr(load_from_disk(str(folder)), "column_names", ()))
    except Exception:  # whatever it is, it is no store
        return ""
    said = next((f". Its format is {text}" for column, text in _OTHERS.items() if column in columns), "")
    return f"{said} (columns {', '.join(sorted(columns))})" if columns else said


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """What differs between the settings of a store (`ours`) and of a run or another writing of it, by name."""
    return [
        f"{name} is {theirs[name]!r}, and the store was written with {ours.get(name)!r}"
        for name in theirs
        if theirs[name] != ours.get(name)
    ]


class StoreWriter:
    """Writes what a store still lacks.

    Args:
        folder: of the store; made where there is none.
        manifest: how it is made.
        tokenizer: that wrote the teacher's prompts.

    Raises:
        ValueError: the folder holds a store that is made otherwise (what differs is named), or other files.
    """

    def __init__(self, folder: Path, manifest: Manifest, tokenizer: Any):
        self.folder, self.manifest = folder, manifest
        if (folder / MANIFEST).is_file():
            known, wanted = asdict(read_manifest(folder)), asdict(manifest)
            found = differences(known.pop("settings"), wanted.pop("settings")) + differences(known, wanted)
            if found:
                raise ValueError(
                    f"{folder} holds another store: {'; '.join(found)}. Take another folder, or remove it"
                )
        elif folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty, and holds no teacher store")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            tokenizer.save_pretrained(folder / TOKENIZER)
            write_atomically(folder / MANIFEST, json.dumps(asdict(manifest), indent=1, ensure_ascii=False))
        for left in folder.glob("*.part"):  # of a writing that was killed
            left.unlink()

    def missing(self, keys: Sequence[tuple[str, int]]) -> list[tuple[int, slice]]:
        """The shards that are still to be written; a damaged one, or one of other texts, is removed.

        Args:
            keys: (key, sample) of every row of the store.
        """
        found = []
        for number, rows in self.manifest.shards():
            path = shard_path(self.folder, number)
            if path.is_file() and _identity(path) != list(keys[rows]):
                path.unlink()
            if not path.is_file():
                found.append((number, rows))
        return found

    def first(self, number: int) -> Text:
        """The first text of a shard that is there."""
        return _text(_read(shard_path(self.folder, number)), 0, self.manifest.top_k)

    def write(self, number: int, keys: Sequence[tuple[str, int]], texts: Iterable[Text]) -> None:
        """Write a shard: (key, sample) and text of every row."""
        ids, tops, log_probs = zip(*texts)
        columns = [
            [key for key, _ in keys],
            [sample for _, sample in keys],
            list(ids),
            [top.astype(np.int32).ravel() for top in tops],
            [values.astype(np.float32).ravel() for values in log_probs],
        ]
        table = pa.table(dict(zip(SCHEMA.names, columns)), SCHEMA)
        path = shard_path(self.folder, number)
        part = path.with_suffix(".part")
        with pa.OSFile(str(part), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
            writer.write_table(table)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)


def _read(path: Path) -> pa.Table:
    """A shard, mapped into memory.

    Raises:
        ValueError: it is damaged, or none.
    """
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowInvalid, pa.ArrowException, OSError) as error:
        raise ValueError(f"teacher_store: {path} cannot be read ({' '.join(str(error).split())})") from error
    if table.schema != SCHEMA:
        raise ValueError(f"teacher_store: {path} has other columns than a store: {', '.join(table.column_names)}")
    return table


def _text(table: pa.Table, row: int, top_k: int) -> Text:
    """A row of one or more shards."""
    ids, top_ids, log_probs = (
        table[name][row].values.to_numpy() for name in ("completion_ids", "top_ids", "top_log_probs")
    )
    shape = len(ids), top_k
    return Text(ids.tolist(), top_ids.reshape(shape), log_probs.reshape(shape))


def _identity(path: Path) -> list[tuple[str, int]] | None:
    """(key, sample) of a shard's rows; `None` where it cannot be read."""
    try:
        table = _read(path)
    except ValueError:
        return None
    return list(zip(table["key"].to_pylist(), table["sample"].to_pylist()))


class TeacherStore:
    """A complete store, read where it lies: a text is in memory while it is trained on.

    Args:
        folder: of the store.

    Raises:
        ValueError: no store, an incomplete or a damaged one, or a tokenizer that is not the manifest's.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.manifest = manifest = read_manifest(self.folder)
        absent = [number for number, _ in manifest.shards() if not shard_path(self.folder, number).is_file()]
        if absent:
            of_all = len(list(manifest.shards()))
            raise ValueError(
                f"teacher_store: {folder} is not complete: {len(absent)} of its {of_all} shards are still to be "
                "written. Run the same `lupi teach` again, which goes on where it was"
            )
        tables = [_read(shard_path(self.folder, number)) for number, _ in manifest.shards()]
        self._table = pa.concat_tables(tables)
        names = zip(self._table["key"].to_pylist(), self._table["sample"].to_pylist())
        self._place = {name: place for place, name in enumerate(names)}
        if len(self._place) != manifest.rows:
            raise ValueError(
                f"teacher_store: {folder} holds {len(self._place)} texts, and its manifest {manifest.rows}"
            )
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder / TOKENIZER, trust_remote_code=False)
        if vocabulary_sha256(self.tokenizer) != manifest.tokenizer_sha256:
            raise ValueError(f"teacher_store: tokenizer_sha256 of {folder} is not that of the tokenizer in it")

    @property
    def config(self) -> PreTrainedConfig:
        """What is known of the teacher where a model's vocabulary is."""
        known: dict[str, Any] = {"vocab_size": self.manifest.vocab_size, "name_or_path": self.manifest.model}
        return PreTrainedConfig(**known)

    def __contains__(self, key: str) -> bool:
        return (key, 0) in self._place

    def text(self, key: str, sample: int) -> Text:
        """The text of a prompt that is in the store, and of a sample below `manifest.samples`."""
        return _text(self._table, self._place[key, sample], self.manifest.top_k)

    def tokens(self) -> int:
        """Tokens of all texts."""
        return sum(len(chunk.flatten()) for chunk in self._table["completion_ids"].chunks)

    def size(self) -> int:
        """Bytes of all shards."""
        return sum(shard_path(self.folder, number).stat().st_size for number, _ in self.manifest.shards())
