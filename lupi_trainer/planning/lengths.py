"""How long prompts and texts are: stated, read from the records with the models' tokenizers, or at their limits."""

from __future__ import annotations

import os
from typing import Any

from ..data.prompts import TeacherPrompt, Words, load_few_shot_examples, teacher_words
from ..data.records import load_training_data, prepare_columns
from ..lab import resolve_model
from ..models.vocabulary import tokenizer_beside
from .others import getters
from .recipe import Get, Lengths


MOST_RECORDS = 2000  # that are read
SHORTEST_PREFIX = 16  # tokens, below which the engine reads no prefix by itself
UNKNOWN_PROMPT = 512  # tokens of a student's prompt that nobody knows


def longest_prompts(
    records: Any, tokenizer: Any, teacher_prompt: TeacherPrompt, options: dict[str, Any]
) -> tuple[int, int, int]:
    """(tokens of the longest student prompt, of the longest teacher prompt, of the prefix of all teacher prompts).

    Args:
        records: as [`prepare_columns`] leaves them; of more than `MOST_RECORDS` the first so many are read.
        tokenizer: the student's.
        teacher_prompt: what surrounds the knowledge.
        options: of the chat template.

    Raises:
        ValueError: the template refuses a record.
    """
    rows = records.select(range(min(len(records), MOST_RECORDS)))
    own = Words(tokenizer, options)
    students = own.encode(list(rows["prompt"]))
    asked = [teacher_prompt.messages(row["prompt"], row["privileged_context"]) for row in rows]
    teachers = (teacher_prompt.words or own).encode(asked)
    shared = len(os.path.commonprefix(teachers)) if len(teachers) > 1 else 0
    return max(map(len, students)), max(map(len, teachers)), shared


def _read(get: Get) -> tuple[int, int, int]:
    """[`longest_prompts`] of a recipe.

    Raises:
        OSError, ValueError: there are no records, or no tokenizer.
    """
    name, split = get("dataset_name", None), get("dataset_train_split", "train")
    if name is None:
        raise ValueError("the recipe names no `dataset_name`")
    trusted = bool(get("trust_remote_code", False))
    tokenizer = tokenizer_beside(resolve_model(get("model_name_or_path")), get("model_revision", None), trusted)
    if tokenizer is None:
        raise ValueError("there is no tokenizer beside the student")
    records: Any = prepare_columns(load_training_data(name, config=get("dataset_config", None), split=split))
    found = [_with_teacher(its, records, tokenizer, trusted) for its in (get, *getters(get).values())]
    students, teachers, prefixes = zip(*found)
    return max(students), max(teachers), min(prefixes)


def _with_teacher(get: Get, records: Any, tokenizer: Any, trusted: bool) -> tuple[int, int, int]:
    """[`longest_prompts`] as one teacher reads all of the records."""
    template = get("knowledge_template", None)
    surroundings = {"knowledge_template": template} if template else {}
    examples = load_few_shot_examples(get("few_shot_examples", None))
    kwargs, teacher, its = get("chat_template_kwargs", None) or {}, get("teacher_model_name_or_path", None), None
    if teacher is not None:
        its = tokenizer_beside(resolve_model(teacher), get("teacher_model_revision", None), trusted)
    template = get("teacher_chat_template", "own"), get("teacher_chat_template_kwargs", None)
    words = teacher_words(Words(tokenizer, kwargs), its, *template)
    prompt = TeacherPrompt(get("teacher_system_prompt", None), examples, **surroundings, words=words)
    return longest_prompts(records, tokenizer, prompt, kwargs)


def find_lengths(
    get: Get,
    student: int | None = None,
    teacher: int | None = None,
    prefix: int | None = None,
    mean: int | None = None,
) -> Lengths:
    """The lengths that a plan is made for.

    Args:
        get: (key, default) -> what the recipe says.
        student, teacher, prefix: tokens of the longest prompts, and of what the teacher's share, where stated.
        mean: tokens of a text on average, where it is stated; else as many as it may have.

    Returns:
        What is stated; of what is not, what the records have; else the recipe's limits.
    """
    completion, limit = int(get("max_completion_length", 4096)), int(get("max_teacher_prompt_length", 4096))
    guessed = False
    if student is None or teacher is None:
        try:
            found, source = _read(get), "the longest of the records"
        except (OSError, ValueError, ImportError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            found, guessed = (UNKNOWN_PROMPT, limit, 0), True
            source = f"the teacher's at its limit, the student's a guess, for no record was read: {reason}"
    else:
        found, source = (student, teacher, 0), "stated"
    longest = (found[0] if student is None else student), (found[1] if teacher is None else teacher)
    shared = min(found[2] if prefix is None else prefix, longest[1] - 1)
    shared = shared if shared >= SHORTEST_PREFIX else 0
    return Lengths(*longest, shared, completion, mean or completion, source, guessed)
