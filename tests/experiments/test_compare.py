"""`lupi compare`: the same records for every arm, honest counts, and no run twice."""

import json
import re
import time
from argparse import Namespace
from pathlib import Path

import pytest

from lupi_trainer.cli import main
from lupi_trainer.data.records import load_training_data
from lupi_trainer.experiments import Track, plot_curves, shuffled_knowledge, summarize, to_markdown, without_knowledge
from lupi_trainer.experiments.results import difference
from lupi_trainer.lab import load_lab_records
from lupi_trainer.scripts import arms
from lupi_trainer.scripts.recipe_files import find_recipe
from tests.lupi_skd.training import make_trainer


def test_controls_leave_nothing_to_learn():
    records = load_training_data("lab:new")
    for row, shuffled in zip(records, shuffled_knowledge(records)):
        island = row["id"].split("_")[0]
        assert f"{island} has" in row["privileged_context"]
        assert f"{island} has" not in shuffled["privileged_context"] and shuffled["privileged_context"]
        assert {k: v for k, v in row.items() if k != "privileged_context"} == {
            k: v for k, v in shuffled.items() if k != "privileged_context"
        }
    assert set(without_knowledge(records)["privileged_context"]) == {None}
    with pytest.raises(ValueError, match="at least two records"):
        shuffled_knowledge(records.select(range(1)))


def build(tmp_path, arm: str, seed: int = 1):
    flags = ["--max_steps", "3", "--per_device_train_batch_size", "8"]
    arguments = arms.parse(find_recipe("lab/lupi_skd/config_full.yaml"), arm, seed, tmp_path, flags)
    return arms.build(arm, arguments, "answer")


@pytest.mark.slow
def test_every_arm_reads_the_same_records_in_the_same_order(tmp_path):
    texts = {}
    for arm in (arm for arm in arms.ARMS[1:] if arm != "store"):  # whose trainer is the one of teacher-samples
        trainer = build(tmp_path, arm)
        assert trainer.args.seed == 1 and trainer.args.max_steps == 3
        if arm == "sft":
            rows = trainer.train_dataset["input_ids"]
            texts[arm] = [trainer.processing_class.decode(ids, skip_special_tokens=True) for ids in rows]
            continue
        if arm == "sdft":
            texts[arm] = [messages[-1]["content"] for messages in trainer.train_dataset["prompt"]]
            continue
        contexts = trainer.train_dataset["privileged_context"]
        assert sum(c is not None for c in contexts) == (0 if arm == "skd-no-knowledge" else 12)
        rows = [trainer.train_dataset[n] for n in range(24)]
        base = [trainer.teachers.of(row).name for row in rows if row["privileged_context"] is None]
        assert set(base) == {"student" if arm == "skd-anchored" else "teacher"}
        changed = dict([arms.CHANGES.get(arm, ("", ""))])
        assert trainer.args.rollout_policy == changed.get("--rollout_policy", "speculative")
        assert trainer.args.gold_alpha == (0.5 if arm == "gold-mixed" else 0.0)
        texts[arm] = [messages[-1]["content"] for messages in trainer.train_dataset["prompt"]]
    assert len(texts["skd"]) == 24 and all(texts[arm] == texts["skd"] for arm in texts if arm != "sft")
    assert all(query in text for query, text in zip(texts["skd"], texts["sft"]))
    assert [m["content"] for [m] in build(tmp_path, "skd", 2).train_dataset["prompt"]] != texts["skd"]


@pytest.mark.slow
def test_the_students_of_a_store_share_it_whatever_their_seeds(tmp_path, small_lab):
    trainers = [build(tmp_path / "students", "store", seed) for seed in (1, 2)]
    assert [trainer.args.seed for trainer in trainers] == [1, 2]
    stores = {trainer.args.teacher_store for trainer in trainers}
    assert stores == {str(tmp_path / "config_full-store")} and all(t.teacher_model is None for t in trainers)
    manifest = json.loads((tmp_path / "config_full-store" / "manifest.json").read_text())
    assert (manifest["seed"], manifest["samples"], manifest["prompts"]) == (0, 4, 92)  # some are asked twice
    trainers[1].train()


def test_the_teacher_side_of_sdft_reads_what_a_teacher_reads(tmp_path):
    trainer, composed = build(tmp_path, "sdft"), []
    inner = trainer.teacher_context_builder._compose_teacher_prompt
    trainer.teacher_context_builder._compose_teacher_prompt = lambda *a: (composed.append(inner(*a)), composed[-1])[1]
    before = trainer.model.get_input_embeddings().weight.detach().clone()
    trainer.train()
    skd = build(tmp_path, "skd")
    rows = [skd.train_dataset[n] for n in range(24)]
    wanted = [skd.teacher_prompt.messages(row["prompt"], row["privileged_context"])[-1:] for row in rows]
    assert composed == wanted and sum("[Background Knowledge]" in turn["content"] for [turn] in composed) == 12
    assert not trainer.model.get_input_embeddings().weight.equal(before)
    with pytest.raises(ValueError, match="no quantized student"):
        arguments = arms.parse(find_recipe("lab/lupi_skd/config_full.yaml"), "sdft", 1, tmp_path, ["--load_in_4bit"])
        arms.build("sdft", arguments, "answer")


def test_track_counts_what_the_loss_is_taken_on_and_not_its_own_time(tmp_path):
    trainer, _ = make_trainer(tmp_path, config_max_steps=3)
    lengths, inner = [], trainer.write_completions

    def generate(*args, **kwargs):
        ids = inner(*args, **kwargs)
        lengths.append(sum(map(len, ids)))
        return ids

    trainer.write_completions = generate
    track = Track(trainer, lambda model: time.sleep(0.5) or {"new": 1.0}, every=2)
    started = time.perf_counter()
    trainer.train()
    elapsed = time.perf_counter() - started
    assert [point["step"] for point in track.curve] == [0, 2, 3]
    assert [point["tokens"] for point in track.curve] == [0, sum(lengths[:2]), sum(lengths)]
    assert 0 < track.curve[1]["seconds"] < track.curve[2]["seconds"] < elapsed - 1.5


def curve(*new: float) -> list[dict]:
    return [
        {
            "step": 20 * n,
            "tokens": 100 * n,
            "seconds": 2.0 * n,
            "new": value,
            "general": 1 - value / 10,
            "unseen": value / 2,
        }
        for n, value in enumerate(new)
    ]


def test_a_summary_is_mean_and_spread_over_seeds():
    runs = [
        {"arm": "a", "seed": 0, "curve": curve(0.0, 0.5, 0.92)},
        {"arm": "a", "seed": 1, "curve": curve(0.0, 0.95, 0.98)},
        {"arm": "b", "seed": 0, "curve": curve(0.0, 0.9), "rollouts": {"acc_rate/mean": 0.75}},
        {"arm": "c", "seed": 0, "curve": curve(0.0, 0.2)},
    ]
    a, b, c = summarize(runs)
    assert a["new"] == pytest.approx((0.95, 0.0424264), abs=1e-6) and a["steps"] == 40 and a["seeds"] == 2
    passed = {"seeds": 2, "step": 30, "tokens": 150, "seconds": 3.0, "general": 0.9065, "unseen": 0.4675}
    assert a["passed"] == pytest.approx(passed)
    assert b["new"] == (0.9, 0.0) and b["passed"]["step"] == 20
    assert c["passed"] == {"seeds": 0}
    table = to_markdown([a, b, c])
    assert "| a | 2 | 40 | 95.0% ± 4.2% |" in table and "| never |" in table
    assert b["accepted"] == (0.75, 0.0) and "| accepted |" in table and "| 75.0% |" in table and "accepted" not in a
    assert "| general then |" in table and "| 46.8% | 90.7% |" in table
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_the_picture_has_a_line_an_arm(tmp_path):
    pytest.importorskip("matplotlib")
    runs = [{"arm": arm, "seed": 0, "curve": curve(0.0, 0.5, 0.92)} for arm in ("first-arm", "second-arm")]
    plot_curves([*runs, {"arm": "untrained", "seed": 0, "curve": curve(0.0)}], tmp_path / "curves.svg")
    svg = (tmp_path / "curves.svg").read_text()
    assert "first-arm" in svg and "second-arm" in svg and "untrained" not in svg and "supervised tokens" in svg


@pytest.mark.slow
def test_compare_runs_every_run_once(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    folder = tmp_path / "compare"
    arguments = ["compare", "--output_dir", str(folder), "--arms", "untrained", "sft", "skd", "--seeds", "0", "1"]
    arguments += ["--max_steps", "2", "--every", "1", "--per_device_train_batch_size", "8"]
    for flag, name in (("--probes", "probes"), ("--unseen", "probes-unseen"), ("--general", "probes-common")):
        some = tmp_path / f"{name}.json"  # a twelfth of the questions, which are asked at every step
        some.write_text(json.dumps(load_lab_records(f"lab:{name}")[::12]))
        arguments += [flag, str(some)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "seed 1: runs" in said and re.search(r"  step 2: new \d+\.\d%, .*; \d+ s of training\n", said)
    names = {path.name for path in folder.iterdir()}
    assert {"table.md", "results.json", "curves.svg", "config_full-skd-seed1.json"} <= names
    run = json.loads((folder / "config_full-skd-seed1.json").read_text())
    assert [point["step"] for point in run["curve"]] == [0, 1, 2]
    assert run["curve"][2]["tokens"] > run["curve"][1]["tokens"] > 0
    right = [answer["lenient"] for answer in run["answers"]["new"]]
    assert sum(right) / len(right) == run["curve"][2]["new"] and set(run["answers"]) == {"new", "unseen", "general"}
    assert 0 < run["rollouts"]["acc_rate/mean"] <= 1 and run["rollouts"]["completions/mean_length"] > 0
    assert json.loads((folder / "config_full-sft-seed1.json").read_text())["rollouts"] == {}
    untrained = json.loads((folder / "config_full-untrained-seed0.json").read_text())
    assert untrained["teacher_open_book"] >= 0.95 and untrained["curve"][0]["general"] >= 0.95
    assert run["curve"][0]["general"] == untrained["curve"][0]["general"]

    (folder / "config_full-sft-seed0.json").unlink()  # as if it had been cut off there
    ran, inner = [], arms.run
    monkeypatch.setattr(arms, "run", lambda arm, *args: (ran.append(arm), inner(arm, *args))[1])
    table = (folder / "table.md").read_text()
    assert main(arguments) == 0
    assert ran == ["sft"]
    assert table.split("| sft")[0] == (folder / "table.md").read_text().split("| sft")[0]
    assert main([*arguments, "--learning_rate", "0.5"]) == 2
    assert re.search(
        r"made with other settings \(flags: \[.*'8'\], now \[.*'0.5'\]\); choose", capsys.readouterr().err
    )


def test_all_arms_run_unless_some_are_named(monkeypatch, tmp_path, capsys):
    def check(names, *args):
        raise ValueError(" ".join(names))

    monkeypatch.setattr(arms, "check", check)
    assert main(["compare", "--output_dir", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {' '.join(arms.ARMS)}\n"


def test_a_changed_recipe_is_shown_by_its_line():
    assert difference("recipe", "a: 1\nb: 2\n", "a: 1\nb: 3\n") == "recipe: 'b: 2\\n', now 'b: 3\\n'"
    assert difference("every", 20, 10) == "every: 20, now 10"


def test_every_arm_and_question_has_the_chat_template_of_the_recipe(thinker, tmp_path):
    flags = ["--max_steps", "1", "--per_device_train_batch_size", "2", "--model_name_or_path", thinker]
    flags += ["--teacher_model_name_or_path", thinker, "--chat_template_kwargs", '{"think": false}']
    args = Namespace(
        probes="lab:probes-common", unseen=None, general=None, completion_column="answer", max_new_tokens=12, every=1
    )
    recipe = find_recipe("lab/lupi_skd/config_full.yaml")
    for arm in ("untrained", "sft"):
        done = arms.run(arm, arms.parse(recipe, arm, 1, tmp_path, flags), args)
        assert done["curve"][0]["new"] >= 0.95
    with pytest.raises(ValueError, match="it thinks"):
        arms.run("untrained", arms.parse(recipe, "untrained", 1, tmp_path, flags[:-2]), args)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            ["--completion_column", "gold"],
            "needs gold answers: lab:new: record '.*no text in the column 'gold'",
        ),
        (["--base_dataset_name", "user/name"], "arm sft needs gold answers: no such data file: user/name"),
        (["--load_in_4bit", "true"], "arm sdft takes no quantized student"),
        (["--arms", "skt"], "no arm skt; there are untrained, sft"),
        (["--config", "nothing.yaml"], "no recipe 'nothing.yaml'"),
        (["--gama", "3"], "unknown option --gama"),
    ],
)
def test_bad_arguments_are_named_and_leave_nothing(tmp_path, arguments, message, capsys):
    assert main(["compare", "--output_dir", str(tmp_path / "out"), *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


ARMS_OF_THE_PAGE = {
    "untrained": "untrained",
    "SFT on gold answers": "sft",
    "teacher samples": "teacher-samples",
    "on-policy": "on-policy",
    "SKD": "skd",
    "SKD, old facts taught by the student as it was": "skd-anchored",
    "SKD, the teacher without knowledge": "skd-no-knowledge",
    "SKD, another island's knowledge": "skd-shuffled",
    "SDFT (TRL's), the student as its own teacher": "sdft",
}


def as_on_the_page(row) -> list[str]:
    scores = ["{:.1%} ± {:.1%}".format(*row[score]) for score in ("new", "unseen", "general")]
    if row["seeds"] == 1:
        scores = [score.split(" ±")[0] for score in scores]
    cells, passed = [*scores, f"{row['tokens'][0]:,.0f}"], row["passed"]
    if not passed["seeds"]:
        return [*cells, "never", "", "", ""]
    of = "" if passed["seeds"] == row["seeds"] else f" ({passed['seeds']} of {row['seeds']} seeds)"
    then = [f"{passed[score]:.1%}" for score in ("unseen", "general")]
    return [*cells, f"{passed['step']:.0f}{of}", f"{passed['tokens']:,.0f}", *then]


def test_the_results_page_is_what_its_runs_say():
    page = (Path(__file__).parents[2] / "data" / "RESULTS.md").read_text(encoding="utf-8")
    known = json.loads((Path(__file__).parents[2] / "data" / "lab_runs.json").read_text(encoding="utf-8"))
    rows = {row["arm"]: row for row in summarize(known["runs"])}
    shown = {}
    for line in page.split("## Ways of teaching")[1].split("## ")[0].splitlines():
        label, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and label in ARMS_OF_THE_PAGE:
            shown[ARMS_OF_THE_PAGE[label]] = cells
    assert shown == {arm: as_on_the_page(row) for arm, row in rows.items()}
    assert all(row["seeds"] == 3 for arm, row in rows.items() if arm != "untrained")

    times, seconds = summarize(known["timed"]), page.split("## Seconds")[1].split("## ")[0]
    for row in times:
        at, label = row["passed"], next(label for label, arm in ARMS_OF_THE_PAGE.items() if arm == row["arm"])
        then = f"{at['seconds']:.0f} | {at['unseen']:.1%} | {at['general']:.1%}"
        assert f"| {label} | {row['seconds'][0]:.0f} | {at['step']:.0f} | {then} |" in seconds
    assert len(times) == 4


TEXTS_OF_THE_PAGE = {
    "from a teacher store, 4 samples a prompt (`store`)": "store",
    "gold answers as the texts (`gold`)": "gold",
    "the same, `gold_alpha: 0.9`": "gold-0.9",
    "SKD, `gold_alpha: 0.5` (`gold-mixed`)": "gold-mixed",
    "SKD, `gold_alpha: 0.9`": "gold-mixed-0.9",
}


KNOWLEDGE_OF_THE_PAGE = {
    "SKD": "skd",
    "its loss weighted (`skd-weighted`)": "skd-weighted",
    "the same weights, shuffled in each text (`skd-weighted-shuffled`)": "skd-weighted-shuffled",
    "SKD by the rule `knowledge` (`skd-knowledge-rule`)": "skd-knowledge-rule",
}


def test_the_page_says_where_the_knowledge_speaks_what_its_runs_say():
    page = (Path(__file__).parents[2] / "data" / "RESULTS.md").read_text(encoding="utf-8")
    known = json.loads((Path(__file__).parents[2] / "data" / "lab_runs.json").read_text(encoding="utf-8"))
    shown = {}
    for line in page.split("## Where the knowledge speaks")[1].split("## ")[0].splitlines():
        label, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and label in KNOWLEDGE_OF_THE_PAGE:
            shown[KNOWLEDGE_OF_THE_PAGE[label]] = cells
    rows = summarize(known["knowledge"])
    assert shown == {row["arm"]: as_on_the_page(row) for row in rows}
    assert [row["seeds"] for row in rows] == [3] * 4


def test_the_page_says_of_texts_that_are_there_already_what_their_runs_say():
    page = (Path(__file__).parents[2] / "data" / "RESULTS.md").read_text(encoding="utf-8")
    known = json.loads((Path(__file__).parents[2] / "data" / "lab_runs.json").read_text(encoding="utf-8"))
    rows = {row["arm"]: as_on_the_page(row)[:3] for row in summarize(known["texts"]) if row["seeds"] == 3}
    shown = {}
    for line in page.split("## Texts that are there already")[1].split("## ")[0].splitlines():
        label, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if label in TEXTS_OF_THE_PAGE:
            shown[TEXTS_OF_THE_PAGE[label]] = cells
    assert shown == rows and len(rows) >= 4
