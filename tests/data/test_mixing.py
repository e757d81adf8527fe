"""Ratios hold everywhere, whoever reads the order and wherever a run goes on."""

from collections import Counter

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from lupi_trainer.data.mixing import Stage, mix, mixture, mixture_length, parse_mixing
from lupi_trainer.data.records import load_training_data


A, B = (Stage(0.5),), (Stage(0.7),)
C = (Stage(0.7, 0.6667), Stage(0.3))


def from_first(order: list[int], size: int) -> list[bool]:
    return [n < size for n in order]


@pytest.mark.parametrize("stages", [A, B, C], ids="ABC")
def test_any_window_of_a_hundred_holds_the_ratio_within_one_record(stages):
    total = 1800
    drawn = from_first(mixture(70, 31, stages, total=total), 70)
    share = [next(s.share for s in stages if n < round(s.until * total)) for n in range(total)]
    for start in range(total - 99):
        assert abs(sum(drawn[start : start + 100]) - sum(share[start : start + 100])) <= 1


def test_the_curriculum_turns_after_two_thirds_of_the_steps():
    steps, batch = 201, 20
    drawn = from_first(mixture(70, 31, C, total=steps * batch, batch=batch), 70)
    by_step = [sum(drawn[n * batch : (n + 1) * batch]) for n in range(steps)]
    assert set(by_step[:134]) == {14} and set(by_step[134:]) == {6}


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.floats(0, 1), st.floats(0.05, 0.95), st.integers(0, 9)
)
def test_every_source_is_read_to_its_end_before_it_comes_again(size, base, first, second, turn, seed):
    stages = (Stage(round(first, 3), round(turn, 3)), Stage(round(second, 3)))
    order = mixture(size, base, stages, total=300, batch=4, seed=seed)
    for name, low, high in (("knowledge", 0, size), ("base", size, size + base)):
        mine = [n for n in order if low <= n < high]
        for start in range(0, len(mine), high - low):
            epoch = mine[start : start + high - low]
            assert len(set(epoch)) == len(epoch), name
    assert mixture(size, base, stages, total=300, batch=4, seed=seed) == order


def test_seeds_and_epochs_have_orders_of_their_own():
    orders = {tuple(mixture(24, 24, A, total=48, seed=seed)) for seed in range(4)}
    assert len(orders) == 4
    long = mixture(24, 24, A, total=96)
    assert [n for n in long[:48] if n < 24] != [n for n in long[48:] if n < 24]
    assert long[:48] == mixture(24, 24, A, total=48)  # a place does not depend on how long the run is


@pytest.mark.parametrize("stages", [A, B, C, (Stage(1.0),)])
@pytest.mark.parametrize("epochs, batch", [(1, 7), (5, 4), (2, 24)])
def test_epochs_are_epochs_of_the_records_with_knowledge(stages, epochs, batch):
    total = mixture_length(200, stages, epochs=epochs, batch=batch)
    counts = Counter(n for n in mixture(200, 50, stages, total=total, batch=batch) if n < 200)
    assert total % batch == 0 and len(counts) == 200 and min(counts.values()) == epochs
    assert sum(counts.values()) < 200 * epochs + 2 * batch  # what the last batch needs, and no more


@pytest.mark.parametrize(
    "mixing, stages",
    [
        (0.5, A),
        ("0.7", B),
        ([{"share": 0.7, "until": 0.6667}, {"share": 0.3}], C),
        ('[{"share": 0.7, "until": 0.6667}, {"share": 0.3}]', C),
    ],
)
def test_what_a_recipe_may_say(mixing, stages):
    assert parse_mixing(mixing) == stages


@pytest.mark.parametrize(
    "mixing",
    [
        1.5,
        -0.1,
        "half",
        True,
        None,
        [],
        [0.5],
        [{"until": 1}],
        [{"share": 0.5, "untill": 1}],
        [{"share": 0.5, "until": 0.5}],
        [{"share": 0.5, "until": 0.7}, {"share": 0.5, "until": 0.6}, {"share": 1}],
    ],
)
def test_what_it_may_not(mixing):
    with pytest.raises(ValueError, match="^mixing: "):
        parse_mixing(mixing)


def test_rows_come_with_their_columns_and_an_address_of_their_own():
    new, common = load_training_data("lab:new"), load_training_data("lab:common")
    mixed = mix(new, common, 0.5, total=1500, batch=24, seed=3)
    assert mixed["row_id"][:] == list(range(1500))
    order = mixture(len(new), len(common), A, total=1500, batch=24, seed=3)
    assert mixed["source_row"][:] == order
    for n in (0, 1, 700, 1499):
        source = new[order[n]] if order[n] < len(new) else common[order[n] - len(new)]
        assert {k: mixed[n][k] for k in ("id", "prompt", "privileged_context")} == {
            k: source[k] for k in ("id", "prompt", "privileged_context")
        }
    assert sum(context is None for context in mixed["privileged_context"]) == 750


def test_a_base_record_with_knowledge_is_named():
    base = Dataset.from_list([{"prompt": "q", "privileged_context": "k", "id": "x_1", "row_id": 0}])
    with pytest.raises(ValueError, match="base record 'x_1' has a `privileged_context`"):
        mix(base, base, 0.5, total=4)


def build(tmp_path, *overrides: str):
    from lupi_trainer.scripts import lupi_skd
    from lupi_trainer.scripts.recipe_files import find_recipe

    arguments = ["--config", str(find_recipe("lab/lupi_skd/config_mixing_c.yaml")), "--output_dir", str(tmp_path)]
    arguments += ["--per_device_train_batch_size", "5", "--disable_tqdm", "true", "--eval_strategy", "no", *overrides]
    return lupi_skd.build_trainer(*lupi_skd.make_parser().parse_args_and_config(arguments))


def read(trainer, resume=None) -> list[list[str]]:
    """The ids of the records of every step of a run, with nothing computed about them."""
    steps = []

    def training_step(model, inputs, num_items_in_batch=None):
        steps.append([row["id"] for row in inputs])
        trainer._losses = torch.tensor([True, False, True])  # what the real step says of its loss
        trainer._zero_steps = -1  # no gradient is looked for
        return sum(p.sum() for p in model.parameters()).detach() * 0

    trainer.training_step = training_step
    trainer.train(resume_from_checkpoint=resume)
    return steps


def test_a_run_reads_the_mixture_and_goes_on_in_it(tmp_path):
    save = ["--save_strategy", "steps", "--save_steps", "6", "--max_steps", "9"]
    complete = read(build(tmp_path / "run", *save))
    new = {record["id"] for record in load_training_data("lab:new")}
    assert [sum(name in new for name in step) for step in complete] in ([4, 3] * 3 + [1, 2, 1], [4, 3] * 3 + [2, 1, 2])
    again = read(build(tmp_path / "run", *save), resume=str(tmp_path / "run" / "checkpoint-6"))
    assert again == complete[6:]


def test_epochs_become_steps_and_accumulation_counts(tmp_path):
    trainer = build(tmp_path, "--max_steps", "-1", "--num_train_epochs", "2", "--gradient_accumulation_steps", "4")
    new = [row["id"] for row in trainer.train_dataset if row["privileged_context"] is not None]
    assert trainer.args.max_steps * 20 == len(trainer.train_dataset)
    assert min(Counter(new).values()) == 2 and len(Counter(new)) == len(load_training_data("lab:new"))


@pytest.mark.parametrize(
    "text, message",
    [
        ("mixing: 0.5", "belong together"),
        ("base_dataset_name: lab:common", "belong together"),
        ("base_dataset_name: lab:common\nmixing: 7", "share in .0, 1."),
        ("base_dataset_name: lab:common\nmixing: x", "JSON"),
    ],
)
def test_a_bad_recipe_is_named(tmp_path, text, message):
    from lupi_trainer.scripts import sft

    path = tmp_path / "recipe.yaml"
    path.write_text("dataset_name: lab:new\nmodel_name_or_path: lab:student\nbf16: false\nuse_cpu: true\n" + text)
    with pytest.raises(ValueError, match=message):
        sft.make_parser().parse_args_and_config(["--config", str(path), "--output_dir", str(tmp_path / "run")])


def test_base_records_need_no_column_of_knowledge(tmp_path):
    import json

    from lupi_trainer.data.records import load_base_data

    path = tmp_path / "base.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": f"q{i}", "messages": ["x"]}) for i in range(3)))
    assert load_base_data(str(path))["privileged_context"][:] == [None] * 3
    path.write_text(json.dumps({"query": "q", "knowledge": "k"}))
    assert load_base_data(str(path))["privileged_context"][:] == ["k"]  # and `mix` refuses it


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_out_one_order(processes):
    """What the processes read in a step is what one process would have read in it."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler, SequentialSampler

    batch, order = 24, mixture(70, 31, C, total=240, batch=24)
    sampler = BatchSampler(SequentialSampler(order), batch // processes, drop_last=True)
    shards = [list(BatchSamplerShard(sampler, processes, i)) for i in range(processes)]
    steps = [[order[n] for part in parts for n in part] for parts in zip(*shards)]
    assert steps == [order[n : n + batch] for n in range(0, 240, batch)]
