"""What a caller passes to a trainer is the caller's: arguments, dictionaries, models."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from lupi_trainer import CriticWMTPTrainer, KDLoRATrainer, LUPISKDTrainer, Rho1WMTPTrainer
from lupi_trainer.lab import load_lab_records
from lupi_trainer.scripts import sft
from tests.kd_lora.training import lab_tokenizer, labeled_dataset, make_kd_config
from tests.lupi_skd.training import make_config
from tests.wmtp.training import make_wmtp_config


def lora() -> LoraConfig:
    return LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")


def trainers(tmp_path, student, other, peft_config=None, **config):
    """(arguments, a function that makes the trainer) of every method with a second model."""
    records, rows = load_lab_records("lab:new")[:8], labeled_dataset(lab_tokenizer(), 8)
    for trainer, args, data in (
        (LUPISKDTrainer, make_config(tmp_path, max_steps=1, **config), records),
        (KDLoRATrainer, make_kd_config(tmp_path, max_steps=1, **config), rows),
        (Rho1WMTPTrainer, make_wmtp_config(tmp_path, max_steps=1, **config), rows),
        (CriticWMTPTrainer, make_wmtp_config(tmp_path, max_steps=1, **config), rows),
    ):
        yield (
            args,
            lambda trainer=trainer, args=args, data=data: trainer(
                student,
                other,
                args=args,
                train_dataset=data,
                processing_class=lab_tokenizer(),
                peft_config=peft_config,
            ),
        )


def test_models_that_share_weights_are_refused(tmp_path, student):
    before = {name: p.requires_grad for name, p in student.named_parameters()}
    for model in (student, copy.copy(student), get_peft_model(copy.deepcopy(student), lora())):
        other = model.get_base_model() if isinstance(model, PeftModel) else student
        for _, make in trainers(tmp_path, model, other):
            with pytest.raises(ValueError, match="student and (teacher|reference) share weights"):
                make()
    assert {name: p.requires_grad for name, p in student.named_parameters()} == before and student.training is False


def test_a_callers_teacher_is_given_back_as_it_was(tmp_path, student, teacher):
    teacher.train()
    teacher.lm_head.eval()
    teacher.model.norm.weight.requires_grad_(False)
    modes = [module.training for module in teacher.modules()]
    grads = [parameter.requires_grad for parameter in teacher.parameters()]
    weights = {name: value.clone() for name, value in teacher.state_dict().items()}
    config = copy.deepcopy(teacher.config.to_dict())
    for _, make in trainers(tmp_path, student, teacher):
        trainer = make()
        trainer.train()
        used = trainer.reference.model if hasattr(trainer, "reference") else trainer.teacher_model
        assert not used.training and not any(p.requires_grad for p in used.parameters())
        assert next(used.parameters()).data_ptr() == next(teacher.parameters()).data_ptr()  # no second copy
    assert [module.training for module in teacher.modules()] == modes
    assert [parameter.requires_grad for parameter in teacher.parameters()] == grads
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in teacher.state_dict().items())
    assert teacher.config.to_dict() == config


def test_a_callers_arguments_are_not_written_to(tmp_path):
    options = {"dtype": "float32"}
    for args, make in trainers(tmp_path, "lab:student", "lab:teacher", model_init_kwargs=options):
        before = {key: copy.deepcopy(value) for key, value in vars(args).items() if not key.startswith("_")}
        make()
        after = {key: value for key, value in vars(args).items() if key in before}
        assert {key for key in before if repr(before[key]) != repr(after[key])} == set()
        assert args.model_init_kwargs is options and options == {"dtype": "float32"}


def test_a_frozen_student_is_refused_at_construction(tmp_path, student, teacher):
    get_peft_model(copy.deepcopy(student), lora()).save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(copy.deepcopy(student), str(tmp_path / "adapter"))
    for model, how in ((loaded, "load it with `is_trainable=True`"), (student, "and it gets no adapter")):
        model.requires_grad_(False)
        for trainer, args in ((LUPISKDTrainer, make_config(tmp_path)), (KDLoRATrainer, make_kd_config(tmp_path))):
            with pytest.raises(ValueError, match=f"has nothing to train: all of its weights are frozen.*{how}"):
                trainer(model, teacher, args=args, train_dataset=load_lab_records("lab:new")[:8])
    assert not (tmp_path / "run").exists()


def test_an_adapters_folder_is_no_model(tmp_path, student):
    folder = str(tmp_path / "adapter")
    get_peft_model(student, lora()).save_pretrained(folder)
    lab_tokenizer().save_pretrained(folder)
    for names in (("lab:student", folder), (folder, "lab:teacher")):
        for _, make in trainers(tmp_path, *names):
            with pytest.raises(ValueError, match="is an adapter, and a model is wanted"):
                make()
    recipe = ["--model_name_or_path", folder, "--dataset_name", "lab:common", "--output_dir", str(tmp_path / "run")]
    with pytest.raises(ValueError, match="the student .* is an adapter, and a model is wanted"):
        sft.build_trainer(*sft.make_parser().parse_args_and_config([*recipe, "--bf16", "false", "--use_cpu"]))
