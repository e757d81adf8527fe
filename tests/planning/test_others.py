"""Several teachers in a plan: what each holds while another one works."""

from dataclasses import replace

import pytest
import torch

from lupi_trainer.planning.plan import plan_bytes
from lupi_trainer.planning.recipe import Lengths, make_run
from lupi_trainer.planning.rollout import rollout_moments
from lupi_trainer.planning.run import CPU, STUDENT, TEACHER
from lupi_trainer.planning.training import training_moments
from tests.planning.shapes import qwen3


LENGTHS = Lengths(20, 200, 0, 100, 100, "stated")
OWN = "other teachers' weights"


@pytest.fixture
def make(tmp_path):
    names = {}
    for name, config in (("student", qwen3(2, 64, 128, 8, 512)), ("teacher", qwen3(4, 128, 256, 8, 512))):
        config.save_pretrained(tmp_path / name)
        names[name] = str(tmp_path / name)

    def made(**keys):
        recipe = {"model_name_or_path": names["student"], "teacher_model_name_or_path": names["teacher"], **keys}
        for entry in (recipe.get("teachers") or {}).values():
            if "model_name_or_path" in entry:
                entry["model_name_or_path"] = names[entry["model_name_or_path"]]
        return make_run(lambda key, default=None: recipe.get(key, default), LENGTHS)

    return made


def held(run, item: str = OWN) -> dict[str, int]:
    """Bytes of an item, the most of any moment, by device; while the run's own teacher works."""
    found: dict[str, int] = {}
    for moments in (rollout_moments(run), training_moments(run)):
        for device, its in moments.items():
            found[device] = max([found.get(device, 0), *(moment.items.get(item, 0) for moment in its)])
    return found


def test_a_frozen_copy_is_held_beside_the_teacher_in_the_type_that_the_student_computes_in(make):
    plain, run = make(), make(base_teacher="student")
    (copy,) = run.others
    assert held(plain)[STUDENT] == 0 and run.student.dtype == torch.float32
    assert held(run) == {STUDENT: 2 * run.student.weights}  # bfloat16
    before, after = (plan_bytes(each)[0].worst.total for each in (plain, run))
    assert before + copy.held <= after
    assert held(make(base_teacher="student", use_cpu=True, bf16=False))[STUDENT] == 4 * run.student.weights
    own = {"student": {"dtype": "float32"}}
    assert held(make(base_teacher="student", teachers=own))[STUDENT] == 4 * run.student.weights


def test_a_second_reading_is_planned_beside_the_student_s_activations(make):
    """That of `loss_weighting`, and the only one where states are not kept."""
    plain = make()
    assert "teacher's reading" not in [moment.name for moment in training_moments(plain)[STUDENT]]
    for keys in ({"loss_weighting": "knowledge"}, {"reuse_verification": False}):
        moments = {moment.name: moment for moment in training_moments(make(**keys))[STUDENT]}
        read = moments["teacher's reading"]
        assert read.items["activations"] == moments["loss"].items["activations"] and read.items["prefill"] > 0


def test_what_is_offloaded_or_the_student_itself_or_elsewhere_takes_no_room_beside_it(make):
    for keys in ({"teacher_offload": True}, {"teachers": {"student": {"offload": True}}}):
        run = make(base_teacher="student", **keys)
        assert held(run)[STUDENT] == 0
        assert held(run, "other teachers' lm_heads")[STUDENT] == 2 * run.student.head
    adapted = make(base_teacher="student", use_peft=True, lora_target_modules="all-linear")
    assert held(adapted)[STUDENT] == 0 and adapted.others[0].self_taught
    away = make(base_teacher="student", teachers={"student": {"device": "cuda:1"}})
    assert held(away)[STUDENT] == 0
    (there,) = [device for device in plan_bytes(away) if device.device == TEACHER]
    assert there.rollout.items["teacher's weights"] == 2 * away.student.weights
    on_cpu = make(teachers={"far": {"model_name_or_path": "student", "device": "cpu"}})
    assert held(on_cpu)[STUDENT] == 0 and {device.device for device in plan_bytes(on_cpu)} == {STUDENT, CPU}


def test_each_teacher_s_turn_is_planned(make):
    """The smaller teacher's own, and the larger one's beside it; of personas of one model there is one turn."""
    run = make(
        teacher_model_name_or_path=None,
        teachers={"small": {"model_name_or_path": "student"}, "large": {"model_name_or_path": "teacher"}},
    )
    assert run.teacher.name.endswith("student") and [other.name for other in run.others] == ["large"]
    turns = run.by_teacher
    assert [turn.teacher.name for turn in turns] == [run.teacher.name, run.others[0].model.name]
    assert held(turns[1])[STUDENT] == run.teacher.held
    worst = max(plan_bytes(replace(turn, others=()))[0].worst.total for turn in turns)
    assert plan_bytes(run)[0].worst.total > worst
    assert not make(teachers={"a": {"model_name_or_path": "teacher", "system_prompt": "A."}}).others
    assert not make(teachers={"a": {"model_server_url": "http://x"}}).others
    with pytest.raises(ValueError, match="no teacher: set"):
        make(teacher_model_name_or_path=None, base_teacher="student")
