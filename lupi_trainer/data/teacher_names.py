"""Who teaches which record: the names of a run's teachers, and what each of them has of the recipe.

Nothing heavy is imported here.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from .probes import RecordError, record_name


RUN, STUDENT = "teacher", "student"  # the run's own teacher, and the student as it was before training
RESERVED = {RUN: "the teacher that the recipe's own keys name", STUDENT: "the student as it was before training"}

# Keys of an entry, and those of the recipe whose places they take for its teacher. What writes the prompt is the
# run's where an entry leaves it out; where and how a model is loaded is each teacher's own.
WORDS = {
    "system_prompt": "teacher_system_prompt",
    "few_shot_examples": "few_shot_examples",
    "knowledge_template": "knowledge_template",
    "chat_template": "teacher_chat_template",
    "chat_template_kwargs": "teacher_chat_template_kwargs",
}
PLACES = {
    "device": "teacher_device",
    "offload": "teacher_offload",
    "dtype": "teacher_dtype",
    "attn_implementation": "teacher_attn_implementation",
}
LOADS = {
    "model_revision": "teacher_model_revision",
    "model_init_kwargs": "teacher_model_init_kwargs",
    "load_in_4bit": "teacher_load_in_4bit",
    "load_in_8bit": "teacher_load_in_8bit",
    "bnb_4bit_quant_type": "teacher_bnb_4bit_quant_type",
    "use_bnb_nested_quant": "teacher_use_bnb_nested_quant",
}
SOURCES = {"model_name_or_path": "teacher_model_name_or_path", "model_server_url": "teacher_model_server_url"}
KEYS = SOURCES | PLACES | LOADS | WORDS
# the run's teacher may not have them, and another one has them all the same
DEFAULTS: dict[str, Any] = {
    "teacher_model_name_or_path": None,
    "teacher_model_server_url": None,
    "teacher_device": None,
    "teacher_offload": False,
    "teacher_dtype": "auto",
    "teacher_attn_implementation": None,
    "teacher_model_revision": None,
    "teacher_model_init_kwargs": None,
    "teacher_load_in_4bit": False,
    "teacher_load_in_8bit": False,
    "teacher_bnb_4bit_quant_type": "nf4",
    "teacher_use_bnb_nested_quant": False,
}
_KINDS: dict[str, Any] = dict.fromkeys(("offload", "load_in_4bit", "load_in_8bit", "use_bnb_nested_quant"), bool)
_KINDS |= {"model_init_kwargs": Mapping, "chat_template_kwargs": Mapping, "few_shot_examples": (str, list)}
_CALLED: dict[Any, str] = {bool: "true or false", str: "text", Mapping: "a mapping", (str, list): "text or a list"}


def parsed(teachers: Any) -> Any:
    """The value of `teachers` as a mapping, where it is JSON text."""
    if isinstance(teachers, str):
        try:
            return json.loads(teachers)
        except ValueError:
            return teachers
    return {} if teachers is None else teachers


def named(args: Any) -> list[str]:
    """The names of a run's teachers beside its own one, in the order of the recipe.

    Args:
        args: [`LUPISKDConfig`], or whatever has its attributes.
    """
    teachers, base = parsed(args.teachers), args.base_teacher
    names = list(teachers) if isinstance(teachers, Mapping) else []
    return names + [STUDENT] * (base == STUDENT and STUDENT not in names)


def teacher_faults(args: Any) -> Iterator[str]:
    """What is wrong with `teachers` and `base_teacher`, as far as their values tell."""
    teachers = parsed(args.teachers)
    if not isinstance(teachers, Mapping):
        yield f"teachers must be a mapping from a name to keys of this teacher, got {teachers!r}"
        return
    if not isinstance(args.base_teacher, str) or args.base_teacher not in (RUN, STUDENT, *teachers):
        known = [RUN, STUDENT, *(name for name in teachers if name != STUDENT)]
        yield f"base_teacher must be one of {known}, got {args.base_teacher!r}"
    for name, own in teachers.items():
        yield from _entry_faults(args, name, own)


def _entry_faults(args: Any, name: Any, own: Any) -> Iterator[str]:
    where = f"teachers: {name}"
    if not isinstance(name, str) or not name.replace("_", "").replace("-", "").isalnum():
        yield f"teachers: a name is of letters, digits, _ and -, got {name!r}"
        return
    if name == RUN:
        yield f"teachers: {name!r} is {RESERVED[RUN]}: give this one another name"
        return
    if not isinstance(own, Mapping):
        yield f"{where}: must have keys of its own ({', '.join(KEYS)}), got {own!r}"
        return
    for key in own:
        if key not in KEYS:
            yield f"{where}: unknown key {key!r}; there are {', '.join(KEYS)}"
    for key, value in own.items():
        kind = _KINDS.get(key, str)
        if key in KEYS and value is not None and not isinstance(value, kind):
            yield f"{where}: {key} must be {_CALLED[kind]}, got {value!r}"
    given = [key for key in SOURCES if own.get(key) is not None]
    if name == STUDENT:
        wrong = [key for key in own if key in SOURCES or key in LOADS]
        if wrong:
            yield f"{where}: {wrong[0]} has no place here: it is {RESERVED[STUDENT]}, loaded as the student is"
    elif not given:
        yield f"{where}: set model_name_or_path, or model_server_url"
    if own.get("model_server_url") is not None:
        loading = [key for key in own if key in PLACES or key in LOADS]
        if loading:
            yield f"{where}: {loading[0]} has no effect: its model is loaded by the server"
        if args.deterministic:
            yield f"deterministic: true does not go with {where}, on a server, which chooses its batches itself"
    if own.get("load_in_4bit") and own.get("load_in_8bit"):
        yield f"{where}: load_in_4bit and load_in_8bit exclude each other"
    if own.get("offload") and (own.get("load_in_4bit") or own.get("load_in_8bit")):
        yield f"{where}: offload is for a teacher that is not quantized: a quantized one stays where it is"


class TeacherSettings:
    """A configuration as one of its teachers has it: its own values first, the run's where it has none.

    What is set is set on the run's.
    """

    def __init__(self, args: Any, own: Mapping[str, Any]):
        vars(self).update(run=args, own=dict(own))

    def __getattr__(self, name: str) -> Any:
        own = vars(self)["own"]
        return own[name] if name in own else getattr(vars(self)["run"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.run, name, value)


def settings_of(args: Any, name: str) -> Any:
    """The configuration as a teacher has it: `args` itself for the run's own.

    Args:
        args: [`LUPISKDConfig`].
        name: of the run's teacher, or one of [`named`].
    """
    if name == RUN:
        return args
    own = {KEYS[key]: value for key, value in parsed(args.teachers).get(name, {}).items()}
    if name == STUDENT:  # which writes and reads as the student does
        own = {"teacher_offload": args.teacher_offload} | own
        own = {"teacher_chat_template": "student", "teacher_chat_template_kwargs": None} | own
    return TeacherSettings(args, DEFAULTS | own)


def teacher_name(record: Mapping[str, Any], base_teacher: str) -> str:
    """Who teaches a record: its own `teacher`, or the one of base records, or of the others.

    Args:
        record: with `privileged_context`, and `teacher` or none.
        base_teacher: of records without knowledge.
    """
    own = record.get("teacher")
    if own is not None:
        return own
    return base_teacher if record["privileged_context"] is None else RUN


def check_teacher(record: Mapping[str, Any], base_teacher: str, known: list[str], number: int | None = None) -> str:
    """[`teacher_name`] of a record, which must be one of the `known`; `number`: its place, for the message.

    Raises:
        RecordError: it is none of them; the message names the record.
    """
    name = teacher_name(record, base_teacher)
    if name in known:
        return name
    others = ", ".join(known)
    if name != RUN:
        raise RecordError(record_name(dict(record), number), f"there is no teacher {name!r}; the run has {others}")
    raise RecordError(
        record_name(dict(record), number),
        f"it names no `teacher`, and the run has none of its own beside {others}: set teacher_model_name_or_path, or "
        "say which it is",
    )
