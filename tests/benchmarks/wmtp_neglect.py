"""`python -m tests.benchmarks.wmtp_neglect`: which tokens the critic's weights pass over, and what that does to them.

Heads on a frozen student, trained on answers of which four in ten are wrong, with the critic's weights and with ones.
The tokens of the right answers are put into quarters by the weight that each token of the vocabulary was given.
"""

import tempfile
from pathlib import Path

import torch

from lupi_trainer.data.records import load_sft_data
from tests.wmtp.training import make_wmtp_trainer


class Tally:
    """Sums of something over the targets of the heads after the first, by token of the vocabulary."""

    def __init__(self, vocab_size: int):
        self.sums, self.counts = torch.zeros(vocab_size), torch.zeros(vocab_size)

    def add(self, batch, values: torch.Tensor) -> None:
        """values [B, S, H]; the first head is left out: on a frozen trunk it does not change."""
        chosen = batch.has_target.clone()
        chosen[..., 0] = False
        tokens = batch.targets[chosen]
        self.sums.index_add_(0, tokens, values[chosen].float())
        self.counts.index_add_(0, tokens, torch.ones(len(tokens)))

    def mean(self, tokens: list[int]) -> float:
        return (self.sums[tokens].sum() / self.counts[tokens].sum()).item()


def train(algorithm: str, seed: int) -> tuple[Tally, Tally]:
    """(weights while training, 1 being a head's fair share of its position; losses on the right answers)."""
    right = load_sft_data("lab:common").select(range(0, 720, 3))
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = make_wmtp_trainer(
            Path(folder),
            algorithm,
            train_dataset=load_sft_data("lab:common-errors"),
            eval_dataset=right,
            config_seed=seed,
            config_max_steps=150,
            config_per_device_train_batch_size=16,
            config_learning_rate=2e-3,
            config_lr_scheduler_type="linear",
            config_logging_steps=1000,
            config_critic_steps=100,
            config_freeze_trunk=True,
        )
        weights, losses = (Tally(trainer.model.config.vocab_size) for _ in range(2))
        weigh = trainer.compute_head_weights

        def watched(batch):
            given = weigh(batch)
            if trainer.model.training:
                fair = given.sum(-1, keepdim=True).clamp(min=1e-9) / batch.has_target.sum(-1, keepdim=True).clamp(
                    min=1
                )
                weights.add(batch, given / fair)
            else:
                losses.add(batch, batch.ce)
            return given

        trainer.compute_head_weights = watched
        trainer.train()
        trainer.evaluate()
    return weights, losses


def main(seeds: int = 3) -> None:
    torch.set_num_threads(1)
    print("| seed | quarter of the targets | critic's weight | loss with it | loss with ones |\n|" + "---|" * 5)
    for seed in range(1, seeds + 1):
        (weights, with_critic), (_, with_ones) = (train(name, seed) for name in ("critic-wmtp", "mtp-baseline"))
        known = torch.nonzero((weights.counts > 0) & (with_critic.counts > 0)).flatten().tolist()
        known.sort(key=lambda token: weights.sums[token] / weights.counts[token])
        whole, passed, quarters = with_critic.counts[known].sum(), 0.0, [[] for _ in range(4)]
        for token in known:
            quarters[min(3, int(4 * passed / whole))].append(token)
            passed += with_critic.counts[token].item()
        for number, tokens in enumerate(quarters, 1):
            figures = weights.mean(tokens), with_critic.mean(tokens), with_ones.mean(tokens)
            print(f"| {seed} | {number} | " + " | ".join(f"{figure:.2f}" for figure in figures) + " |", flush=True)


if __name__ == "__main__":
    main()
