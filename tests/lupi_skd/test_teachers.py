"""Rows with different teachers: each row's text, loss and gradient are those of a run with its teacher alone."""

import copy

import pytest
import torch
from peft import LoraConfig

from lupi_trainer.inspection.words import METRICS
from lupi_trainer.lab import load_lab_records
from lupi_trainer.lupi_skd.probes import with_knowledge
from lupi_trainer.speculative import AdapterDisabled
from tests.lupi_skd.test_trainer import assert_same, loss_and_gradients
from tests.lupi_skd.training import make_config, make_trainer
from tests.teachers.vllm_stand_in import VLLMStandIn


NEW, OLD = load_lab_records("lab:new"), [r | {"knowledge": None} for r in load_lab_records("lab:common")]
LORA = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", "init_lora_weights": False}
MODEL = {"model_name_or_path": "lab:teacher"}
OTHER = {"teachers": {"other": {"model_name_or_path": "lab:teacher", "system_prompt": "You are another."}}}


def mixed(*teachers: str | None) -> list[dict]:
    """Records with knowledge and base records in turn, each with its teacher; their noise is their own anywhere."""
    rows = [(NEW if n % 2 == 0 else OLD)[n] for n in range(len(teachers))]
    return [row | {"teacher": teacher, "row_id": n} for n, (row, teacher) in enumerate(zip(rows, teachers))]


def config(**changes) -> dict:
    return {f"config_{key}": value for key, value in changes.items()}


def trained(trainer, scale: float = 0.02):
    """The trainer, its student moved away from what it was."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in (p for p in trainer.model.parameters() if p.requires_grad):
            weight += scale * torch.randn(weight.shape, generator=generator)
    return trainer


def batch_of(trainer, rows=None) -> dict:
    trainer.model.train()
    records = [trainer.train_dataset[i] for i in range(len(trainer.train_dataset))]
    return trainer.roll_out(records if rows is None else [records[i] for i in rows])


def texts(inputs) -> list[list[int]]:
    return [ids[mask.bool()].tolist() for ids, mask in zip(inputs["completion_ids"], inputs["completion_mask"])]


def prompts(inputs) -> list[list[int]]:
    pairs = zip(inputs["teacher_prompt_ids"], inputs["teacher_prompt_mask"])
    return [ids[mask.bool()].tolist() for ids, mask in pairs]


def assert_parts(whole, parts: dict, tolerance: float = 2e-6, **options) -> None:
    """A batch of several teachers is those of each of them: prompts, texts, and the losses' and gradients' mean.

    Args:
        whole: a trainer.
        parts: of each teacher, places in the batch and a trainer that has no other, on the same records.
    """
    inputs = batch_of(whole)
    count, sums, gradients = inputs["num_items_in_batch"].item(), 0.0, {}
    for rows, trainer in parts.values():
        its = batch_of(trainer, rows)
        assert [prompts(inputs)[i] for i in rows] == prompts(its)
        assert [texts(inputs)[i] for i in rows] == texts(its)
        share = its["num_items_in_batch"].item() / count
        loss, found = loss_and_gradients(trainer, its)
        sums += share * loss
        for name, gradient in found.items():
            gradients[name] = gradients.get(name, 0) + share * gradient
    assert_same(loss_and_gradients(whole, inputs), (sums, gradients), tolerance)
    if "teacher_hidden" in inputs:
        fresh = {key: value for key, value in inputs.items() if key != "teacher_hidden"}
        assert_same(loss_and_gradients(whole, fresh), (sums, gradients), tolerance)


@pytest.mark.parametrize("policy", ["speculative", "student", "teacher"])
def test_base_records_are_taught_by_the_student_as_it_was(tmp_path, policy):
    """Beside an external teacher; and by a frozen copy, which a teacher of the student's own name is, too."""
    records, shared = mixed(None, None, None, None, None), config(rollout_policy=policy)
    whole, _ = make_trainer(tmp_path, train_dataset=records, **shared, **config(base_teacher="student"))
    ours, _ = make_trainer(tmp_path / "a", train_dataset=records, **shared)
    copied, _ = make_trainer(tmp_path / "b", teacher_model="lab:student", train_dataset=records, **shared)
    parts = {"teacher": ([0, 2, 4], trained(ours)), "student": ([1, 3], trained(copied))}
    assert_parts(trained(whole), parts)


@pytest.mark.parametrize("reuse", [True, False])
def test_a_lora_student_is_its_own_frozen_copy(tmp_path, student, reuse):
    """Beside an external teacher, no second copy is made: its adapter is off."""
    records, shared = mixed(None, None, None, None), config(reuse_verification=reuse)
    runs = []
    for name, teacher, changes in (
        ("whole", "lab:teacher", {"base_teacher": "student"}),
        ("teacher", "lab:teacher", {}),
        ("student", None, {}),
    ):
        torch.manual_seed(0)  # of the adapter
        lora = LoraConfig(**LORA)
        own = {"model": copy.deepcopy(student), "teacher_model": teacher, "peft_config": lora}
        runs.append(make_trainer(tmp_path / name, train_dataset=records, **own, **shared, **config(**changes))[0])
    whole, ours, itself = runs
    assert isinstance(whole.teachers.by_name["student"].model, AdapterDisabled)
    assert whole.teachers.frozen_student is None
    assert_parts(whole, {"teacher": ([0, 2], ours), "student": ([1, 3], itself)})


def test_each_record_has_the_teacher_that_it_names(tmp_path, teacher, tokenizer):
    """One that is loaded, one with another persona, one on a server (all of its vocabulary), the run's own."""
    records = mixed("other", None, "far", "student", "other", "far", None, "student")
    with VLLMStandIn(teacher, tokenizer, max_logprobs=-1) as server:
        persona = {"system_prompt": "You are another.", "knowledge_template": "{query}\n{privileged_context}"}
        teachers = {
            "other": {"model_name_or_path": "lab:student", **persona},
            "far": {"model_server_url": server.url, "system_prompt": "You are far away."},
            "student": {},
        }
        shared = {"train_dataset": [record | {"teacher": None} for record in records], "config_loss_top_k": 568}
        whole, _ = make_trainer(tmp_path / "all", train_dataset=records, **config(teachers=teachers, loss_top_k=568))
        on_server = {"teacher_model": None, **config(teacher_model_server_url=server.url)}
        alone = {
            "other": (
                [0, 4],
                {"teacher_model": "lab:student", "config_knowledge_template": persona["knowledge_template"]},
            ),
            "teacher": ([1, 6], {}),
            "far": ([2, 5], {**on_server, "config_teacher_system_prompt": "You are far away."}),
            "student": ([3, 7], {"teacher_model": "lab:student"}),
        }
        alone["other"][1]["config_teacher_system_prompt"] = persona["system_prompt"]
        parts = {
            name: (rows, trained(make_trainer(tmp_path / name, **shared, **own)[0]))
            for name, (rows, own) in alone.items()
        }
        # a temperature of 0.7 is known of a server up to an error
        assert_parts(trained(whole), parts, tolerance=2e-4)


def test_teachers_that_are_loaded_alike_are_one_model_with_several_personas(tmp_path):
    more = {"third": {"model_name_or_path": "lab:teacher"}, "exact": MODEL | {"dtype": "float64"}}
    teachers = OTHER["teachers"] | more
    trainer, _ = make_trainer(tmp_path, train_dataset=mixed(None, "other", "third", None), config_teachers=teachers)
    first, second, third, exact = trainer.teachers
    assert [each.name for each in trainer.teachers] == ["teacher", "other", "third", "exact"]
    assert first.model is second.model is third.model is not exact.model
    told = [each.prompt.messages([{"role": "user", "content": "Q"}], "K")[0]["content"] for each in trainer.teachers]
    assert told[1] == "You are another." and told[0] == told[2] == told[3] != told[1]


def test_a_run_without_a_teacher_of_its_own_wants_one_named_by_each_record(tmp_path):
    named = mixed("other", "other", "other", "other")
    trainer, losses = make_trainer(tmp_path, teacher_model=None, train_dataset=named, **config(**OTHER))
    assert trainer.teachers.names == ["other"] and trainer.teacher_model is trainer.teachers.first.model
    trainer.train()
    assert len(losses.losses) == 3
    unnamed = [*named[:3], named[3] | {"teacher": None, "id": "fact_3"}]
    with pytest.raises(ValueError, match="record 'fact_3': it names no `teacher`, and the run has none of its own"):
        make_trainer(tmp_path / "b", teacher_model=None, train_dataset=unnamed, **config(**OTHER))
    with pytest.raises(ValueError, match="no teacher: pass `teacher_model`"):
        make_trainer(tmp_path / "c", teacher_model=None, train_dataset=named)
    assert not (tmp_path / "b").exists() and not (tmp_path / "c").exists()


def test_a_teacher_that_is_not_there_is_named_with_its_record(tmp_path):
    records = [record | {"id": f"fact_{n}"} for n, record in enumerate(mixed("other", None, "tutor", None))]
    message = "record 'fact_2': there is no teacher 'tutor'; the run has teacher, other"
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, train_dataset=records, **config(**OTHER))
    with pytest.raises(ValueError, match="record 'fact_0': there is no teacher 'other'; the run has teacher$"):
        make_trainer(tmp_path, train_dataset=records)
    with pytest.raises(ValueError, match="`teacher` must be a name or null, got 3"):
        make_trainer(tmp_path, train_dataset=[NEW[0] | {"teacher": 3}] * 4)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"base_teacher": "other"}, r"base_teacher must be one of \['teacher', 'student'\], got 'other'"),
        ({"teachers": ["lab:teacher"]}, "teachers must be a mapping from a name"),
        ({"teachers": {"teacher": MODEL}}, "teachers: 'teacher' is the teacher that the recipe's own keys name"),
        ({"teachers": {"a b": MODEL}}, "a name is of letters, digits, _ and -, got 'a b'"),
        ({"teachers": {"a": None}}, "teachers: a: must have keys of its own"),
        ({"teachers": {"a": {}}}, "teachers: a: set model_name_or_path, or model_server_url"),
        ({"teachers": {"a": MODEL | {"persona": "x"}}}, "teachers: a: unknown key 'persona'; there are model_name_or"),
        ({"teachers": {"a": MODEL | {"offload": "yes"}}}, "teachers: a: offload must be true or false, got 'yes'"),
        ({"teachers": {"a": MODEL | {"system_prompt": 3}}}, "teachers: a: system_prompt must be text, got 3"),
        ({"teachers": {"student": MODEL}}, "teachers: student: model_name_or_path has no place here"),
        (
            {"teachers": {"a": {"model_server_url": "http://x", "dtype": "float32"}}},
            "teachers: a: dtype has no effect: its model is loaded by the server",
        ),
        ({"teachers": {"a": {"model_server_url": "x"}}}, "teachers: a: "),
        ({"teachers": {"a": {"model_server_url": "http://x"}}, "deterministic": True}, "does not go with teachers: a"),
        (
            {"teachers": {"a": {"model_server_url": "http://x"}}, "temperature": 2.0},
            "teachers: a: temperature=2.0 doe",
        ),
        ({"teachers": {"a": MODEL | {"load_in_4bit": True, "load_in_8bit": True}}}, "exclude each other"),
        ({"teachers": {"a": MODEL | {"load_in_4bit": True, "offload": True}}}, "a quantized one stays where it is"),
        ({"teachers": {"a": MODEL | {"chat_template": "mine"}}}, "teachers: a: chat_template must be one of"),
        ({"teachers": {"a": MODEL | {"chat_template_kwargs": {"tokenize": False}}}}, "teachers: a: "),
    ],
)
def test_what_a_teacher_cannot_have_is_said_with_its_name(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_config(tmp_path, **changes)


def test_a_frozen_copy_stays_what_the_student_was(tmp_path, student):
    """Of a student that is given by name, or as a model, which is trained in place; and where it is offloaded."""
    records, runs = mixed(*[None] * 8), []
    for name, model, changes in (
        ("name", "lab:student", {}),
        ("object", copy.deepcopy(student), {}),
        ("offloaded", "lab:student", {"teachers": {"student": {"offload": True}}}),
    ):
        changes = {"base_teacher": "student"} | changes
        trainer, losses = make_trainer(tmp_path / name, model=model, train_dataset=records, **config(**changes))
        its = trainer.teachers.by_name["student"]
        assert (its.offloaded is not None) == (name == "offloaded")
        assert trainer.teachers.first.offloaded is None
        before = trainer.teachers.frozen_student
        trainer.train()
        assert trainer.teachers.frozen_student == before
        trainable = dict(trainer.model.named_parameters())
        for key, weight in its.model.named_parameters():
            assert not weight.requires_grad and torch.equal(weight, student.get_parameter(key))
            assert not torch.equal(weight, trainable[key])
        runs.append((before, losses.losses))
    assert runs[0] == runs[1] == runs[2]


def test_a_resumed_run_has_the_frozen_copy_of_its_beginning(tmp_path, student):
    settings = {"base_teacher": "student", "save_strategy": "steps", "save_steps": 2, "gamma_policy": "goodput"}
    records = mixed(*[None] * 8)

    def run(folder, model="lab:student", steps=4, **changes):
        options = config(**settings, max_steps=steps, output_dir=str(folder))
        return make_trainer(tmp_path, model=model, train_dataset=records, **(options | changes))

    unbroken, losses = run(tmp_path / "run")
    unbroken.train()
    again, rest = run(tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert rest.losses == losses.losses[2:]
    assert all(again.teachers.by_name[name].gamma_policy.rounds > 0 for name in ("teacher", "student"))
    moved = copy.deepcopy(student)
    with torch.no_grad():
        moved.model.norm.weight += 0.1
    other, _ = run(tmp_path / "other", moved)
    with pytest.raises(ValueError, match="resumed with another frozen student"):
        other.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))


def test_a_frozen_copy_is_in_the_type_that_the_student_computes_in(tmp_path):
    for changes, dtype in (
        ({"bf16": True}, torch.bfloat16),
        ({"model_init_kwargs": {"dtype": "bfloat16"}, "bf16": True}, torch.bfloat16),
        ({"bf16": True, "teachers": {"student": {"dtype": "float32"}}}, torch.float32),
        ({}, torch.float32),
    ):
        trainer, _ = make_trainer(tmp_path, **config(base_teacher="student", learning_rate=1.0, **changes))
        assert trainer.teachers.by_name["student"].model.dtype == dtype


def test_each_teacher_s_rows_are_reported_apart(tmp_path):
    records = mixed("other", None, "student", None, "other", None, "student", None)
    trainer, losses = make_trainer(
        tmp_path,
        train_dataset=records,
        **config(teachers=OTHER["teachers"], base_teacher="student", max_steps=1, per_device_train_batch_size=8),
    )
    seen = []
    trainer._acceptance = lambda inner=trainer._acceptance: (seen.append(list(trainer._rows)), inner())[1]
    trainer.train()
    log, names = losses.logs[0], ("teacher", "other", "student")
    assert {key.split("_of_")[1] for key in log if "_of_" in key} == {"other", "student"}  # of the run's own: no row
    rows = {name: sum(trainer.teachers.of(row).name == name for row in seen[0]) for name in names}
    assert rows == {"teacher": 0, "other": 2, "student": 6}
    assert log["gamma/mean_of_other"] == log["gamma/mean_of_student"] == 4
    for key in ("acc_rate/mean", "tokens/teacher_share", "rollout/tokens_per_second"):
        apart = [log[f"{key}_of_{name}"] for name in ("other", "student")]
        assert key in METRICS and apart[0] != apart[1]
        if key.startswith(("acc", "tok")):
            assert min(apart) <= log[key] <= max(apart)
    plain, losses = make_trainer(tmp_path / "plain", train_dataset=mixed(*[None] * 4), config_max_steps=1)
    plain.train()
    assert not [key for key in losses.logs[0] if "_of_" in key]


def test_offloaded_teachers_come_one_after_another(tmp_path, monkeypatch):
    """Only the one whose rows are written is on its device, and none whose rows are not in the batch."""
    teachers = {
        name: {"model_name_or_path": f"lab:{name.split('_')[0]}", "offload": True}
        for name in ("teacher_2", "student_2")
    }
    trainer, losses = make_trainer(
        tmp_path, train_dataset=mixed("teacher_2", "student_2", None, "teacher_2"), **config(teachers=teachers)
    )
    there, most = [], []
    for each in trainer.teachers:
        if each.offloaded is not None:
            each.device = torch.device("cpu", 0)  # to torch another place
            inner = each.offloaded._drop
            monkeypatch.setattr(each.offloaded, "_drop", lambda inner=inner: (there and there.pop(), inner())[1])
            on = each.offloaded.on

            def coming(device, on=on, name=each.name):
                there.append(name)
                most.append(tuple(there))
                return on(device)

            monkeypatch.setattr(each.offloaded, "on", coming)
    batch_of(trainer)
    assert most == [("teacher_2",), ("student_2",)]
    most.clear()
    batch_of(trainer, [0, 3])
    assert most == [("teacher_2",)]


def test_prompts_of_each_frozen_teacher_are_kept(tmp_path):
    records = mixed("other", None, None, "other")
    shared = config(base_teacher="student", per_device_train_batch_size=4, **OTHER)
    runs = []
    for megabytes in (0, 8):
        trainer, losses = make_trainer(
            tmp_path / str(megabytes), train_dataset=records, config_teacher_prompt_cache_mb=megabytes, **shared
        )
        trainer.train()
        runs.append(losses.losses)
    assert runs[0] == pytest.approx(runs[1], abs=1e-5)
    held = {each.name: sum(not node.below for node in each.prompts.used) for each in trainer.teachers}
    assert held == {"teacher": 3, "other": 3, "student": 1}  # the first two are one model


def test_open_book_questions_go_to_the_teacher_of_their_record(tmp_path):
    """A teacher that cannot read answers none of its own."""
    probes = load_lab_records("lab:probes")[:6]
    records = [
        {"id": probe["record_id"], "query": "Q", "knowledge": probe["knowledge"], "teacher": ("other", None)[n % 2]}
        for n, probe in enumerate(probes)
    ]
    teachers = {"other": {"model_name_or_path": "lab:student"}}
    trainer, _ = make_trainer(tmp_path, train_dataset=records, **config(teachers=teachers))
    trainer.open_book_probes = with_knowledge(probes, trainer.train_dataset)
    assert [probe["teacher"] for probe in trainer.open_book_probes] == ["other", None] * 3
    assert trainer.ask_teacher() == (3, 6)


def test_an_evaluation_and_a_stream_know_them_too(tmp_path):
    from datasets import Dataset

    records = mixed("other", None, "student", None)
    shared = {"eval_dataset": records, **config(teachers=OTHER["teachers"], base_teacher="student")}
    trainer, losses = make_trainer(tmp_path, train_dataset=records, config_shuffle_dataset=False, **shared)
    whole = trainer.evaluate()["eval_loss"]
    trainer.args.per_device_eval_batch_size = 1
    assert trainer.evaluate()["eval_loss"] == pytest.approx(whole, abs=1e-5)
    trainer.train()
    stream = Dataset.from_list(records).to_iterable_dataset()
    again, streamed = make_trainer(tmp_path / "b", train_dataset=stream, config_shuffle_dataset=False, **shared)
    again.train()
    assert streamed.losses == pytest.approx(losses.losses, abs=1e-6)
    lost = Dataset.from_list([r | {"teacher": "tutor"} for r in records]).to_iterable_dataset()
    third, _ = make_trainer(tmp_path / "c", train_dataset=lost, config_shuffle_dataset=False, **shared)
    with pytest.raises(ValueError, match="there is no teacher 'tutor'"):
        third.train()
