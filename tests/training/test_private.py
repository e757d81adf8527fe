"""What is private of other libraries has the shape that the package knows, and is used in `private.py` files alone."""

import ast
import atexit
import importlib
import inspect
import pkgutil
import sys
import textwrap
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import accelerate
import pytest
import torch
from accelerate.hooks import add_hook_to_module
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.integrations import deepspeed
from transformers.utils.generic import GeneralInterface
from trl import DistillationTrainer, SFTConfig, SFTTrainer
from trl.models import utils as trl_models
from trl.trainer import distillation_trainer
from trl.trainer.base_trainer import _BaseTrainer

import lupi_trainer
from lupi_trainer.models import private as of_models
from lupi_trainer.speculative.runners import private as of_engine
from lupi_trainer.training import private as of_trainers


ROOT = Path(lupi_trainer.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
PRIVATE = [Path(module.__file__) for module in (of_models, of_engine, of_trainers)]
OTHERS = [path for path in FILES if path not in PRIVATE]


# What is called or overridden -> whose it is, and its parameters.
SIGNATURES = {
    "_save": (Trainer, "self output_dir state_dict"),
    "_save_checkpoint": (Trainer, "self model trial"),
    "_get_output_dir": (Trainer, "self trial"),
    "_load_from_checkpoint": (Trainer, "self resume_from_checkpoint model"),
    "_load_best_model": (Trainer, "self"),
    "_issue_warnings_after_load": (Trainer, "self load_result"),
    "_save_rng_state": (Trainer, "self output_dir"),
    "_load_rng_state": (Trainer, "self checkpoint"),
    "_get_train_sampler": (DistillationTrainer, "self dataset"),
    "_get_num_items_in_batch": (Trainer, "self batch_samples device"),
    "_get_grad_norm": (Trainer, "self model grad_norm"),
    "_prepare_inputs": (Trainer, "self inputs"),
    "_set_signature_columns_if_needed": (Trainer, "self"),
    "_push_from_checkpoint": (Trainer, "self checkpoint_folder"),
    "_finish_current_push": (Trainer, "self"),
    "_internal_call": (Trainer.save_model, "self output_dir _internal_call"),
    "_generate_and_score_completions": (DistillationTrainer, "self inputs"),
    "_generate_single_turn": (DistillationTrainer, "self prompt_ids images multimodal_fields has_tool_images"),
    "_prepare_dataset": (SFTTrainer, "self dataset processing_class args packing formatting_func dataset_name"),
    "_compute_loss": (DistillationTrainer, "self unwrapped_student inputs num_items_in_batch"),
    "_ForwardRedirection": (
        trl_models._ForwardRedirection.__call__,
        "self wrapper_module original_module method args kwargs",
    ),
    "_chunked_divergence_loss": (
        distillation_trainer,
        "student_hidden_states teacher_hidden_states student_lm_head_weight teacher_lm_head_weight completion_mask "
        "beta num_items_in_batch student_lm_head_bias teacher_lm_head_bias student_logit_scale teacher_logit_scale "
        "student_final_logit_softcapping teacher_final_logit_softcapping temperature",
    ),
    "_extract_generation_mode_kwargs": (
        GenerationMixin,
        "self custom_generate kwargs synced_gpus assistant_model streamer",
    ),
    "_higher_order_ops": (of_engine.while_loop, "cond_fn body_fn carried_inputs"),
}

# What is read or written -> where, and what is said of it there.
SOURCES = {
    "_name": [(_BaseTrainer, "trainer_name=self._name")],
    "_tag_names": [(cls, "self._tag_names") for cls in (_BaseTrainer, SFTTrainer, DistillationTrainer)],
    "_total_train_tokens": [(SFTTrainer, "self._total_train_tokens = 0"), (SFTTrainer, "self._total_train_tokens +=")],
    "_skip_prepare_dataset": [(SFTTrainer.evaluate, "if not self._skip_prepare_dataset and eval_dataset is not None")],
    "_formatting_func": [(SFTTrainer.evaluate, "self.args, packing, self._formatting_func, ")],
    "_dist": [
        (DistillationTrainer, "self._dist = DistributedBackend("),
        (DistillationTrainer, "self._dist.summon_full_params(self.model_wrapped, recurse=False)"),
    ],
    "_metrics": [
        (DistillationTrainer, 'self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}'),
        (DistillationTrainer.log, "for key, val in self._metrics[mode].items()"),
    ],
    "_buffered_inputs": [
        (DistillationTrainer._prepare_inputs, "self._buffered_inputs = ["),
        # whatever batch-first tensors the rollout adds are shuffled and split with the others
        (DistillationTrainer._prepare_inputs, "shuffle_sequence_dict("),
        (DistillationTrainer._prepare_inputs, "split_tensor_dict("),
    ],
    "_signature_columns": [
        (Trainer.__init__, "self._signature_columns = None"),
        (Trainer._remove_unused_columns, "self._signature_columns"),
        (SFTTrainer._set_signature_columns_if_needed, "if self._signature_columns is None"),
    ],
    "_tr_loss": [(Trainer, "self._tr_loss = torch.tensor(0.0"), (Trainer, "self._tr_loss += ")],
    "_total_loss_scalar": [
        (Trainer, "self._total_loss_scalar = 0.0"),
        (Trainer, "self._total_loss_scalar += self._tr_loss.item()"),
        (Trainer, "train_loss = self._total_loss_scalar / "),
        (Trainer, 'metrics["train_loss"] = train_loss'),
    ],
    "_globalstep_last_logged": [(Trainer, "self._globalstep_last_logged = self.state.global_step")],
    "_VALID_DICT_FIELDS": [(TrainingArguments.__post_init__, "for valid_field in self._VALID_DICT_FIELDS")],
    "_models": [(accelerate.Accelerator, "self._models = []"), (accelerate.Accelerator, "self._models.append(model)")],
    "_is_accelerate_prepared": [
        (accelerate.Accelerator.prepare_model, "_is_accelerate_prepared"),
        (accelerate.Accelerator.prepare, "_is_accelerate_prepared = True"),
    ],
    "_original_forward": [(accelerate.Accelerator.prepare_model, "model._original_forward = model.forward")],
    "_hf_hook": [(add_hook_to_module, "module._hf_hook = hook")],
    "_attn_implementation": [(PretrainedConfig, "@_attn_implementation.setter")],
    "_get_generation_parameters": [
        (PretrainedConfig.save_pretrained, "generation_parameters = self._get_generation_parameters()")
    ],
    "_supports_sdpa": [(PreTrainedModel, "if not self._supports_sdpa:")],
    "_supports_flash_attn": [(PreTrainedModel, "if not self._supports_flash_attn:")],
    "_is_stateful": [(GenerationMixin, "if self._is_stateful:")],
    "_keys_to_ignore_on_save": [(PreTrainedModel.save_pretrained, "self._keys_to_ignore_on_save")],
    "_hf_deepspeed_config_weak_ref": [
        (deepspeed.set_hf_deepspeed_config, "_hf_deepspeed_config_weak_ref = weakref.ref("),
        (deepspeed.is_deepspeed_zero3_enabled, "_hf_deepspeed_config_weak_ref()"),
    ],
    "_n_gpu": [(TrainingArguments, "return self._n_gpu"), (Trainer, "self.args.n_gpu > 1")],
    "_is_user_defined": [(GenerationMixin, "user_defined_cache._is_user_defined = True")],
    "_global_mapping": [(GeneralInterface, "cls._global_mapping.update({key: value})")],
}

# What Python does not show, tried out.
TRIED = {"_dynamo", "_is_mkldnn_bf16_supported", "_linear_pointwise", "_reorder_linear_weight"}


@pytest.mark.parametrize("name", SIGNATURES)
def test_what_is_called_or_overridden_has_these_parameters(name):
    owner, parameters = SIGNATURES[name]
    function = owner if inspect.isfunction(owner) else getattr(owner, name)
    assert list(inspect.signature(function).parameters) == parameters.split()


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_read_or_written_is_used_so_by_its_library(name):
    for owner, text in SOURCES[name]:
        assert text in inspect.getsource(owner), f"{name}: {owner.__qualname__} no longer has {text!r}"


def test_public_functions_that_are_wrapped():
    assert list(inspect.signature(trl_models.unwrap_model_for_generation).parameters) == (
        "model accelerator gather_deepspeed3_params generation_kwargs gradient_checkpointing_kwargs".split()
    )
    assert list(inspect.signature(of_trainers.pad).parameters) == (
        "tensors padding_value padding_side pad_to_multiple_of".split()
    )
    assert list(inspect.signature(SFTTrainer.compute_loss).parameters) == (
        "self model inputs return_outputs num_items_in_batch".split()
    )
    assert "self.aux_loss_enabled = " in inspect.getsource(SFTTrainer)


def test_the_engine_s_part_of_torch():
    for dtype in of_engine.packed_types():
        weight, x = torch.randn(48, 64, dtype=dtype), torch.randn(3, 64, dtype=dtype)
        packed = of_engine.pack_weight(weight)
        assert torch.equal(packed.to_dense(), weight)
        torch.testing.assert_close(of_engine.packed_product(x, packed, None), x @ weight.T)
    of_engine.mark_dynamic(x, 0)
    before = torch._dynamo.config.recompile_limit
    with of_engine.at_most_graphs(before + 1):
        assert torch._dynamo.config.recompile_limit == before + 1
    assert torch._dynamo.config.recompile_limit == before
    assert all(issubclass(error, Exception) for error in of_engine.COMPILE_ERRORS)
    assert callable(atexit._run_exitfuncs)


def test_checkpointing_is_the_same_after_a_rollout(student):
    options = {"use_reentrant": True, "preserve_rng_state": False}
    student.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    embeddings = student.get_input_embeddings()
    before = len(embeddings._forward_hooks)
    for _ in range(2):
        with of_trainers.unwrap_model_for_generation(
            student, accelerate.Accelerator(cpu=True), gradient_checkpointing_kwargs=options
        ) as inner:
            assert inner is student and not student.is_gradient_checkpointing
        assert student.is_gradient_checkpointing and len(embeddings._forward_hooks) <= max(before, 1)
        assert student.model.layers[0]._gradient_checkpointing_func.keywords == options


def test_accessors(monkeypatch):
    config = PretrainedConfig()
    of_models.set_attn_implementation(config, "eager")
    assert of_models.attn_implementation(config) == config._attn_implementation == "eager"
    assert of_models.deepspeed_config() is None

    settings = SimpleNamespace()
    monkeypatch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", lambda: settings)
    assert of_models.deepspeed_config() is settings

    @of_trainers.json_fields("extra")
    class Config(SFTConfig): ...

    assert Config._VALID_DICT_FIELDS == [*SFTConfig._VALID_DICT_FIELDS, "extra"]
    assert "extra" not in SFTConfig._VALID_DICT_FIELDS


# Nothing else of the package uses a foreign private name.


def is_private(name: str | None) -> bool:
    return bool(name) and name.startswith("_") and not name.startswith("__") and name != "_"


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def used(path: Path) -> dict[str, int]:
    """The private names that a file uses of any object, and a line: `x._name`, `getattr(x, "_name")`, `f(_name=1)`,
    `import _name`. Names of Python's own modules are left out, which change with Python alone."""
    standard = {
        alias.asname or alias.name
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name in sys.stdlib_module_names
    }
    found = {}
    for node in ast.walk(tree(path)):
        names = []
        if isinstance(node, ast.Attribute):
            if not (isinstance(node.value, ast.Name) and node.value.id in standard):
                names = [node.attr]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            if not getattr(node, "level", 0):
                names = ".".join([getattr(node, "module", None) or "", *(alias.name for alias in node.names)]).split(
                    "."
                )
        elif isinstance(node, ast.Call):
            names = [keyword.arg for keyword in node.keywords]
            if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr", "setattr", "delattr"):
                names += [arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant)]
        found |= {name: node.lineno for name in names if is_private(name)}
    return found


def defined(node: ast.AST) -> set[str]:
    """The private names that code gives to functions, classes, variables, parameters and `self.NAME`."""
    names = set()
    for part in ast.walk(node):
        if isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(part.name)
        elif isinstance(part, ast.arg):
            names.add(part.arg)
        elif isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
            names.add(part.id)
        elif isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
            if isinstance(part.value, ast.Name) and part.value.id == "self":
                names.add(part.attr)
    return set(filter(is_private, names))


PUBLIC = {"_replace"}  # of named tuples, documented as such
OWN = set().union(*(defined(tree(path)) for path in OTHERS)) | PUBLIC


@cache
def names_of(cls: type) -> set[str]:
    """The private names of a foreign class: of its own dictionary, and those that its methods give to `self`."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # not written in Python
        return set(filter(is_private, vars(cls)))
    stored = (n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store))
    return set(filter(is_private, [*vars(cls), *(n.attr for n in stored if getattr(n.value, "id", "") == "self")]))


def foreign_parents() -> set[type]:
    """The classes of other libraries that classes of the package inherit from."""
    parents = set()
    for module in pkgutil.walk_packages([str(ROOT)], "lupi_trainer."):
        for cls in vars(importlib.import_module(module.name)).values():
            if isinstance(cls, type) and cls.__module__.startswith("lupi_trainer."):
                parents |= {c for c in cls.__mro__ if not c.__module__.startswith("lupi_trainer.")}
    return parents - {object}


def test_no_other_file_uses_a_foreign_private_name():
    found = {
        (str(p.relative_to(ROOT)), line): name for p in OTHERS for name, line in used(p).items() if name not in OWN
    }
    assert found == {}


def test_no_own_private_name_is_also_a_parent_s():
    """Neither overridden outside of `private.py` nor hidden by chance."""
    theirs = {name: cls.__name__ for cls in foreign_parents() for name in names_of(cls)}
    assert {name: theirs[name] for name in sorted(OWN & theirs.keys())} == {}


def test_every_foreign_name_is_checked_here_and_listed_in_its_file_s_docstring():
    names = set()
    for path in PRIVATE:
        here = set(used(path))
        if path == Path(of_trainers.__file__):
            here |= defined(tree(path))  # what the mix-ins override
        said = ast.get_docstring(tree(path))
        assert not {name for name in here if f"`{name}`" not in said and f"`torch.{name}`" not in said}
        names |= here
    assert names == SIGNATURES.keys() | SOURCES.keys() | TRIED


def test_a_foreign_name_in_any_form_is_found(tmp_path):
    path = tmp_path / "uses.py"
    path.write_text(
        "import os\nfrom torch._dynamo import exc\nfrom trl.models.utils import _ForwardRedirection\n"
        "trainer._metrics\nhasattr(model, '_hf_hook')\ntrainer.save_model(_internal_call=True)\nos._exit(0)\n"
    )
    assert used(path).keys() == {"_dynamo", "_ForwardRedirection", "_metrics", "_hf_hook", "_internal_call"}
    assert not OWN & used(path).keys()
