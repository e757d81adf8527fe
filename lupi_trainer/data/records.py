"""Records to training columns: `prompt` and `privileged_context`.

`prompt` is text or a list of messages; `privileged_context` is what only the teacher reads, or null (then the teacher
sees what the student sees). `query` and `knowledge` are read too.
"""

import logging
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from numbers import Integral
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, load_dataset

from ..lab import LAB_PREFIX, load_lab_records
from .files import names_records, read_records
from .probes import ALIASES, RecordError, check_probes, meant, record_name


logger = logging.getLogger(__name__)

# what other trainers read of a record, and the models here would not see
UNREAD = ("image", "images", "video", "videos", "audio", "audios", "tools", "chat_template_kwargs")


@contextmanager
def named(source: str) -> Generator[None]:
    """Put the name of a file before what is wrong with a record in it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error


def make_dataset(rows: list[dict[str, Any]]) -> Dataset:
    """`Dataset.from_list`.

    Raises:
        ValueError: a column would hold values of several types.
    """
    try:
        return Dataset.from_list(rows)
    except Exception as error:  # pyarrow's many
        kinds: dict[str, set[str]] = {}
        for row in rows:
            for name, value in row.items():
                kinds.setdefault(name, set()).update([] if value is None else [type(value).__name__])
        of = next((f" {name!r} ({', '.join(sorted(found))})" for name, found in kinds.items() if len(found) > 1), "")
        what = " ".join(str(error).split())
        raise ValueError(f"the records do not agree on the type of a column{of}: {what}") from error


def last_user_text(prompt: str | list[dict[str, str]]) -> str:
    """The question itself: the text, or the content of the last message."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _check_prompt(prompt: Any, where: str) -> None:
    if isinstance(prompt, list):
        for message in prompt:
            texts = [message.get(key) for key in ("role", "content")] if isinstance(message, dict) else [None]
            if not all(isinstance(text, str) for text in texts):
                raise RecordError(where, "every message of `prompt` needs a `role` and a text `content`")
        if not prompt or prompt[-1]["role"] != "user":
            raise RecordError(where, "a conversational `prompt` must end with a user message")
    elif not isinstance(prompt, str):
        raise RecordError(where, "`prompt` must be text or a list of messages", f", got {type(prompt).__name__}")
    if not last_user_text(prompt).strip():
        raise RecordError(where, "the prompt is empty")


def normalize_record(record: dict[str, Any], number: int, needs_context: bool = True) -> dict[str, Any]:
    """Rename the aliases, check one record, and make its `prompt` a list of messages.

    Args:
        needs_context: whether a record without `privileged_context` is refused; otherwise it is null there.

    Raises:
        RecordError: a column is missing, a type is wrong, or the prompt is empty; the message names the record.
    """
    if not isinstance(record, dict):
        raise RecordError(f"record number {number}", "it must be a dictionary", f", got a {type(record).__name__}")
    where, given = record_name(record, number), sorted(record)  # as it was given, whatever is renamed
    record = {**record}
    for alias, column in ALIASES.items():
        if alias in record and record.get(column) is None:  # as where records of both forms are mixed
            record[column] = record.pop(alias)
    for column in UNREAD:
        if record.get(column) not in (None, [], {}, ""):
            raise RecordError(where, f"its `{column}` would not be read: text alone is; leave that column out")
    if "prompt" not in record:
        raise RecordError(
            where, "no `prompt` (`query` is read as well)", f"; found {given}{meant(record, 'prompt', 'query')}"
        )
    if "privileged_context" not in record and not needs_context:
        record["privileged_context"] = None
    if "privileged_context" not in record:
        raise RecordError(
            where,
            "no `privileged_context` (`knowledge` is read as well), which is null where the teacher should see only "
            "what the student sees",
            f"; found {given}{meant(record, 'privileged_context', 'knowledge')}",
        )
    _check_prompt(record["prompt"], where)
    if isinstance(record["prompt"], str):
        record["prompt"] = [{"role": "user", "content": record["prompt"]}]
    context = record["privileged_context"]
    if context is not None and not isinstance(context, str):
        raise RecordError(where, "`privileged_context` must be text or null", f", got {type(context).__name__}")
    record["privileged_context"] = context if context and context.strip() else None
    row_id = record.get("row_id")  # the address of its rollout noise, wherever it is shuffled to
    row_id = number if row_id is None else row_id
    if not isinstance(row_id, Integral) or isinstance(row_id, bool) or not 0 <= row_id < 2**63:
        raise RecordError(where, "`row_id` must be a whole number from 0", f", got {row_id!r}")
    record["row_id"] = int(row_id)
    return record


def to_columns(records: Iterable[dict[str, Any]], needs_context: bool = True) -> Dataset:
    """Records to a dataset of `prompt`, `privileged_context`, `row_id` (and `id`, if any has one, and `source_row`, if
    all have it).

    Raises:
        ValueError: no record at all, or a bad one (named).
    """
    rows = [normalize_record(record, number, needs_context) for number, record in enumerate(records)]
    if not rows:
        raise ValueError("the dataset is empty")
    columns = ["prompt", "privileged_context", "row_id"]
    columns += ["id"] if any(row.get("id") is not None for row in rows) else []
    columns += ["source_row"] if all(isinstance(row.get("source_row"), int) for row in rows) else []
    return make_dataset([{c: row.get(c) for c in columns} for row in rows])


def load_hub_dataset(source: str, config: str | None, split: str) -> Dataset:
    """`datasets.load_dataset`, whose many errors become one.

    Raises:
        ValueError: it cannot be loaded; the message says why in one line.
    """
    try:
        return load_dataset(source, config, split=split)
    except Exception as error:  # whatever the Hub, the network or a file in it may do
        what = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"the dataset {source!r} cannot be loaded: {what}") from error


def load_training_data(source: str, *, config: str | None = None, split: str = "train") -> Dataset:
    """Load training records by name.

    Args:
        source: a `.json` / `.jsonl` file, `lab:NAME` (see `lupi_trainer.lab`), or a dataset name for
            `datasets.load_dataset`.
        config: configuration of a dataset from the Hub.
        split: split of a dataset from the Hub.

    Returns:
        A dataset with the columns `prompt` (messages) and `privileged_context` (text or null).

    Raises:
        FileNotFoundError: a data file that does not exist.
        ValueError: an empty dataset, a missing column, an empty query; the message names the record.
    """
    records = load_records(source, config, split)
    with named(source):
        return to_columns(records)


def load_base_data(source: str, *, config: str | None = None, split: str = "train") -> Dataset:
    """As [`load_training_data`], of records that need no `privileged_context` column: without one it is null."""
    records = load_records(source, config, split)
    with named(source):
        return to_columns(records, needs_context=False)


def load_records(source: str, config: str | None = None, split: str = "train") -> Iterable[dict[str, Any]]:
    """The records of a source, unchecked; see [`load_training_data`]."""
    is_file = source.startswith(LAB_PREFIX) or names_records(source)
    if is_file and (config is not None or split != "train"):
        logger.warning(f"{source}: configuration {config!r}, split {split!r}: no effect, since all of a file is read")
    if source.startswith(LAB_PREFIX):
        return load_lab_records(source)
    if is_file:
        return read_records(source)
    return load_hub_dataset(source, config, split)


def load_sft_data(source: str, completion_column: str = "answer") -> Dataset:
    """Load records as conversational `prompt` and `completion`, for supervised fine-tuning.

    Args:
        source: as for [`load_training_data`] (files and the lab).
        completion_column: the column that holds the text to learn.

    Raises:
        ValueError: a record without that text; the message names it.
    """
    records = load_lab_records(source) if source.startswith(LAB_PREFIX) else read_records(source)
    with named(source):
        rows = [sft_row(record, number, completion_column) for number, record in enumerate(records)]
    if not rows:
        raise ValueError("the dataset is empty")
    return make_dataset(rows)


def sft_row(record: dict[str, Any], number: int, completion_column: str) -> dict[str, Any]:
    """One record as conversational `prompt` and `completion`.

    Raises:
        ValueError: it has no text to learn, or its prompt is none; the message names it.
    """
    answer = record.get(completion_column)
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"{record_name(record, number)}: no text in the column {completion_column!r} to learn")
    prompt = normalize_record(record, number, needs_context=False)["prompt"]
    return {"prompt": prompt, "completion": [{"role": "assistant", "content": answer}]}


def prepare_columns(dataset: Dataset | IterableDataset | DatasetDict | dict | list | None):
    """Check and normalize what was given to a trainer: a dataset, a list of records, or a dictionary of either.

    A streaming dataset is checked record by record as it is read.
    """
    if dataset is None:
        return None
    if not isinstance(dataset, (Dataset, IterableDataset, dict, list)):
        raise TypeError(f"records must be a dataset or a list of dictionaries, got a {type(dataset).__name__}")
    if isinstance(dataset, dict):
        return {name: prepare_columns(part) for name, part in dataset.items()}
    if isinstance(dataset, IterableDataset):
        return dataset.map(normalize_record, with_indices=True)
    if isinstance(dataset, Dataset) and dataset.num_rows:
        missing = {"prompt", "privileged_context"} - {ALIASES.get(c, c) for c in dataset.column_names}
        if missing:
            raise ValueError(f"the dataset has no column {sorted(missing)}; found {dataset.column_names}")
    return to_columns(dataset)


def load_probes(source: str) -> list[dict[str, Any]]:
    """Load probe questions: `question`, `answers` (accepted strings), optionally `knowledge`, or the `record_id` of a
    record that has it.

    Raises:
        FileNotFoundError: a file that does not exist.
        ValueError: no probe, or one without a question or an accepted answer; the message names file and probe.
    """
    probes = load_lab_records(source) if source.startswith(LAB_PREFIX) else read_records(source)
    with named(source):
        return check_probes(probes)
