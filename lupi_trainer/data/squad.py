"""Extractive question answering: SQuAD's records to token ids whose labels are the answer alone.

A record has `context`, `question` and `answers` (SQuAD's `{"text": [...], "answer_start": [...]}` or a list of
strings; the first one is learned). SQuAD's own nested file (`{"data": [{"paragraphs": ...}]}`) loads as it is.
"""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from datasets import Dataset

from ..lab import LAB_PREFIX, load_lab_records
from .files import check_objects, names_records, read_json
from .records import load_hub_dataset, named, record_name
from .special_tokens import SpecialTokens, tokenize_open
from .wording import counted


logger = logging.getLogger(__name__)
QA_TEMPLATE = "Context: {context}\nQuestion: {question}\nAnswer:"
HUB_NAMES = {"squad": "rajpurkar/squad", "squad_v2": "rajpurkar/squad_v2"}


def _flatten_squad(data: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records of SQuAD's own file: articles of paragraphs of questions."""
    return [
        {**question, "context": paragraph["context"], "answers": [answer["text"] for answer in question["answers"]]}
        for article in data
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]


def _read_file(path: str) -> list[dict[str, Any]]:
    content = read_json(path)
    if isinstance(content, dict) and "data" in content:
        try:
            content = _flatten_squad(content["data"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path}: not SQuAD's form, data > paragraphs > qas > answers ({error!r})") from error
    return check_objects(content, path)


def check_qa_record(record: dict[str, Any], number: int) -> dict[str, Any] | None:
    """`id`, `context`, `question`, `answer` of a record; `None` for a question that has no answer (SQuAD 2).

    Raises:
        ValueError: a column is missing or of the wrong type; the message names the record.
    """
    where = record_name(record, number)
    for column in ("context", "question"):
        if not isinstance(record.get(column), str) or not record[column].strip():
            raise ValueError(f"{where}: no text in `{column}`; found {sorted(record)}")
    answers = record.get("answers")
    if isinstance(answers, dict):
        answers = answers.get("text")
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(
            f"{where}: `answers` must be a list of strings, or SQuAD's {{'text': [...]}}, got "
            f"{record.get('answers')!r}"
        )
    answers = [answer.strip() for answer in answers if answer.strip()]
    if not answers:
        return None
    return {
        "id": str(record.get("id") or number),
        "context": record["context"].strip(),
        "question": record["question"].strip(),
        "answer": answers[0],
    }


def raw_questions(source: str, split: str) -> Iterable[dict[str, Any]]:
    """The records of a source, unchecked; see [`load_qa_records`]."""
    if source.startswith(LAB_PREFIX):
        return load_lab_records(source)
    if names_records(source):
        return _read_file(source)
    return load_hub_dataset(HUB_NAMES.get(source, source), None, split)


def load_qa_records(
    source: str, *, split: str = "train", max_samples: int | None = None, seed: int = 0
) -> list[dict[str, Any]]:
    """Load questions with their contexts and answers.

    Args:
        source: a `.json` / `.jsonl` file, `lab:NAME`, or a dataset name (`squad`).
        split: split of a dataset from the Hub.
        max_samples: keep so many records with an answer, drawn with `seed` (SQuAD is sorted by article); `None` keeps
            all.
        seed: of that draw.

    Returns:
        Dictionaries with `id`, `context`, `question`, `answer`. Questions without an answer are left out, and counted
        in the log.

    Raises:
        FileNotFoundError: a file that does not exist.
        ValueError: no record, a record that is not of that form (named), or `max_samples` below 1.
    """
    if max_samples is not None and (isinstance(max_samples, bool) or not isinstance(max_samples, Integral)):
        raise ValueError(f"max_samples must be a whole number or null, got {max_samples!r}")
    if max_samples is not None and max_samples < 1:
        raise ValueError(f"max_samples must be at least 1, got {max_samples}")
    records = raw_questions(source, split)
    with named(source):
        checked = [check_qa_record(record, number) for number, record in enumerate(records)]
    answered = [record for record in checked if record is not None]
    if not answered:
        raise ValueError(f"{source}: no question with an answer in it")
    if len(answered) < len(checked):
        logger.warning(f"{source}: {counted(len(checked) - len(answered), 'question')} left out, without an answer")
    if max_samples is not None and max_samples < len(answered):
        chosen = Dataset.from_dict({"row": range(len(answered))}).shuffle(seed=seed)["row"][:max_samples]
        answered = [answered[row] for row in chosen]
    return answered


@dataclass
class TokenizedQA:
    """What [`tokenize_qa`] returns.

    Attributes:
        dataset: `input_ids` and `labels` (-100 but on the answer and the end of text), one row a record that fits.
        dropped: ids of the records that do not fit `seq_len`.
        longest: tokens of the longest record, dropped ones included.
    """

    dataset: Dataset
    dropped: list[str]
    longest: int


def tokenize_qa(
    records: list[dict[str, Any]],
    tokenizer: Any,
    *,
    seq_len: int,
    template: str = QA_TEMPLATE,
    allow_special_tokens: bool = False,
) -> TokenizedQA:
    """Prompt and answer as token ids, the loss on the answer (and the end of text) only.

    A record that is longer than `seq_len` would lose its answer, which is at the end, so the record is dropped and
    counted, never cut.

    Args:
        records: what [`load_qa_records`] returns.
        tokenizer: the student's; a beginning-of-text token is added where the tokenizer adds one and the template
            does not begin with it.
        seq_len: longest row in tokens.
        template: the prompt, with `{context}` and `{question}`; the answer follows after a space.
        allow_special_tokens: let records spell out special tokens, which become control tokens.

    Raises:
        ValueError: the template lacks a field, the tokenizer has no end of text, a record spells out a special token
            (named), or no record fits.
    """
    missing = [field for field in ("{context}", "{question}") if field not in template]
    if missing:
        raise ValueError(f"the prompt template lacks {' and '.join(missing)}: {template!r}")
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token, so no answer could end")
    special = SpecialTokens(tokenizer, allow_special_tokens)
    for record in records:
        special.check(record_name(record), record["context"], record["question"], record["answer"])
    parts = re.split(r"\{(context|question)\}", template)  # text, field, text, ...
    prompts = ["".join(r[part] if n % 2 else part for n, part in enumerate(parts)) for r in records]
    prompt_ids = tokenize_open(tokenizer, prompts)
    full_ids = tokenize_open(tokenizer, [f"{p} {r['answer']}" for p, r in zip(prompts, records)])
    rows, dropped, longest = [], [], 0
    for record, prompt, full in zip(records, prompt_ids, full_ids):
        # the answer begins where the two differ: a token may reach over the border between them
        start = next((i for i, (a, b) in enumerate(zip(prompt, full)) if a != b), min(len(prompt), len(full)))
        full = [*full, tokenizer.eos_token_id]
        longest = max(longest, len(full))
        if len(full) > seq_len:
            dropped.append(record["id"])
            continue
        rows.append({"input_ids": full, "labels": [-100] * start + full[start:]})
    if not rows:
        raise ValueError(
            f"none of {len(records)} records fits seq_len={seq_len} (the longest has {longest} tokens): raise it"
        )
    if dropped:
        logger.warning(
            f"{len(dropped)} of {len(records)} records are dropped: with their answer they are longer than "
            f"seq_len={seq_len} (the longest has {longest} tokens)"
        )
    return TokenizedQA(Dataset.from_list(rows), dropped, longest)
