"""What a configuration of LUPI-SKD is checked for once its values are parsed."""

from typing import Any

from ..data.teacher_names import TeacherSettings, named, settings_of
from ..data.templates import check_template_kwargs
from ..speculative.runners.packed_weights import pack_setting
from .knowledge import knowledge_faults, remote_faults, say_unread_knowledge
from .remote import check_remote_settings
from .rules import gamma_policy_of, make_gamma_policy, make_rule
from .unread import check_unread_settings
from .values import TEMPLATES, value_faults


def check_config(args: Any) -> None:
    """Refuse values that cannot be, alone or together; name those that have no effect in a warning.

    Args:
        args: [`LUPISKDConfig`].

    Raises:
        ValueError: the key, by name.
    """
    for key in ("chat_template_kwargs", "teacher_chat_template_kwargs"):
        check_template_kwargs(getattr(args, key) or {}, key)  # parsed by now
    for fault in (*value_faults(args), *knowledge_faults(args)):
        raise ValueError(fault)
    if pack_setting(args.pack_weights) is True:
        if args.device.type != "cpu":
            raise ValueError(f"pack_weights=True is for a CPU, and the student trains on {args.device}")
        if args.bf16 or args.fp16:
            kind = "bf16" if args.bf16 else "fp16"
            raise ValueError(f"pack_weights=True is for float32: set {kind}: false, or pack_weights: auto")
    check_unread_settings(args)
    say_unread_knowledge(args)
    make_gamma_policy(gamma_policy_of(args), args.gamma)
    options: Any = args.acceptance_kwargs  # parsed by now
    make_rule(args.acceptance_rule, options, args.accept_top_k, args.teacher_min_prob)
    if args.teacher_model_server_url is not None:
        check_remote_settings(args)
    for name in named(args):
        _check_teacher(name, settings_of(args, name), args.loss_weighting)
    if args.use_vllm:
        raise ValueError("use_vllm is not supported: the student drafts inside the rollout")


def _check_teacher(name: str, settings: Any, loss_weighting: str) -> None:
    """Refuse what one of `teachers` cannot have, by its name."""
    try:
        for fault in remote_faults(loss_weighting, settings.teacher_model_server_url):
            raise ValueError(fault)
        check_template_kwargs(settings.teacher_chat_template_kwargs or {}, "chat_template_kwargs")
        if settings.teacher_chat_template not in TEMPLATES:
            raise ValueError(f"chat_template must be one of {list(TEMPLATES)}, got {settings.teacher_chat_template!r}")
        if settings.teacher_model_server_url is not None:  # whose prompts are kept by the server, if at all
            check_remote_settings(TeacherSettings(settings, {"teacher_prompt_cache_mb": 0}))
    except ValueError as error:
        raise ValueError(f"teachers: {name}: {error}") from error
