"""Rollouts with sharded weights: processes with different rows run the same forwards, and write the same text."""

import copy
import random

import pytest
from torch.distributed.fsdp import fully_shard

from lupi_trainer.speculative import Lockstep, TopK, skd_rollout
from tests.distributed.pair import run_pair
from tests.speculative.toy_models import perturbed, prompts, toy


def sharded(model):
    """A copy whose weights lie on both processes, gathered layer by layer in every forward."""
    model = copy.deepcopy(model)
    for layer in model.model.layers:
        fully_shard(layer, reshard_after_forward=True)
    return fully_shard(model, reshard_after_forward=True)


def count_forwards(model) -> list[int]:
    forwards = [0]
    model.register_forward_pre_hook(lambda *_: forwards.__setitem__(0, forwards[0] + 1))
    return forwards


def random_rounds(rank: int, rollouts: int) -> dict:
    """Rollouts of sizes that no two processes share; the teacher is sharded too in every other one."""
    teacher = toy("llama", hidden=16, layers=1)
    student = perturbed(teacher, 0.1)
    shards = {"student": sharded(student), "teacher": sharded(teacher)}
    forwards = {name: count_forwards(model) for name, model in shards.items()}
    chance, texts, expected, rounds, counts = random.Random(rank), [], [], [], []
    for i in range(rollouts):
        rows = chance.randint(1, 5)
        students = prompts(rows, 1, 9, seed=1000 * rank + i)
        teachers = [k + q for k, q in zip(prompts(rows, 18, 40, seed=5000 * rank + i), students)]
        if chance.random() < 0.3:  # one prefix for all: one more forward
            teachers = [teachers[0][:17] + t for t in teachers]
        options = {
            "max_new_tokens": chance.randint(1, 12),
            "gamma": chance.randint(1, 6),
            "gamma_policy": chance.choice(["fixed", "adaptive", "goodput"]),
            "max_slots": chance.choice([None, 1, 2]),
            "verification": "sequential" if i % 3 == 2 else "parallel",  # of all processes
            "acceptance": TopK(3, 0.1),
            "eos_token_id": [7, 8, 9],
            "seed": i,
        }
        its_teacher = shards["teacher"] if i % 2 else teacher
        rollout = skd_rollout(shards["student"], its_teacher, students, teachers, lockstep=Lockstep(), **options)
        texts.append(rollout.completion_ids)
        rounds.append(rollout.stats.rounds)
        counts.append((forwards["student"][0], forwards["teacher"][0]))
        expected.append(skd_rollout(student, teacher, students, teachers, **options).completion_ids)
    return {"texts": texts, "expected": expected, "rounds": rounds, "counts": counts}


@pytest.mark.distributed
@pytest.mark.slow
def test_rounds_of_random_lengths_do_not_hang(tmp_path):
    first, second = run_pair(tmp_path, random_rounds, 18)
    assert first["texts"] == first["expected"] and second["texts"] == second["expected"]
    assert first["counts"] == second["counts"]
    assert sum(a != b for a, b in zip(first["rounds"], second["rounds"])) > 9
    assert min(sum(first["rounds"]), sum(second["rounds"])) > 60
    assert first["texts"] != second["texts"]


def without_lockstep(rank: int) -> int:
    model = toy("llama", hidden=16)
    forwards = count_forwards(model)
    skd_rollout(model, model, prompts(1 + rank, 3, 9), prompts(1 + rank, 3, 9), max_new_tokens=4 + 9 * rank, gamma=2)
    return forwards[0]


@pytest.mark.distributed
@pytest.mark.slow
def test_without_lockstep_the_forwards_differ(tmp_path):
    first, second = run_pair(tmp_path, without_lockstep)
    assert first != second
