"""The task of the real model is fair: what it asks can be read, and no unseen phrasing is nearly a trained one."""

import collections
import json
import re
from pathlib import Path

from lupi_trainer.data.answers import contains, normalize
from lupi_trainer.data.check_culture import check_probes, letter_runs
from lupi_trainer.data.records import load_probes, load_training_data, read_records


DATA = Path(__file__).parents[2] / "data"
FOLDER = DATA / "smollm2"
SOURCE = {r["id"]: r for r in read_records(DATA / "korean_culture_train_200_en.json")}
CATEGORIES = {"tradition", "history", "food", "geography", "modern"}


def probes(name: str) -> list[dict]:
    return load_probes(str(FOLDER / f"{name}.json"))


def fact(probe: dict) -> tuple[str, str]:
    """What a question asks for, however it is put."""
    return probe["record_id"], probe["answers"][0]


def test_every_question_is_answered_by_its_paragraph_and_not_by_itself():
    for name in ("probes", "probes_unseen", "probes_tuning"):
        for probe in probes(name):
            knowledge = SOURCE[probe["record_id"]]["knowledge"]
            assert probe.get("knowledge", knowledge) == knowledge and contains(knowledge, probe["answers"][0]), probe
            assert not any(contains(probe["question"], answer) for answer in probe["answers"]), probe


def test_what_is_trained_is_what_is_asked_with_the_whole_paragraph():
    for part in ("", "_tuning"):
        rows, asked = load_training_data(str(FOLDER / f"records{part}.json")), probes(f"probes{part}")
        assert len(set(rows["id"])) == len(rows) == len(asked)
        assert [prompt[0]["content"] for prompt in rows["prompt"]] == [p["question"] for p in asked]
        assert rows["privileged_context"] == [SOURCE[p["record_id"]]["knowledge"] for p in asked]
        gold = [record["answer"] for record in read_records(FOLDER / f"records{part}.json")]
        assert gold == [p["answers"][0] for p in asked]


def test_the_facts_cover_the_categories_and_those_for_tuning_are_others():
    reported, tuning = probes("probes"), probes("probes_tuning")
    count = collections.Counter(p["category"] for p in reported)
    assert count == dict.fromkeys(CATEGORIES, 13)
    assert len({fact(p) for p in reported + tuning}) == len(reported) + len(tuning)


def test_the_facts_are_the_first_that_the_selection_keeps():
    selection = json.loads((FOLDER / "selection.json").read_text(encoding="utf-8"))
    kept, reasons = collections.defaultdict(list), collections.Counter()
    for question in selection["questions"]:
        reasons[question["reason"]] += 1
        if question["reason"] == "kept":
            kept[SOURCE[question["record_id"]]["category"]].append(question["question"])
    assert {name: selection["counts"][name] for name in ("kept", "unread", "known")} == reasons
    for name, places in (("probes", slice(13)), ("probes_tuning", slice(13, 26))):
        asked = collections.defaultdict(list)
        for probe in probes(name):
            asked[probe["category"]].append(probe["question"])
        assert asked == {category: questions[places] for category, questions in kept.items()}


def test_each_fact_has_two_unseen_phrasings_that_are_not_nearly_the_trained_one():
    trained = {fact(p): p for p in probes("probes")}
    unseen = probes("probes_unseen")
    assert collections.Counter(map(fact, unseen)) == dict.fromkeys(trained, 2)
    known = {normalize(p["question"]) for p in read_records(DATA / "probes_en.json")}
    known |= {normalize(r["query"]) for r in SOURCE.values()}
    assert len({normalize(p["question"]) for p in unseen} - known) == len(unseen)
    for probe in unseen:
        one, other = (letter_runs(normalize(p["question"])) for p in (probe, trained[fact(probe)]))
        assert len(one & other) / len(one | other) < 0.5, probe["question"]
        assert probe["answers"] == trained[fact(probe)]["answers"]


def test_each_fact_has_three_trained_phrasings_that_are_not_nearly_the_unseen_ones():
    asked, unseen = probes("probes"), probes("probes_unseen")
    rows = load_training_data(str(FOLDER / "records_phrased.json"))
    queries = [prompt[0]["content"] for prompt in rows["prompt"]]
    assert len({*rows["id"]}) == len({normalize(query) for query in queries}) == len(rows) == 3 * len(asked)
    assert queries[::3] == [probe["question"] for probe in asked]
    gold = [record["answer"] for record in read_records(FOLDER / "records_phrased.json")]
    assert gold == [probe["answers"][0] for probe in asked for _ in range(3)]
    for place, probe in enumerate(asked):
        others = [letter_runs(normalize(p["question"])) for p in unseen if fact(p) == fact(probe)]
        for query in queries[3 * place : 3 * place + 3]:
            assert not any(contains(query, answer) for answer in probe["answers"]), query
            runs = letter_runs(normalize(query))
            assert all(len(runs & other) / len(runs | other) < 0.5 for other in others), query
        assert {*rows["privileged_context"][3 * place : 3 * place + 3]} == {SOURCE[probe["record_id"]]["knowledge"]}


def test_general_questions_and_the_text_have_nothing_to_do_with_it():
    general, text = probes("general"), (FOLDER / "text.txt").read_text(encoding="utf-8")
    assert len({normalize(p["question"]) for p in general}) == 100 and not check_probes(general)
    korean = re.compile("korea|joseon|goryeo|silla|seoul|busan|jeju|hangul|[\uac00-\ud7af]", re.I)
    assert not [p for p in general if korean.search(str(p))] and not korean.search(text)
    assert len(text.split()) > 500 and not any(p["question"] in text for p in general)


def test_rehearsal_is_of_other_general_questions_and_has_no_knowledge():
    rows = load_training_data(str(FOLDER / "rehearsal.json"))
    asked = [prompt[0]["content"] for prompt in rows["prompt"]]
    every = {p["question"] for p in load_probes(str(DATA / "general_en.json"))}
    assert set(asked) == every - {p["question"] for p in probes("general")} and len(asked) == len(set(asked)) > 90
    assert not any(rows["privileged_context"])


def test_the_results_page_is_what_the_runs_say():
    page = (DATA / "RESULTS.md").read_text(encoding="utf-8").split("# On a real model\n")[1]
    known = json.loads((DATA / "smollm2_runs.json").read_text(encoding="utf-8"))
    lines = [[cell.strip() for cell in line[1:-1].split("|")] for line in page.splitlines() if line.startswith("|")]
    starts = [n - 1 for n, line in enumerate(lines) if set("".join(line)) == {"-"}]
    ends, curves, tuning = (lines[a + 2 : b] for a, b in zip(starts, [*starts[1:], len(lines)]))

    def percent(point: dict, *names: str) -> list[str]:
        return [f"{point[name]:.1%}" for name in names]

    scores, runs = ("new", "new_strict", "unseen", "general"), known["runs"]
    assert [row[2:6] for row in ends] == [percent(run["curve"][-1], *scores) for run in runs]
    accepted = [percent(run["rollouts"], "acc_rate/mean") if "rollouts" in run else [""] for run in runs]
    assert [row[6:7] for row in ends] == accepted
    points = [point for run in runs[:2] for point in run["curve"]]
    assert [row[1:] for row in curves] == [[str(p["step"]), *percent(p, *scores), f"{p['tokens']:,}"] for p in points]
    marks = [", ".join(f"{p['step']}: {p['new']:.1%}" for p in run["curve"][1:]) for run in known["tuning"]]
    assert [row[-1] for row in tuning] == marks
    assert [row[0].split()[0].lower() for row in ends + tuning] == [run["arm"] for run in runs + known["tuning"]]
