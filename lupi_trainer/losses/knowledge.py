"""Where the knowledge speaks: what it changes in the teacher's distribution, token by token, and weights from that.

Most tokens of an answer follow from the question; the few that do not are what a student is to learn. The teacher
itself tells them apart, by reading the same text once with the knowledge and once without. Weights of a text have the
mean 1, as those of Rho-1 (arXiv 2404.07965), which compares two models where this compares two prompts.
"""

import torch

from ..models.lm_head import Head
from ..speculative.rules.logits import gain
from . import chunks
from .token_weights import masked_softmax, shuffle_in_texts, top_share


SELECTS = ("top", "softmax")


@torch.no_grad()
def knowledge_gain(
    states: torch.Tensor, bare_states: torch.Tensor, teacher: Head, completion_mask: torch.Tensor
) -> torch.Tensor:
    """KL(p_knowing || p_bare) of the teacher's next-token distributions at temperature 1, in chunks of tokens.

    Args:
        states: [B, C, H], what the teacher's `lm_head` reads behind the prompt with the knowledge.
        bare_states: [B, C, H], the same behind the prompt without it.
        teacher: its `lm_head`, on the states' device.
        completion_mask: [B, C], 1 at tokens of the loss; what lies elsewhere is not read.

    Returns:
        [B, C] float32 (float64 of such states) in nats, 0 outside of the mask.
    """
    valid = completion_mask != 0
    told, bare, teacher = states[valid], bare_states[valid], teacher.cast(states.dtype)
    size, parts = max(1, chunks.CHUNK_ELEMENTS // teacher.weight.size(0)), []
    for start in range(0, max(1, len(told)), size):  # no tokens are one empty chunk
        rows = slice(start, start + size)
        parts.append(gain(*(teacher.logits(one[rows]) for one in (told, bare))))
    gains = torch.cat(parts)
    return gains.new_zeros(valid.shape).masked_scatter_(valid, gains)


def knowledge_weights(
    gain: torch.Tensor,
    completion_mask: torch.Tensor,
    knows: torch.Tensor,
    *,
    select: str = "top",
    temperature: float = 1.0,
    share: float = 0.3,
    floor: float = 0.1,
    shuffle: torch.Generator | None = None,
) -> torch.Tensor:
    """Weights of a text's tokens: `floor + (1 - floor) * w`, where w grows with the gain and has the mean 1 in a text.

    Args:
        gain: [B, C] of [`knowledge_gain`], in nats.
        completion_mask: [B, C], 1 at tokens of the loss.
        knows: [B] bool, whether there is knowledge at all; the tokens of the other texts weigh 1 each.
        select: `"top"`: the highest `share` of the text's tokens alike, none of the others; or `"softmax"` of gain /
            temperature over them.
        temperature: above 0, in nats.
        share: in (0, 1].
        floor: in [0, 1], the least weight of a token; 1 weighs all alike.
        shuffle: for the control: a generator on the CPU, which puts each text's weights in a random order.

    Returns:
        [B, C] in the gain's dtype, without a gradient; 0 outside of the mask.
    """
    counts = (completion_mask != 0)[..., None]
    if select == "top":
        weights = top_share(gain[..., None], counts, share, "token")
    else:
        weights = masked_softmax(gain[..., None], counts, temperature, "token")
    weights = torch.where(knows[:, None, None], floor + (1 - floor) * weights, 1.0) * counts
    if shuffle is not None:
        weights = shuffle_in_texts(weights, counts, shuffle)
    return weights[..., 0]
