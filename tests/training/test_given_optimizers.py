"""What of a configuration an optimizer and a scheduler that were passed do not read."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.optim.lr_scheduler import ConstantLR
from transformers import AutoModelForCausalLM

from lupi_trainer import MTPHeads
from lupi_trainer.lab import resolve_model
from tests.kd_lora.training import make_kd_trainer
from tests.lupi_skd.training import make_trainer
from tests.wmtp.training import make_wmtp_trainer


OF_OPTIMIZER = {"weight_decay": 0.1, "optim": "adafactor", "adam_beta1": 0.5, "optim_args": "a=1"}
OF_SCHEDULE = {"lr_scheduler_type": "cosine", "warmup_steps": 2}


def made_beforehand(make):
    """(arguments of a trainer, optimizer, scheduler)"""
    student = AutoModelForCausalLM.from_pretrained(resolve_model("lab:student"))
    arguments, parameters = {"model": student}, list(student.parameters())
    if make is make_kd_trainer:
        arguments = {"model": get_peft_model(student, LoraConfig(r=2, task_type="CAUSAL_LM")), "peft_config": None}
        parameters = [p for p in arguments["model"].parameters() if p.requires_grad]
    if make is make_wmtp_trainer:
        arguments["heads"] = MTPHeads.for_model(student, 4, "residual")
        parameters += arguments["heads"].parameters()
    optimizer = torch.optim.SGD(parameters, lr=0.125)
    return arguments, optimizer, ConstantLR(optimizer, factor=1.0)


@pytest.mark.parametrize("make", [make_trainer, make_kd_trainer, make_wmtp_trainer])
def test_settings_beside_an_optimizer_or_a_schedule_that_was_passed_are_named_once(tmp_path, caplog, make):
    arguments, optimizer, scheduler = made_beforehand(make)
    settings = {f"config_{name}": value for name, value in {**OF_OPTIMIZER, **OF_SCHEDULE}.items()}
    for given in ((optimizer, None), (optimizer, scheduler)):
        caplog.clear()
        trainer, _ = make(tmp_path, **arguments, **settings, optimizers=given)
        said = [record.message for record in caplog.records if "no effect, since a" in record.message]
        assert len(said) == 1 + (given[1] is not None)
        for name in ("learning_rate", *OF_OPTIMIZER):
            assert sum(f"{name}=" in record.message for record in caplog.records) == 1, name
            assert f"{name}=" in said[0] and said[0].endswith("an optimizer was passed")
        for name in OF_SCHEDULE if given[1] is not None else ():
            assert sum(f"{name}=" in record.message for record in caplog.records) == 1, name
            assert f"{name}=" in said[1] and said[1].endswith("a scheduler was passed")
    assert trainer.optimizer is optimizer and trainer.lr_scheduler is scheduler


def test_a_scheduler_of_another_optimizer_is_refused(tmp_path):
    arguments, optimizer, _ = made_beforehand(make_trainer)
    other = torch.optim.SGD(optimizer.param_groups[0]["params"], lr=0.1)
    for given in (None, optimizer):
        with pytest.raises(ValueError, match="optimizers: the scheduler is of another optimizer than the one that tr"):
            make_trainer(tmp_path, **arguments, optimizers=(given, ConstantLR(other)))


def test_the_class_of_an_optimizer_takes_its_arguments_alone(tmp_path, caplog):
    made_as = (torch.optim.SGD, {"lr": 0.125})
    settings = {f"config_{name}": value for name, value in OF_OPTIMIZER.items() if name != "optim_args"}
    make_wmtp_trainer(tmp_path, optimizer_cls_and_kwargs=made_as, **settings)
    (said,) = [record.message for record in caplog.records if "no effect, since the class" in record.message]
    assert said.endswith("no effect, since the class of an optimizer was passed") and "weight_decay" not in said
    assert all(f"{name}=" in said for name in ("learning_rate", "optim", "adam_beta1"))
