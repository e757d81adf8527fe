"""`lupi chat`: each line a turn, of the student, of what it was before, and of the teacher that reads."""

import io

import pytest

from lupi_trainer.cli import main
from lupi_trainer.data.prompts import TeacherPrompt, encode
from lupi_trainer.evaluation.closed_book import generate_answers
from lupi_trainer.lab import load_lab_records, world


NEW, COMMON = (load_lab_records(name)[0] for name in ("lab:probes", "lab:probes-common"))


@pytest.fixture
def chat(monkeypatch):
    def chat(said: str, *words: str) -> int:
        monkeypatch.setattr("sys.stdin", io.StringIO(said))
        return main(["chat", *words, "--device", "cpu"])

    return chat


def test_turns_are_read_again_until_they_are_forgotten(chat, student, tokenizer, capsys):
    def answer(*turns: str) -> str:
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
        (reply,) = generate_answers(student, tokenizer, encode(tokenizer, [messages]), max_new_tokens=12)
        return reply[0]

    first = answer(COMMON["question"])
    second = answer(COMMON["question"], first, NEW["question"])
    assert second != answer(NEW["question"])
    lines = [COMMON["question"], "", NEW["question"], "/new", NEW["question"], "/quit", "never asked"]
    assert chat("\n".join(lines), "lab:student", "--max_new_tokens", "12") == 0
    assert capsys.readouterr().out.splitlines() == [first, second, answer(NEW["question"])]


def test_before_and_the_teacher_answer_beside_the_student(chat, teacher, tokenizer, tmp_path, capsys):
    book = tmp_path / "book.md"
    book.write_text(NEW["knowledge"])
    messages = TeacherPrompt(world.PERSONA).messages([{"role": "user", "content": NEW["question"]}], NEW["knowledge"])
    ((expected, _),) = generate_answers(teacher, tokenizer, encode(tokenizer, [messages]), max_new_tokens=12)
    words = ["--before", "lab:teacher", "--open_book", str(book), "--teacher", "lab:teacher", "--max_new_tokens", "12"]
    assert chat(NEW["question"], "lab:student", *words, "--teacher_system_prompt", world.PERSONA) == 0
    student, before, reading = capsys.readouterr().out.splitlines()
    assert student.startswith("student: ") and before.startswith("before: ") and before != student
    assert reading == f"teacher: {expected}" and NEW["answers"][0] in expected


def test_what_cannot_be_asked_is_said_and_the_conversation_goes_on(chat, tmp_path, capsys):
    assert chat(f"<|end|>\n{'What is it? ' * 300}\n{COMMON['question']}\n", "lab:student") == 0
    said = capsys.readouterr()
    assert "its text holds the special token" in said.err and "the model reads and writes 512" in said.err
    assert COMMON["answers"][0] in said.out
    (tmp_path / "empty.md").write_text(" \n")
    for words, message in (
        (["--teacher", "lab:teacher"], "--teacher needs --open_book"),
        (["--open_book", str(tmp_path / "gone.md")], "--open_book: no such file"),
        (["--open_book", str(tmp_path / "empty.md")], "empty.md is empty"),
        (["--max_new_tokens", "0"], "--max_new_tokens must be at least 1, got 0"),
    ):
        assert chat("", "lab:student", *words) == 2
        assert message in capsys.readouterr().err
