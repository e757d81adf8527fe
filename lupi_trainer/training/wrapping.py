"""A model that several processes evaluate before they train it."""

from accelerate.utils import DistributedType


def to_be_wrapped(trainer) -> None:
    """Make training wrap a model that an evaluation before it left bare.

    Accelerate marks such a model as prepared, and several processes would each train a copy of their own.
    """
    accelerator, model = trainer.accelerator, trainer.model
    bare = accelerator.distributed_type in (DistributedType.MULTI_GPU, DistributedType.MULTI_CPU)
    if bare and trainer.model_wrapped is model and getattr(model, "_is_accelerate_prepared", False):
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # training puts its autocast around it again
        model._is_accelerate_prepared = False
        accelerator._models.remove(model)
