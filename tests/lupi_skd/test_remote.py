"""Training with a teacher on a server."""

import copy

import pytest
import torch

from lupi_trainer.lab import load_lab_records
from lupi_trainer.lupi_skd.probes import with_knowledge
from lupi_trainer.teachers.vllm import TeacherServer
from lupi_trainer.teachers.wire import TeacherServerError
from tests.lupi_skd.training import make_config, make_trainer
from tests.teachers.vllm_stand_in import VLLMStandIn


SHORT = {"config_max_steps": 2, "config_max_completion_length": 6, "config_per_device_train_batch_size": 2}


@pytest.fixture
def server(teacher, tokenizer):
    with VLLMStandIn(teacher, tokenizer, max_logprobs=-1) as stand_in:
        yield stand_in


def on(server, tmp_path, **options):
    return make_trainer(tmp_path, **{"teacher_model": None, "config_teacher_model_server_url": server.url, **options})


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.grid(2)
def test_with_the_full_vocabulary_it_is_training_with_the_teacher_here(server, tmp_path, beta):
    """Text, losses and weights of two steps."""
    runs = []
    for name in ("remote", "here"):
        options = {"config_loss_top_k": 568} if name == "remote" else {}
        make = make_trainer if name == "here" else lambda *a, **k: on(server, *a, **k)
        trainer, losses = make(tmp_path / name, config_beta=beta, **SHORT, **options)
        trainer.train()
        runs.append((losses, {n: p.detach() for n, p in trainer.model.named_parameters()}))
    (ours, our_weights), (theirs, their_weights) = runs
    assert ours.losses == pytest.approx(theirs.losses, abs=1e-4)
    for key in ("tokens/teacher_share", "tokens/total_accepted", "acc_rate/mean"):
        assert [log[key] for log in ours.logs] == [log[key] for log in theirs.logs]
    assert [log["entropy"] for log in ours.logs] == pytest.approx([log["entropy"] for log in theirs.logs], abs=1e-3)
    for name, weight in our_weights.items():
        torch.testing.assert_close(weight, their_weights[name], atol=2e-3, rtol=1e-2)


@pytest.mark.slow
def test_twenty_tokens_and_a_rest_write_the_same_text_and_a_loss_just_below(server, tmp_path):
    ours, our_losses = on(server, tmp_path / "a", config_max_steps=2)
    assert isinstance(ours.teacher_model, TeacherServer) and ours.teacher_model.top_k == 20
    theirs, their_losses = make_trainer(tmp_path / "b", config_max_steps=2)
    for trainer in (ours, theirs):
        trainer.open_book_probes = with_knowledge(load_lab_records("lab:probes")[:4], [])
        assert trainer.ask_teacher() == (4, 4)
        trainer.train()
    first, reference = our_losses.logs[0], their_losses.logs[0]
    assert first["tokens/total_accepted"] == reference["tokens/total_accepted"]
    assert reference["loss"] - 0.05 < first["loss"] < reference["loss"] + 1e-4
    assert first["teacher_server/requests"] > 0 and first["teacher_server/retries"] == 0
    assert our_losses.logs[1]["teacher_server/requests"] > first["teacher_server/requests"]


def test_the_loss_asks_for_nothing_more(server, tmp_path):
    trainer, _ = on(server, tmp_path)
    trainer.model.train()
    inputs = trainer.roll_out([trainer.train_dataset[i] for i in range(4)])
    asked = len(server.requests)
    loss, *_ = trainer.distillation_loss(trainer.model, inputs, inputs["num_items_in_batch"])
    loss.backward()
    assert loss > 0 and len(server.requests) == asked
    assert inputs["teacher_top"].shape == (*inputs["completion_ids"].shape, 40)


@pytest.mark.slow
def test_rollout_policies_and_accumulation(server, tmp_path):
    for policy in ("student", "teacher"):
        losses = []
        for name, make in (("here", make_trainer), ("remote", lambda *a, **k: on(server, *a, **k))):
            options = {"config_loss_top_k": 568} if name == "remote" else {}
            trainer, log = make(
                tmp_path / policy / name,
                config_rollout_policy=policy,
                config_max_steps=1,
                config_max_completion_length=4,
                config_per_device_train_batch_size=1,
                config_gradient_accumulation_steps=2,
                **options,
            )
            trainer.train()
            losses.append(log.losses)
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_a_named_teacher_must_be_the_one_on_the_server(server, tmp_path):
    server.names = ["lab-teacher"]
    with pytest.raises(TeacherServerError, match="serves lab-teacher, and the teacher is .*student"):
        on(server, tmp_path, teacher_model="lab:student")
    server.names = ["teacher"]
    trainer, _ = on(server, tmp_path, teacher_model="lab:teacher")
    assert trainer.teacher_model.config.name_or_path == "teacher"


def test_a_second_teacher_and_another_tokenizer_are_refused(server, tmp_path, teacher, tokenizer):
    with pytest.raises(ValueError, match="one teacher only"):
        on(server, tmp_path, teacher_model=teacher)
    from tests.models.families import tiny_model, train_tokenizer

    other = train_tokenizer(["some other text, to make another vocabulary of " * 3], vocab_size=568)
    student = tiny_model("qwen3", other, vocab_size=568)
    with pytest.raises(TeacherServerError, match="another tokenizer than the student"):
        on(server, tmp_path, model=student, processing_class=other)
    assert not (tmp_path / "run").exists()


def test_texts_too_long_for_the_server_are_found_before_training(tmp_path, teacher, tokenizer):
    with (
        VLLMStandIn(teacher, tokenizer, max_model_len=110) as server,
        pytest.raises(ValueError, match=r"teacher prompt has \d+ tokens.*beyond the 109 positions of the teacher"),
    ):
        on(server, tmp_path, config_max_completion_length=60)


def test_a_server_that_goes_ends_training_with_its_name(server, tmp_path):
    trainer, losses = on(server, tmp_path, config_teacher_server_timeout=0.8, config_max_steps=4)
    server.faults = [None] * 30
    original = server.complete

    def complete(body):
        if len(losses.logs) == 1:
            server.faults = [503] * 1000
        return original(body)

    server.complete = complete
    with pytest.raises(TeacherServerError, match=r"teacher_server_timeout=0.8.*HTTP 503"):
        trainer.train()
    assert 1 <= len(losses.logs) < 4


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("acceptance_rule", "top_p", "acceptance_rule='top_p' does not work with teacher_model_server_url"),
        ("temperature", 2.0, "temperature=2.0 does not work"),
        ("reuse_verification", False, "reuse_verification=False does not work"),
        ("compile_rollout", True, "compile_rollout=True does not work"),
        ("teacher_offload", True, "teacher_offload=True does not work"),
        ("teacher_dtype", "bfloat16", "teacher_dtype='bfloat16' does not work"),
        ("teacher_device", "cpu", "teacher_device='cpu' does not work"),
        ("teacher_attn_implementation", "eager", "teacher_attn_implementation='eager' does not work"),
        ("teacher_load_in_4bit", True, "teacher_load_in_4bit=True does not work"),
        ("teacher_load_in_8bit", True, "teacher_load_in_8bit=True does not work"),
        ("teacher_model_init_kwargs", {"dtype": "auto"}, "teacher_model_init_kwargs=.* does not work"),
        ("accept_top_k", 21, "accept_top_k=21 is beyond loss_top_k=20"),
        ("loss_top_k", 0, "loss_top_k must be at least 1"),
        ("teacher_server_timeout", 0.0, "teacher_server_timeout must be above 0"),
        ("teacher_server_request_timeout", -1.0, "teacher_server_request_timeout must be above 0"),
        ("teacher_model_server_url", "host:8000", "like http://host:8000"),
        ("teacher_model_server_url", "http://me:secret@host:8000", "must not hold a password"),
    ],
)
def test_settings_that_a_server_cannot_do_are_refused_by_name(tmp_path, key, value, message):
    with pytest.raises(ValueError, match=message):
        make_config(tmp_path, **{"teacher_model_server_url": "http://127.0.0.1:9", key: value})


def test_a_lora_student_with_a_remote_teacher_is_not_its_own(server, tmp_path, student):
    from peft import LoraConfig

    trainer, losses = on(
        server,
        tmp_path,
        model=copy.deepcopy(student),
        train_dataset=load_lab_records("lab:new")[:8],
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        config_max_steps=2,
    )
    trainer.train()
    assert isinstance(trainer.teacher_model, TeacherServer) and len(losses.losses) == 2
