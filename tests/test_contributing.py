"""Every block of CONTRIBUTING.md does what the page says, from files outside the package."""

import importlib
import re
from pathlib import Path

import pytest
import torch

from lupi_trainer import WMTPConfig
from lupi_trainer.cli import main
from lupi_trainer.inspection import read_run
from lupi_trainer.lupi_skd.rules import make_gamma_policy, make_rule
from lupi_trainer.speculative import speculative_generate
from tests.lupi_skd.training import Losses, make_config, make_trainer
from tests.speculative.scene import Scene
from tests.speculative.toy_models import prompts, toy
from tests.wmtp.training import answers, make_wmtp_config


PAGE = Path(__file__).parent.parent / "CONTRIBUTING.md"
FILES = dict(re.findall(r"```(?:python|yaml)\n# (my_\w+\.\w+)(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL))


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder of its own with the page's files; modules in it can be imported."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(f"# {name}{text}", encoding="utf-8")
    (tmp_path / "broken.py").write_text("names = {}\n\nRule = names['x']\n")
    (tmp_path / "unfinished.py").write_text("class Rule(\n")
    (tmp_path / "demanding.py").write_text(
        "class Policy:\n    choose = observe = None\n\n    def __init__(self, gamma, more):\n        pass\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name: importlib.import_module(name)


def test_every_extension_is_under_forty_lines():
    assert FILES.keys() == {"my_rule.py", "my_policy.py", "my_source.py", "my_weighting.py", "my_recipe.yaml"}
    assert all(text.count("\n") < 40 for text in FILES.values())


def test_a_rule_from_outside_is_the_reference_algorithm_with_it(mine):
    rule = mine("my_rule").FreeWhereUnsure(nats=2.0)
    scene = Scene("llama", rule=rule)
    scene.check(scene.roll(gamma=5))
    assert make_rule("my_rule:FreeWhereUnsure", {"nats": 2.0}, 5, 0.05) == rule


def test_a_file_runs_once_and_again_when_it_has_changed(mine, tmp_path):
    """With dataclasses whose annotations are text, which look their module up by its name."""
    rule = tmp_path / "my_rule.py"
    code = "from __future__ import annotations\n" + rule.read_text().replace(
        "@dataclass", "open('ran', 'a').write('x')\n\n\n@dataclass", 1
    )
    rule.write_text(code)
    args = make_config(tmp_path, acceptance_rule="my_rule.py:FreeWhereUnsure", acceptance_kwargs={"nats": 2.0})
    trainer, _ = make_trainer(
        tmp_path,
        **{f"config_{key}": getattr(args, key) for key in ("acceptance_rule", "acceptance_kwargs")},
        config_max_steps=2,
    )
    assert trainer._acceptance().nats == 2.0 and trainer._acceptance() is trainer._acceptance()
    trainer.train()
    assert (tmp_path / "ran").read_text() == "x"
    rule.write_text(code + "# changed\n")
    make_rule("my_rule.py:FreeWhereUnsure", None, 5, 0.05)
    assert (tmp_path / "ran").read_text() == "xx"


def test_a_policy_from_outside_changes_no_token(mine):
    scene = Scene("llama")
    rollout = scene.roll(gamma=8, gamma_policy=mine("my_policy").Halving(8))
    scene.check(rollout)
    assert len(set(rollout.stats.gamma_history)) > 1


def test_a_draft_source_from_outside_changes_no_token(mine):
    target, ids = toy("llama"), prompts(4, 3, 9, seed=1)
    drafted = speculative_generate(target, mine("my_source").SayItAgain(), ids, max_new_tokens=12)
    for prompt, completion in zip(ids, drafted.completion_ids):
        whole = target.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=None)
        assert completion == whole[0, len(prompt) :].tolist()
    assert drafted.stats.drafted > 0


def test_a_weighting_from_outside_trains(mine, tmp_path):
    losses = Losses()
    args = make_wmtp_config(tmp_path, horizon=3, max_steps=2)
    assert isinstance(args, WMTPConfig)
    trainer = mine("my_weighting").NearFirst("lab:student", args=args, train_dataset=answers(), callbacks=[losses])
    trainer.train()
    weights = [losses.logs[0][f"head_weight/{k}"] for k in (1, 2, 3)]
    assert weights == pytest.approx([1, 0.8, 0.64])


@pytest.mark.slow
def test_the_recipe_trains_with_rule_and_policy_from_outside(mine, tmp_path, capsys):
    assert main(["skd", "--config", "my_recipe.yaml", "--report_to", "none", "--logging_steps", "1"]) == 0
    run = read_run(tmp_path / "runs" / "mine")
    assert [step for step, _ in run.points("loss")] == [1, 2]
    assert run.points("gamma/min")[0][1] < 20 == run.points("gamma/max")[0][1]  # the policy was asked
    assert all(share > 0 for _, share in run.points("tokens/teacher_share"))
    lax = ["--acceptance_kwargs", '{"nats": 0.0}', "--output_dir", "runs/lax"]  # everything is accepted
    assert main(["skd", "--config", "my_recipe.yaml", "--logging_steps", "1", *lax]) == 0
    assert read_run(tmp_path / "runs" / "lax").points("tokens/teacher_share") == [(1, 0.0), (2, 0.0)]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: make_rule("nowhere.py:Rule", None, 5, 0.05), "acceptance_rule: cannot load 'nowhere.py:Rule'"),
        (lambda: make_rule("no_such_module:Rule", None, 5, 0.05), "cannot load.*no_such_module"),
        (lambda: make_rule("my_rule:Nothing", None, 5, 0.05), "my_rule has no class 'Nothing'"),
        (lambda: make_rule("my_policy.py:Halving", None, 5, 0.05), "Halving has no accept, initial_state"),
        (lambda: make_rule("my_rule.py:FreeWhereUnsure", {"bits": 1}, 5, 0.05), "acceptance_kwargs:.*bits"),
        (
            lambda: make_rule("broken.py:Rule", None, 5, 0.05),
            r"acceptance_rule: cannot load 'broken.py:Rule': KeyError: 'x' \(broken.py, line 3\)",
        ),
        (lambda: make_rule("broken:Rule", None, 5, 0.05), r"'broken:Rule': KeyError: 'x' \(broken.py, line 3\)"),
        (lambda: make_rule("unfinished.py:Rule", None, 5, 0.05), r"SyntaxError: .*unfinished.py, line 1"),
        (
            lambda: make_gamma_policy("demanding.py:Policy", 4),
            "gamma_policy: Policy cannot be made: .*more",
        ),
        (lambda: make_rule("my_rule", None, 5, 0.05), "must be one of .*or MODULE:CLASS or FILE.py:CLASS"),
        (lambda: make_gamma_policy("my_rule.py:FreeWhereUnsure", 4), "gamma_policy: FreeWhereUnsure has no choose"),
    ],
)
def test_what_cannot_be_loaded_is_said(mine, make, message):
    with pytest.raises(ValueError, match=message):
        make()
