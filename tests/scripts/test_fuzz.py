"""Records and recipes that nobody would write: each gives a right result, or one line that says what is wrong.

Never an error from inside a library, never half a result: what is refused leaves no file and no variable behind.
"""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from transformers.hf_argparser import string_to_bool

from lupi_trainer.data.completions import load_prompts
from lupi_trainer.data.prompts import load_few_shot_examples
from lupi_trainer.data.records import load_base_data, load_probes, load_sft_data, load_training_data
from lupi_trainer.lab import resolve_model
from lupi_trainer.lupi_skd.checks import check_dataset_lengths
from lupi_trainer.lupi_skd.setup import TeacherKind
from lupi_trainer.lupi_skd.teachers import known_teachers
from lupi_trainer.scripts import kd_lora, lupi_skd, run, sft, wmtp
from tests.fuzz import check_refusal, examples, files, values
from tests.lupi_skd.training import make_config


def check_rows(dataset, loaded) -> None:
    """The right result: every record, its question and its knowledge as they are in the file."""
    assert len(dataset) == len(loaded)
    for row, record in zip(dataset, loaded):
        prompt = record["prompt"] if record.get("prompt") is not None else record["query"]
        asked = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        assert row["prompt"][-1]["content"] == asked and row["prompt"][-1]["role"] == "user"
        context = record.get("privileged_context")
        context = record.get("knowledge") if context is None else context
        assert row["privileged_context"] == (context if context and context.strip() else None)


def read_back(content: bytes, suffix: str) -> list:
    text = content.decode("utf-8-sig")
    if suffix == "json":
        return json.loads(text)
    return [json.loads(line) for line in text.split("\n") if line.strip()]


LOADERS = [load_training_data, load_base_data, load_sft_data, load_probes, load_prompts, load_few_shot_examples]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def test_odd_files_of_records(folder, request):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("lab:student"))
    args = make_config(folder)
    models = resolve_model("lab:student"), resolve_model("lab:teacher")
    teachers = known_teachers(args, *models, TeacherKind.LOCAL, None, tokenizer)
    outcomes = {"loaded": 0, "encoded": 0, "refused": 0}

    @examples(200)
    @given(files(), st.sampled_from(LOADERS))
    def check(file, load):
        suffix, content = file
        path = folder / f"data.{suffix}"
        path.write_bytes(content)
        try:
            dataset = load(str(path))
        except Exception as error:
            outcomes["refused"] += 1
            return check_refusal(error)
        outcomes["loaded"] += 1
        if load in (load_training_data, load_base_data):
            check_rows(dataset, read_back(content, suffix))
            try:
                check_dataset_lengths(dataset, tokenizer, teachers, args)
                outcomes["encoded"] += 1
            except Exception as error:
                check_refusal(error)
        else:
            assert len(dataset) == len(read_back(content, suffix))

    check()
    assert min(outcomes["loaded"] / 5, outcomes["encoded"], outcomes["refused"] / 5) > 1, outcomes


SCRIPTS = {"skd": lupi_skd, "sft": sft, "kd": kd_lora, "wmtp": wmtp}
COMMON = {
    "model_name_or_path": "lab:student",
    "bf16": False,
    "use_cpu": True,
    "max_steps": 2,
    "report_to": "none",
    "per_device_train_batch_size": 2,
    "gradient_checkpointing": False,
}
BASE = {
    "skd": {
        **COMMON,
        "dataset_name": "lab:eval",
        "teacher_model_name_or_path": "lab:teacher",
        "max_completion_length": 12,
    },
    "sft": {**COMMON, "dataset_name": "lab:eval"},
    "kd": {**COMMON, "dataset_name": "lab:qa", "teacher_model_name_or_path": "lab:teacher", "max_samples": 8},
    "wmtp": {**COMMON, "dataset_name": "lab:eval", "algo": "mtp-baseline", "horizon": 2},
}
ACTIONS = {
    name: [action for action in script.make_parser()._actions if action.dest not in ("help", "config")]
    for name, script in SCRIPTS.items()
}
odd_values = st.one_of(
    values,
    st.sampled_from(
        [
            "",
            "none",
            "no",
            "steps",
            "auto",
            "cpu",
            "cuda:9",
            "float7",
            "lab:nobody",
            "lab:",
            "me/nothing",
            "nowhere.json",
            "-1",
            "1e400",
            "[1",
            '{"a": 1}',
            "{}",
            0,
            -1,
            0.5,
            1e9,
            True,
            [],
            {},
        ]
    ),
)


def likely_values(action):
    """Values of the kind that a key takes: some of them make sense."""
    if action.choices:
        return st.sampled_from(list(action.choices))
    return st.sampled_from({int: [1, 2, 3, 8], float: [0.0, 0.1, 0.5, 1.0, 2.0]}.get(action.type, [True, False, None]))


@st.composite
def recipes(draw):
    """(script, text of a recipe)."""
    name = draw(st.sampled_from(list(SCRIPTS)))
    if draw(st.integers(0, 9)) == 0:
        return name, draw(
            st.one_of(
                st.binary(max_size=30),
                st.sampled_from(
                    [
                        b"a: &a [*a]",
                        b"{" * 5000,
                        b"? [1]\n: 2",
                        b"1: 2",
                        b"env: {PATH: 3}\ngamma: x",
                        b"env: {'': 1}",
                        b"- a",
                        b"env: {A=B: 1}",
                        b"env: {LUPI_FUZZ: 1}\ngamma: -1",
                        b"gamma: 3\ngamma: 4",
                        b"gamma: 2024-01-01",
                        b"",
                    ]
                ),
            )
        )
    recipe = dict(BASE[name])
    for _ in range(draw(st.integers(1, 3))):
        action = draw(st.sampled_from(ACTIONS[name]))
        recipe[action.dest] = draw(st.one_of(likely_values(action), likely_values(action), odd_values))
    if draw(st.integers(0, 9)) == 0:
        recipe[draw(st.sampled_from(["env", "gama", "x", ""]))] = draw(odd_values)
    try:
        return name, yaml.safe_dump(recipe, allow_unicode=True).encode()
    except UnicodeEncodeError:
        return name, json.dumps(recipe).encode()


def is_read_as(read, written) -> bool:
    """Whether a key has the value that the recipe gives it, up to its type."""
    read = getattr(read, "value", read)  # of an enumeration
    if written in (None, "none") and isinstance(read, bool):
        return True  # as if the key were not there
    if isinstance(written, str) and isinstance(read, bool):
        return read == string_to_bool(written)
    if isinstance(written, str) and isinstance(read, dict):
        return json.loads(written) == read
    if isinstance(read, list) and not isinstance(written, list):
        return read in ([written], str(written).split()) or (not read and written in ("none", None, ""))
    if isinstance(read, bool) and isinstance(written, str):
        return written.lower() in (("yes", "true", "t", "y", "1") if read else ("no", "false", "f", "n", "0"))
    try:
        return float(read) == float(written)
    except (TypeError, ValueError, OverflowError):
        return read == written or str(read).lower() == str(written).lower()


def check_read(recipe: dict, arguments: list[dict]) -> None:
    """The right result: every key of the recipe is a field, with the recipe's value."""
    for key, value in recipe.items():
        holders = [one for one in arguments if key in one]
        assert holders or key == "env", key
        if key == "disable_tqdm" and value is None:
            continue  # transformers decides by the level of the log
        if (key, value) == ("loss_type", "chunked_nll"):
            value = "nll"  # TRL's name for it
        if key == "include_num_input_tokens_seen":  # transformers' names for them
            value = {"true": "all", "false": "no"}.get(str(value).lower(), value)
        if key == "dataloader_pin_memory":
            value = False  # transformers turns it off where no device could use it
        for one in holders:
            assert is_read_as(one[key], value), (key, one[key], value)


@pytest.mark.slow
def test_odd_recipes(tmp_path, capsys, caplog, monkeypatch):
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.ERROR, "lupi_trainer")
    outcomes = {0: 0, 2: 0}

    @examples(100)
    @example(("wmtp", yaml.safe_dump(BASE["wmtp"]).encode()))
    @example(("kd", yaml.safe_dump(BASE["kd"] | {"teacher_quantization_samples": 1}).encode()))
    @example(("skd", yaml.safe_dump(BASE["skd"] | {"teacher_model_name_or_path": True}).encode()))
    @example(("skd", yaml.safe_dump(BASE["skd"] | {"bf16": "none"}).encode()))
    @example(("kd", yaml.safe_dump(BASE["kd"] | {"bf16": None}).encode()))
    @example(("kd", yaml.safe_dump(BASE["kd"] | {"dataloader_pin_memory": True}).encode()))
    @example(("kd", yaml.safe_dump(BASE["kd"] | {"include_num_input_tokens_seen": True}).encode()))
    @example(("skd", yaml.safe_dump(BASE["skd"] | {"dtype": "bfloat16"}).encode()))  # whose weights would not move
    @given(recipes())
    def check(recipe):
        name, content = recipe
        script, before = SCRIPTS[name], dict(os.environ)
        Path("recipe.yaml").write_bytes(content)

        read = []

        def build():
            arguments = script.make_parser().parse_args_and_config(["--config", "recipe.yaml"])
            read.extend(vars(one).copy() for one in arguments)
            script.build_trainer(*arguments)

        try:
            capsys.readouterr()
            status = run(build)
            errors = capsys.readouterr().err
            outcomes[status] += 1
            if status == 0:
                check_read(yaml.safe_load(content), read)
            else:
                assert status == 2
                lines = [line for line in errors.splitlines() if line.startswith("error: ")]
                assert len(lines) == 1 and len(lines[0]) > len("error: ") and "Traceback" not in errors
                assert os.environ == before, "a refused recipe has set variables"
                assert sorted(os.listdir()) == ["recipe.yaml"], "a refused recipe has left files"
        finally:
            os.environ.clear()
            os.environ.update(before)
            for path in Path().iterdir():
                if path.is_dir():
                    shutil.rmtree(path)

    check()
    assert outcomes[0] > 0 and outcomes[2] > 15, outcomes
