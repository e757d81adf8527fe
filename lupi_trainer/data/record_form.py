"""The form of one record: what it must have, and how it is written otherwise.

Nothing heavy is imported here.
"""

from numbers import Integral
from typing import Any

from .probes import ALIASES, RecordError, meant, record_name


# what other trainers read of a record, and the models here would not see
UNREAD = ("image", "images", "video", "videos", "audio", "audios", "tools", "chat_template_kwargs")


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
        said = meant(record, "prompt", "query")
        if {"question", "answers"} <= record.keys():
            said = "; this looks like a probe, of a file that `probes` names"
        raise RecordError(where, "no `prompt` (`query` is read as well)", f"; found {given}{said}")
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
    teacher = record.get("teacher")  # whose record it is, where a run has several
    if teacher is not None and (not isinstance(teacher, str) or not teacher):
        raise RecordError(where, "`teacher` must be a name or null", f", got {teacher!r}")
    answer = record.get("answer")
    if answer is not None and not isinstance(answer, str):
        raise RecordError(where, "`answer` must be text or null", f", got {type(answer).__name__}")
    record["answer"] = answer if answer and answer.strip() else None
    row_id = record.get("row_id")  # the address of its rollout noise, wherever it is shuffled to
    row_id = number if row_id is None else row_id
    if not isinstance(row_id, Integral) or isinstance(row_id, bool) or not 0 <= row_id < 2**63:
        raise RecordError(where, "`row_id` must be a whole number from 0", f", got {row_id!r}")
    record["row_id"] = int(row_id)
    return record
