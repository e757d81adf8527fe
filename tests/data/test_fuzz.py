"""`lupi data check` on records that nobody would write: it names what training refuses, and nothing else."""

import contextlib
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lupi_trainer.cli import main
from lupi_trainer.data.answers import normalize
from lupi_trainer.data.check_culture import SAME_KNOWLEDGE, SAME_QUERY, check_records, word_runs
from lupi_trainer.data.records import load_probes, load_training_data
from tests.fuzz import examples, files


def loads(load, path) -> bool:
    try:
        load(path)
    except (ValueError, OSError):
        return False
    return True


@pytest.mark.slow
def test_what_it_finds_is_what_loading_refuses(tmp_path):
    seen = set()

    @examples(80)
    @given(files(), st.booleans())
    def check(file, probes):
        suffix, content = file
        path = tmp_path / f"data.{suffix}"
        path.write_bytes(content)
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = main(["data", "check", *(["--probes"] if probes else []), str(path), "--json"])
        if status == 2:
            assert said.getvalue().startswith("error: ") and said.getvalue().count("\n") == 1
        else:
            report = json.loads(said.getvalue())
            assert status == any(not problem["doubt"] for problem in report["problems"])
        assert loads(load_probes if probes else load_training_data, str(path)) == (status == 0)
        seen.add(status)

    check()
    assert seen == {0, 1, 2}


words = st.lists(st.sampled_from("abcdefgh"), max_size=9).map(" ".join)
rows = st.lists(st.fixed_dictionaries({"query": words, "knowledge": words}), max_size=12)


def similarity(a: set, b: set) -> float:
    return len(a & b) / len(a | b) if a and b else 0.0


@examples(60)
@given(rows)
def test_copies_are_those_of_comparing_each_with_each(records):
    found = [(p.record, p.message.split()[1]) for p in check_records(records, min_words=0) if p.kind == "duplicate"]
    wanted = []
    for number, record in enumerate(records):
        for field, length, share in (("query", 1, SAME_QUERY), ("knowledge", 3, SAME_KNOWLEDGE)):
            runs = [word_runs(one[field], length) for one in records[: number + 1]]
            if any(similarity(runs[-1], earlier) >= share for earlier in runs[:-1]) and normalize(record[field]):
                wanted.append((f"record number {number}", field))
    assert found == wanted
