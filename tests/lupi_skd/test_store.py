"""Training from a teacher store: as from the teacher, and refused where it was written otherwise."""

import json
import shutil
from typing import Any

import pytest
import torch
from datasets import Dataset

from lupi_trainer.cli import main
from lupi_trainer.losses.top_k import top_k_divergence_loss
from lupi_trainer.lupi_skd.store import MANIFEST, TeacherStore, shard_path
from lupi_trainer.models.lm_head import Head
from tests.lupi_skd.stores import NEW, RECORDS, make_folder, teach, trainer_of
from tests.lupi_skd.training import make_trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_loss_is_that_of_the_teacher_s_likeliest_tokens(folder, tmp_path, teacher, beta):
    """Of a teacher that reads the same texts here and now, to 1e-6; and so is the gradient."""
    trainer, _ = trainer_of(folder, tmp_path, config_beta=beta)
    assert trainer.teacher_model is None
    trainer.model.train()
    batch = trainer.roll_out([trainer.train_dataset[n] for n in range(13)])
    loss, entropy, tokens = trainer.distillation_loss(trainer.model, batch, batch["num_items_in_batch"])
    loss.backward()
    ours = [p.grad.clone() for p in trainer.model.parameters()]
    trainer.model.zero_grad()

    live, _ = make_trainer(tmp_path / "live", config_beta=beta, config_max_completion_length=20)
    states = live._teacher_states({k: v for k, v in batch.items() if k != "teacher_top"})
    values, ids = Head(teacher, 568).logits(states).log_softmax(-1).topk(20)
    student_states = trainer.model.model(
        input_ids=torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
        attention_mask=torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
    ).last_hidden_state[:, batch["prompt_ids"].size(1) - 1 : -1]
    top, mask = torch.cat([ids.float(), values], -1), batch["completion_mask"]
    expected, *_ = top_k_divergence_loss(student_states, Head(trainer.model, 568), top, mask, beta)
    expected.backward()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=0)
    assert tokens == mask.sum() and entropy > 0
    for mine, parameter in zip(ours, trainer.model.parameters()):
        torch.testing.assert_close(mine, parameter.grad, atol=1e-6, rtol=1e-4)


def test_with_all_tokens_it_is_training_with_the_teacher(folder, tmp_path):
    """The store of a gold text with every token of the vocabulary, and the teacher itself: the same run."""
    gold = ["--rollout_policy", "gold", "--loss_top_k", "568", "--max_completion_length", "56"]
    assert teach(folder, *gold, store="gold") == 0
    options = {"config_rollout_policy": "gold", "config_max_completion_length": 56, "config_max_steps": 4}
    from_store, ours = trainer_of(folder, tmp_path / "a", "gold", config_loss_top_k=568, **options)
    live, theirs = make_trainer(tmp_path / "b", train_dataset=RECORDS, **options)
    from_store.train()
    live.train()
    assert ours.losses == pytest.approx(theirs.losses, abs=1e-4)
    with pytest.raises(ValueError, match="what its teacher reads is not in teacher_store"):
        others = [{**RECORDS[0], "answer": "Another one."}] * 8
        trainer_of(folder, tmp_path / "c", "gold", train_dataset=others, config_loss_top_k=568, **options)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"config_rollout_policy": "gold"}, "rollout_policy is 'gold', and the store was written with 'teacher'"),
        ({"config_max_completion_length": 21}, "max_completion_length is 21, and the store was written with 20"),
        ({"config_teacher_temperature": 1.0}, "teacher_temperature is 1.0, and the store was written with 1.5"),
        ({"config_teacher_system_prompt": None}, "teacher_system_prompt is None, and the store was written with 'You"),
        ({"config_knowledge_template": "{privileged_context} {query}"}, "knowledge_template is"),
        ({"config_few_shot_examples": [{"query": "a", "answer": "b"}]}, "few_shot_examples is"),
        ({"config_loss_top_k": 21}, "loss_top_k is 21, and the store has 20 tokens"),
        ({"config_teacher_model_name_or_path": "lab:student"}, "teacher_model_name_or_path is 'lab:student', and"),
        (
            {"config_teacher_model_name_or_path": "lab:teacher", "config_teacher_model_revision": "v2"},
            "teacher_model_revision is 'v2', and the store was written with None",
        ),
        ({"train_dataset": NEW[1:9]}, "record 'Fova_.*': what its teacher reads is not in teacher_store"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_does_not_match_is_refused_by_name(folder, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(folder, tmp_path, **changes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"rollout_policy": "speculative"}, "rollout_policy='speculative' does not work with teacher_store"),
        ({"rollout_policy": "student"}, "rollout_policy='student' does not work with teacher_store"),
        ({"teacher_model_server_url": "http://127.0.0.1:9"}, "teacher_model_server_url=.* does not work with"),
        ({"temperature": 2.0}, "temperature=2.0 does not work with teacher_store"),
        ({"loss_weighting": "knowledge"}, "loss_weighting='knowledge' does not go with teacher_store"),
        ({"teacher_device": "cpu"}, "teacher_device='cpu' does not work with teacher_store"),
        ({"teacher_offload": True}, "teacher_offload=True does not work with teacher_store"),
        ({"teacher_load_in_4bit": True}, "teacher_load_in_4bit=True does not work with teacher_store"),
        ({"teacher_dtype": "float32"}, "teacher_dtype='float32' does not work with teacher_store"),
        ({"teacher_prompt_cache_mb": 4}, "teacher_prompt_cache_mb=4 does not work with teacher_store"),
        ({"compile_rollout": True}, "compile_rollout=True does not work with teacher_store"),
        ({"record_rollouts": 3}, "record_rollouts=3 has nothing to show with teacher_store"),
    ],
    ids=str,
)
def test_settings_that_need_the_teacher_itself_are_refused(folder, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        trainer_of(folder, tmp_path, **{f"config_{key}": value for key, value in changes.items()})


def test_settings_that_have_no_effect_with_a_store_are_named(folder, tmp_path, caplog):
    trainer_of(folder, tmp_path)
    assert "with teacher_store" not in caplog.text
    trainer_of(folder, tmp_path, config_deterministic=True, config_max_slots=2)
    assert "deterministic=True, max_slots=2: no effect, since nothing is rolled out with teacher_store" in caplog.text


def test_a_teacher_beside_a_store_is_refused(folder, tmp_path, teacher):
    with pytest.raises(ValueError, match="teacher_store is set and a teacher was passed"):
        trainer_of(folder, tmp_path, teacher_model=teacher)
    named, _ = trainer_of(folder, tmp_path, teacher_model="lab:teacher")
    assert named.teacher_model is None and named.args.teacher_model_name_or_path is None


def test_another_tokenizer_is_refused(folder, tmp_path, tokenizer):
    from lupi_trainer.lab import resolve_model

    shutil.copytree(resolve_model("lab:student"), tmp_path / "student")
    path = tmp_path / "student" / "tokenizer.json"
    vocab = json.loads(path.read_text())
    words = vocab["model"]["vocab"]
    words[400], words[401] = words[401], words[400]
    path.write_text(json.dumps(vocab))
    with pytest.raises(ValueError, match="the vocabularies do not match: 2 token ids differ"):
        trainer_of(folder, tmp_path, model=str(tmp_path / "student"))
    shutil.copytree(folder / "store", tmp_path / "store")
    shutil.copy(path, tmp_path / "store" / "tokenizer" / "tokenizer.json")
    with pytest.raises(ValueError, match="tokenizer_sha256"):
        TeacherStore(tmp_path / "store")


def test_what_is_no_store_is_said(folder, tmp_path):
    with pytest.raises(ValueError, match="has no manifest.json: it is no teacher store$"):
        TeacherStore(tmp_path)
    for columns, message in (
        (
            {"compressed_logprobs": [[[1]]], "bytepacked_indices": [[[1]]]},
            "DistillKit's: a fit",
        ),
        ({"input_ids": [[1]], "target_logprobs": [[[0.0]]], "target_token_ids": [[[1]]]}, "axolotl's prepared one"),
    ):
        Dataset.from_dict(columns).to_parquet(str(tmp_path / "data.parquet"))
        with pytest.raises(ValueError, match=f"Its format is {message}.*columns"):
            TeacherStore(tmp_path)
    shutil.copytree(folder / "store", tmp_path / "other")
    manifest = tmp_path / "other" / MANIFEST
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match="of version 2, and 1 is read here"):
        TeacherStore(tmp_path / "other")
    manifest.write_text("{")
    with pytest.raises(ValueError, match="manifest.json cannot be read"):
        TeacherStore(tmp_path / "other")
    shutil.copy(folder / "store" / MANIFEST, manifest)
    shard_path(tmp_path / "other", 3).write_bytes(b"nothing")
    with pytest.raises(ValueError, match="shard-00003.arrow cannot be read"):
        TeacherStore(tmp_path / "other")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert teach(folder, store=str(tmp_path / "full")) == 2 and (tmp_path / "full" / "notes.txt").exists()


def test_samples_are_drawn_anew_by_epoch_and_seed_and_the_same_again_after_a_kill(folder, tmp_path):
    def texts(where: str, seed: int = 0, resume: str | None = None):
        options: dict[str, Any] = {"config_seed": seed, "config_max_steps": 6, "config_save_steps": 3}
        trainer, losses = trainer_of(folder, tmp_path / where, config_save_strategy="steps", **options)
        found, inner = [], trainer.take_texts

        def take(ids, *address):
            found.append((sorted(map(tuple, ids)), inner(ids, *address)))
            return found[-1][1]

        trainer.take_texts = take
        trainer.train(resume_from_checkpoint=resume)
        drawn: dict = {}
        for prompts, written in found:
            for prompt, text in zip(prompts, written):
                drawn.setdefault(prompt, []).append(tuple(text))
        return losses.losses, [text for _, text in found], drawn

    losses, written, _ = texts("a")
    assert len({tuple(map(tuple, batch)) for batch in written}) == 6
    again, rest, _ = texts("b", resume=str(tmp_path / "a" / "run" / "checkpoint-3"))
    assert rest == written[3:] and again == losses[3:]
    others, elsewhere, _ = texts("c", seed=1)
    assert elsewhere != written and others != losses


def test_fewer_tokens_than_it_has(folder, tmp_path):
    """A part of a store's likeliest tokens is the loss of that many."""
    trainer, _ = trainer_of(folder, tmp_path, config_loss_top_k=5)
    batch = trainer.roll_out([trainer.train_dataset[n] for n in range(4)])
    many, _ = trainer_of(folder, tmp_path / "many")
    trainer.model.eval()
    full = many.roll_out([trainer.train_dataset[n] for n in range(4)])["teacher_top"]
    assert batch["teacher_top"].size(-1) == 10
    assert torch.equal(batch["teacher_top"], full[..., [*range(5), *range(20, 25)]])


def test_a_lora_student_that_teaches_itself_from_a_store(folder, tmp_path):
    flags = ["--teacher_model_name_or_path", "none", "--use_peft", "true", "--lora_r", "2"]
    assert teach(folder, *flags, store="own") == 0
    store = TeacherStore(folder / "own")
    assert store.manifest.model == "lab:student"
    words = ["skd", "--config", str(folder / "recipe.yaml"), *flags, "--teacher_store", str(folder / "own")]
    assert main([*words, "--max_steps", "2", "--output_dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()


def test_a_recipe_of_a_store_need_not_name_its_teacher(folder, tmp_path):
    """Also where the student has no adapter, so that it could not teach itself."""
    words = ["skd", "--config", str(folder / "recipe.yaml"), "--teacher_model_name_or_path", "none", "--check"]
    words += ["--teacher_store", str(folder / "store"), "--output_dir", str(tmp_path / "run")]
    assert main(words) == 0
