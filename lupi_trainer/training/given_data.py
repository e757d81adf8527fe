"""Data that is given to `evaluate` and `predict`, checked and made ready as a constructor does with its own."""

import copy
import logging
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyarrow.compute
from datasets import Dataset, IterableDataset

from ..data.records import make_dataset
from ..models.vocabulary import check_known_tokens
from .private import SFTHooks, TrainerHooks
from .settings import OF_METRICS, check_optimization, check_run_settings, say_unread


logger = logging.getLogger(__name__)
_arrow: Any = pyarrow.compute  # whose functions are made as it is imported
_TOKENS = ("input_ids", "labels")
_ROWS = 1000  # that are looked at together


def as_dataset(data: Any, name: str) -> Any:
    """A dataset as it is, a list of records as one, `None` as it is; and a dictionary of such.

    Raises:
        ValueError: no record, or no part.
        TypeError: something else; `name` names it.
    """
    if isinstance(data, dict):
        return {key: as_dataset(part, f"{name}[{key!r}]") for key, part in given_parts(data, name).items()}
    if isinstance(data, (list, Dataset)) and not len(data):
        raise ValueError(f"{name} is empty")
    if isinstance(data, list) and all(isinstance(record, dict) for record in data):
        columns = dict.fromkeys(column for record in data for column in record)
        return make_dataset([{column: record.get(column) for column in columns} for record in data])
    if data is None or isinstance(data, (Dataset, IterableDataset)):
        return data
    raise TypeError(
        f"{name} must be a `Dataset`, an `IterableDataset` or a list of records (dictionaries), got a "
        f"{type(data).__name__}"
    )


def given_parts(data: dict[str, Any], name: str) -> dict[str, Any]:
    """The datasets of a dictionary, which has some.

    Raises:
        ValueError: it has none.
        TypeError: one is `None`, as which `evaluate` would read the run's own.
    """
    if not data:
        raise ValueError(f"{name} is empty: it has no dataset")
    for key, part in data.items():
        if part is None:
            raise TypeError(f"{name}[{key!r}] is None: give a dataset, or leave {key!r} out")
    return data


def check_last_batch(args: Any, dataset: Any, training: bool = False) -> None:
    """Refuse a set of which `dataloader_drop_last` would leave nothing.

    Args:
        args: the run's configuration.
        dataset: a dataset, a dictionary of such, or `None`; the rows of a stream are not known.
        training: whether it is trained on; else it is evaluated.

    Raises:
        ValueError: it has fewer rows than a batch.
    """
    for name, part in dataset.items() if isinstance(dataset, dict) else [("", dataset)]:
        size = args.train_batch_size if training else args.eval_batch_size
        batch, key = size * args.world_size, f"per_device_{'train' if training else 'eval'}_batch_size"
        if args.dataloader_drop_last and isinstance(part, Dataset) and len(part) < batch:
            what = f"{'training' if training else 'evaluation'} set{f' {name!r}' if name else ''}"
            raise ValueError(
                f"the {what} has {len(part)} rows, fewer than one batch of {batch} ({key}={getattr(args, key)}, "
                f"{args.world_size} processes), and dataloader_drop_last=True leaves them out: lower {key}, or leave "
                "dataloader_drop_last out"
            )


def _batches(dataset: Dataset, column: str) -> Iterator[tuple[int, Any]]:
    """A column in parts: the number of the first row, and the rows as an Arrow array."""
    for place, table in enumerate(dataset.select_columns(column).with_format("arrow").iter(_ROWS)):
        yield place * _ROWS, table[column]


def _check_streamed(row: dict[str, Any], known: int, tokenizer: Any) -> dict[str, Any]:
    for column in [name for name in _TOKENS if row.get(name) is not None]:
        ids = [i for i in row[column] if column == "input_ids" or i != -100]
        check_known_tokens(ids, known, tokenizer, "a row of the stream")
    return row


class GivenData(TrainerHooks):
    """Mix-in for a [`~transformers.Trainer`]: `evaluate` and `predict` take what the constructor takes.

    Of a dictionary each part is evaluated, and of predictions there is a dictionary.
    """

    args: Any
    eval_dataset: Any

    def ready(self, dataset: Any) -> Any:
        """A dataset as the constructor leaves it.

        Raises:
            ValueError: what the constructor refuses.
        """
        raise NotImplementedError

    def evaluate(self, eval_dataset: Any = None, ignore_keys=None, metric_key_prefix: str = "eval"):
        if isinstance(eval_dataset, dict):
            metrics = {}
            for name, part in given_parts(eval_dataset, "eval_dataset").items():
                metrics |= self.evaluate(part, ignore_keys, f"{metric_key_prefix}_{name}")
            return metrics
        if isinstance(eval_dataset, str):
            self._named(eval_dataset)
        elif eval_dataset is not None:
            eval_dataset = self.ready(eval_dataset)
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(self, test_dataset: Any, ignore_keys=None, metric_key_prefix: str = "test") -> Any:
        if test_dataset is None:
            raise TypeError("test_dataset is None: give what is to be predicted; `evaluate()` reads the run's own set")
        if isinstance(test_dataset, dict):
            parts = given_parts(test_dataset, "test_dataset").items()
            return {name: self.predict(part, ignore_keys, f"{metric_key_prefix}_{name}") for name, part in parts}
        if isinstance(test_dataset, str):
            return super().predict(self._named(test_dataset), ignore_keys, metric_key_prefix)
        return super().predict(self.ready(test_dataset), ignore_keys, metric_key_prefix)

    def _named(self, name: str) -> Any:
        """One of the run's own sets, which are made ready already."""
        sets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {}
        if name not in sets:
            raise ValueError(f"there is no evaluation set {name!r}: `eval_dataset` has {sorted(sets) or 'no names'}")
        return sets[name]

    def get_test_dataloader(self, test_dataset: Any):
        return self.get_eval_dataloader(test_dataset)  # which may be a stream

    def get_eval_dataloader(self, eval_dataset: Any = None):
        own = eval_dataset is None or isinstance(eval_dataset, str) or eval_dataset is self.eval_dataset
        named = self._named(eval_dataset) if isinstance(eval_dataset, str) else eval_dataset
        check_last_batch(self.args, self.eval_dataset if named is None else named)
        with self._workers_may_stay(own):
            return super().get_eval_dataloader(eval_dataset)

    @contextmanager
    def _workers_may_stay(self, may: bool) -> Generator[None]:
        """Unless they may, no workers are taken or kept that read another dataset."""
        stay = self.args.dataloader_persistent_workers
        self.args.dataloader_persistent_workers = stay and may
        try:
            yield
        finally:
            self.args.dataloader_persistent_workers = stay


class GivenTexts(GivenData, SFTHooks):
    """[`GivenData`] for a [`~trl.SFTTrainer`], whose `evaluate` tokenizes what it is given."""

    train_dataset: Any
    known_tokens: int | None = None
    """Token ids that all models of the run have, once `limit_tokens` was called."""

    def __init__(self, *args: Any, train_dataset: Any = None, eval_dataset: Any = None, **kwargs: Any):
        if isinstance(train_dataset, dict):
            raise TypeError(f"train_dataset must be one dataset, got {sorted(train_dataset)}: pass one of these")
        check_run_settings(kwargs["args"])
        check_optimization(kwargs["args"], kwargs.get("optimizers"), kwargs.get("optimizer_cls_and_kwargs"))
        if kwargs.get("compute_metrics") is None:
            say_unread(kwargs["args"], OF_METRICS, "no `compute_metrics` was given")
        data = {"train_dataset": train_dataset, "eval_dataset": eval_dataset}
        super().__init__(*args, **{name: as_dataset(part, name) for name, part in data.items()}, **kwargs)
        check_last_batch(self.args, self.train_dataset, training=True)
        if self.args.eval_strategy != "no":
            check_last_batch(self.args, self.eval_dataset)

    def prepare_texts(self, dataset, tokenizer, args, packing, to_text, name):
        columns = set(getattr(dataset, "column_names", None) or ())
        if (
            {"input_ids", "completion_mask"} <= columns
            and "labels" not in columns
            and args.completion_only_loss is None
        ):
            raise ValueError(
                f"{name} dataset: its `completion_mask` is read only with `completion_only_loss: true`: set that, or "
                "false where every token is to be learned"
            )
        made = super().prepare_texts(dataset, tokenizer, args, packing, to_text, name)
        if not isinstance(dataset, Dataset) or not isinstance(made, Dataset):
            return made
        left_out = 0 if packing else len(dataset) - len(made)
        if any(label != -100 for labels in made["labels"] for label in labels):
            if left_out:
                logger.warning(
                    f"{name} dataset: {left_out} of {len(dataset)} rows are left out, since max_length="
                    f"{args.max_length} cuts away all that they have to learn"
                )
            return made
        uncut = copy.copy(args)
        uncut.max_length, uncut.shuffle_dataset = None, False
        rows = super().prepare_texts(dataset, tokenizer, uncut, False, to_text, name)
        if args.max_length is None or not any(label != -100 for labels in rows["labels"] for label in labels):
            raise ValueError(
                f"{name} dataset: no token of its {len(dataset)} rows is labeled: there is nothing to learn"
            )
        lengths = sorted(map(len, rows["input_ids"]))
        raise ValueError(
            f"{name} dataset: max_length={args.max_length} cuts away all that its {len(rows)} rows have to learn, "
            f"which have {lengths[0]} to {lengths[-1]} tokens; max_length={lengths[-1]} cuts none of them"
        )

    def limit_tokens(self, known: int) -> None:
        """Refuse records with token ids from `known` on, of the constructor's data and of what is evaluated later.

        Raises:
            ValueError: there is one; row and token are named.
        """
        self.known_tokens = known if self.known_tokens is None else min(known, self.known_tokens)
        own = self.eval_dataset
        for dataset in (self.train_dataset, *(own.values() if isinstance(own, dict) else [own])):
            self._check_tokens(dataset)

    def _check_tokens(self, dataset: Any) -> None:
        known = self.known_tokens
        if known is None or not isinstance(dataset, Dataset):
            return
        if {"input_ids", "labels"} <= set(dataset.column_names):
            sizes = ([_arrow.list_value_length(rows) for _, rows in _batches(dataset, name)] for name in _TOKENS)
            for part, (ids, labels) in enumerate(zip(*sizes)):
                if not ids.equals(labels):
                    number = next(i for i, pair in enumerate(zip(ids, labels)) if pair[0] != pair[1])
                    raise ValueError(
                        f"row number {part * _ROWS + number} has {ids[number]} tokens and {labels[number]} labels: "
                        "every token needs one, which is -100 where it is not learned"
                    )
        for column in [name for name in _TOKENS if name in dataset.column_names]:
            for start, rows in _batches(dataset, column):
                flat = _arrow.list_flatten(rows)
                seen = flat if column == "input_ids" else flat.filter(_arrow.not_equal(flat, -100))
                ends = _arrow.min_max(seen).as_py()
                if ends["min"] is None or (ends["min"] >= 0 and ends["max"] < known):
                    continue
                for number, ids in enumerate(rows.to_pylist(), start):
                    ids = [i for i in ids or () if column == "input_ids" or i != -100]
                    check_known_tokens(ids, known, self.processing_class, f"row number {number}")

    def ready(self, dataset: Any) -> Any:
        return as_dataset(dataset, "the dataset")

    def _checked_stream(self, dataset: Any) -> Any:
        """A stream whose rows are checked as they are read; whatever else as it is."""
        if self.known_tokens is None or not isinstance(dataset, IterableDataset):
            return dataset
        return dataset.map(partial(_check_streamed, known=self.known_tokens, tokenizer=self.processing_class))

    def get_train_dataloader(self):
        own = self.train_dataset
        self.train_dataset = self._checked_stream(own)
        try:
            return super().get_train_dataloader()
        finally:
            self.train_dataset = own

    def get_eval_dataloader(self, eval_dataset: Any = None):
        self._check_tokens(eval_dataset)
        named = self._named(eval_dataset) if isinstance(eval_dataset, str) else eval_dataset
        read = self._checked_stream(self.eval_dataset if named is None else named)
        return super().get_eval_dataloader(read if isinstance(read, IterableDataset) else eval_dataset)

    def get_test_dataloader(self, test_dataset: Any):
        return super().get_test_dataloader(self.tokenized(test_dataset))
