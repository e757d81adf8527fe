"""Records to training columns: `prompt` and `privileged_context`.

`prompt` is text or a list of messages; `privileged_context` is what only the teacher reads, or null (then the teacher
sees what the student sees). Records in the form `query` / `knowledge` load as they are.
"""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, IterableDataset, load_dataset

from ..lab import LAB_PREFIX, load_lab_records


logger = logging.getLogger(__name__)

ALIASES = {"query": "prompt", "knowledge": "privileged_context"}
# what other trainers read of a record, and the models here would not see
UNREAD = ("image", "images", "video", "videos", "audio", "audios", "tools", "chat_template_kwargs")
PROBE_COLUMNS = ("question", "answers", "record_id")


def find_data(path: str | Path) -> Path:
    """The user's own file, else the one that travels with the package, if `path` is `data/NAME` of one."""
    own, package = Path(path), Path(__file__).parents[1]
    if own.exists() or own.parent != Path("data"):
        return own
    folder = package / "shipped" if (package / "shipped").is_dir() else package.parent / "data"  # beside a checkout
    return folder / own.name if (folder / own.name).is_file() else own


def read_json(path: str | Path) -> Any:
    """What a `.json` file holds, or a list of what the lines of a `.jsonl` file hold; also `data/NAME` of the package.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8 or not JSON; the message names the file and the line.
    """
    path = find_data(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such data file: {path}")
    where = str(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix != ".jsonl":
            return json.loads(text)
        records = []
        for number, line in enumerate(text.split("\n"), 1):  # a text may hold other ends of lines
            if line.strip():
                where = f"{path}, line {number}"
                records.append(json.loads(line))
        return records
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: not UTF-8 ({error})") from error
    except ValueError as error:
        raise ValueError(f"{where}: not valid JSON ({error})") from error
    except RecursionError as error:
        raise ValueError(f"{where}: nested too deeply to be records") from error


def check_objects(records: Any, path: str | Path) -> list[dict[str, Any]]:
    """The records of a file, if they are a list of objects whose texts are complete.

    Raises:
        ValueError: they are not; the message names the file and the record.
    """
    if not isinstance(records, list):
        raise ValueError(f"{path}: expected a list of records, found {type(records).__name__}")
    for number, record in enumerate(records):
        if not isinstance(record, dict):
            raise ValueError(f"{path}, record {number}: expected an object, found {type(record).__name__}")
        if _has_half_characters(record):
            raise ValueError(f"{path}, record {number}: a text with half a character (a lone UTF-16 surrogate)")
    return records


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """Read a `.json` file (a list of objects) or a `.jsonl` file (an object a line); `data/NAME` of the package, too.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not of that form; the message names the file and the line or record.
    """
    return check_objects(read_json(path), path)


def _has_half_characters(value: Any) -> bool:
    if isinstance(value, str):
        return any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return any(map(_has_half_characters, value)) or any(map(_has_half_characters, value.values()))
    return isinstance(value, list) and any(map(_has_half_characters, value))


def make_dataset(rows: list[dict[str, Any]]) -> Dataset:
    """`Dataset.from_list`.

    Raises:
        ValueError: a column would hold values of several types.
    """
    try:
        return Dataset.from_list(rows)
    except Exception as error:  # pyarrow's many
        what = " ".join(str(error).split())
        raise ValueError(f"the records do not agree on the type of a column: {what}") from error


def record_name(record: dict[str, Any], number: int | None = None) -> str:
    """How every message names a record: by `id` (a probe by `record_id`), and by its place.

    Args:
        record: a record or probe, of whatever columns.
        number: its place among those that were given; without it, a record without a name is named by `row_id`.
    """
    name = record.get("id") or record.get("record_id")
    if not name:
        return f"record number {record.get('row_id', '?') if number is None else number}"
    return f"record {name!r}" if number is None else f"record {name!r} (number {number})"


def last_user_text(prompt: str | list[dict[str, str]]) -> str:
    """The question itself: the text, or the content of the last message."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _check_prompt(prompt: Any, where: str) -> None:
    if isinstance(prompt, list):
        for message in prompt:
            texts = [message.get(key) for key in ("role", "content")] if isinstance(message, dict) else [None]
            if not all(isinstance(text, str) for text in texts):
                raise ValueError(f"{where}: every message of `prompt` needs a `role` and a text `content`")
        if not prompt or prompt[-1]["role"] != "user":
            raise ValueError(f"{where}: a conversational `prompt` must end with a user message")
    elif not isinstance(prompt, str):
        raise ValueError(f"{where}: `prompt` must be text or a list of messages, got {type(prompt).__name__}")
    if not last_user_text(prompt).strip():
        raise ValueError(f"{where}: the query is empty")


def normalize_record(record: dict[str, Any], number: int) -> dict[str, Any]:
    """Rename the aliases, check one record, and make its `prompt` a list of messages.

    Raises:
        ValueError: a column is missing, a type is wrong, or the query is empty; the message names the record.
    """
    where = record_name(record, number)
    record = {**record}
    for alias, column in ALIASES.items():
        if alias in record and record.get(column) is None:  # as where records of both forms are mixed
            record[column] = record.pop(alias)
    for column in UNREAD:
        if record.get(column) not in (None, [], {}, ""):
            raise ValueError(f"{where}: its `{column}` would not be read: text alone is; leave that column out")
    if "prompt" not in record:
        raise ValueError(f"{where}: no `prompt` (or `query`) column; found {sorted(record)}")
    if "privileged_context" not in record:
        raise ValueError(
            f"{where}: no `privileged_context` (or `knowledge`) column; found {sorted(record)}. Set it to null where "
            "the teacher should see only what the student sees."
        )
    _check_prompt(record["prompt"], where)
    if isinstance(record["prompt"], str):
        record["prompt"] = [{"role": "user", "content": record["prompt"]}]
    context = record["privileged_context"]
    if context is not None and not isinstance(context, str):
        raise ValueError(f"{where}: `privileged_context` must be text or null, got {type(context).__name__}")
    record["privileged_context"] = context if context and context.strip() else None
    row_id = record.setdefault("row_id", number)  # the address of its rollout noise, wherever it is shuffled to
    if not isinstance(row_id, int) or isinstance(row_id, bool) or not 0 <= row_id < 2**63:
        raise ValueError(f"{where}: `row_id` must be a whole number from 0, got {row_id!r}")
    return record


def to_columns(records: Iterable[dict[str, Any]]) -> Dataset:
    """Records to a dataset of `prompt`, `privileged_context`, `row_id` (and `id` and `source_row`, if all have them).

    Raises:
        ValueError: no record at all, or a bad one (named).
    """
    rows = [normalize_record(record, number) for number, record in enumerate(records)]
    if not rows:
        raise ValueError("the dataset is empty")
    columns = ["prompt", "privileged_context", "row_id"]
    columns += ["id"] if all("id" in row for row in rows) else []
    columns += ["source_row"] if all(isinstance(row.get("source_row"), int) for row in rows) else []
    return make_dataset([{c: row[c] for c in columns} for row in rows])


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
    return to_columns(_load_records(source, config, split))


def load_base_data(source: str, *, config: str | None = None, split: str = "train") -> Dataset:
    """As [`load_training_data`], of records that need no `privileged_context` column: without one it is null."""
    known = {"privileged_context", *(alias for alias, column in ALIASES.items() if column == "privileged_context")}
    records = _load_records(source, config, split)
    return to_columns(r if known & r.keys() else r | {"privileged_context": None} for r in records)


def _load_records(source: str, config: str | None, split: str) -> Iterable[dict[str, Any]]:
    is_file = source.startswith(LAB_PREFIX) or source.endswith((".json", ".jsonl"))
    if is_file and (config is not None or split != "train"):
        logger.warning(f"{source}: configuration {config!r}, split {split!r}: no effect, since all of a file is read")
    if source.startswith(LAB_PREFIX):
        return load_lab_records(source)
    if source.endswith((".json", ".jsonl")):
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
    rows = []
    for number, record in enumerate(records):
        answer = record.get(completion_column)
        if not isinstance(answer, str) or not answer.strip():
            raise ValueError(f"{record_name(record, number)}: no text in the column {completion_column!r} to learn")
        prompt = normalize_record({"privileged_context": None, **record}, number)["prompt"]
        rows.append({"prompt": prompt, "completion": [{"role": "assistant", "content": answer}]})
    if not rows:
        raise ValueError("the dataset is empty")
    return make_dataset(rows)


def prepare_columns(dataset: Dataset | IterableDataset | DatasetDict | dict | list | None):
    """Check and normalize what was given to a trainer: a dataset, a list of records, or a dictionary of either.

    A streaming dataset is checked record by record as it is read.
    """
    if dataset is None:
        return None
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
    """Load probe questions: `question`, `answers` (accepted strings), `record_id`, optionally `knowledge`.

    Raises:
        FileNotFoundError: a file that does not exist.
        ValueError: no probe, or one without a question or an accepted answer; the message names it.
    """
    probes = load_lab_records(source) if source.startswith(LAB_PREFIX) else read_records(source)
    return check_probes(probes)


def check_probes(probes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return `probes` unchanged if every one of them can be asked and marked."""
    if not probes:
        raise ValueError("there are no probe questions")
    for number, probe in enumerate(probes):
        where = f"probe of {record_name(probe, number)}"
        missing = [c for c in PROBE_COLUMNS if c not in probe]
        if missing:
            raise ValueError(f"{where}: no {missing}; found {sorted(probe)}")
        if not isinstance(probe["question"], str) or not probe["question"].strip():
            raise ValueError(f"{where}: the question is empty")
        answers = probe["answers"]
        if not isinstance(answers, list) or not answers or not all(isinstance(a, str) and a.strip() for a in answers):
            raise ValueError(f"{where}: `answers` must be a list of accepted strings, got {answers!r}")
    return probes
