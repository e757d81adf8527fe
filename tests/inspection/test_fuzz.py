"""Whatever lies in a run's folder: a page that a browser can read, or one line that names the file."""

import json
import re
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lupi_trainer.inspection import read_run, write_page
from tests.fuzz import changed, check_refusal, examples
from tests.inspection.runs import make_run


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    make_run(folder / "whole", rollouts=3, tokens=3, perplexity=2.5)
    return folder


def refuse(name):
    raise ValueError(f"{name} is no JSON")


def test_odd_runs(base):
    whole, run = base / "whole", base / "run"
    outcomes = {"shown": 0, "named": 0}
    content = {path.name: path.read_text().strip() for path in whole.iterdir()}
    content["rollouts.jsonl"], *others = content["rollouts.jsonl"].split("\n")
    parts = [st.tuples(st.just(name), changed(json.loads(text))) for name, text in content.items()]
    cut = st.integers(0, 600)

    @examples(150)
    @given(st.one_of(parts), st.one_of(st.none(), cut))
    def check(odd, cut):
        name, value = odd
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)
        text = json.dumps(value)[:cut]
        (run / name).write_text("\n".join([others[0], text, others[1]]) if name == "rollouts.jsonl" else text)
        page = run / "page.html"
        try:
            write_page(read_run(run), page)
        except (ValueError, FileNotFoundError) as error:
            outcomes["named"] += 1
            assert name in str(error) and not page.exists()
            return check_refusal(error)
        outcomes["shown"] += 1
        data = re.search(r'id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1]
        rollouts = json.loads(data, parse_constant=refuse)["rollouts"]
        shown = [rollout["completion"] for rollout in rollouts]
        assert all(json.loads(line)["completion"] in shown for line in others)
        for rollout in rollouts:
            assert {len(v) for k, v in rollout.items() if isinstance(v, list) and k != "prompt"} <= {
                len(rollout["completion"])
            }

    check()
    assert min(outcomes.values()) > 5, outcomes
