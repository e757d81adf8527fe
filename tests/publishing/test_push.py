"""Pushes over HTTP to a stand-in on the loopback address: what arrives, what faults do, and what is refused."""

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model

from lupi_trainer.cli import main, make_parser
from lupi_trainer.publishing.model_card import ModelFacts, render_card
from lupi_trainer.publishing.push import HubError, push_folder
from tests.publishing.hub_stub import TOKENS, HubStub


CARD = "---\nlibrary_name: transformers\n---\n# A student\n"
FULL = {
    "model.safetensors",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "README.md",
}


@pytest.fixture
def saved(tmp_path, student, tokenizer):
    """A folder as a trainer leaves it: the student, and beside it what must not be sent."""
    folder = tmp_path / "run"
    student.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(CARD)
    for name in (
        "training_args.bin",
        "trainer_state.json",
        "checkpoint-3/optimizer.pt",
        "checkpoint-3/config.json",
        "metrics.json",
        "kd_result.json",
        "sweep_settings.json",
        "wandb/run/config.yaml",
        "wandb/run/files/wandb-summary.json",
        ".cache/x.json",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


def facts(**changes) -> ModelFacts:
    known = {
        "name": "x",
        "repo_id": None,
        "base_model": None,
        "teacher": None,
        "dataset": None,
        "num_records": None,
        "method": "M",
        "papers": (),
        "settings": {},
        "steps": 0,
        "log_history": [],
    }
    return ModelFacts(**(known | changes))


def contents(folder: Path) -> dict[str, str]:
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in paths}


def arrived(hub: HubStub, repo_id: str) -> dict[str, bytes]:
    return {name: data for name, data in hub.repos[repo_id].items() if name != ".gitattributes"}


def test_the_complete_student_arrives_and_nothing_else(hub, saved):
    before = contents(saved)
    assert push_folder(saved, "student") == f"{hub.endpoint}/me/student"
    assert arrived(hub, "me/student") == {name: (saved / name).read_bytes() for name in FULL}
    assert contents(saved) == before
    assert len(hub.commits["me/student"]) == 2  # the one that created it, and all files in one


def test_heads_of_any_name_go_with_the_student(hub, saved):
    for name in ("mtp_heads.safetensors", "value_head/model.safetensors"):
        (saved / name).parent.mkdir(exist_ok=True)
        shutil.copy(saved / "model.safetensors", saved / name)
    (saved / "mtp_config.json").write_text("{}")
    push_folder(saved, "me/student")
    extra = {"mtp_heads.safetensors", "value_head/model.safetensors", "mtp_config.json"}
    assert arrived(hub, "me/student").keys() == FULL | extra


def requests_of_a_push(hub, saved) -> int:
    push_folder(saved, "me/complete")
    count = len(hub.requests)
    hub.large.clear()
    return count


@pytest.mark.parametrize("fault", ["dropped", "lost", "down", 500, 429])
@pytest.mark.grid(3)
def test_interrupted_at_each_request_and_completed_by_the_second_try(hub, saved, fault):
    count, before = requests_of_a_push(hub, saved), contents(saved)
    assert count >= 7
    failed = 0
    for number in range(count):
        repo_id = f"me/student-{fault}-{number}"
        hub.restart(number, fault)
        try:
            push_folder(saved, repo_id)
        except HubError as error:
            failed += 1
            assert "\n" not in str(error) and printed_command(error)[1:] == [str(saved), "--repo_id", repo_id]
            assert TOKENS["writer"] not in str(error)
        hub.restart()
        push_folder(saved, repo_id)
        complete = arrived(hub, "me/complete")
        assert arrived(hub, repo_id) == complete
        for files in hub.commits[repo_id]:  # at no moment was half a student public
            assert files.keys() - {".gitattributes"} in (set(), set(complete))
        assert contents(saved) == before
        hub.large.clear()
    # a single fault is also survived where the client tries again by itself; a Hub that stays away never is
    assert failed == count if fault == "down" else failed >= 1


def test_a_finished_push_sends_nothing_again(hub, saved):
    push_folder(saved, "me/student")
    hub.restart()
    push_folder(saved, "me/student")
    assert not [r for r in hub.requests if r.startswith("PUT") or "/commit/" in r]


@pytest.mark.parametrize(
    "token, message",
    [
        ("hf_" + "x" * 34, "refused the token .401."),
        (TOKENS["reader"], "refused to let this token write to me/student .403."),
        (None, "wants a token: set HF_TOKEN"),
    ],
)
def test_a_refused_token_is_said_and_loses_nothing(hub, saved, monkeypatch, token, message):
    before = contents(saved)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match=message) as error:
        push_folder(saved, "me/student", token=token)
    assert token is None or token not in str(error.value)
    assert not hub.repos and contents(saved) == before
    push_folder(saved, "me/student", token=TOKENS["writer"])
    assert arrived(hub, "me/student").keys() == FULL


def test_offline_is_said(hub, saved, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set"):
        push_folder(saved, "me/student")


def test_nobody_at_the_address_is_said(hub, saved, monkeypatch):
    hub.close()
    with pytest.raises(HubError, match="connection to http://127.0.0.1:.* failed"):
        push_folder(saved, "me/student")


def test_a_repository_that_exists_is_not_overwritten(hub, saved):
    push_folder(saved, "me/student")
    other = {**hub.repos["me/student"], "config.json": b"{}", "LICENSE": b"mine", "model-00001.safetensors": b"old"}
    hub.repos["me/student"] = dict(other)
    before = contents(saved)
    with pytest.raises(HubError, match=r"exists.*\(config.json, model-00001.safetensors\); nothing was sent"):
        push_folder(saved, "me/student")
    assert hub.repos["me/student"] == other and contents(saved) == before
    push_folder(saved, "me/student", overwrite=True)
    # the old shard would be loaded in the student's place; what is not a student's stays
    assert arrived(hub, "me/student").keys() == FULL | {"LICENSE"}
    assert arrived(hub, "me/student")["config.json"] == (saved / "config.json").read_bytes()


def test_an_empty_repository_that_exists_is_filled(hub, saved):
    hub.create({"organization": "me", "name": "student"}, TOKENS["writer"], hub.endpoint)
    push_folder(saved, "me/student")
    assert arrived(hub, "me/student").keys() == FULL


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage(name: str, folder: Path) -> None:
    weights = folder / "model.safetensors"
    {
        "half weights": lambda: cut(weights),
        "no weights": weights.unlink,
        "pickled": lambda: weights.rename(folder / "pytorch_model.bin"),
        "inside": lambda: ((folder / "student").mkdir(), weights.rename(folder / "student" / "model.safetensors")),
        "no config": (folder / "config.json").unlink,
        "no tokenizer": (folder / "tokenizer_config.json").unlink,
        "no template": (folder / "chat_template.jinja").unlink,
        "no card": (folder / "README.md").unlink,
        "shard outside": lambda: (
            weights.unlink(),
            (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../other.safetensors"}}'),
        ),
        "link": lambda: (folder / "notes.txt").symlink_to(Path(__file__)),
        "token": lambda: (folder / "README.md").write_text(f"pushed with {TOKENS['reader']}"),
        "own token": lambda: (folder / "notes.json").write_text(json.dumps({"t": os.environ["HF_TOKEN"]})),
        "wandb key": lambda: (folder / "notes.json").write_text('{"k": "0123456789abcdef"}'),
        "storage key": lambda: (folder / "notes.json").write_text('{"k": "fedcba9876543210"}'),
    }[name]()


@pytest.mark.parametrize(
    "name, message",
    [
        ("half weights", "model.safetensors is not a complete safetensors file"),
        ("no weights", "neither model.safetensors nor"),
        ("pickled", "pickled files alone .pytorch_model.bin"),
        ("inside", r"neither model.safetensors nor .*, but \S*/student inside it: push one"),
        ("no config", "no config.json"),
        ("no tokenizer", "no tokenizer"),
        ("no template", "no chat template"),
        ("no card", "no model card"),
        ("shard outside", r"names files that are not there: \['../other.safetensors'\]"),
        ("link", "notes.txt is a link out of the folder"),
        ("token", "README.md holds what looks like a token or password"),
        ("own token", r"notes.json holds the value of \$HF_TOKEN"),
        ("wandb key", r"notes.json holds the value of \$WANDB_API_KEY"),
        ("storage key", r"notes.json holds the value of \$AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_an_incomplete_student_is_named_before_anything_is_sent(hub, saved, monkeypatch, name, message):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "fedcba9876543210")
    (saved / "training_args.bin").unlink()
    damage(name, saved)
    with pytest.raises(ValueError, match=message) as error:
        push_folder(saved, "me/student")
    assert not hub.requests
    assert not any(secret in str(error.value) for secret in (*TOKENS.values(), "0123456789abcdef"))


@pytest.mark.parametrize("repo_id", ["a/b/c", "white space", "-x", "a..b", ""])
def test_names_that_no_repository_can_have(hub, saved, repo_id):
    with pytest.raises(ValueError, match="cannot be the name of a repository"):
        push_folder(saved, repo_id)
    assert not hub.requests


@pytest.fixture
def adapter(tmp_path, student, tokenizer):
    """A saved adapter on a model of this machine."""
    folder = tmp_path / "an adapter"
    get_peft_model(student, LoraConfig(r=2, target_modules="all-linear")).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(render_card(facts(base_model="/data/my-base", is_adapter=True)))
    return folder


def printed_command(error: BaseException) -> list[str]:
    """What a failed push says that completes it, as the shell splits it."""
    (command,) = re.findall(r"the same push again \((lupi push .*)\) completes it", str(error))
    return shlex.split(command)[1:]


@pytest.mark.parametrize("private", [True, False, None])
def test_the_command_that_a_failed_push_prints_is_the_same_push(hub, adapter, private):
    options = {
        "private": private,
        "base_model": "me/base",
        "overwrite": True,
        "revision": "to try",
        "commit_message": 'It\'s "done"',
    }
    hub.restart(0, "down")
    with pytest.raises(HubError) as error:
        push_folder(adapter, "me/adapter", **options)
    hub.restart()
    assert vars(make_parser().parse_args(printed_command(error.value))).items() >= options.items()
    assert main(printed_command(error.value)) == 0
    assert hub.private["me/adapter"] is private and not arrived(hub, "me/adapter")
    sent = arrived(hub, "me/adapter@to%20try")
    assert "adapter_model.safetensors" in sent
    hub.repos["me/adapter@to%20try"]["README.md"] = b"other"
    assert main(printed_command(error.value)) == 0  # the branch is there by now, and is overwritten
    assert arrived(hub, "me/adapter@to%20try") == sent


def test_an_adapter_names_a_base_that_others_can_load(hub, adapter):
    folder = adapter
    before = contents(folder)
    with pytest.raises(ValueError, match="which nobody else can load: name its Hub repository with --base_model"):
        push_folder(folder, "me/adapter")
    assert not hub.requests
    push_folder(folder, "me/adapter", base_model="me/base")
    assert json.loads(arrived(hub, "me/adapter")["adapter_config.json"])["base_model_name_or_path"] == "me/base"
    _, metadata, text = arrived(hub, "me/adapter")["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(metadata)["base_model"] == "me/base"
    assert "| base model | [me/base](https://huggingface.co/me/base) |" in text.splitlines()
    assert "A LoRA adapter on [me/base](https://huggingface.co/me/base), trained" in text and "my-base" not in text
    (folder / "README.md").write_text("---\na: [\n---\n")
    with pytest.raises(ValueError, match="README.md: its metadata cannot be read"):
        push_folder(folder, "me/adapter", base_model="me/base")
    (folder / "README.md").write_text(render_card(facts(base_model="/data/my-base", is_adapter=True)))
    assert contents(folder) == before


LOAD_BACK = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from lupi_trainer.models.loading import load_model

for repo_id, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    (sent, sent_tokenizer), (kept, kept_tokenizer) = load_model(repo_id), load_model(folder)
    states = [dict(model.state_dict()) for model in (sent, kept)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    messages = [{"role": "user", "content": "What is the river of Fova?"}]
    ids = [t.apply_chat_template(messages, add_generation_prompt=True) for t in (sent_tokenizer, kept_tokenizer)]
    assert ids[0]["input_ids"] == ids[1]["input_ids"]
    assert sent.generation_config.eos_token_id == kept.generation_config.eos_token_id
    print("EQUAL", repo_id, len(states[0]))
"""


@pytest.mark.slow
def test_lupi_push_and_from_pretrained_give_the_same_student(hub, saved, tmp_path, student, tokenizer):
    """The command, and loading from a fresh process with a cache of its own."""
    model = get_peft_model(student, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    adapter = tmp_path / "adapter"
    model.save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)
    (adapter / "README.md").write_text(CARD)
    assert main(["push", str(saved), "--repo_id", "me/student"]) == 0
    assert main(["push", str(adapter), "--repo_id", "me/adapter", "--base_model", "me/student"]) == 0
    environment = os.environ | {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "hf"),
    }
    arguments = ["me/student", str(saved), "me/adapter", str(adapter)]
    done = subprocess.run(
        [sys.executable, "-c", LOAD_BACK, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split()[:2] == ["EQUAL", "me/student"] and "EQUAL me/adapter" in done.stdout
    assert not [request for request in hub.requests if request.endswith(".bin")]


def test_lupi_push_says_in_one_line_what_is_wrong(hub, saved, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    assert main(["push", str(saved), "--repo_id", "me/student"]) == 2
    assert main(["push", f"{saved}t", "--repo_id", "me/student"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2 and all(line.startswith("error: ") for line in lines)
    assert "refused the token" in lines[0]
    assert lines[1] == f"error: no such folder: {saved}t; did you mean {saved}?"
