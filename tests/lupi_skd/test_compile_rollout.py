"""`compile_rollout` under the Trainer: whatever accelerate, TRL and PEFT put around a model, its forwards compile."""

import pytest
from peft import LoraConfig
from torch._dynamo.utils import counters
from transformers import TrainerCallback

from lupi_trainer.lab import load_lab_records, world
from tests.lupi_skd.training import make_trainer
from tests.models.families import tiny_model, train_tokenizer


@pytest.fixture(scope="module")
def words():
    records = load_lab_records("lab:new")[:40]
    return train_tokenizer([world.PERSONA, *(f"{r['query']} {r['knowledge']}" for r in records)], 400)


class Graphs(TrainerCallback):
    """How many graphs there are after every step."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(counters["stats"]["unique_graphs"])


def train(tmp_path, words, compile, self_taught=False, **settings):
    """Returns the losses of three steps, the graphs after each, and the hooks on the student's embeddings.

    The teacher was never asked for its hidden states: transformers installs what collects them at the first call,
    under a lock that cannot be traced.
    """
    teacher = None if self_taught else tiny_model("qwen3", words, layers=1)
    assert teacher is None or not getattr(teacher.model, "_output_capturing_hooks_installed", False)
    graphs = Graphs()
    trainer, losses = make_trainer(
        tmp_path,
        tiny_model("llama", words, layers=1, seed=1),
        teacher,
        processing_class=words,
        config_max_slots=4,
        config_compile_rollout=compile,
        config_accept_top_k=50,
        config_teacher_min_prob=0.001,
        config_max_completion_length=10,
        config_eval_strategy="no",
        **settings,
    )
    trainer.add_callback(graphs)
    before = counters["stats"]["unique_graphs"]
    trainer.train()
    hooks = len(trainer.model.get_input_embeddings()._forward_hooks)
    return losses.losses, [count - before for count in graphs.seen], hooks


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"config_gradient_checkpointing": True, "config_bf16": True},
        {"self_taught": True, "peft_config": LoraConfig(r=4, target_modules="all-linear"), "config_bf16": True},
        {"config_reuse_verification": False, "config_gamma_policy": "adaptive"},
    ],
    ids=["autocast and checkpointing", "adapter and autocast", "adaptive"],
)
def test_the_trainers_rollout_compiles_once_and_trains_as_the_eager_one_does(tmp_path, words, tracing, settings):
    eager, none, hooks = train(tmp_path / "eager", words, False, **settings)
    assert none == [0, 0, 0]
    compiled, graphs, same_hooks = train(tmp_path / "compiled", words, True, **settings)
    assert compiled == pytest.approx(eager, abs=1e-4) and len(set(eager)) == 3
    assert graphs[0] >= 2, "a student's step and a teacher's verification"
    if "config_gamma_policy" not in settings:
        assert graphs == [2, 2, 2], "later steps must use what the first compiled"
    assert hooks == same_hooks <= 2
