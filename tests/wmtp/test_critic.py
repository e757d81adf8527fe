"""The critic: what it learns, from rewards or from a reference, and its files."""

import json

import pytest
import torch

from lupi_trainer.losses.token_weights import critic_weights
from lupi_trainer.models.mtp_heads import ValueHead
from lupi_trainer.wmtp.critic import fit_critic
from lupi_trainer.wmtp.weighted_loss import weighted_loss
from tests.wmtp.training import (
    answers,
    batch_of,
    make_wmtp_trainer,
    rewarded,
)


def test_a_critic_judges_each_token_by_what_it_is_worth_itself(tmp_path):
    """Hand-made: where the reference is better at token 5, that is earned at token 5, not before or after."""
    trainer, _ = make_wmtp_trainer(tmp_path, "critic-wmtp", config_critic_decay=0.5)
    trainer.model.eval()
    inputs = batch_of(trainer, rows=1)
    inputs["labels"] = inputs["input_ids"].clone()  # every token is learned
    with torch.no_grad():
        log_probs = trainer.model(inputs["input_ids"]).logits[0].log_softmax(-1)
    ids = inputs["input_ids"][0]
    ce = [0.0] + [-log_probs[t - 1, ids[t]].item() for t in range(1, len(ids))]  # of token t
    gain = torch.zeros(len(ids))
    gain[5] = 2.0  # nats, by which the reference is better at token 5
    reference = torch.tensor(ce) - gain
    trainer.reference.next_token_ce = lambda inputs, targets: torch.nn.functional.pad(reference[1:], (0, 1))[None]
    with torch.no_grad():
        hidden, returns, places = trainer._judged(inputs)
    wanted = torch.zeros(len(ids))
    wanted[5:] = 2.0 * 0.5 ** torch.arange(len(ids) - 5)
    torch.testing.assert_close(returns[0], wanted, atol=1e-4, rtol=0)
    assert places.all() and hidden.shape[:2] == places.shape
    # weights of the heads by these values: at place 3, head 2 predicts token 5
    batch = weighted_loss(trainer.model, inputs, lambda batch: batch.has_target.float(), "position")[1]
    weights = critic_weights(returns, batch.has_target, decay=0.5)
    assert weights[0, 3].argmax() == 1 and weights[0, 4].argmax() == 0 and weights[0, 3, 1] > 0.8


@pytest.mark.slow
def test_a_critic_learns_rewards_from_a_column(tmp_path):
    """A reward that the text shows (does the answer name the river?) is learned; noise is not."""
    data = answers(240)
    about = [float("river" in row["completion"][0]["content"]) for row in data]
    explained = {}
    for name, values in (
        ("river", about),
        ("noise", torch.rand(240, generator=torch.Generator().manual_seed(0)).tolist()),
    ):
        trainer, losses = make_wmtp_trainer(
            tmp_path,
            "critic-wmtp",
            train_dataset=data.add_column("reward", values),
            reference_model=None,
            config_critic_steps=150,
            config_critic_learning_rate=5e-3,
            config_per_device_train_batch_size=8,
        )
        trainer.train_critic()
        explained[name] = trainer.state.log_history[-1]["critic/explained_variance"]
        assert trainer.reference is None and trainer.value_head.scale > 0.1
    assert explained["river"] > 0.4 and explained["noise"] < 0.1


def test_the_critic_alone_learns_in_its_stage(tmp_path):
    trainer, _ = make_wmtp_trainer(tmp_path, "critic-wmtp")
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.train_critic()
    assert all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())
    assert not any(p.requires_grad for p in trainer.value_head.parameters())
    trainer.save_model(str(tmp_path / "saved"))
    again, _ = make_wmtp_trainer(
        tmp_path, "critic-wmtp", reference_model=None, config_value_head_name_or_path=str(tmp_path / "saved")
    )
    hidden = torch.randn(2, 3, trainer.value_head.hidden_size)
    torch.testing.assert_close(again.value_head(hidden), trainer.value_head(hidden))
    again.train()


@pytest.mark.parametrize("bad", [None, float("nan"), "good", True])
def test_rewards_that_are_no_numbers_are_named(tmp_path, bad):
    values = [0.5, bad if not isinstance(bad, str) else None, 1.0, 0.0]
    if bad is True:
        values = [True, False, True, False]
    with pytest.raises(ValueError, match=r"record number \d: `reward` must be a finite number"):
        make_wmtp_trainer(tmp_path, "critic-wmtp", train_dataset=rewarded(values))


def test_value_head_files(tmp_path):
    ValueHead(8, scale=2.0).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "value_head.json").read_text()) == {"hidden_size": 8, "scale": 2.0}
    assert ValueHead.from_pretrained(tmp_path).scale == 2.0


def test_a_critic_does_not_leave_its_first_mean_for_rounding():
    """There the slope of the mean is 0, and in float32 nearly so: of that, Adam would make a step of 1e-3."""
    for seed in range(8):
        noise = torch.Generator().manual_seed(seed)
        hidden, returns = torch.randn(4, 9, 16, generator=noise), torch.randn(4, 9, generator=noise) + 3
        empty = hidden, returns, torch.zeros(4, 9, dtype=torch.bool)  # passed over
        batch = hidden, returns, torch.ones(4, 9, dtype=torch.bool)
        critic, _ = fit_critic([empty, batch], 16, learning_rate=1e-3, device=torch.device("cpu"))
        wanted = returns.double()
        mean, scale = wanted.mean().item(), wanted.std(correction=0).item()
        assert critic.down.bias.item() == pytest.approx(mean / scale, rel=1e-6)  # some units of float32's last place
        assert critic.scale == pytest.approx(scale, rel=1e-6) and critic.down.weight.abs().min() > 0
    with pytest.raises(ValueError, match="no batch"):
        fit_critic([empty], 16, learning_rate=1e-3, device=torch.device("cpu"))
