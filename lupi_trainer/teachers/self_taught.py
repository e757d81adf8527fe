"""A student that teaches itself: its base model, seen without the adapter that is being trained."""


class AdapterDisabled:
    """A `PeftModel` seen without its adapter: the base model as the teacher of its own adapter, no second copy.

    Calls run inside `peft_model.disable_adapter()`; everything else is the wrapped model's.
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
