"""Lossless speculative decoding: a draft proposes, the target verifies, the text is the target's own.

What is accepted is decided so that the text has exactly the law of the target, and every round ends with one token of
the target: in place of the first rejected one, or after a fully accepted draft.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from ..drafts.model import DraftModel
from ..drafts.source import DraftSource, Proposal, Texts, is_source
from ..rules.gamma import Fixed, Goodput
from ..rules.logits import is_distribution
from ..rules.noise import row_keys
from ..rules.speculative_sampling import RoundNoise, verify_blocks, verify_greedy, verify_tokens
from ..runners.runner import Runner
from ..runners.slots import Slots
from ..runners.support import text_config
from .report import Report
from .request import DecodingRequest
from .results import SpeculativeOutput, SpeculativeStats
from .rounds import Rounds


class Verified(NamedTuple):
    """What the target made of a proposal for A rows."""

    accepted: torch.Tensor  # [A] int64: drafted tokens
    following: torch.Tensor  # [A] int64: the target's token after them
    broken: torch.Tensor  # [A] bool: it has no distribution there


class Decoder(Rounds[SpeculativeStats]):
    """One lossless decoding. A is the number of slots in use, g the draft length."""

    bonus = 1

    def __init__(
        self,
        target,
        draft,
        request: DecodingRequest,
        on_tokens: Callable[[int, list[int]], bool | None] | None = None,
    ):
        self.r, self.on_tokens = request, on_tokens
        rows, limit, longest = len(request.prompts), request.max_new_tokens, request.num_draft_tokens

        def run(model, vocab_size: int) -> Runner:
            given = request.slots, limit, vocab_size, request.compile
            return Runner(model, request.prompts, *given, widest=longest + 2)

        size = text_config(target).vocab_size
        self.target = run(target, size)
        self.source: DraftSource = draft
        if not is_source(draft):
            smaller = run(draft, min(size, text_config(draft).vocab_size))
            self.source = DraftModel(smaller, size, request.sampling)
        device = self.target.device
        runners = [self.target] if self.source.runner is None else [self.target, self.source.runner]
        policy = request.gamma_policy
        if isinstance(policy, str):
            policy = Fixed(longest) if policy == "fixed" else Goodput(longest, bonus=True)
        super().__init__(
            Slots(runners, rows, request.slots, device),
            SpeculativeStats(),
            limit=limit,
            gamma=longest,
            gamma_policy=policy,
            eos=request.eos_token_ids,
            compile=request.compile,
            recorded=self.target.recorded,
        )
        if isinstance(self.source, DraftModel):
            self.slots.track(self.source.behind, lambda row: 0)
        self.texts = Texts.of_prompts(request.prompts, limit, device)
        self.keys = row_keys(request.seed, list(range(rows)), device)

    def step(self, gamma: int):
        a = self.slots.used
        n, row = self.slots.n[:a], self.slots.row[:a]
        noise = RoundNoise(self.keys[row], n, self.gamma + 1)
        proposal = self.source.propose(self.slots, self.texts, gamma, noise)
        count = (self.limit - 1 - n).clamp(max=gamma)  # drafted tokens that have a place in the row
        if proposal.count is not None:
            count = torch.minimum(count, proposal.count)
        verified = self.verify(proposal, count, noise)
        new, report = self.commit(proposal.tokens, count, verified)
        return report, (new, verified.accepted)

    def verify(self, proposal: Proposal, count: torch.Tensor, noise: RoundNoise) -> Verified:
        """The target reads the first `count` [A] tokens of each row's draft, and accepts a prefix of them."""
        a, drafts = self.slots.used, proposal.tokens
        n, row = self.slots.n[:a], self.slots.row[:a]
        fed = torch.cat([self.texts.at(row, n, 0, 1), drafts], 1)
        see = getattr(self.source, "see", None)  # a source may draft from what the target's lm_head reads
        logits, hidden = self.target.read(fed, n, self.slots.longest(self.target), see is not None)  # [A, g + 1, V]
        valid = is_distribution(logits)
        first = valid.long().cumprod(1).sum(1)  # the first place where nothing can be drawn or compared
        accepted, following = self._judge(logits, valid, proposal, torch.minimum(count, first), noise)
        if see is not None:
            see(self.slots, hidden, accepted)
        return Verified(accepted, following, accepted == first)

    def _judge(self, logits: torch.Tensor, valid: torch.Tensor, proposal: Proposal, count, noise: RoundNoise):
        drafts, a, sampling = proposal.tokens, self.slots.used, self.r.sampling
        if sampling.repetition_penalty != 1:
            logits = sampling.penalize(logits, self._seen(self.slots.row[:a], self.slots.n[:a], drafts))
        if sampling.temperature == 0:
            return verify_greedy(logits, drafts, count)
        q = proposal.probabilities
        if q is None:
            q = torch.zeros_like(logits[:, :-1]).scatter_(-1, drafts[..., None], 1.0)
        p = sampling.probabilities(logits).masked_fill_(~valid[..., None], 1 / logits.shape[-1])
        verify = verify_blocks if self.r.block_verification else verify_tokens
        return verify(p, q, drafts, count, noise)

    def _seen(self, row: torch.Tensor, n: torch.Tensor, drafts: torch.Tensor) -> torch.Tensor:
        """Returns [A, g + 1, V] bool: the tokens before each place, if all drafted ones before it are accepted."""
        seen = [self.texts.seen(row, n, self.target.vocab_size)]
        for i in range(drafts.shape[1]):
            seen.append(seen[-1].scatter(1, drafts[:, i : i + 1], True))
        return torch.stack(seen, 1)

    def commit(self, drafts: torch.Tensor, count: torch.Tensor, verified: Verified):
        """Writes the accepted tokens and the target's next one; returns them, new [A, g + 1], and the report."""
        a, accepted, following = self.slots.used, verified.accepted, verified.following[:, None]
        n, row = self.slots.n[:a], self.slots.row[:a]
        places = torch.arange(drafts.shape[1] + 1, device=row.device)
        new = torch.where(places == accepted[:, None], following, torch.cat([drafts, following], 1))
        committed = (accepted + 1).masked_fill(self.slots.idle[:a], 0)
        ends, committed, column = self.cut(new, committed, self.texts.lengths[row] + n)
        self.texts.tokens[row[:, None], column] = new
        self.slots.n[:a] += committed  # and so does its view `n`
        kept = torch.minimum(accepted, committed)
        # tokens that were drafted after the row's end had no place in it
        drafted = torch.where(accepted >= committed, kept, count)
        return new, Report(
            drafted=drafted,
            accepted=kept,
            rejected=kept < drafted,
            committed=committed,
            remaining=(self.limit - n).masked_fill(ends, 0),
            broken=2 * (verified.broken & (committed == accepted + 1)).long(),  # unless it has ended before
            invalid=torch.zeros_like(n),  # what is discarded is overwritten before it is read
        )

    def on_broken(self, slot: int, report: Report[int]) -> None:
        raise FloatingPointError(
            f"row {self.slots.owner[slot]}: the target's logits after {self.slots.written[slot] + report.accepted} "
            "new tokens are no distribution (NaN or infinite)"
        )

    def settle(self, gamma: int, reports: dict[int, Report[int]], kept, seconds: float) -> list[int]:
        new, accepted = kept
        ended = {slot for slot, row in reports.items() if row.remaining == 0}
        if self.on_tokens is not None:
            tokens, owner = new.tolist(), self.slots.running()
            for slot, row in reports.items():
                if self.on_tokens(owner[slot], tokens[slot][: row.committed]):
                    ended.add(slot)
        full_match = any(row.accepted == gamma for slot, row in reports.items() if slot not in ended)
        self.source.observe(self.slots, gamma, accepted, full_match)
        return sorted(ended)

    def result(self) -> SpeculativeOutput:
        tokens, starts = self.texts.tokens.tolist(), self.texts.lengths.tolist()
        self.stats.target_forwards, self.stats.draft_forwards = self.target.forwards, self.source.forwards
        self.stats.count_replay(self.slots.runners)
        return SpeculativeOutput([row[n : n + m] for row, n, m in zip(tokens, starts, self.lengths)], self.stats)
