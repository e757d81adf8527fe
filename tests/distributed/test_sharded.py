"""The same losses, however the student's weights are shared out over processes."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.distributed.pair import run_pair
from tests.distributed.sharded import TRAINERS, move, train, train_others, train_recipe
from tests.scripts.test_sized_recipes import arguments, save_inputs
from tests.teachers.vllm_stand_in import VLLMStandIn
from tests.training.test_movement import shares


SAVED = {"save_strategy": "steps", "save_steps": 2}


def saved(folder: Path) -> dict[str, torch.Tensor]:
    """Everything in the safetensors below a folder."""
    return {
        f"{file.relative_to(folder)}: {name}": tensor
        for file in sorted(folder.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_alike(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    """The same weights, of runs in which one moves by 1e-3 or more a step; tied ones may be saved twice."""
    assert ours.keys() >= theirs.keys() and theirs
    for name in theirs:
        assert (ours[name] - theirs[name]).abs().mean() < 1e-5, name


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The run of one process."""
    folder = tmp_path_factory.mktemp("one")
    (result,) = run_pair(folder, partial(train, **SAVED), "none", str(folder), 1, processes=1)
    return result | {"student": saved(folder / "run/checkpoint-4")}


BACKENDS = {
    "ddp": ("DDP", False),
    "fsdp2": ("FSDP2", True),
    "zero2": ("DeepSpeed ZeRO-2", False),
    "zero3": ("DeepSpeed ZeRO-3", False),
    "zero3-lockstep": ("DeepSpeed ZeRO-3", True),
}


@pytest.mark.distributed
@pytest.mark.parametrize("backend", BACKENDS)
def test_two_processes_have_the_losses_of_one_and_go_on_from_a_checkpoint(tmp_path, one, backend):
    if backend.startswith("zero"):
        pytest.importorskip("deepspeed", reason="needs what `make test-zero` sets up")
    first, second = run_pair(tmp_path, partial(train, **SAVED), backend, str(tmp_path))
    assert (first["backend"], first["lockstep"]) == BACKENDS[backend]
    assert first["losses"] == second["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert len(set(first["losses"])) == 4 and max(one["lengths"]) > 10
    assert first["marks"] == second["marks"] == one["marks"]
    assert one["marks"]["eval_closed_book_strict"] > 0

    middle, end = tmp_path / "run/checkpoint-2", tmp_path / "run/checkpoint-4"
    student = saved(end)
    assert_alike(student, one["student"])
    shutil.rmtree(end)
    (again := tmp_path / "again").mkdir()
    resumed = run_pair(again, partial(train, resume=str(middle), **SAVED), backend, str(tmp_path))
    for process, (before, after) in enumerate(zip((first, second), resumed)):
        assert (middle / f"rollout_state_{process}.json").is_file()
        assert after["losses"] == before["losses"][2:] and after["drafted"] == before["drafted"][2:]
    model = AutoModelForCausalLM.from_pretrained(end)
    assert all(torch.equal(model.get_parameter(name.split()[1]), tensor) for name, tensor in student.items())


@pytest.fixture(scope="module")
def others_of_one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("others")
    (result,) = run_pair(folder, train_others, "none", str(folder), 1, processes=1)
    return result | {"saved": saved(folder)}


@pytest.mark.distributed
@pytest.mark.parametrize("backend", ["ddp", "fsdp2", "zero2", "zero3"])
@pytest.mark.slow
def test_the_other_trainers_have_the_losses_of_one_process(tmp_path, others_of_one, backend):
    if backend.startswith("zero"):
        pytest.importorskip("deepspeed", reason="needs what `make test-zero` sets up")
    first, second = run_pair(tmp_path, train_others, backend, str(tmp_path))
    for name in TRAINERS:
        assert first[name] == second[name] == pytest.approx(others_of_one[name], abs=1e-5), name
        assert len(set(first[name])) == 3
    assert_alike(saved(tmp_path), others_of_one["saved"])


@pytest.mark.distributed
@pytest.mark.parametrize("backend", ["fsdp2", "zero2", "zero3"])
@pytest.mark.slow
def test_sharded_weights_that_are_loaded_in_bfloat16_make_the_movement_of_float32(tmp_path, backend):
    """Float32 weights are kept by FSDP2 in accelerate's hands, and by DeepSpeed: of plain AdamW at 1e-5 no step is
    lost, though one process with such weights would lose most of them."""
    if backend.startswith("zero"):
        pytest.importorskip("deepspeed", reason="needs what `make test-zero` sets up")
    (folder := tmp_path / "one").mkdir()
    (wanted,) = run_pair(folder, partial(move, bf16=False), "none", str(folder), 1, processes=1)
    for moved in run_pair(tmp_path, move, backend, str(tmp_path)):
        length, way = shares(moved, wanted)
        print(f"{backend}: {length:.1%} of the length, {way:.1%} of the way")
        assert length >= 0.95 and way >= 0.95


@pytest.mark.distributed
@pytest.mark.slow
def test_replicas_that_write_with_bfloat16_copies_stay_one_student(tmp_path):
    """DDP's hooks are on the float32 weights, which a rollout puts aside: they are the same in both processes."""
    run, results = partial(train, bf16=True, learning_rate=3e-3, max_steps=3), {}
    for backend, processes in (("none", 1), ("ddp", 2)):
        (folder := tmp_path / backend).mkdir()
        results[backend] = run_pair(folder, run, backend, str(folder / "run"), processes, processes=processes)
    (one,), (first, second) = results["none"], results["ddp"]
    assert first["losses"] == second["losses"] == pytest.approx(one["losses"], rel=1e-2)  # sums in another order
    assert first["drafted"] == second["drafted"] == one["drafted"]


@pytest.mark.distributed
@pytest.mark.parametrize(
    "recipe, config", [("8x80gb", "zero2_paired.yaml"), ("two-nodes", "multi_node_paired.yaml")], ids=["8x80gb", "two"]
)
def test_the_recipes_of_pairs_train_with_zero2_in_their_own_types(tmp_path, recipe, config):
    pytest.importorskip("deepspeed", reason="needs what `make test-zero` sets up")
    (inputs := tmp_path / "inputs").mkdir()
    command, *given = arguments(recipe, save_inputs(inputs), output_dir=tmp_path / "run", use_cpu="false")
    assert command == "skd"
    run_pair(tmp_path, train_recipe, config, given)
    weights = saved(tmp_path / "run" / "checkpoint-2")
    assert weights and {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text())
    assert [log["loss"] > 0 for log in state["log_history"] if "loss" in log] == [True, True]


@pytest.mark.distributed
def test_processes_that_evaluate_first_train_together(tmp_path, one):
    run = partial(train, judged=True)
    first, second = run_pair(tmp_path, run, "ddp", str(tmp_path / "run"))
    assert first["losses"] == second["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert first["marks"] == second["marks"] == one["marks"]


@pytest.mark.distributed
def test_zero3_with_a_head_that_is_cut_and_not_the_embeddings(tmp_path):
    """Nothing but the loss reads such a head, so that nothing else gathers it."""
    pytest.importorskip("deepspeed", reason="needs what `make test-zero` sets up")
    results = {}
    for backend, processes in (("none", 1), ("zero3", 2), ("zero3-lockstep", 2)):
        folder = tmp_path / backend
        folder.mkdir()
        results[backend] = run_pair(folder, train, backend, str(folder / "run"), processes, True, processes=processes)
    (one,) = results.pop("none")
    assert len(set(one["losses"])) == 4
    for first, second in results.values():
        assert first["losses"] == second["losses"] == pytest.approx(one["losses"], abs=1e-5)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("scores", [False, True])
def test_two_processes_share_one_served_teacher(tmp_path, teacher, tokenizer, scores):
    results = {}
    with VLLMStandIn(teacher, tokenizer, scores=scores) as served:
        run = partial(train, teacher_model_server_url=served.url, max_steps=2, max_completion_length=16)
        for processes in (1, 2):
            folder = tmp_path / str(processes)
            folder.mkdir()
            results[processes] = run_pair(folder, run, "ddp", str(folder / "run"), processes, processes=processes)
    (one,), (first, second) = results[1], results[2]
    assert first["losses"] == second["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert len(set(one["losses"])) == 2
