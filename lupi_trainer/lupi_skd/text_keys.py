"""Keys of texts that nobody writes while the student is trained: gold answers, and those of a teacher store."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..data.teacher_names import RUN, parsed
from ..training.settings import is_set, say_unread


_LIVE = "the teacher is not there: its texts and log-probabilities come from the store"
# what a store cannot do, since it needs the teacher itself, or all of its distribution
_NEEDS_TEACHER = (
    "teacher_model_server_url",
    "temperature",
    "reuse_verification",
    "compile_rollout",
    "teacher_prompt_cache_mb",
    "teacher_offload",
    "teacher_dtype",
    "teacher_device",
    "teacher_attn_implementation",
    "teacher_load_in_4bit",
    "teacher_load_in_8bit",
    "teacher_model_init_kwargs",
    "teacher_bnb_4bit_quant_type",
    "teacher_use_bnb_nested_quant",
)
_RECORDING = ("log_rollout_blocks", "record_rollouts")


@dataclass
class TextKeys:
    r"""
    Keys of [`LUPISKDConfig`] of texts that nobody writes while the student is trained.

    Parameters:
        > Parameters that control texts that are there already

        gold_alpha (`float`, *optional*, defaults to `0.0`):
            Share of the gold answer's cross-entropy in the loss of a record that has an `answer`; the rest is the
            divergence from the teacher. A record without one is trained by the divergence alone.
        teacher_store (`str`, *optional*):
            Folder that `lupi teach` has written: texts and the teacher's likeliest tokens are read from it, and no
            teacher is loaded or asked. What would need one is refused.
    """

    gold_alpha: float = field(
        default=0.0, metadata={"help": "Share of a gold answer's cross-entropy in its record's loss."}
    )
    teacher_store: str | None = field(
        default=None, metadata={"help": "Folder of a teacher store, written by `lupi teach`; no teacher is loaded."}
    )


def text_faults(args: Any) -> Iterator[str]:
    """What is wrong with these keys of a configuration, and with those beside them, one message a fault.

    Args:
        args: [`LUPISKDConfig`], or whatever has its attributes.
    """
    if not 0.0 <= args.gold_alpha <= 1.0:
        yield f"gold_alpha must be in [0, 1], got {args.gold_alpha}: it is a share of the loss"
    written = args.rollout_policy == "gold" or args.teacher_store is not None
    for name in _RECORDING if written else ():
        if getattr(args, name):
            why = "teacher_store" if args.teacher_store is not None else "rollout_policy='gold'"
            yield f"{name}={getattr(args, name)!r} has nothing to show with {why}: the texts are there already"
    several = ["teachers"] if args.teachers else []
    several += ["base_teacher"] if args.base_teacher != RUN else []
    if args.teacher_store is not None and several:
        yield f"{' and '.join(several)} cannot be set with teacher_store, which has the texts of one teacher"
    if args.rollout_policy == "gold" and several and (there := _on_servers(args)):
        yield (
            "rollout_policy='gold' with several teachers wants all of them loaded here: leave out the server of "
            f"{', '.join(there)}"
        )
    if args.teacher_store is not None and args.rollout_policy not in ("teacher", "gold"):
        yield (
            f"rollout_policy={args.rollout_policy!r} does not work with teacher_store: {_LIVE}. Set rollout_policy: "
            "teacher, or gold, as the store was written with"
        )


def _on_servers(args: Any) -> list[str]:
    """Names of the run's teachers that are remote."""
    own = [RUN] if args.teacher_model_server_url is not None else []
    entries = parsed(args.teachers)
    if not isinstance(entries, Mapping):  # which is said of `teachers`
        return own
    return own + [
        str(name)
        for name, entry in entries.items()
        if isinstance(entry, Mapping) and entry.get("model_server_url") is not None
    ]


def check_store_settings(args: Any) -> None:
    """Refuse what needs a live teacher beside `teacher_store`; say in a warning what it leaves without effect.

    Raises:
        ValueError: the setting, by name.
    """
    if args.teacher_store is None:
        return
    for name in _NEEDS_TEACHER:
        if is_set(args, name):
            raise ValueError(f"{name}={getattr(args, name)!r} does not work with teacher_store: {_LIVE}. Leave it out")
    say_unread(args, ["deterministic", "max_slots", "pack_weights"], "nothing is rolled out with teacher_store")
