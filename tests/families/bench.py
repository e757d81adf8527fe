"""Two tiny models of a family, and what they write when they read every text anew, a token at a time."""

import sys
from types import SimpleNamespace

import torch

from lupi_trainer.speculative import TopK
from lupi_trainer.speculative.rules.noise import gumbel, row_keys
from tests.families.sizes import VOCAB
from tests.speculative.reference import reference_rollout
from tests.speculative.toy_models import prompts


ROWS, LIMIT = 4, 10
RULE = TopK(k=3, min_prob=0.05)
TEMPERATURE = 0.7
CLOSE = 1e-4  # two numbers that decide what is written and differ by less may change places through rounding
INFORMED = prompts(ROWS, 8, 14, seed=1)
QUERIES = [prompt[2 * row :] for row, prompt in enumerate(INFORMED)]  # what a student sees of them


class Wrong(Exception):
    """What was written is not what the reference writes."""


def ended(text: list[int], eos: list[int]) -> list[int]:
    """A text up to the first token that ends it."""
    return text[: next((i + 1 for i, token in enumerate(text) if token in eos), len(text))]


class Uncached:
    """A model that reads every text from its beginning, and keeps the logits of each."""

    def __init__(self, model):
        self.model, self.config, self.device = model, model.config, model.device
        self.logits: dict[tuple[int, ...], torch.Tensor] = {}

    def after(self, ids: list[int]) -> torch.Tensor:
        """[V] logits of the token after a text."""
        if (key := tuple(ids)) not in self.logits:
            with torch.no_grad():
                out = self.model(input_ids=torch.tensor([ids], device=self.device), use_cache=False)
            self.logits[key] = out.logits[0, -1, :VOCAB].float()
        return self.logits[key]

    def __call__(self, input_ids, **given):
        logits = self.after(input_ids[0].tolist())[None, None]
        return SimpleNamespace(logits=logits, hidden_states=[logits])


class Bench:
    """Two models of a family, their texts, and what the reference makes of them."""

    def __init__(self, student, teacher):
        self.models, self.own = (student, teacher), (Uncached(student), Uncached(teacher))
        # of rollouts: a row, its text, and the teacher's states that were kept
        self.kept: list[tuple[int, list[int], torch.Tensor]] = []
        given = {"max_new_tokens": LIMIT, "acceptance": RULE, "vocab": VOCAB}
        try:
            self.rollout, self.by_teacher, _ = reference_rollout(*self.own, QUERIES, INFORMED, **given)
        except Exception as error:  # it reads no text: then it must be refused
            self.unread, self.eos = error, []
        else:
            self.unread, self.eos = None, self.ends()

    def ends(self) -> list[int]:
        """Two tokens that end rows a few tokens early."""
        lost = {
            token: sum(LIMIT - len(ended(text, [token])) for text in self.rollout)
            for token in dict.fromkeys(token for text in self.rollout for token in text)
        }
        return sorted((token for token in lost if lost[token] > 2), key=lost.__getitem__)[:2]

    def alone(self, model: Uncached, starts: list[list[int]], writer: int | None) -> list[list[int]]:
        """Texts that one model writes: drawn with the noise of a writer, or (None) the likeliest tokens."""
        texts = []
        for key, start in zip(row_keys(0, range(ROWS)).split(1), starts):
            text: list[int] = []
            while len(text) < LIMIT and not (text and text[-1] in self.eos):
                text.append(int(noisy(model.after(start + text), key, len(text), writer).argmax()))
            texts.append(text)
        return texts

    def compare(self, found, expected, decided) -> None:
        """Raises `Wrong` where a text differs from its reference, but for a close call.

        decided: of a row and the tokens before, how far apart what decided on the next one was.
        """
        for row, (text, right) in enumerate(zip(found, expected, strict=True)):
            if text == right:
                continue
            at = next((i for i, pair in enumerate(zip(text, right)) if pair[0] != pair[1]), min(len(text), len(right)))
            if at == min(len(text), len(right)) or (gap := decided(row, right[:at])) > CLOSE:
                raise Wrong(f"row {row} writes {text}, and the reference {right}")
            print(f"    a close call: {gap:.2g}", file=sys.stderr)


def noisy(logits: torch.Tensor, key: torch.Tensor, position: int, writer: int | None) -> torch.Tensor:
    if writer is None:
        return logits
    return logits / TEMPERATURE + gumbel(key, torch.tensor([position]), writer, VOCAB)[0].to(logits)


def gap(scores: torch.Tensor, k: int = 1) -> float:
    """How far the k-th largest is from the next."""
    first, second = scores.topk(k + 1).values[-2:]
    return float(first - second)
