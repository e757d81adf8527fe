"""Settings that LUPI-SKD has of its parents, or a recipe of another run, and does not read."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from ..data.teacher_names import RUN, named, settings_of
from ..training.settings import say_unread, say_unread_for_scripts, unread_faults


_NO_LABELS = "the student learns the teacher's distribution, not labels"
_NO_PREDICTIONS = "an evaluation computes its loss alone, and there are no metrics of predictions"
_UNREAD = {
    "cache_implementation": "the rollout has caches of its own",
    "label_smoothing_factor": _NO_LABELS,
    "label_names": _NO_LABELS,
    "prediction_loss_only": _NO_PREDICTIONS,
    "include_for_metrics": _NO_PREDICTIONS,
    "batch_eval_metrics": _NO_PREDICTIONS,
    "eval_do_concat_batches": _NO_PREDICTIONS,
    "remove_unused_columns": "a record is its prompt and its privileged context, whatever else is in it",
    "length_column_name": "records are not grouped by their lengths",
    "data_seed": "the order of the records comes from `seed`",
    "auto_find_batch_size": "a rollout is made for `per_device_train_batch_size` x `gradient_accumulation_steps`",
    "include_num_input_tokens_seen": "tokens are counted in any case, as `num_tokens`",
    "average_tokens_across_devices": "the loss is always a mean over the tokens of all devices",
    "max_tool_calling_iterations": "the student calls no tools",
}
_JUDGING = ("acceptance_rule", "acceptance_kwargs", "accept_top_k", "teacher_min_prob")
_DRAFTING = ("gamma", "gamma_policy", "verification", "student_temperature")
_WRITING = ("teacher_temperature", "compile_rollout", "keep_graphs", "teacher_prompt_cache_mb", "deterministic")
_SERVED = ("teacher_server_timeout", "teacher_server_request_timeout")


def refused_settings(args: Any) -> Iterator[str]:
    """What is said of settings that would have no effect whatever the others are, one message each."""
    vllm = {f.name: "the student drafts inside the rollout" for f in fields(args) if f.name.startswith("vllm_")}
    yield from unread_faults(args, _UNREAD | vllm)
    if args.train_sampling_strategy != "random" and (
        args.train_sampling_strategy != "sequential" or args.shuffle_dataset
    ):
        yield (
            f"train_sampling_strategy={args.train_sampling_strategy!r} has no effect here: for the order of the file, "
            "set `shuffle_dataset: false`"
        )


def check_unread_settings(args: Any) -> None:
    """Refuse settings that would have no effect whatever the others are; name the others that have none in a warning.

    Args:
        args: [`LUPISKDConfig`].

    Raises:
        ValueError: the setting, by name, and why it has no effect.
    """
    for fault in refused_settings(args):
        raise ValueError(fault)
    if args.accelerator_config.dispatch_batches:
        raise ValueError(
            "accelerator_config: dispatch_batches=True does not work here: records are text, which no process can "
            "send to another as a tensor. Leave it out"
        )
    say_unread_for_scripts(args)
    policy = args.rollout_policy
    if policy != "speculative":
        say_unread(args, _JUDGING, f"rollout_policy={policy!r} judges no draft")
    elif args.acceptance_rule != "top_k":
        say_unread(args, _JUDGING[2:], f"acceptance_rule={args.acceptance_rule!r} has parameters of its own")
    if policy == "student":
        say_unread(args, ["teacher_temperature"], "rollout_policy='student' draws nothing from the teacher")
    if policy == "gold":
        say_unread(args, [*_DRAFTING, *_WRITING], "rollout_policy='gold' writes nothing")
    if policy == "teacher" and not (args.log_rollout_blocks or args.record_rollouts or args.teacher_model_server_url):
        say_unread(args, _DRAFTING, "rollout_policy='teacher' drafts nothing")
    if not args.compile_rollout:
        say_unread(args, ["keep_graphs"], "without compile_rollout no graph is recorded")
    urls = (settings_of(args, name).teacher_model_server_url for name in (RUN, *named(args)))
    if not any(urls):
        say_unread(args, _SERVED, "there is no teacher_model_server_url")
        if args.teacher_store is None:
            say_unread(args, ["loss_top_k"], "there is no teacher_model_server_url and no teacher_store")
    if not args.log_completions:
        say_unread(args, ["num_completions_to_print", "log_unique_prompts"], "log_completions is off")
