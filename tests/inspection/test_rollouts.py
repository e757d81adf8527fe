"""Recorded rollouts in other encodings, and long ones beside many points of curves."""

import json

import pytest

from lupi_trainer.cli import main
from lupi_trainer.inspection import read_run
from lupi_trainer.inspection.page import page_data
from tests.inspection.runs import make_run


def test_a_byte_order_mark_is_passed_over(tmp_path):
    path = make_run(tmp_path / "run", rollouts=2) / "rollouts.jsonl"
    plain = [*read_run(tmp_path / "run").rollouts]
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [*read_run(tmp_path / "run").rollouts] == plain and plain


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_another_encoding_is_named(tmp_path, encoding, capsys):
    path = make_run(tmp_path / "run", rollouts=2) / "rollouts.jsonl"
    path.write_bytes(path.read_text().encode(encoding))
    assert main(["inspect", str(tmp_path / "run")]) == 2
    assert f"rollouts.jsonl is {encoding.upper()} text, and must be UTF-8" in capsys.readouterr().err


def test_a_page_holds_so_many_letters_that_it_stays_quick(tmp_path, monkeypatch):
    """As where the teacher reads long documents: of each text few tokens, and a prompt of many letters."""
    monkeypatch.setattr("lupi_trainer.inspection.page.MOST_LETTERS", 10_000)
    path = make_run(tmp_path / "run", rollouts=20, tokens=3) / "rollouts.jsonl"
    lines = [json.loads(line) | {"privileged_context": "k" * 3000} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = page_data(read_run(tmp_path / "run"))
    assert [r["row_id"] for r in data["rollouts"]] == [0, 5, 9]
    (note,) = data["notes"]
    assert note == "3 of 20 recorded rollouts are shown: a page holds up to 100,000 tokens and 10,000 letters."
    assert len(page_data(read_run(tmp_path / "run"), max_rollouts=2)["rollouts"]) == 2


def test_a_curve_of_many_points_keeps_its_ends_its_highest_and_its_lowest(tmp_path, monkeypatch):
    monkeypatch.setattr("lupi_trainer.inspection.page.MOST_POINTS", 20)
    path = make_run(tmp_path / "run") / "trainer_state.json"
    values = [(step, (step * 37) % 101 + (500 if step == 77 else -500 if step == 123 else 0)) for step in range(300)]
    history = [{"step": step, "loss": float(value)} for step, value in values]
    path.write_text(json.dumps({"global_step": 300, "log_history": history}))
    data = page_data(read_run(tmp_path / "run"))
    (points,) = data["curves"][0]["lines"].values()
    assert len(points) <= 20 and points == sorted(points) and set(points) <= set(values)
    assert {values[0], values[77], values[123], values[-1]} <= set(points)
    assert "20 of the 300 points of loss are shown" in "".join(data["notes"])
