"""What a trainer saves and pushes: the complete student, its card, and no secret."""

import json
import logging
import re
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from peft import LoraConfig
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.utils.hub import hf_api

from lupi_trainer.cli import main
from lupi_trainer.lab import load_lab_records, resolve_model
from lupi_trainer.models.mtp_heads import MTPHeads, ValueHead
from lupi_trainer.publishing import trainer as publishing
from lupi_trainer.publishing.model_card import public_name, render_card
from lupi_trainer.publishing.push import HubError, push_folder
from lupi_trainer.publishing.student_files import student_files
from lupi_trainer.training.checkpoints import flaw
from tests.kd_lora.training import make_kd_trainer
from tests.lupi_skd.training import make_trainer
from tests.publishing.hub_stub import TOKENS
from tests.publishing.test_push import FULL, arrived, facts, printed_command
from tests.wmtp.training import make_wmtp_trainer


SECRET = "hf_" + "s" * 34


def read_card(folder: Path) -> tuple[dict, str]:
    _, metadata, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(metadata), text


def test_the_card_tells_base_teacher_data_method_and_what_was_measured(tmp_path):
    trainer, losses = make_trainer(tmp_path, probes=load_lab_records("lab:probes")[:4])
    trainer.dataset_name = "lab:new"
    trainer.train()
    trainer.evaluate(load_lab_records("lab:eval")[:4])
    trainer.save_model()
    metadata, text = read_card(tmp_path / "run")
    assert metadata["library_name"] == "transformers" and "arxiv:2410.11325" in metadata["tags"]
    for row in (
        "| base model | `lab:student` (shipped with lupi_trainer) |",
        "| teacher | `lab:teacher` (shipped with lupi_trainer) |",
        "| data | `lab:new` (shipped with lupi_trainer), 40 records |",
        "| optimizer steps | 3 |",
        "| `gamma` | 4 |",
        f"| training loss | {losses.losses[0]:.4g} (step 1) | {losses.losses[-1]:.4g} (step 3) |",
    ):
        assert row in text.splitlines(), row
    log = {key: value for entry in trainer.state.log_history for key, value in entry.items()}
    for key, form in (("acc_rate/mean", ".1%"), ("eval_loss", ".4g"), ("eval_closed_book_strict", ".1%")):
        assert f"{float(log[key]):{form}} (step 3) |" in text
    assert text.count("@inproceedings{") == 2 and "xu2025speculative" in text and "agarwal2024onpolicy" in text
    assert str(Path.cwd()) not in text and str(tmp_path) not in text


@pytest.mark.parametrize(
    "make, cited",
    [
        (make_trainer, ["2410.11325", "2306.13649"]),
        (make_kd_trainer, ["2410.20777", "1503.02531"]),
        (make_wmtp_trainer, ["2404.19737", "2401.10774"]),
        (partial(make_wmtp_trainer, config_head_type="linear"), ["2404.19737"]),
        (partial(make_wmtp_trainer, algorithm="critic-wmtp"), ["2404.19737", "2401.10774"]),
        (partial(make_wmtp_trainer, algorithm="rho1-wmtp"), ["2404.07965", "2404.19737", "2401.10774"]),
    ],
    ids=["skd", "kd-lora", "mtp-baseline", "linear heads", "critic-wmtp", "rho1-wmtp"],
)
def test_a_card_cites_the_papers_of_its_own_method(tmp_path, make, cited):
    make(tmp_path)[0].create_model_card()
    metadata, text = read_card(tmp_path / "run")
    assert [tag for tag in metadata["tags"] if tag.startswith("arxiv:")] == sorted(f"arxiv:{id}" for id in cited)
    assert re.findall(r"eprint += \{(.*)\}", text) == re.findall(r"huggingface.co/papers/([\d.]+)\)", text) == cited


def test_hub_names_are_linked_and_local_paths_are_not_shown():
    card = render_card(facts(base_model="Qwen/Qwen3-4B", teacher="/home/someone/models/judge", dataset="squad"))
    metadata = yaml.safe_load(card.split("---\n")[1])
    assert metadata["base_model"] == "Qwen/Qwen3-4B" and metadata["datasets"] == "squad"
    assert "`judge` (local)" in card and "/home" not in card
    local = render_card(facts(base_model="/home/someone/mine", dataset="private/korean.json"))
    assert "base_model" not in local.split("---\n")[1] and "datasets" not in local.split("---\n")[1]
    assert "`korean.json` (local)" in local and public_name("/a/b/") == "b"


def test_names_are_written_as_they_are_never_as_templates_or_markdown():
    card = render_card(facts(name="{{ 7 * 7 }}", settings={"a": "x|y\n## z"}, dataset="a|b.json"))
    assert "# {{ 7 * 7 }}" in card.splitlines() and "| `a` | x\\|y ## z |" in card
    assert "49" not in card


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.grid(2)
def test_no_secret_is_in_anything_that_a_run_writes(tmp_path, monkeypatch, caplog, capsys, adapter):
    """Token in the arguments and in the environment; checkpoints, W&B's offline run, cards and logs are searched."""
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("WANDB_API_KEY", "5ec2e7" * 6 + "abcd")
    caplog.set_level(logging.DEBUG)
    trainer, _ = make_trainer(
        tmp_path,
        config_hub_token=SECRET,
        config_save_strategy="steps",
        config_save_steps=2,
        config_report_to="wandb" if not adapter else "none",
        peft_config=LoraConfig(r=2, target_modules="all-linear") if adapter else None,
    )
    trainer.train()
    trainer.save_model()
    if not adapter:
        import wandb

        wandb.finish()
        assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    print(trainer.args)
    assert trainer.args.hub_token == SECRET  # where it is needed it stays
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"training_args.bin", "README.md", "optimizer.pt"} <= {path.name for path in files}
    for path in files:
        for secret in (SECRET, "5ec2e7" * 6 + "abcd"):
            assert secret.encode() not in path.read_bytes(), path
    assert torch.load(tmp_path / "run" / "training_args.bin", weights_only=False).hub_token is None
    assert SECRET not in caplog.text + "".join(capsys.readouterr())


def test_a_token_among_the_loading_options_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a token in model_init_kwargs would be logged") as error:
        make_trainer(tmp_path, config_model_init_kwargs={"token": SECRET})
    assert SECRET not in str(error.value) and not (tmp_path / "run").exists()


def test_a_saved_adapter_is_complete(tmp_path):
    trainer, _ = make_trainer(tmp_path, peft_config=LoraConfig(r=2, target_modules="all-linear"))
    trainer.save_model()
    names = {"adapter_model.safetensors", "adapter_config.json", "generation_config.json", "chat_template.jinja"}
    assert names | {"README.md", "tokenizer.json"} <= student_files(tmp_path / "run").keys()
    metadata, text = read_card(tmp_path / "run")
    assert metadata["library_name"] == "peft" and "AutoPeftModelForCausalLM" in text


@pytest.mark.parametrize("strategy", ["every_save", "end"])
def test_a_trainer_pushes_while_it_trains_and_at_the_end(hub, tmp_path, strategy):
    trainer, _ = make_trainer(
        tmp_path,
        config_push_to_hub=True,
        config_hub_model_id="me/student",
        config_hub_token=TOKENS["writer"],
        config_hub_strategy=strategy,
        config_hub_always_push=True,
        config_save_strategy="steps",
        config_save_steps=1,
        config_save_total_limit=1,
    )
    assert not arrived(hub, "me/student")
    trainer.train()
    assert len(hub.commits["me/student"]) == (4 if strategy == "every_save" else 1)
    assert trainer.push_to_hub(dataset_name="lab:new") == f"{hub.endpoint}/me/student"
    sent = arrived(hub, "me/student")
    assert sent == {name: (tmp_path / "run" / name).read_bytes() for name in FULL}
    assert 'name = "me/student"' in sent["README.md"].decode() and "`lab:new`" in sent["README.md"].decode()
    for files in hub.commits["me/student"][1:]:
        assert files.keys() - {".gitattributes"} == FULL
    assert not list((tmp_path / "run").glob("_push-*"))


def test_a_push_that_breaks_off_while_training_is_said_and_made_up_for(hub, tmp_path, caplog):
    trainer, losses = make_trainer(
        tmp_path,
        config_push_to_hub=True,
        config_hub_model_id="me/student",
        config_save_strategy="steps",
        config_save_steps=2,
        config_hub_private_repo=True,
        config_hub_revision="dev",
    )
    hub.restart(0, "down")
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert len(losses.losses) == 3 and "Step 2 was not pushed (the connection to" in caplog.text
    with pytest.raises(HubError, match=f"The student is complete in {re.escape(str(tmp_path / 'run'))}") as error:
        trainer.push_to_hub()
    assert student_files(tmp_path / "run").keys() == FULL
    hub.restart()
    hub.repos["me/student@dev"]["config.json"] = b"{}"  # as an earlier save may have left it
    assert main(printed_command(error.value)) == 0
    assert arrived(hub, "me/student@dev").keys() == FULL and not arrived(hub, "me/student")
    hub.repos.clear()
    assert main(printed_command(error.value)) == 0
    assert hub.private["me/student"] is True


def test_a_save_that_cannot_be_sent_is_said_and_the_run_goes_on(hub, tmp_path, monkeypatch, caplog):
    (tmp_path / "run" / "_push-killed").mkdir(parents=True)
    trainer, losses = make_trainer(
        tmp_path,
        config_push_to_hub=True,
        config_hub_model_id="me/student",
        config_save_strategy="steps",
        config_save_steps=1,
        config_hub_always_push=True,
        config_hub_token=TOKENS["writer"],
    )
    assert not list((tmp_path / "run").iterdir())
    monkeypatch.delenv("HF_TOKEN")
    faults = iter([ValueError("half a student"), OSError("no room"), None])
    student_files = publishing.student_files

    def files(folder):
        if (fault := next(faults)) is not None:
            raise fault
        return student_files(folder)

    def later(job, *arguments):
        trainer.args.hub_token = None  # as while the next checkpoint is saved
        return hf_api().run_as_future(job, *arguments)

    monkeypatch.setattr(publishing, "student_files", files)
    monkeypatch.setattr(publishing, "hf_api", lambda: SimpleNamespace(run_as_future=later))
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert len(losses.losses) == 3 and flaw(tmp_path / "run" / "checkpoint-3") is None
    assert "Step 1 was not pushed (half a student)" in caplog.text and "Step 2 was not pushed (no room)" in caplog.text
    assert "Step 3" not in caplog.text and arrived(hub, "me/student").keys() == FULL
    assert not list((tmp_path / "run").glob("_push-*"))


def test_what_is_wrong_with_the_files_on_their_way_is_said(hub, tmp_path, caplog):
    (tmp_path / "_push-1").mkdir()
    with caplog.at_level(logging.WARNING):
        publishing.Published._push_and_remove(
            SimpleNamespace(hub_model_id="me/student", _warn_if_not_pushed=publishing.Published._warn_if_not_pushed),
            tmp_path / "_push-1",
            4,
            {},
        )
    assert "Step 4 was not pushed" in caplog.text and "neither model.safetensors nor" in caplog.text
    assert not (tmp_path / "_push-1").exists()


@pytest.mark.parametrize(
    "changes, error, message",
    [
        ({"config_hub_token": "hf_" + "x" * 34}, HubError, "refused the token .401.*Nothing was sent"),
        ({"config_hub_strategy": "checkpoint"}, ValueError, "would send the optimizer's state, which is pickled"),
        ({"config_hub_model_id": "a/b/c"}, ValueError, "cannot be the name of a repository"),
        (
            {"peft_config": LoraConfig(r=2, target_modules="all-linear")},
            ValueError,
            "adapter's base model is .*assets/student.*--base_model HUB_NAME",
        ),
    ],
)
def test_what_cannot_be_pushed_is_said_before_training(hub, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        make_trainer(tmp_path, **{"config_push_to_hub": True, "config_hub_model_id": "me/student", **changes})
    assert not hub.repos and not (tmp_path / "run").exists()


def test_the_saved_card_has_no_absolute_path(tmp_path):
    trainer, _ = make_trainer(tmp_path)
    trainer.save_model()
    for name, path in student_files(tmp_path / "run").items():
        if path.suffix != ".safetensors":
            assert str(tmp_path) not in path.read_text() and str(Path.cwd()) not in path.read_text(), name
    assert json.loads((tmp_path / "run" / "config.json").read_text())["model_type"] == "llama"


@pytest.mark.parametrize("algorithm", ["mtp-baseline", "critic-wmtp"])
def test_heads_and_value_head_are_pushed_with_the_student_and_come_back(hub, tmp_path, algorithm):
    trainer, _ = make_wmtp_trainer(tmp_path, algorithm, config_max_steps=1)
    trainer.train()
    trainer.save_model()
    push_folder(tmp_path / "run", "me/student")
    kinds = [MTPHeads, ValueHead] if algorithm == "critic-wmtp" else [MTPHeads]
    extra = {f"{kind.file_name}{ending}" for kind in kinds for ending in (".json", ".safetensors")}
    sent_files = arrived(hub, "me/student")
    assert sent_files.keys() == FULL | extra
    (tmp_path / "sent").mkdir()
    for name in extra:
        (tmp_path / "sent" / name).write_bytes(sent_files[name])
    for kind in kinds:
        sent = kind.from_pretrained(tmp_path / "sent").state_dict()
        kept = kind.from_pretrained(tmp_path / "run").state_dict()
        assert sent.keys() == kept.keys() and all(torch.equal(sent[name], kept[name]) for name in sent)
    assert "`lab:student` (shipped with lupi_trainer)" in arrived(hub, "me/student")["README.md"].decode()


def test_a_kd_lora_adapter_is_pushed_with_all_that_belongs_to_it(hub, tmp_path):
    trainer, _ = make_kd_trainer(tmp_path, config_max_steps=1)
    trainer.train()
    trainer.save_model()
    push_folder(tmp_path / "run", "me/adapter", base_model="me/base")
    sent = arrived(hub, "me/adapter")
    assert sent.keys() == FULL - {"model.safetensors", "config.json"} | {
        "adapter_model.safetensors",
        "adapter_config.json",
    }
    assert sent["adapter_model.safetensors"] == (tmp_path / "run" / "adapter_model.safetensors").read_bytes()
    card = sent["README.md"].decode()
    assert "KD-LoRA" in card and "| teacher | `lab:teacher` (shipped with lupi_trainer) |" in card


@pytest.mark.parametrize(
    "make", [make_trainer, make_kd_trainer, make_wmtp_trainer], ids=["an object", "an adapter, by name", "heads"]
)
def test_a_generation_config_that_cannot_be_saved_is_put_right_before_training(tmp_path, make):
    model, flags = str(shutil.copytree(resolve_model("lab:student"), tmp_path / "model")), {"temperature": 0.9}
    path = tmp_path / "model/generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | flags | {"top_p": 0.6, "length_penalty": 2.0}))
    if make is not make_kd_trainer:
        model = AutoModelForCausalLM.from_pretrained(model)
        model.generation_config.eos_token_id = torch.tensor(model.generation_config.eos_token_id)
    with pytest.warns(UserWarning, match="temperature=0.9 had no effect.*length_penalty=2.0 had no effect"):
        trainer, _ = make(tmp_path, model=model, config_max_steps=1, config_save_strategy="steps", config_save_steps=1)
    trainer.model.generation_config.min_p = 0.1
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path / "run", tmp_path / "run/checkpoint-1"):
        saved = GenerationConfig.from_pretrained(folder)
        saved.validate(strict=True)
        assert saved.temperature is saved.length_penalty is saved.min_p is None and saved.eos_token_id is not None
