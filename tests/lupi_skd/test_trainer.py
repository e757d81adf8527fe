"""The trainer against its references: TRL's loss, other ways to cut a batch, other kinds of teacher."""

import copy
import json
import sys

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl import DistillationConfig, DistillationTrainer

from lupi_trainer import LUPISKDTrainer
from lupi_trainer.cli import main
from lupi_trainer.lab import load_lab_records, resolve_model
from lupi_trainer.lupi_skd import loss
from lupi_trainer.speculative import AdapterDisabled
from lupi_trainer.speculative.rules.noise import addresses
from lupi_trainer.speculative.runners import packed_weights
from lupi_trainer.speculative.runners.slots import Slots
from tests.lupi_skd.training import make_config, make_trainer


def one_batch(trainer, size: int = 4) -> dict:
    """Inputs of one training step, rolled out from the first records."""
    trainer.model.train()
    return trainer._generate_and_score_completions([trainer.train_dataset[i] for i in range(size)])


def loss_and_gradients(trainer, inputs):
    trainer.model.zero_grad()
    model = trainer.accelerator.unwrap_model(trainer.model)
    loss, *_ = trainer._compute_loss(model, inputs, inputs["num_items_in_batch"])
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(ours, theirs, tolerance=1e-6):
    assert ours[0] == pytest.approx(theirs[0], abs=tolerance)
    assert ours[1].keys() == theirs[1].keys() and ours[1]
    for name, gradient in ours[1].items():
        torch.testing.assert_close(gradient, theirs[1][name], atol=tolerance, rtol=1e-4)


def test_tokenizer_and_config_are_those_of_the_students_revision(tmp_path, monkeypatch):
    asked = []

    def recorded(name, load):
        def from_pretrained(path, *args, **options):
            asked.append((name, "student" in str(path), options.get("revision")))
            return load(path, *args, **options)

        return from_pretrained

    for cls in (AutoTokenizer, AutoConfig):
        monkeypatch.setattr(cls, "from_pretrained", recorded(cls.__name__, cls.from_pretrained))
    make_trainer(tmp_path, config_model_init_kwargs={"revision": "v2"}, config_teacher_model_revision="v3")
    assert {("AutoTokenizer", True, "v2"), ("AutoConfig", True, "v2"), ("AutoConfig", False, "v3")} <= set(asked)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_without_knowledge_on_policy_it_is_trl_distillation(tmp_path, beta):
    records = load_lab_records("lab:common")[:40]
    ours, _ = make_trainer(
        tmp_path, train_dataset=records, config_rollout_policy="student", config_beta=beta, config_temperature=1.3
    )
    inputs = one_batch(ours)
    theirs = DistillationTrainer(
        model=resolve_model("lab:student"),
        teacher_model=resolve_model("lab:teacher"),
        args=DistillationConfig(
            str(tmp_path / "trl"),
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            report_to="none",
            beta=beta,
            temperature=1.3,
        ),
        train_dataset=Dataset.from_list([{"prompt": r["prompt"]} for r in ours.train_dataset]),
        processing_class=ours.processing_class,
    )
    assert inputs["completion_mask"].sum() > 12
    reference = loss_and_gradients(theirs, {k: v for k, v in inputs.items() if not k.startswith("teacher")})
    assert_same(loss_and_gradients(ours, inputs), reference)


@pytest.mark.parametrize("policy", ["speculative", "student", "teacher"])
def test_states_kept_from_verification_give_the_loss_of_a_fresh_teacher_forward(tmp_path, policy):
    trainer, _ = make_trainer(tmp_path, config_rollout_policy=policy)
    inputs = one_batch(trainer, 6)
    assert "teacher_hidden" in inputs
    fresh = {k: v for k, v in inputs.items() if k != "teacher_hidden"}
    assert_same(loss_and_gradients(trainer, inputs), loss_and_gradients(trainer, fresh), tolerance=2e-6)


def test_the_teachers_own_reading_takes_few_rows_at_a_time(tmp_path, monkeypatch):
    trainer, _ = make_trainer(tmp_path, config_reuse_verification=False)
    inputs, read, states = one_batch(trainer, 5), [], {}
    trainer.teacher_model.model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    for most, rows in ((8192, [5]), (2 * (256 + 12), [2, 2, 1]), (1, [1] * 5)):
        monkeypatch.setattr(loss, "_MOST_TOKENS", most)
        states[most] = trainer._teacher_states(inputs)
        assert read == rows
        read.clear()
        torch.testing.assert_close(states[most], states[8192], atol=1e-5, rtol=1e-5)


def test_the_teacher_reads_its_own_prompt(tmp_path):
    trainer, _ = make_trainer(tmp_path, config_reuse_verification=False)
    inputs = one_batch(trainer)
    blind = {
        **inputs,
        "teacher_prompt_ids": inputs["prompt_ids"],
        "teacher_prompt_mask": inputs["prompt_mask"],
    }
    informed_loss, blind_loss = loss_and_gradients(trainer, inputs)[0], loss_and_gradients(trainer, blind)[0]
    assert abs(informed_loss - blind_loss) > 0.1


@pytest.mark.parametrize("reuse", [True, False])
def test_one_batch_of_four_equals_four_batches_of_one(tmp_path, reuse):
    runs = []
    for batch, accumulation in ((4, 1), (1, 4)):
        trainer, losses = make_trainer(
            tmp_path / f"{batch}",
            config_per_device_train_batch_size=batch,
            config_gradient_accumulation_steps=accumulation,
            config_reuse_verification=reuse,
            config_max_steps=4,
        )
        trainer.train()
        runs.append((losses.losses, {n: p.detach().clone() for n, p in trainer.model.named_parameters()}))
    (first, first_weights), (second, second_weights) = runs
    assert len(first) == 4 and len(set(first)) == 4
    assert first == pytest.approx(second, abs=1e-5)
    for name, weight in first_weights.items():
        torch.testing.assert_close(weight, second_weights[name], atol=1e-4, rtol=1e-3)


def test_a_finished_rows_slot_serves_the_rows_of_every_micro_batch(tmp_path, monkeypatch):
    """One rollout writes all texts of a step, and refills its slots across the batches of an accumulation."""
    admitted, before = [], Slots.admit

    def admit(self, slots):
        running, first = set(self.running().values()), len(self.row) == len(slots) and not self.owner
        before(self, slots)
        admitted.append((first, running, [self.owner[slot] for slot in slots if slot < self.used]))

    monkeypatch.setattr(Slots, "admit", admit)
    texts = {"config_per_device_train_batch_size": 2, "config_gradient_accumulation_steps": 3, "config_max_slots": 2}
    make_trainer(tmp_path, config_max_steps=2, **texts)[0].train()
    assert [first for first, _, _ in admitted].count(True) == 2, "a rollout a step"
    assert sorted(row for _, _, rows in admitted for row in rows) == sorted([0, 1, 2, 3, 4, 5] * 2)
    later = [(running, rows) for first, running, rows in admitted if not first]
    assert any(min(running) // 2 < rows[0] // 2 for running, rows in later), "beside a row of an earlier micro-batch"


def test_each_rollout_policy_depends_on_whom_it_says(tmp_path, student, teacher):
    """On-policy text is the student's whoever teaches; the teacher's samples are the teacher's whoever studies."""

    def written(policy, student, teacher):
        trainer, _ = make_trainer(
            tmp_path,
            model=copy.deepcopy(student).requires_grad_(True),
            teacher_model=teacher,
            config_rollout_policy=policy,
        )
        inputs = one_batch(trainer, 8)
        return [ids[mask.bool()].tolist() for ids, mask in zip(inputs["completion_ids"], inputs["completion_mask"])]

    base = {policy: written(policy, student, teacher) for policy in ("speculative", "student", "teacher")}
    other_teacher = {policy: written(policy, student, student) for policy in base}
    assert {p: base[p] == other_teacher[p] for p in base} == {"speculative": False, "student": True, "teacher": False}
    assert base["student"] != written("student", teacher, teacher)
    assert base["teacher"] == written("teacher", teacher, teacher)


@pytest.fixture(scope="module")
def unchanged_losses(tmp_path_factory):
    trainer, losses = make_trainer(tmp_path_factory.mktemp("unchanged"))
    trainer.train()
    return losses.losses


@pytest.mark.parametrize(
    "settings",
    [
        {"gamma": 1},
        {"gamma": 20, "max_slots": 2},
        {"gamma_policy": "adaptive"},
        {"gamma_policy": "goodput"},
        {"verification": "sequential"},
        {"log_rollout_blocks": True},
    ],
    ids=str,
)
@pytest.mark.grid(2)
def test_settings_of_speed_change_no_loss(tmp_path, unchanged_losses, settings):
    """The five rollout versions and the batch layout are the same training, to rounding."""
    trainer, losses = make_trainer(tmp_path, **{f"config_{k}": v for k, v in settings.items()})
    trainer.train()
    assert losses.losses == pytest.approx(unchanged_losses, abs=1e-4)


def test_weights_are_packed_in_rollouts_as_the_setting_says(tmp_path, monkeypatch):
    monkeypatch.setattr(packed_weights, "_SMALLEST", 0)
    pack, packed, logged = packed_weights._PackedWeight.pack, [], []
    monkeypatch.setattr(packed_weights._PackedWeight, "pack", lambda one, use: packed.append(one) or pack(one, use))
    for setting in (False, True):
        trainer, losses = make_trainer(tmp_path / str(setting), config_pack_weights=setting, config_max_steps=2)
        trainer.train()
        assert bool(packed) == setting
        logged.append(losses.losses)
    assert logged[0] == pytest.approx(logged[1], abs=1e-4)


def test_copies_of_a_record_are_written_differently(tmp_path, monkeypatch):
    """Also where they are on several processes; and the teacher's prompts are padded as the student's are."""
    (record,) = load_lab_records("lab:new")[:1]
    copies = [{**record, "row_id": 7}] * 6
    trainer, _ = make_trainer(
        tmp_path,
        train_dataset=copies,
        config_rollout_policy="student",
        config_student_temperature=2.0,
        config_pad_to_multiple_of=16,
    )
    inputs = one_batch(trainer, 6)
    assert len({tuple(ids) for ids in inputs["completion_ids"].tolist()}) > 3
    for name in ("prompt_ids", "prompt_mask", "teacher_prompt_ids", "teacher_prompt_mask", "completion_ids"):
        assert inputs[name].size(1) % 16 == 0, name
    fresh = {k: v for k, v in inputs.items() if k != "teacher_hidden"}
    assert_same(loss_and_gradients(trainer, inputs), loss_and_gradients(trainer, fresh), tolerance=2e-6)
    trainer._rows = [trainer.train_dataset[i] for i in range(3)]
    monkeypatch.setattr("lupi_trainer.lupi_skd.trainer.gather_object", lambda mine: [[7, 9], *mine, [7]])
    monkeypatch.setattr(type(trainer.accelerator), "process_index", 1)
    assert trainer._noise_addresses() == addresses([7, 7, 7, 7])[1:]


@pytest.mark.parametrize(
    "rule, options",
    [("adaptive_top_k", {"k": 5}), ("top_p", {"p": 0.8}), ("relative", {"ratio": 0.2}), ("divergence", {"tau": 0.1})],
)
@pytest.mark.grid(2)
def test_every_acceptance_rule_trains(tmp_path, rule, options):
    trainer, losses = make_trainer(tmp_path, config_acceptance_rule=rule, config_acceptance_kwargs=options)
    trainer.train()
    assert 0 < losses.logs[0]["tokens/teacher_share"] < 1


def test_metrics_of_the_seeds_are_logged(tmp_path):
    trainer, losses = make_trainer(tmp_path, config_max_steps=2)
    trainer.train()
    names = ["acc_rate/mean", "acc_rate/first_token", "acc_rate/full_match"]
    names += [f"gamma/{x}" for x in ("mean", "max", "min", "std")]
    names += ["tokens/total_drafted", "tokens/total_accepted", "tokens/acceptance_ratio_global"]
    names += ["tokens/teacher_share", "rollout/tokens_per_second"]
    first, second = losses.logs
    assert all(isinstance(first[name], float | int) for name in names)
    assert second["tokens/total_drafted"] > first["tokens/total_drafted"]
    assert second["tokens/acceptance_ratio_global"] == pytest.approx(
        second["tokens/total_accepted"] / second["tokens/total_drafted"]
    )


def test_padded_vocabularies_of_different_size(tmp_path, teacher, student):
    """A teacher with 24 more (padding) columns, however likely it finds them, changes nothing."""
    padded = copy.deepcopy(teacher)
    padded.resize_token_embeddings(len(student.get_input_embeddings().weight) + 24, mean_resizing=False)
    with torch.no_grad():
        padded.get_output_embeddings().weight[-24:] = teacher.get_output_embeddings().weight[:24]
    runs = []
    for name, model in (("same", teacher), ("padded", padded)):
        trainer, losses = make_trainer(tmp_path / name, teacher_model=model)
        trainer.train()
        runs.append(losses.losses)
    assert runs[0] == pytest.approx(runs[1], abs=1e-5)


def test_a_lora_student_teaches_itself(tmp_path, teacher):
    base = {n: p.detach().clone() for n, p in teacher.named_parameters()}
    trainer, losses = make_trainer(
        tmp_path,
        model=teacher,
        teacher_model=None,
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
        config_learning_rate=5e-3,
        config_max_steps=6,
    )
    assert isinstance(trainer.teacher_model, AdapterDisabled)
    trainer.train()
    assert losses.losses[-1] < losses.losses[0]
    after = dict(trainer.model.get_base_model().named_parameters())
    for name, weight in base.items():
        assert torch.equal(weight, after[name.replace(".weight", ".base_layer.weight") if name not in after else name])


def test_self_teacher_states_equal_a_fresh_forward(tmp_path, teacher):
    trainer, _ = make_trainer(
        tmp_path,
        model=teacher,
        teacher_model=None,
        peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False),
    )
    inputs = one_batch(trainer)
    fresh = {k: v for k, v in inputs.items() if k != "teacher_hidden"}
    assert_same(loss_and_gradients(trainer, inputs), loss_and_gradients(trainer, fresh), tolerance=2e-6)


def test_evaluation_asks_the_probes_as_the_command_does(tmp_path, monkeypatch):
    probes = load_lab_records("lab:probes-common")[:8] + load_lab_records("lab:probes")[:8]
    evaluation = load_lab_records("lab:eval")[:4]
    trainer, _ = make_trainer(tmp_path, probes=probes, eval_dataset=evaluation, config_max_completion_length=4)
    asking = sys.modules["lupi_trainer.evaluation.closed_book"]
    limits, answers = [], asking.generate_answers
    monkeypatch.setattr(
        asking, "generate_answers", lambda *a, **k: (limits.append(k["max_new_tokens"]), answers(*a, **k))[1]
    )
    metrics = trainer.evaluate()
    (tmp_path / "probes.json").write_text(json.dumps(probes))
    command = ["evaluate", "--model", "lab:student", "--probes", str(tmp_path / "probes.json"), "--device", "cpu"]
    assert main([*command, "--output", str(tmp_path / "marks.json")]) == 0
    (marks,) = json.loads((tmp_path / "marks.json").read_text()).values()
    assert marks["closed-book"]["strict"] == 0.5 and limits[0] == limits[1]
    assert metrics["eval_closed_book_lenient"] == 0.5
    assert metrics["eval_closed_book_strict"] == 0.5
    assert metrics["eval_loss"] > 0
    assert trainer.evaluate()["eval_loss"] == metrics["eval_loss"]  # the same noise at every evaluation


def test_saved_student_loads_and_is_the_trained_one(tmp_path, student):
    trainer, _ = make_trainer(tmp_path, config_max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template
    for name, weight in trainer.model.named_parameters():
        assert torch.equal(weight, dict(loaded.named_parameters())[name])
    assert any(not torch.equal(p, dict(student.named_parameters())[n]) for n, p in loaded.named_parameters())


def test_streaming_data_trains_as_data_in_memory(tmp_path):
    records = load_lab_records("lab:new")[:12]
    stream = Dataset.from_list(records).to_iterable_dataset()
    trainer, losses = make_trainer(tmp_path, train_dataset=stream, config_shuffle_dataset=False)
    trainer.train()
    again, expected = make_trainer(tmp_path / "b", train_dataset=records, config_shuffle_dataset=False)
    again.train()
    assert losses.losses == pytest.approx(expected.losses, abs=1e-6)


def test_bad_input_is_refused_before_anything_is_written(tmp_path, tokenizer, student, teacher):
    good = load_lab_records("lab:new")[:8]
    long = {**good[3], "knowledge": good[3]["knowledge"] * 5}

    def refused(match, **kwargs):
        with pytest.raises(ValueError, match=match):
            make_trainer(tmp_path, **{"train_dataset": good, **kwargs})
        assert not (tmp_path / "run").exists()

    refused("dataset is empty", train_dataset=[])
    refused("3 records, fewer than one batch of 4", train_dataset=good[:3])
    refused("no column.*privileged_context", train_dataset=Dataset.from_list([{"prompt": "q"}]))
    refused("number 1.*prompt is empty", train_dataset=[good[0], {"query": "", "knowledge": "k"}])
    refused(f"{long['id']}.*max_teacher_prompt_length", train_dataset=[*good[:3], long])
    refused("512 positions of the teacher", config_max_completion_length=470)
    refused("no teacher", teacher_model=None)
    refused("no effect here: the teacher is loaded", teacher_model=teacher, config_teacher_load_in_4bit=True)
    refused("torch dtype", config_teacher_dtype="float3")
    refused("there are no probe questions", probes=[])
    refused("no 'lab:nothing'|no model 'lab:nothing'", model="lab:nothing")
    for attribute, match in (("chat_template", "no chat template"), ("eos_token", "no end-of-sequence token")):
        broken = copy.deepcopy(tokenizer)
        setattr(broken, attribute, None)
        refused(match, processing_class=broken)
    with pytest.raises(ValueError, match="`train_dataset` is required"):
        LUPISKDTrainer("lab:student", "lab:teacher", args=make_config(tmp_path))


def test_vocabularies_that_do_not_match_are_refused(tmp_path, tokenizer, student):
    from tests.models.families import tiny_model, train_tokenizer

    other = train_tokenizer(["some other text, to make another vocabulary of " * 3], vocab_size=600)
    with pytest.raises(ValueError, match="vocabularies do not match.*token ids differ"):
        make_trainer(
            tmp_path, teacher_model=tiny_model("qwen3", other, vocab_size=568), teacher_processing_class=other
        )
    with pytest.raises(ValueError, match="teacher model has 2 vocabulary columns, but the tokenizer has 568"):
        make_trainer(tmp_path, teacher_model=tiny_model("qwen3", tokenizer, vocab_size=2))
    small = tiny_model("qwen3", tokenizer, vocab_size=300)
    with pytest.raises(
        ValueError, match="its student prompt holds the token .*568 tokens the models have the first 300 alone"
    ):
        make_trainer(tmp_path, teacher_model=small)
    # a teacher given by name brings its tokenizer along
    other.save_pretrained(tmp_path / "other")
    tiny_model("qwen3", other, vocab_size=568).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="vocabularies do not match"):
        make_trainer(tmp_path, teacher_model=str(tmp_path / "other"))
    assert not (tmp_path / "run").exists()
