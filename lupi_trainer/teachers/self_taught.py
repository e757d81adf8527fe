"""A student that teaches itself: its base model, seen without the adapter that is being trained."""

from typing import Any

from ..models.adapters import check_base_untouched


class AdapterDisabled:
    """A `PeftModel` seen without its adapter: the base model as the teacher of its own adapter, no second copy.

    Calls run inside `peft_model.disable_adapter()`; everything else is the wrapped model's.

    Raises:
        ValueError: a model without an adapter.

    Example:

    ```python
    >>> from peft import LoraConfig, get_peft_model
    >>> from lupi_trainer.speculative import AdapterDisabled

    >>> adapted = get_peft_model(student, LoraConfig(r=4, target_modules="all-linear"))
    >>> rollout = skd_rollout(adapted, AdapterDisabled(adapted), prompt_ids, prompt_ids, max_new_tokens=4)
    ```
    """

    def __init__(self, peft_model):
        if not hasattr(peft_model, "disable_adapter"):
            raise ValueError(f"AdapterDisabled wants a PeftModel, got {type(peft_model).__name__}")
        self.peft_model = peft_model

    def __call__(self, *args, **kwargs):
        with self.peft_model.disable_adapter():
            return self.peft_model(*args, **kwargs)

    def __getattr__(self, name: str):
        return getattr(self.__dict__["peft_model"], name)


def self_teacher(student: Any) -> AdapterDisabled:
    """The teacher of a student that has none: itself, its adapter switched off.

    Args:
        student: a `PeftModel`, not wrapped for several processes.

    Raises:
        ValueError: no adapter to switch off, or one without which it is not the original model.
    """
    check_base_untouched(student, None)
    return AdapterDisabled(student)


def require_frozen(teacher: AdapterDisabled) -> None:
    """Refuse a student that changes as its own teacher while it is trained: by biases, for instance.

    Raises:
        ValueError: weights outside of the adapter are trained (one of them is named).
    """
    marks = (teacher.peft_model.base_model.prefix, ".modules_to_save.")
    trained = (name for name, weight in teacher.peft_model.named_parameters() if weight.requires_grad)
    changed = next((name for name in trained if not any(mark in name for mark in marks)), None)
    if changed is not None:
        raise ValueError(
            f"teacher_prompt_cache_mb is for a teacher that training does not change, and this one reads {changed}, "
            "which is trained; set teacher_prompt_cache_mb: 0"
        )
