"""Which layers a model can spare: how little a run of consecutive layers turns the hidden state.

The influence of the n layers from l is `1 - mean cos(x_l, x_{l+n})`, where x_l is what layer l reads: block influence
for n = 1 (Men et al., ShortGPT, arXiv 2403.03853, equation 1), the distance by which Gromov et al. choose a block
(arXiv 2403.17887, section 3.2) up to the arc cosine, which does not change the order.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F

from .layers import check_prunable, kept_layers, layers_prefix


@torch.no_grad()
def block_influence(model, rows: Iterable[list[int]]) -> torch.Tensor:
    """Measure every run of consecutive layers.

    Args:
        model: a causal language model of L layers.
        rows: token ids, unpadded, read one at a time.

    Returns:
        [L, L + 1] float64: the influence of the layers from l up to (not with) m, at [l, m]; 0 where m <= l.

    Raises:
        ValueError: no row, or a model that cannot lose layers.
    """
    check_prunable(model)
    layers = model.get_submodule(layers_prefix(model).rstrip("."))
    states: list[torch.Tensor] = []
    hooks = [
        layers[0].register_forward_pre_hook(
            lambda _, args, kwargs: states.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
    ]
    hooks += [layer.register_forward_hook(lambda _, args, out: states.append(_state(out))) for layer in layers]
    depth, count, was_training = len(layers), 0, model.training
    total = torch.zeros(depth, depth + 1, dtype=torch.float64)
    model.eval()
    try:
        for row in rows:
            states.clear()
            model(input_ids=torch.tensor([row], device=model.device), use_cache=False, logits_to_keep=1)
            for start in range(depth):
                for end in range(start + 1, depth + 1):
                    cosine = F.cosine_similarity(states[start][0].double(), states[end][0].double(), dim=-1)
                    total[start, end] += (1 - cosine).sum().cpu()
            count += len(row)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    if count == 0:
        raise ValueError("block influence needs some text to be measured on")
    return total / count


def _state(output) -> torch.Tensor:
    return output[0] if isinstance(output, (tuple, list)) else output


def choose_block(influence: torch.Tensor, config, size: int, taken: set[int]) -> list[int]:
    """Original numbers of the `size` consecutive layers of least influence, none of them in `taken`.

    Raises:
        ValueError: no such run is left.
    """
    numbers = kept_layers(config)
    runs = [numbers[start : start + size] for start in range(len(numbers) - size + 1)]
    free = [start for start, run in enumerate(runs) if not taken & set(run)]
    if size < 1 or not free or size + len(taken) >= len(numbers):
        raise ValueError(f"there are no {size} consecutive layers to drop beside {sorted(taken)} of {len(numbers)}")
    best = min(free, key=lambda start: influence[start, start + size].item())
    return runs[best]
