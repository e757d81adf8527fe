"""The benchmarks run, and keep what they measured; how fast anything is, is not tested here."""

import itertools
import json
from dataclasses import replace

import pytest
import torch

from tests.benchmarks import fake_device, figures, lossless, measure, peers, run
from tests.benchmarks.setting import CPU, Scripted, Shape
from tests.fake_cuda.device import UNABLE
from tests.planning.shapes import qwen3


TINY = replace(
    CPU,
    student=Shape(1, 32, 2, 1, 64),
    teacher=Shape(1, 32, 2, 1, 64),
    vocab=128,
    rows=2,
    student_prompt=4,
    teacher_prompt=9,
    new_tokens=16,
)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_table_of_a_tiny_figure(monkeypatch, tmp_path, capsys, threads):
    monkeypatch.setattr(run, "CPU", replace(TINY, new_tokens=4))
    path = tmp_path / "results.json"
    run.main(["--only", "d", "--repeats", "1", "--threads", "1", "--json", str(path)])
    table = capsys.readouterr().out
    for peer in ("whose finished rows idle", "that shrink"):
        assert f"refill over 8 batches {peer}" in table
    kept = json.loads(path.read_text())["figures"]
    assert [(row["name"], row["device"], row["wanted"]) for row in kept] == [("d", "cpu", 1.4), ("d", "cpu", 0.0)]
    assert all(row["seconds"].keys() == {"refill", "idle", "shrinking"} and row["ratio"] > 0 for row in kept)
    assert all(row["date"] and row["torch"] == torch.__version__ for row in kept)


def test_a_figure_takes_the_place_of_its_like_alone(monkeypatch, tmp_path, threads):
    number, path = itertools.count(1), tmp_path / "results.json"

    def figure(setting, repeats):
        for _ in range(2):
            yield measure.row("figure", {"ours": [1.0], "theirs": [float(next(number))]}, "theirs", "ours")

    monkeypatch.setattr(run, "FIGURES", dict.fromkeys("ab", figure))
    for only, repeats in (("a,b", 1), ("b", 2)):
        run.main(["--only", only, "--repeats", str(repeats), "--threads", "1", "--json", str(path)])
    run._keep(path, "cuda", "b", [{"name": "b", "device": "cuda", "ratio": 9.0, "repeats": 3}])
    kept = [
        (row["device"], row["name"], row["ratio"], row["repeats"]) for row in json.loads(path.read_text())["figures"]
    ]
    assert kept == [
        ("cpu", "a", 1, 1),
        ("cpu", "a", 2, 1),
        ("cpu", "b", 5, 2),
        ("cpu", "b", 6, 2),
        ("cuda", "b", 9, 3),
    ]


def test_the_first_version_writes_the_rollouts_text_from_as_few_logits_as_it_needs(monkeypatch):
    pair, read, kept = figures._Pair(TINY), peers._read, []

    def counted(model, tokens, cache, last):
        logits = read(model, tokens, cache, last)
        kept.append((len(tokens), len(logits)))
        return logits

    monkeypatch.setattr(peers, "_read", counted)
    texts = peers.first_version(*pair.models, TINY, *pair.prompts, Scripted(TINY.acceptance))
    assert texts == pair.roll().completion_ids
    assert {logits for tokens, logits in kept if tokens > TINY.gamma} == {1}, "of a prompt the last is enough"
    on_policy = peers.on_policy(*pair.models, TINY, *pair.prompts)
    assert [len(text) for text in on_policy] == [TINY.new_tokens] * TINY.rows


def test_clocks_wait_for_a_gpu_in_use(monkeypatch):
    waits = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waits.append(True))
    measure.take_turns({"one": lambda: None, "two": lambda: None}, 1)
    assert len(waits) == 8
    with measure.prefill_clock():
        figures._Pair(TINY).roll()
    assert len(waits) == 10


def test_the_draft_of_lossless_is_ten_times_cheaper():
    with torch.device("meta"):
        target, draft = lossless.Pair().models("meta", torch.float32)
    assert lossless.weights(target) / lossless.weights(draft) == pytest.approx(10, abs=0.5)


@pytest.mark.skipif(UNABLE is not None, reason=str(UNABLE))
@pytest.mark.slow
def test_the_table_of_devices_that_are_not_there(monkeypatch, capsys):
    monkeypatch.setattr(fake_device, "SIZES", dict.fromkeys(("0.6B", "4B", "32B"), qwen3(1, 64, 64, 8)))
    for name, number in (("ROWS", 2), ("NEW", 8), ("GAMMA", 2)):
        monkeypatch.setattr(fake_device, name, number)
    fake_device.main()
    head, _, two_devices, one, *states = capsys.readouterr().out.splitlines()
    assert head.split(" | ")[4:6] == ["questions a round", "copies from the host"]
    assert [row.split(" | ")[4:6] for row in (two_devices, one)] == [["1", "0"]] * 2
    assert "cuda:1" in two_devices and "cuda:1" not in one
    assert [line.partition(" at a time")[0] for line in states] == [
        f"32B reads a batch by itself, {rows} rows" for rows in (2, 1)
    ]
