"""What a dry run reads beside the records: the folder of a run, its checkpoints, probes, a chat template."""

import json

import pytest

from lupi_trainer.training.manifest import MANIFEST
from tests.scripts.test_dry_run import FULL, faults_of


def test_a_finished_run_is_not_written_over_unasked(tmp_path, monkeypatch):
    recipes = {"skd": FULL, "sft": "lab/sft/config_full.yaml", "wmtp": "lab/wmtp/config_tiny.yaml"}
    recipes["kd"] = "lab/kd_lora/config_teacher.yaml"
    folder = tmp_path / "run"
    (folder / "checkpoint-2").mkdir(parents=True)
    (folder / "checkpoint-2" / "model.safetensors").write_text("")
    for command, recipe in recipes.items():
        here = command, "--output_dir", str(folder)
        assert not [f for f in faults_of(*here, recipe=recipe) if "output_dir" in f], "a run that was cut off"
        for name in ("trainer_state.json", "adapter_model.safetensors"):
            (folder / name).write_text("")
            (fault,) = [f for f in faults_of(*here, recipe=recipe) if "output_dir" in f]
            assert fault.startswith(f"output_dir: {folder} holds a finished run") and "\n" not in fault
            for way in ("--overwrite_output_dir true", "--resume_from_checkpoint true"):
                assert way in fault and not [
                    f for f in faults_of(*here, *way.split(), recipe=recipe) if "finished" in f
                ]
            assert fault in faults_of(*here, "--resume_from_checkpoint", "false", recipe=recipe)
            monkeypatch.setenv("RESUME_CHECKPOINT", str(folder / "checkpoint-2"))
            assert fault not in faults_of(*here, recipe=recipe)
            monkeypatch.delenv("RESUME_CHECKPOINT")
            (folder / name).unlink()
    (folder / "checkpoint-2" / "model.safetensors").rename(folder / "model.safetensors")
    (folder / "checkpoint-2").rmdir()
    (fault,) = [f for f in faults_of("skd", "--output_dir", str(folder)) if "output_dir" in f]
    assert "take another --output_dir, or replace it" in fault and "resume" not in fault, "there is no checkpoint"


def test_a_checkpoint_to_resume_from_is_looked_at(tmp_path, monkeypatch):
    good, cut = tmp_path / "run" / "checkpoint-4", tmp_path / "run" / "checkpoint-8"
    for folder in (good, cut):
        folder.mkdir(parents=True)
    (good / "a").touch()
    (good / MANIFEST).write_text('{"files": {"a": 0}}')
    assert faults_of("skd", "--resume_from_checkpoint", str(good)) == []
    said = {
        cut: f"cannot resume from {cut}: it has no {MANIFEST}: its writing was cut off",
        good.parent: f"cannot resume from {good.parent}: name {good}",
    }
    for folder, fault in said.items():
        assert faults_of("skd", "--resume_from_checkpoint", str(folder)) == [f"resume_from_checkpoint: {fault}"]
        monkeypatch.setenv("RESUME_CHECKPOINT", str(folder))
        assert faults_of("skd") == [f"RESUME_CHECKPOINT: {fault}"]
        monkeypatch.delenv("RESUME_CHECKPOINT")
    monkeypatch.setenv("RESUME_CHECKPOINT", f"{good}0")
    (fault,) = faults_of("skd")
    assert fault.startswith(f"RESUME_CHECKPOINT: no such checkpoint: {good}0; did you mean {good}")


@pytest.mark.parametrize("command, recipe", [("skd", FULL), ("sft", "lab/sft/config_full.yaml")])
def test_probes_are_read_before_anything_heavy_is(command, recipe, tmp_path):
    probes = tmp_path / "probes.json"
    probes.write_text(json.dumps([{"question": "Who?", "answer": ["Mo"]}, {"question": " ", "answers": ["Mo"]}]))
    assert faults_of(command, "--probes", str(probes), recipe=recipe) == [
        f"{probes}: probe of record number 0: `answers` must be a list of accepted strings; found "
        "['answer', 'question']; did you mean `answers` by `answer`?",
        f"{probes}: probe of record number 1: the question is empty, got ' '",
    ]
    probes.write_text(json.dumps([{"question": " ", "answers": ["Mo"]}] * 2))
    (fault,) = faults_of(command, "--probes", str(probes), recipe=recipe)
    assert fault.startswith(f"{probes}: 2 probes, the first: the question is empty, got ' '. They are probe of record")
    probes.write_text("[]")
    assert faults_of(command, "--probes", str(probes), recipe=recipe) == [f"{probes}: there are no probe questions"]
    probes.write_text("[")
    (fault,) = faults_of(command, "--probes", str(probes), recipe=recipe)
    assert fault.startswith(f"probes: {probes}: not valid JSON")


def test_a_chat_template_is_a_file_or_another_models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "mine.jinja").write_text("")
    said = {
        "own.jinja": "no such file: own.jinja",
        "./tokenizr": "no such model folder: ./tokenizr; did you mean tokenizer?",
    }
    for name in ("mine.jinja", "tokenizer", *said):
        found = [f"chat_template_path: {said[name]}"] if name in said else []
        assert faults_of("sft", "--chat_template_path", name, recipe="lab/sft/config_full.yaml") == found


def test_records_are_read_before_anything_heavy_is(tmp_path):
    path, record = tmp_path / "records.jsonl", {"prompt": "Who?", "privileged_context": None}

    def faults(*rows, key="dataset_name"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [fault for fault in faults_of("skd", f"--{key}", str(path)) if str(path) in fault]

    assert faults(record) == []
    missing = "no `prompt` (`query` is read as well); found ['privileged_context', 'promt']; did you mean `prompt` by"
    assert faults(record, {"promt": "Who?", "privileged_context": None}) == [
        f"{path}: record number 1: {missing} `promt`?"
    ]
    (fault,) = faults({"prompt": 3, "privileged_context": None}, {"prompt": 4, "privileged_context": None})
    assert fault.startswith(f"{path}: 2 records, the first: `prompt` must be text or a list of messages, got int.")
    (fault,) = faults({"prompt": "Who?"})
    assert "no `privileged_context`" in fault
    assert faults({"prompt": "Who?"}, key="base_dataset_name") == []
    assert faults() == [f"{path}: the dataset is empty"]
    (fault,) = faults({"question": "Who?", "answers": ["Mo"]})
    assert fault.endswith("found ['answers', 'question']; this looks like a probe, of a file that `probes` names")
    path.write_text("{")
    (fault,) = [fault for fault in faults_of("skd", "--dataset_name", str(path)) if "JSON" in fault]
    assert fault.startswith(f"dataset_name: {path}")


def test_pickled_weights_are_a_fault_unless_they_are_asked_for(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_text("")
    for key in ("model", "teacher_model"):
        named = "skd", f"--{key}_name_or_path", str(tmp_path)
        fault = f"{key}_name_or_path: {tmp_path} has no weights as safetensors"
        assert fault in faults_of(*named)
        assert fault not in faults_of(*named, f"--{key}_init_kwargs", '{"use_safetensors": false}')
        assert fault in faults_of(*named, f"--{key}_init_kwargs", '{"use_safetensors": true}')


def test_teachers_are_looked_at_before_anything_heavy_is(tmp_path):
    """Their models, and whether the records name those that there are."""
    path, base = tmp_path / "records.jsonl", {"prompt": "Who?", "privileged_context": None}

    def faults(*rows, teachers=None, flags=()):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows or [base]))
        given = [] if teachers is None else ["--teachers", json.dumps(teachers)]
        return faults_of("skd", "--dataset_name", str(path), *given, *flags)

    there = {"north": {"model_name_or_path": "lab:teacher"}}
    assert faults(base | {"teacher": "north"}, teachers=there) == faults()
    (fault,) = set(faults(base | {"teacher": "south", "id": "fact_1"}, teachers=there)) - set(faults())
    assert fault == f"{path}: record 'fact_1' (number 0): there is no teacher 'south'; the run has teacher, north"
    alone = ["--teacher_model_name_or_path", "none"]
    assert not set(faults(base | {"teacher": "north"}, teachers=there, flags=alone)) - set(faults())
    (fault,) = set(faults(teachers=there, flags=alone)) - set(faults())
    assert "it names no `teacher`, and the run has none of its own beside north" in fault
    (fault,) = set(faults(teachers={"north": {"model_name_or_path": "lab:nobody"}})) - set(faults())
    assert fault.startswith("teachers: north: no model 'lab:nobody'")
    (tmp_path / "config.json").write_text("{}")
    pickled = {"north": {"model_name_or_path": str(tmp_path)}}
    assert f"teachers: north: {tmp_path} has no weights as safetensors" in faults(teachers=pickled)
    pickled["north"]["model_init_kwargs"] = {"use_safetensors": False}
    assert not set(faults(teachers=pickled)) - set(faults())
    assert "teachers: north: unknown key 'persona'" in faults(teachers={"north": {"persona": "x"}})[0]
