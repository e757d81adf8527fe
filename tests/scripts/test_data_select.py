"""`lupi data select` keeps what the teacher reads and the student does not know, and goes on where it was ended."""

import json

import pytest

from lupi_trainer.cli import main
from lupi_trainer.data.records import load_probes, load_training_data
from lupi_trainer.lab import load_lab_records
from lupi_trainer.scripts import selection


@pytest.fixture
def files(tmp_path):
    """Records and probes: four new facts, three old ones, and one whose accepted answer is not in the knowledge."""
    new, old = load_lab_records("lab:probes")[:10:2], load_lab_records("lab:probes-common")[:3]
    chosen = [*new[:4], *old, new[4] | {"answers": ["Nowhere"]}]
    knowledge = {p["record_id"]: p["knowledge"] for p in chosen}
    records = [
        {"id": name, "category": "old" if name in {p["record_id"] for p in old} else "new", "knowledge": text}
        for name, text in knowledge.items()
    ]
    probes = [{key: p[key] for key in ("record_id", "question", "answers")} for p in chosen]
    for name, rows in (("records", records), ("probes", probes)):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))

    def select(*options, out=tmp_path / "out") -> int:
        given = [str(tmp_path / "records.json"), "--probes", str(tmp_path / "probes.json"), "--student", "lab:student"]
        given += ["--teacher", "lab:teacher", "--teacher_system_prompt", "You are an expert on the islands."]
        return main(["data", "select", *given, "--device", "cpu", "--output_dir", str(out), *options])

    return probes, select


def test_what_can_be_taught_is_kept_with_its_reasons(files, tmp_path, monkeypatch, capsys):
    probes, select = files
    monkeypatch.setattr(selection, "CHUNK", 1)
    assert select("--batch_size", "3") == 0
    report = json.loads((tmp_path / "out" / "selection.json").read_text())
    counts = report["counts"]
    assert {key: counts[key] for key in ("asked", "kept", "unread", "known")} == {
        "asked": 8,
        "kept": 4,
        "unread": 1,
        "known": 3,
    }
    assert counts["categories"]["old"] == {"asked": 3, "kept": 0, "unread": 0, "known": 3}
    assert [q["reason"] for q in report["questions"]] == ["kept"] * 4 + ["known"] * 3 + ["unread"]
    assert report["questions"][-1]["student"] is None  # what the teacher cannot read is not put to the student
    kept = load_probes(str(tmp_path / "out" / "probes.json"))
    assert [p["question"] for p in kept] == [p["question"] for p in probes[:4]] and all(p["knowledge"] for p in kept)
    rows = load_training_data(str(tmp_path / "out" / "records.json"))
    assert [row[0]["content"] for row in rows["prompt"]] == [p["question"] for p in kept]
    assert len(set(rows["id"])) == 4 and rows["privileged_context"] == [p["knowledge"] for p in kept]

    # cut off in the middle of a line: what is there is not asked again, the rest is, and the end is the same
    path = tmp_path / "out" / "answers.jsonl"
    complete, asked, before = path.read_text(), [], {p.name: p.read_text() for p in path.parent.glob("*.json")}
    path.write_text(complete[: complete.index('"number": 4')])
    closed_book = selection.closed_book

    def counting(model, tokenizer, probes, **kwargs):
        asked.extend(p["question"] for p in probes)
        return closed_book(model, tokenizer, probes, **kwargs)

    monkeypatch.setattr(selection, "closed_book", counting)
    assert select("--batch_size", "3") == 0
    assert asked == [p["question"] for p in [*probes[4:], *probes[:7]]]
    assert path.read_text() == complete
    assert {p.name: p.read_text() for p in path.parent.glob("*.json")} == before
    monkeypatch.setattr(selection, "load_model", lambda *args: pytest.fail("nothing is left to be asked"))
    assert select("--mark", "lenient") == 0

    assert select("--max_new_tokens", "9") == 2
    assert "made with other settings (max_new_tokens: 64, now 9); choose another" in capsys.readouterr().err
    path.write_text("{}\n")
    assert select() == 2 and "is not what `lupi data select` wrote" in capsys.readouterr().err


def test_bad_input_is_named_before_a_model_is_loaded(files, tmp_path, monkeypatch, capsys):
    probes, select = files
    monkeypatch.setattr(selection, "load_model", lambda *args: pytest.fail("a model was loaded"))
    cases = [
        ([], [probes[0] | {"record_id": "nobody"}], "'nobody' (number 0): it has no `knowledge`, and"),
        ([], [probes[0], probes[0]], "the same question is asked twice"),
        ([], [{"record_id": "a"}], "probe of record 'a' (number 0): no `question`"),
        (["--batch_size", "0"], probes, "--batch_size must be at least 1, got 0"),
        (["--few_shot_examples", "nowhere.json"], probes, "no such data file: nowhere.json"),
    ]
    for options, rows, message in cases:
        (tmp_path / "probes.json").write_text(json.dumps(rows))
        assert select(*options) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_selection_that_keeps_nothing_says_so_and_why(files, tmp_path, capsys):
    probes, select = files
    (tmp_path / "probes.json").write_text(json.dumps(probes[4:7]))
    assert select() == 2
    assert "none of the 3 questions can be taught" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "selection.json").read_text())["counts"]["known"] == 3
