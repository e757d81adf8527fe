"""Records to training columns: `prompt` and `privileged_context`.

`prompt` is text or a list of messages; `privileged_context` is what only the teacher reads, or null (then the teacher
sees what the student sees). `query` and `knowledge` are read too. A record may have an `answer`, a gold one.
"""

import logging
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, load_dataset

from ..lab import LAB_PREFIX, load_lab_records
from .files import names_records, read_records
from .probes import ALIASES, check_probes, record_name
from .record_form import normalize_record


logger = logging.getLogger(__name__)


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


def to_columns(records: Iterable[dict[str, Any]], needs_context: bool = True) -> Dataset:
    """Records to a dataset of `prompt`, `privileged_context`, `row_id` (and `answer`, `id` and `teacher`, if any has
    one, and `source_row`, if all have it).

    Raises:
        ValueError: no record at all, or a bad one (named).
    """
    rows = [normalize_record(record, number, needs_context) for number, record in enumerate(records)]
    if not rows:
        raise ValueError("the dataset is empty")
    columns = ["prompt", "privileged_context", "row_id"]
    columns += [name for name in ("answer", "id", "teacher") if any(row.get(name) is not None for row in rows)]
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
        A dataset with the columns `prompt` (messages) and `privileged_context` (text or null), and `answer` (text or
        null) where a record has one.

    Raises:
        FileNotFoundError: a data file that does not exist.
        ValueError: an empty dataset, a missing column, an empty query; the message names the record.

    Example:

    ```python
    >>> from lupi_trainer import load_training_data

    >>> records = load_training_data("lab:new")
    >>> records[0]["prompt"][0]["role"]
    'user'
    ```
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

    Example:

    ```python
    >>> from lupi_trainer import load_probes

    >>> load_probes("lab:probes")[0]["question"]
    "What is Fova's capital?"
    ```
    """
    probes = load_lab_records(source) if source.startswith(LAB_PREFIX) else read_records(source)
    with named(source):
        return check_probes(probes)
