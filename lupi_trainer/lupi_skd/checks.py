"""Prompts that are too long and batches that cannot be filled are errors, found before training."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from ..data.prompts import TeacherPrompt, TemplateError, Words
from ..data.records import prepare_columns, record_name
from ..data.special_tokens import SpecialTokens
from ..data.wording import counted
from ..models.vocabulary import check_known_tokens
from ..training.given_data import given_parts
from .config import LUPISKDConfig
from .teachers import Teachers


logger = logging.getLogger(__name__)


def check_length(
    row: dict[str, Any],
    student_ids: list[int],
    teacher_ids: list[int],
    args: LUPISKDConfig,
    context_lengths: tuple[int | None, int | None],
    tokenizer: Any,
    vocab_size: int,
) -> None:
    """Refuse a record whose prompts and completion do not fit.

    Args:
        row: the record, named in the error by `id` or `row_id`.
        student_ids, teacher_ids: its two prompts as token ids.
        args: `max_teacher_prompt_length` and `max_completion_length`, in tokens.
        context_lengths: positions that the student and the teacher have (`None`: no limit).
        tokenizer: the student's.
        vocab_size: token ids that both have.

    Raises:
        ValueError: the teacher's prompt is beyond `max_teacher_prompt_length`, a prompt with its completion beyond
            the model's context, or a token beyond the vocabulary.
    """
    name = record_name(row)
    assert args.max_completion_length is not None  # or `LUPISKDConfig` had raised
    if len(teacher_ids) > args.max_teacher_prompt_length:
        raise ValueError(
            f"{name}: its teacher prompt has {len(teacher_ids)} tokens, beyond max_teacher_prompt_length="
            f"{args.max_teacher_prompt_length}. Raise the limit or shorten the knowledge; it is never cut."
        )
    for role, ids, positions in zip(("student", "teacher"), (student_ids, teacher_ids), context_lengths):
        check_known_tokens(ids, vocab_size, tokenizer, f"{name}: its {role} prompt")
        if positions is not None and len(ids) + args.max_completion_length > positions:
            raise ValueError(
                f"{name}: its {role} prompt has {len(ids)} tokens; with max_completion_length="
                f"{args.max_completion_length} that is beyond the {positions} positions of the {role} model"
            )


def check_batch(dataset: Any, args: LUPISKDConfig) -> None:
    """Refuse a training set that does not fill one generation batch; say how many records an epoch leaves out.

    Raises:
        ValueError: fewer records than `per_device_train_batch_size` x processes x `gradient_accumulation_steps`.
    """
    if not isinstance(dataset, Dataset):
        return
    batch = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
    if len(dataset) < batch:
        raise ValueError(
            f"the training set has {counted(len(dataset), 'record')}, fewer than one batch of {batch} "
            f"(per_device_train_batch_size={args.per_device_train_batch_size} x {args.world_size} processes x "
            "gradient_accumulation_steps="
            f"{args.gradient_accumulation_steps}): nothing would be trained"
        )
    if left_out := len(dataset) % batch:
        logger.warning(
            f"{len(dataset)} records do not divide into batches of {batch}: every epoch leaves out {left_out} "
            "of them, others each time if `shuffle_dataset` is on."
        )


def ready_records(dataset: Any, tokenizer: Any, teachers: Teachers, args: LUPISKDConfig) -> Any:
    """What was given to a trainer as its records: of the columns that it reads, each of which fits.

    Args:
        dataset: a dataset, a list of records, a dictionary of either, or `None`; a streaming one is checked as it is
            rolled out.
        tokenizer: the student's.
        teachers: of the run.
        args: as of [`check_length`].

    Raises:
        ValueError: as [`prepare_columns`] and [`read_records`]; the record is named.
    """
    if isinstance(dataset, dict):
        given_parts(dataset, "eval_dataset")
    dataset = prepare_columns(dataset)
    for part in dataset.values() if isinstance(dataset, dict) else [dataset]:
        check_dataset_lengths(part, tokenizer, teachers, args)
    return dataset


def check_dataset_lengths(
    dataset: Any, tokenizer: Any, teachers: Teachers, args: LUPISKDConfig, batch_size: int = 256
) -> None:
    """[`check_length`] of every record of a dataset; a streaming one is checked as it is rolled out.

    Raises:
        ValueError: as [`check_length`], or a record has no teacher or spells out a special token, or the chat template
            cannot write its prompts; it is named.
    """
    if not isinstance(dataset, Dataset):
        return
    for start in range(0, len(dataset), batch_size):
        rows = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
        for reading in read_records(rows, tokenizer, teachers, args):
            if reading.error is not None:
                raise reading.error


@dataclass(frozen=True)
class Reading:
    """What the two models read of a record.

    Attributes:
        row: the record.
        student, teacher: tokens of its two prompts; 0 where they cannot be written.
        error: why it cannot be used, if so; its message names the record.
    """

    row: dict[str, Any]
    student: int = 0
    teacher: int = 0
    error: ValueError | None = None


def read_records(rows: list[dict[str, Any]], tokenizer: Any, teachers: Teachers, args: LUPISKDConfig) -> list[Reading]:
    """[`read_prompts`] of records that may have different teachers, in their order."""
    found: dict[int, Reading] = {}
    for i, row in enumerate(rows):
        try:
            teachers.of(row)
        except ValueError as error:
            found[i] = Reading(row, error=error)
    places = [i for i in range(len(rows)) if i not in found]
    for teacher, its in teachers.groups([rows[i] for i in places]):
        group = [places[i] for i in its]
        limits = tokenizer, teacher.prompt, args, teacher.pair.context_lengths, teacher.pair.vocab_size
        found |= dict(zip(group, read_prompts([rows[i] for i in group], *limits)))
    return [found[i] for i in range(len(rows))]


def read_prompts(
    rows: list[dict[str, Any]],
    tokenizer: Any,
    teacher_prompt: TeacherPrompt,
    args: LUPISKDConfig,
    context_lengths: tuple[int | None, int | None],
    vocab_size: int,
) -> Iterator[Reading]:
    """Both prompts of each record, and the first fault of each.

    Args:
        rows: with `prompt` and `privileged_context`, as [`prepare_columns`] leaves them; the others as in
            [`check_length`]; there may be none.
    """
    if not rows:  # of which no chat template can be asked
        return
    kwargs: Any = args.chat_template_kwargs or {}  # parsed by now
    own = Words(tokenizer, kwargs)
    its = teacher_prompt.words or own
    special = SpecialTokens(tokenizer, args.allow_special_tokens, its.tokenizer)
    prompts = [row["prompt"] for row in rows]
    messages = [teacher_prompt.messages(row["prompt"], row["privileged_context"]) for row in rows]
    try:
        special.check_prompts(rows)
        students, teachers = own.encode(prompts), its.encode(messages)
        own.check_turns(prompts)
        its.check_turns(messages)
    except ValueError as error:
        if len(rows) > 1:  # whose it is, and what is true of the others
            for row in rows:
                yield from read_prompts([row], tokenizer, teacher_prompt, args, context_lengths, vocab_size)
        elif isinstance(error, TemplateError):
            named = ValueError(f"{record_name(rows[0])}: {error}")
            named.__cause__ = error
            yield Reading(rows[0], error=named)
        else:
            yield Reading(rows[0], error=error)
        return
    for row, student_ids, teacher_ids in zip(rows, students, teachers):
        fault = None
        try:
            check_length(row, student_ids, teacher_ids, args, context_lengths, tokenizer, vocab_size)
        except ValueError as error:
            fault = error
        yield Reading(row, len(student_ids), len(teacher_ids), fault)
