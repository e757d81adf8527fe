import io

from rich.console import Console

from lupi_trainer.evaluation import closed_book
from lupi_trainer.lab import load_lab_records
from lupi_trainer.speculative import RolloutStats
from lupi_trainer.training.progress import WorkBar


def shown(terminal: bool, enabled: bool = True, delay: float = 0.0) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with WorkBar("rollout", 4, enabled=enabled, console=console, delay=delay) as bar:
        bar.on_round(RolloutStats(drafted=40, accepted=30, committed=35, finished=3))
    return console.file.getvalue()


def test_a_terminal_sees_what_is_done_how_fast_and_what_was_accepted():
    text = shown(terminal=True)
    assert "rollout" in text and "3/4" in text and "tokens/s, 75% accepted" in text


def test_it_is_quiet_without_a_terminal_when_switched_off_and_when_the_work_is_short():
    assert shown(terminal=False) == shown(terminal=True, enabled=False) == shown(terminal=True, delay=60.0) == ""


def test_closed_book_questions_tell_how_far_they_are(student, tokenizer):
    shown = []
    probes = load_lab_records("lab:probes-common")[:10]
    closed_book(student, tokenizer, probes, batch_size=4, on_batch=lambda done, tokens: shown.append((done, tokens)))
    assert [done for done, _ in shown] == [4, 8, 10] and shown == sorted(shown) and shown[0][1] >= 4
