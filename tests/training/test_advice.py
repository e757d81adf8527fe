"""A run that goes wrong is warned of once, with a key to change and a value; one that goes well is not."""

from types import SimpleNamespace

import pytest

from lupi_trainer.lab import load_lab_records
from lupi_trainer.lupi_skd.probes import OPEN_BOOK_PROBES, with_knowledge
from lupi_trainer.training.advice import Advice, loss_is_stuck, open_book_advice
from lupi_trainer.training.run_log import speaking
from tests.lupi_skd.training import make_config, make_trainer


def warnings_of(trainer, capsys, asks: bool = False) -> list[str]:
    """What a training is warned of."""
    with speaking(trainer, asks=asks):
        trainer.train()
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: ")]


REAL = {
    "cut": (
        {"max_completion_length": 3},
        "100% of the texts are cut at max_completion_length=3, before their end: try max_completion_length: 6",
    ),
    "all the teacher's": (
        {"teacher_min_prob": 1.0, "teacher_temperature": 2.0},
        "all tokens are the teacher's (100.0%), none the student's: try teacher_min_prob: 0.05",
    ),
    "never rejected": (
        {"accept_top_k": 1024, "teacher_min_prob": 0.0},
        "the teacher has accepted all of ",
    ),
}


@pytest.mark.parametrize("fault", sorted(REAL))
@pytest.mark.grid(3)
def test_a_run_that_goes_wrong_is_warned_of_once(fault, tmp_path, capsys):
    changes, said = REAL[fault]
    changes = {"per_device_train_batch_size": 16, **changes}
    trainer, _ = make_trainer(
        tmp_path, **{f"config_{key}": value for key, value in changes.items()}, config_max_steps=4
    )
    (warning,) = warnings_of(trainer, capsys)  # after two steps, and not again after four
    assert warning.startswith(f"warning: {said}")
    if fault == "never rejected":
        assert warning.endswith("so the student's errors stay in the texts: try accept_top_k: 5")


def test_a_teacher_that_does_not_answer_its_probes_is_warned_of_before_the_first_step(tmp_path, capsys):
    probes = [probe | {"answers": ["a Finnish word"]} for probe in load_lab_records("lab:probes")]
    trainer, _ = make_trainer(tmp_path, config_max_completion_length=56, config_max_steps=1)
    asked = trainer.open_book_probes = with_knowledge(probes, [])
    assert len(asked) == OPEN_BOOK_PROBES and len({probe["record_id"] for probe in asked}) > 8, "spread over all"
    (warning,) = warnings_of(trainer, capsys, asks=True)
    assert warning.startswith("warning: the teacher answers 0 of 16 probes with their knowledge before it (open-book)")
    assert warning.endswith(
        "try teacher_model_name_or_path: a larger model, and look at `privileged_context` of those records"
    )


def test_a_run_that_goes_well_is_warned_of_nothing(tmp_path, capsys):
    trainer, losses = make_trainer(
        tmp_path, config_max_completion_length=56, config_max_steps=4, config_per_device_train_batch_size=16
    )
    records = load_lab_records("lab:new")
    probes = load_lab_records("lab:probes")[:4]
    by_record = [{**probe, "knowledge": None, "record_id": f"{probe['record_id']}_0"} for probe in probes]
    trainer.open_book_probes = with_knowledge(by_record, records)
    assert len(trainer.open_book_probes) == 4 and trainer.ask_teacher() == (4, 4)
    assert warnings_of(trainer, capsys, asks=True) == [] and len(losses.losses) == 4


def test_a_self_taught_teacher_is_asked_without_its_adapter(tmp_path):
    """What its adapter says is not the teacher's answer."""
    from peft import LoraConfig

    trainer, _ = make_trainer(
        tmp_path,
        teacher_model=None,
        peft_config=LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
        config_max_completion_length=56,
    )
    assert with_knowledge([{"question": "?", "answers": ["!"]}], load_lab_records("lab:new")) == []
    assert trainer.ask_teacher() == (0, 0)  # there is no probe with knowledge
    trainer.open_book_probes = [
        probe | {"knowledge": "It is known."} for probe in load_lab_records("lab:probes-common")[:6]
    ]
    right, _ = trainer.ask_teacher()
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            weight.data.mul_(100)
    assert trainer.ask_teacher() == (right, 6) and right > 0


def fed(tmp_path, logs: dict, times: int = 3, **changes) -> list[str]:
    """What is said of a run whose every log, of 10 steps of 8 texts, is `logs`."""
    args = make_config(tmp_path, per_device_train_batch_size=8, **changes)
    advice, said = Advice(args), []
    state = SimpleNamespace(global_step=0, max_steps=100, log_history=[])
    for _ in range(times):
        state.global_step += 10
        said += advice.look(state, logs)
    return said


HEALTHY = {
    "acc_rate/mean": 0.54,
    "tokens/teacher_share": 0.12,
    "tokens/total_drafted": 5000,
    "tokens/total_accepted": 2700,
    "rollout/unfinished": 0.1,
    "rollout/empty": 0.0,
}


def test_shares_are_told_with_the_key_that_changes_them(tmp_path):
    assert fed(tmp_path, HEALTHY) == []
    low = fed(tmp_path, HEALTHY | {"acc_rate/mean": 0.03, "tokens/teacher_share": 0.9})
    assert low == ["the teacher accepts 3.0% of the student's tokens only: try accept_top_k: 20"]
    rule = {"acceptance_rule": "top_p"}
    (low,) = fed(tmp_path, HEALTHY | {"acc_rate/mean": 0.03}, **rule)
    assert low.endswith("try acceptance_rule: top_k in place of top_p")
    (empty,) = fed(tmp_path, HEALTHY | {"rollout/empty": 0.5})
    assert empty.startswith("50% of the texts are empty") and "try accept_top_k: 1," in empty
    (empty,) = fed(tmp_path, HEALTHY | {"rollout/empty": 0.5}, accept_top_k=1)
    assert empty.endswith('try teacher_system_prompt: "Answer in one sentence."')
    # where nothing is judged, all or none is accepted by design
    for policy in ("student", "teacher"):
        none = {"acc_rate/mean": 0.0, "tokens/teacher_share": 1.0, "tokens/total_accepted": 5000}
        assert fed(tmp_path, HEALTHY | none, rollout_policy=policy) == []
    # and a few texts are one odd batch
    assert fed(tmp_path, HEALTHY | {"rollout/unfinished": 1.0}, times=1) != []
    args = make_config(tmp_path, per_device_train_batch_size=1)
    state = SimpleNamespace(global_step=10, max_steps=100, log_history=[])
    assert Advice(args).look(state, {"rollout/unfinished": 1.0}) == []


# of the lab's recipes, step by step: SKD with all weights, and with LoRA
FALLS = [0.56, 0.53, 0.61, 0.85, 0.61, 0.68, 0.72, 0.59, 0.51, 0.44, 0.55, 0.41, 0.60, 0.48, 0.52, 0.54, 0.44, 0.46]
FALLS += [0.49, 0.39, 0.55, 0.53, 0.41, 0.54, 0.50, 0.49, 0.43, 0.46, 0.39, 0.50, 0.56, 0.51, 0.33, 0.41, 0.38, 0.33]


@pytest.mark.parametrize("rises", [False, True], ids=["flat", "rising"])
def test_a_loss_that_does_not_fall(rises, tmp_path):
    flat = [loss + 0.02 * step * rises for step, loss in enumerate([0.6, 0.5, 0.7] * 16)]
    args = make_config(tmp_path, learning_rate=3e-5)
    advice, said, at = Advice(args), [], []
    state = SimpleNamespace(global_step=0, max_steps=200, log_history=[])
    for loss in flat:
        state.global_step += 1
        state.log_history.append({"step": state.global_step, "loss": loss})
        found = advice.look(state, {"loss": loss})
        said, at = said + found, at + [state.global_step] * len(found)
    assert len(said) == 1 and at == [30] and said[0].startswith("the loss does not fall: 0.6")
    assert said[0].endswith("it rises: try learning_rate: 1.0e-05" if rises else "; try learning_rate: 9.0e-05")


def test_a_loss_that_falls_or_has_not_had_the_time_to_is_said_nothing_of():
    points = list(enumerate(FALLS, start=1))
    assert not any(loss_is_stuck(points[:n], max_steps=200) for n in range(len(points) + 1))
    flat = [(step, 0.5) for step in range(1, 100)]
    assert loss_is_stuck(flat[:29], 200) is None and loss_is_stuck(flat[:30], 200) == (0.5, 0.5)
    assert loss_is_stuck(flat, max_steps=1000) is None, "a tenth of the run"
    assert loss_is_stuck([(step, 1e-5) for step in range(1, 100)], 200) is None, "nothing is left to learn"
    assert loss_is_stuck([(10, 0.5), (20, 0.4), (30, 0.6), (40, 0.6)], 40) == (0.5, 0.6)


def test_half_of_its_probes_are_enough_for_a_teacher(tmp_path):
    args = make_config(tmp_path, teacher_system_prompt=None)
    assert open_book_advice(8, 16, args) is None and open_book_advice(0, 0, args) is None
    said = open_book_advice(7, 16, args)
    assert said.endswith('try teacher_system_prompt: "Answer from the background knowledge, in one sentence."')
