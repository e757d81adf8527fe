"""Steps where they are to run: on a GPU, where there is one; what needs none runs on a CPU as well."""

import math
import warnings

import pytest

from tests.lupi_skd.test_teachers import config, mixed
from tests.lupi_skd.training import make_trainer


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def train(tmp_path, device: str, **settings):
    trainer, losses = make_trainer(tmp_path, config_use_cpu=device == "cpu", config_max_steps=2, **settings)
    trainer.train()
    assert len(losses.losses) == 2 and all(map(math.isfinite, losses.losses))
    return trainer, losses.losses


@pytest.mark.parametrize("device", DEVICES)
def test_bfloat16_checkpointing_and_on_a_gpu_compiled_rollouts(tmp_path, device):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compile=True")
        trainer, _ = train(
            tmp_path,
            device,
            config_bf16=True,
            config_gradient_checkpointing=True,
            config_compile_rollout=device == "cuda",
        )
    assert trainer.model.is_gradient_checkpointing


@pytest.mark.parametrize("device", DEVICES)
def test_a_teacher_in_4_bits(tmp_path, device):
    bnb = pytest.importorskip("bitsandbytes")
    trainer, _ = train(tmp_path, device, config_teacher_load_in_4bit=True)
    layers = [module for module in trainer.teacher_model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert layers and {layer.weight.device.type for layer in layers} == {device}


@pytest.mark.parametrize("device", DEVICES)
def test_an_offloaded_teacher_teaches_the_same_and_leaves_the_device(tmp_path, device):
    kept, ours = train(tmp_path / "kept", device)
    offloaded, theirs = train(tmp_path / "offloaded", device, config_teacher_offload=True)
    assert ours == pytest.approx(theirs, rel=1e-5)
    places = [{parameter.device.type for parameter in one.teacher_model.parameters()} for one in (kept, offloaded)]
    assert places == [{device}, {"cpu"}]


@pytest.mark.parametrize("device", DEVICES)
def test_teachers_of_several_types_teach_their_rows(tmp_path, device):
    """The run's own in float32, one in bfloat16 that is offloaded, and the frozen copy of a student in bfloat16."""
    records = mixed("other", None, "student", None, None, "other", None, None)
    other = {"other": {"model_name_or_path": "lab:student", "dtype": "bfloat16", "offload": True}}
    trainer, _ = train(
        tmp_path,
        device,
        train_dataset=records,
        **config(teachers=other, base_teacher="student", bf16=True, loss_weighting="knowledge"),
    )
    models = {each.name: next(each.model.parameters()) for each in trainer.teachers}
    places = {name: (str(weight.dtype).removeprefix("torch."), weight.device.type) for name, weight in models.items()}
    assert places == {"teacher": ("float32", device), "other": ("bfloat16", "cpu"), "student": ("bfloat16", device)}
