"""Who teaches is decided once, and names become paths once."""

import sys
from types import SimpleNamespace

import pytest

from lupi_trainer.lab import resolve_model
from lupi_trainer.lupi_skd.setup import TeacherKind, teacher_kind
from tests.lupi_skd.training import make_trainer


URL = "http://127.0.0.1:9"


def test_names_are_resolved_once_in_a_construction(tmp_path, monkeypatch):
    asked = []

    def recorded(name):
        asked.append(name)
        return resolve_model(name)

    for name, module in list(sys.modules.items()):
        if name.startswith("lupi_trainer") and hasattr(module, "resolve_model"):
            monkeypatch.setattr(module, "resolve_model", recorded)
    trainer, _ = make_trainer(tmp_path, config_teacher_model_name_or_path="lab:teacher")
    assert asked == ["lab:student", "lab:teacher"]
    assert trainer.teacher_model.config.name_or_path == resolve_model("lab:teacher")
    with pytest.raises(ValueError, match="teacher_model_name_or_path='lab:student' has no effect here: 'lab:teacher'"):
        make_trainer(tmp_path, config_teacher_model_name_or_path="lab:student")
    with pytest.raises(ValueError, match="no model 'lab:nothing'"):
        make_trainer(tmp_path, teacher_model=None, config_teacher_model_name_or_path="lab:nothing")


@pytest.mark.parametrize(
    "teacher, url, adapter, kind",
    [
        ("path", None, None, TeacherKind.LOCAL),
        ("path", None, "lora", TeacherKind.LOCAL),
        (None, URL, None, TeacherKind.REMOTE),
        ("path", URL, "lora", TeacherKind.REMOTE),
        (None, None, "lora", TeacherKind.SELF),
    ],
)
def test_who_teaches(teacher, url, adapter, kind):
    args = SimpleNamespace(teacher_model_server_url=url, teacher_offload=False, teacher_store=None, teachers=None)
    assert teacher_kind(teacher, args, "student", adapter) is kind
