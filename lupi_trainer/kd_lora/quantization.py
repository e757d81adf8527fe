"""What quantization does to a teacher, measured: the KL from the unquantized to the quantized one."""

from collections.abc import Iterable
from typing import Any

import torch

from ..losses.chunked_kd import chunked_kd_ce
from ..models.backbone import teacher_states
from ..models.lm_head import Head


@torch.no_grad()
def quantization_kl(quantized: Any, reference: Any, batches: Iterable[dict[str, Any]]) -> float:
    """Mean KL(reference || quantized) over labeled tokens, in nats, at temperature 1.

    Args:
        quantized: the teacher as it trains the student.
        reference: the same teacher before quantization.
        batches: collated records: `input_ids`, `labels` [B, S] (-100 where nothing counts) and what goes with them.
    """
    device = next(quantized.parameters()).device
    heads = [Head(model, model.config.get_text_config().vocab_size, device) for model in (quantized, reference)]
    total, count = 0.0, 0
    for batch in batches:
        labels = batch["labels"][:, 1:].to(device)
        labeled = labels != -100
        ours, theirs = (teacher_states(model, batch, labeled) for model in (quantized, reference))
        total += chunked_kd_ce(ours, heads[0], theirs, heads[1], labels[labeled], 1.0, 1.0).total.item()
        count += int(labeled.sum())
    return total / max(count, 1)
