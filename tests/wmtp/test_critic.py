"""The critic's own stage, on tensors."""

import pytest
import torch

from lupi_trainer.wmtp.critic import fit_critic


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
