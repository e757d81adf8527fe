"""The private parts of TRL that the package leans on still have the shape it knows."""

import inspect

from trl import DistillationTrainer, SFTTrainer

from lupi_trainer.training import private as trl_private


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_functions():
    assert parameters(trl_private.chunked_divergence_loss) == [
        "student_hidden_states",
        "teacher_hidden_states",
        "student_lm_head_weight",
        "teacher_lm_head_weight",
        "completion_mask",
        "beta",
        "num_items_in_batch",
        "student_lm_head_bias",
        "teacher_lm_head_bias",
        "student_logit_scale",
        "teacher_logit_scale",
        "student_final_logit_softcapping",
        "teacher_final_logit_softcapping",
        "temperature",
    ]
    assert parameters(trl_private.pad)[:3] == ["tensors", "padding_value", "padding_side"]
    assert parameters(trl_private.utils.unwrap_model_for_generation) == [
        "model",
        "accelerator",
        "gather_deepspeed3_params",
        "generation_kwargs",
        "gradient_checkpointing_kwargs",
    ]
    assert parameters(trl_private.ForwardRedirection.__call__) == [
        "self",
        "wrapper_module",
        "original_module",
        "method",
        "args",
        "kwargs",
    ]


def test_overridden_methods():
    assert parameters(DistillationTrainer._generate_and_score_completions) == ["self", "inputs"]
    assert parameters(DistillationTrainer._generate_single_turn) == [
        "self",
        "prompt_ids",
        "images",
        "multimodal_fields",
        "has_tool_images",
    ]
    assert parameters(DistillationTrainer._compute_loss) == [
        "self",
        "unwrapped_student",
        "inputs",
        "num_items_in_batch",
    ]
    assert parameters(DistillationTrainer._set_signature_columns_if_needed) == ["self"]
    # the parent's buffer of rolled-out inputs shuffles and splits whatever batch-first tensors it is given
    source = inspect.getsource(DistillationTrainer._prepare_inputs)
    assert "shuffle_sequence_dict" in source and "split_tensor_dict" in source


def test_what_kd_lora_overrides():
    assert parameters(SFTTrainer.compute_loss) == ["self", "model", "inputs", "return_outputs", "num_items_in_batch"]
    source = inspect.getsource(SFTTrainer)
    assert "self._total_train_tokens = 0" in source and "self.aux_loss_enabled = " in source
