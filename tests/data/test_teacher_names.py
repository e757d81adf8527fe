"""What is said of the entries of `teachers`."""

from types import SimpleNamespace

import pytest

from lupi_trainer.data.teacher_names import RUN, named, teacher_faults


@pytest.mark.parametrize(
    "entry, said",
    [
        ({"model_name_or_path": "a/b"}, []),
        ({"model_name_or_path": "a/b", "offload": True, "few_shot_examples": []}, []),
        ("a/b", ["teachers: law: must have keys of its own (model_name_or_path, "]),
        ({"model_name_or_path": "a/b", "size": 3}, ["teachers: law: unknown key 'size'; there are "]),
        ({"model_name_or_path": 3}, ["teachers: law: model_name_or_path must be text, got 3"]),
    ],
)
def test_an_entry_is_a_mapping_of_known_keys(entry, said):
    args = SimpleNamespace(teachers={"law": entry}, base_teacher=RUN)
    found = list(teacher_faults(args))
    assert len(found) == len(said) and all(map(str.startswith, found, said)), found
    assert named(args) == ["law"]
