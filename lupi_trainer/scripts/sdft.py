"""TRL's `SDFTTrainer` (self-distillation fine-tuning, arXiv 2601.19897) on a LUPI-SKD recipe, to be compared with.

The student is its own teacher: as it was before training, it reads the knowledge, and is then imitated on the
student's own text. There is no other model.
"""

import os
from typing import Any

from ..data.prompts import TeacherPrompt
from ..data.records import load_base_data, load_training_data
from ..lupi_skd import LUPISKDConfig
from . import setting_up
from .common import MixedDataArguments, mix_in_base, special_tokens, student_arguments


def _knowledge_turn(row: dict[str, Any], knowledge_template: str) -> dict[str, str]:
    """The text before the question that only the teacher reads: the knowledge, or nothing where there is none."""
    messages = TeacherPrompt(knowledge_template=knowledge_template).messages(row["prompt"], row["privileged_context"])
    return {"privileged_context": messages[-1]["content"].removesuffix(row["prompt"][-1]["content"])}


@setting_up()
def build_trainer(data_args: MixedDataArguments, training_args: LUPISKDConfig, model_args, shared: dict[str, Any]):
    """TRL's trainer with its own settings of the method, on the recipe's records in the recipe's order.

    A record is written once (`num_generations=1`), so that a step reads as many records as with other trainers. The
    persona and the worked examples are left out: both sides of this trainer read one and the same system turn.

    Args:
        data_args, training_args, model_args: the recipe.
        shared: keys of the recipe that every trainer has, and their values.

    Raises:
        ValueError: no student is named, or a quantized one; a `knowledge_template` with words after the question, or
            `teacher_chat_template_kwargs`.
    """
    if training_args.teacher_chat_template_kwargs not in (None, training_args.chat_template_kwargs):
        raise ValueError("with SDFTTrainer, both sides read one template: leave out teacher_chat_template_kwargs")
    if not training_args.knowledge_template.endswith("{query}"):
        raise ValueError("with SDFTTrainer, knowledge_template must end with {query}")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    assert data_args.dataset_name is not None  # or `DataArguments` had raised
    template_kwargs: Any = training_args.chat_template_kwargs  # parsed by now
    config = SDFTConfig(
        **shared,
        max_prompt_length=None,
        max_completion_length=training_args.max_completion_length,
        temperature=training_args.student_temperature,
        num_generations=1,
        teacher_prompt_template="{privileged_context}{prompt}",
        chat_template_kwargs=template_kwargs,
    )
    arguments = student_arguments(config, model_args)
    if arguments.pop("quantization_config") is not None:
        raise ValueError("SDFTTrainer takes no quantized student: leave out load_in_4bit and load_in_8bit")
    records = load_training_data(
        data_args.dataset_name, config=data_args.dataset_config, split=data_args.dataset_train_split
    )
    records = mix_in_base(records, load_base_data, data_args, config)
    special_tokens(model_args, training_args, training_args.allow_special_tokens).check_prompts(records)
    template = {"knowledge_template": training_args.knowledge_template}
    return SDFTTrainer(**arguments, train_dataset=records.map(_knowledge_turn, fn_kwargs=template))
