"""A model's name that is a folder's: what is said where there is none, and when the Hub is asked."""

import pytest
from huggingface_hub import HfApi, constants

from lupi_trainer.lab import resolve_model


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """Names of which the Hub is asked: it knows `runs/known` alone; and folders, some with models."""
    for name in ("student", "x/checkpoint-12", "x/checkpoint-8"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.json").write_text("{}")
    (tmp_path / "runs" / "adapter").mkdir()
    (tmp_path / "runs" / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "runs" / "notes").write_text("")
    names = []

    def model_info(self, name, timeout):
        names.append(name)
        if name != "runs/known":
            raise ConnectionError("no network")

    monkeypatch.setattr(HfApi, "model_info", model_info)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return names


@pytest.mark.parametrize(
    "name, message",
    [
        ("./runs/studnet", "no such model folder: ./runs/studnet; did you mean runs/student?"),
        ("{here}/runs/studnet", "no such model folder: {here}/runs/studnet; did you mean {here}/runs/student?"),
        ("~/runs/studnet", "no such model folder: ~/runs/studnet; did you mean {here}/runs/student?"),
        ("./rnus/student", "no such model folder: ./rnus/student; did you mean runs/student?"),
        ("rnus/x/checkpoint-9", "no such model folder: rnus/x/checkpoint-9; did you mean runs?"),
        ("runs/student/", None),
        ("runs/other/model", "no such model folder: runs/other/model; runs has adapter, student"),
        ("./nobody", "no such model folder: ./nobody"),
        ("a model", "no such model folder: a model"),
        ("runs\\student", "no such model folder: runs\\student"),
        ("x" * 5000, "no such model folder: x"),
        ("a\0b", "no such model folder: a\0b"),
        ("runs/notes", "runs/notes is a file, and a folder is wanted"),
        ("tokenizer", "tokenizer is a folder without a config.json: no model is in it"),
        (
            "runs/x",
            "runs/x is a folder without a config.json: no model is in it, but in runs/x/checkpoint-8, "
            "runs/x/checkpoint-12",
        ),
        (" ", "the name of a model is empty"),
    ],
)
def test_a_path_that_leads_to_no_model_is_refused_with_what_is_there(asked, tmp_path, name, message):
    name = name.format(here=tmp_path)
    if message is None:
        assert resolve_model(name) == name
    else:
        with pytest.raises(ValueError) as error:
            resolve_model(name)
        said = str(error.value)
        assert said == message.format(here=tmp_path) or (len(name) > 1000 and said.startswith(message))
    assert asked == []


def test_checkpoints_of_the_same_run_are_near_one_that_is_not_there(asked):
    with pytest.raises(ValueError) as error:
        resolve_model("runs/x/checkpoint-9")
    assert "runs/x/checkpoint-8" in str(error.value) and "runs/x/checkpoint-12" in str(error.value)


def test_what_is_there_is_taken_and_names_of_the_hub_are_left_alone(asked, tmp_path):
    for name in ("runs/student", "./runs/adapter", str(tmp_path / "runs/student"), "Qwen/Qwen3-4B", "gpt2", "org/x.y"):
        assert resolve_model(name) == name
    assert resolve_model("~/runs/student") == str(tmp_path / "runs/student")
    assert resolve_model("tokenizer", needs_model=False) == "tokenizer"
    assert asked == []


def test_of_a_name_that_may_be_both_the_hub_is_asked_once(asked, tmp_path, monkeypatch):
    assert resolve_model("runs/known") == "runs/known" and asked == ["runs/known"]
    with pytest.raises(ValueError, match=r"runs/studnet; did you mean runs/student\? \(and the Hub, asked for it, "):
        resolve_model("runs/studnet")
    assert asked == ["runs/known", "runs/studnet"]
    with pytest.raises(ValueError, match=r"rusn/student; did you mean runs/student\? \(and the Hub"):
        resolve_model("rusn/student")
    assert asked.pop() == "rusn/student"
    (tmp_path / "cache" / "models--runs--studnet").mkdir(parents=True)
    assert resolve_model("runs/studnet") == "runs/studnet" and len(asked) == 2  # it was downloaded before
    monkeypatch.chdir(tmp_path / "runs")
    with pytest.raises(ValueError, match="no such model folder: studnt; did you mean student"):
        resolve_model("studnt")
    assert resolve_model("gpt2") == "gpt2" and asked[2:] == ["studnt"]
