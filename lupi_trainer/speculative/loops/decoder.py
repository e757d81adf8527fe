"""Lossless speculative decoding: a draft proposes, the target verifies, the text is the target's own.

The loop is the rollout's (a ragged cache, slots that are refilled, one question a round to the device) with another
acceptance: what stands is decided so that the text has exactly the law of the target, and a round in which every
drafted token stands ends with one more token of the target.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

from ..drafts.source import DraftModel, DraftSource, Texts
from ..rules.gamma import Fixed, GammaPolicy, Goodput, Outcome, usable_length
from ..rules.logits import is_distribution
from ..rules.noise import row_keys
from ..rules.speculative_sampling import RoundNoise, Sampling, verify_blocks, verify_greedy, verify_tokens
from ..runners.attention import ragged_attention
from ..runners.packed_weights import PackWeights, packed_weights
from ..runners.runner import Runner
from ..runners.slots import Slots
from ..runners.support import base_model, evaluating, require_support, text_config
from .request import _at_least_one, _check_prompts, _one_of


_VERIFICATIONS = {"block": verify_blocks, "token": verify_tokens}


@dataclass
class SpeculativeStats:
    """Counts over all rows; a block is one (row, round) pair."""

    rounds: int = 0
    blocks: int = 0
    committed: int = 0  # completion tokens
    drafted: int = 0  # tokens proposed, as far as the row had room for them
    accepted: int = 0  # those that stand
    accepted_lengths: list[int] = field(default_factory=list)  # [i]: blocks of which i drafted tokens stand
    target_forwards: int = 0  # without the prefill
    draft_forwards: int = 0
    gamma_history: list[int] = field(default_factory=list)  # one a round

    @property
    def acceptance_length(self) -> float:
        """Committed tokens a round and row; 1 is what the target does alone."""
        return self.committed / max(self.blocks, 1)

    @property
    def acceptance_rate(self) -> float:
        """Share of the drafted tokens that stand."""
        return self.accepted / max(self.drafted, 1)

    def count_block(self, drafted: int, accepted: int, committed: int) -> None:
        self.blocks += 1
        self.drafted += drafted
        self.accepted += accepted
        self.committed += committed
        self.accepted_lengths += [0] * (accepted + 1 - len(self.accepted_lengths))
        self.accepted_lengths[accepted] += 1


@dataclass
class SpeculativeOutput:
    """Completions of B prompts, in the order of the prompts, and what they cost."""

    completion_ids: list[list[int]]
    stats: SpeculativeStats


class Decoder:
    """One call of `speculative_generate`. A is the number of slots in use, g the draft length."""

    def __init__(self, target: Runner, source: DraftSource, slots: Slots, texts: Texts, *, max_new_tokens: int,
                 num_draft_tokens: int, gamma_policy: GammaPolicy, sampling: Sampling, verification: str,
                 eos: list[int], keys: torch.Tensor, on_tokens=None):  # fmt: skip
        self.target, self.source, self.slots, self.texts = target, source, slots, texts
        self.limit, self.num_draft_tokens, self.gamma_policy = max_new_tokens, num_draft_tokens, gamma_policy
        self.sampling, self.verification, self.keys = sampling, _VERIFICATIONS[verification], keys
        self.eos = torch.tensor(eos, dtype=torch.long, device=keys.device)
        self.on_tokens = on_tokens
        self.written = [0] * len(texts.lengths)
        self.stats = SpeculativeStats()

    def run(self) -> SpeculativeOutput:
        """Completes every row."""
        self.slots.admit(list(range(len(self.slots.n))))
        while running := self.slots.running():
            # the last token is the target's
            rooms = {self.slots.owner[slot]: self.limit - self.slots.written[slot] - 1 for slot in running}
            chosen = self.gamma_policy.choose(rooms, len(self.slots.waiting))
            gamma, longest = min(_whole("a draft length", chosen, least=0), self.num_draft_tokens), max(rooms.values())
            gamma = usable_length(gamma, self.num_draft_tokens, longest, self.target.compile, self.target.recorded)
            self._round(running, gamma)
        tokens, lengths = self.texts.tokens.tolist(), self.texts.lengths.tolist()
        self.stats.target_forwards, self.stats.draft_forwards = self.target.forwards, self.source.forwards
        completions = [row[n : n + m] for row, n, m in zip(tokens, lengths, self.written)]
        return SpeculativeOutput(completions, self.stats)

    def _round(self, running: list[int], gamma: int) -> None:
        started, a = time.perf_counter(), self.slots.used
        n, row = self.slots.n[:a], self.slots.row[:a]
        noise = RoundNoise(self.keys[row], n, self.num_draft_tokens + 1)
        proposal = self.source.propose(self.slots, self.texts, gamma, noise)
        count = (self.limit - 1 - n).clamp(max=gamma)  # drafted tokens that the row has room for
        if proposal.count is not None:
            count = torch.minimum(count, proposal.count)
        accepted, following, broken = self.verify(proposal, count, noise)
        new, report = self.commit(proposal.tokens, count, accepted, following, broken)
        report = report.tolist()  # the round's one question to the device
        self._refuse_broken(running, report)
        seconds = time.perf_counter() - started
        ended = [slot for slot in running if report[slot][3]]
        for slot in running:
            self.stats.count_block(*report[slot][:3])
            self.slots.written[slot] += report[slot][2]
        self.stats.rounds += 1
        self.stats.gamma_history.append(gamma)
        self._learn(running, gamma, report, seconds)
        if self.on_tokens is not None:
            ended = self._tell(new.tolist(), report, running)
        whole = any(report[slot][1] == gamma for slot in running if slot not in ended)
        self.source.observe(self.slots, gamma, accepted, whole)
        for slot in ended:
            self.written[self.slots.owner[slot]] = self.slots.written[slot]
        self.slots.retire(ended)

    def _learn(self, running: list[int], gamma: int, report: list[list[int]], seconds: float) -> None:
        outcomes = []
        for slot in running:
            drafted, stood, _, over, _ = report[slot]
            room = 0 if over else self.limit - self.slots.written[slot]
            outcomes.append(Outcome(self.slots.owner[slot], stood, stood < drafted, room))
        self.gamma_policy.observe(gamma, outcomes, seconds)

    def verify(self, proposal, count: torch.Tensor, noise: RoundNoise):
        """Returns how many drafted tokens stand [A], the target's token after them [A], and where it has none [A]."""
        a, drafts = self.slots.used, proposal.tokens
        n, row = self.slots.n[:a], self.slots.row[:a]
        fed = torch.cat([self.texts.at(row, n, 0, 1), drafts], 1)
        see = getattr(self.source, "see", None)  # a source may draft from what the target's lm_head reads
        logits, hidden = self.target.read(fed, n, self.slots.longest(self.target), see is not None)  # [A, g + 1, V]
        sound = is_distribution(logits)
        first = sound.long().cumprod(1).sum(1)  # the first place where nothing can be drawn or compared
        accepted, following = self._judge(logits, sound, proposal, torch.minimum(count, first), noise)
        if see is not None:
            see(self.slots, hidden, accepted)
        return accepted, following, accepted == first

    def _judge(self, logits: torch.Tensor, sound: torch.Tensor, proposal, count: torch.Tensor, noise: RoundNoise):
        drafts, a = proposal.tokens, self.slots.used
        if self.sampling.repetition_penalty != 1:
            logits = self.sampling.penalize(logits, self._seen(self.slots.row[:a], self.slots.n[:a], drafts))
        if self.sampling.temperature == 0:
            return verify_greedy(logits, drafts, count)
        q = proposal.chances
        if q is None:
            q = torch.zeros_like(logits[:, :-1]).scatter_(-1, drafts[..., None], 1.0)
        p = self.sampling.chances(logits).masked_fill_(~sound[..., None], 1 / logits.shape[-1])
        return self.verification(p, q, drafts, count, noise)

    def _seen(self, row, n, drafts) -> torch.Tensor:
        """Returns [A, g + 1, V] bool: the tokens before each place, if all drafted ones before it stand."""
        seen = [self.texts.seen(row, n, self.target.vocab_size)]
        for i in range(drafts.shape[1]):
            seen.append(seen[-1].scatter(1, drafts[:, i : i + 1], True))
        return torch.stack(seen, 1)

    def commit(self, drafts, count, accepted, following, broken):
        """Writes what stands and the target's token; returns the tokens [A, g+1] and [A, 5]: drafted, accepted,
        committed, ended, broken."""
        a, width = drafts.shape[0], drafts.shape[1] + 1
        n, row = self.slots.n[:a], self.slots.row[:a]
        places = torch.arange(width, device=row.device)
        padded = torch.cat([drafts, following[:, None]], 1)
        new = torch.where(places == accepted[:, None], following[:, None], padded)
        committed = (accepted + 1).masked_fill(self.slots.idle[:a], 0)
        ends = torch.isin(new, self.eos) & (places < committed[:, None])
        committed = torch.where(ends.any(1), ends.long().argmax(1) + 1, committed)
        broken = broken & (committed == accepted + 1)  # the row has not ended before
        bin_column = self.texts.tokens.shape[1] - 1
        column = (self.texts.lengths[row] + n)[:, None] + places
        self.texts.tokens[row[:, None], column.where(places < committed[:, None], bin_column)] = new
        self.slots.n[:a] += committed  # and so does its view `n`
        ended = ends.any(1) | (n >= self.limit)
        stood = torch.minimum(accepted, committed)
        # tokens that were drafted after the row's end had no place in it
        drafted = torch.where(accepted > committed - 1, stood, count)
        return new, torch.stack([drafted, stood, committed, ended.long(), broken.long()], 1)

    def _refuse_broken(self, running: list[int], report: list[list[int]]) -> None:
        for slot in running:
            if report[slot][4]:
                raise FloatingPointError(
                    f"row {self.slots.owner[slot]}: the target's logits after "
                    f"{self.slots.written[slot] + report[slot][1]} new tokens are no distribution (NaN or infinite)"
                )

    def _tell(self, new: list[list[int]], report: list[list[int]], running: list[int]) -> list[int]:
        """Hands over what each row wrote; returns the slots whose row is to end."""
        ended = []
        for slot in running:
            _, _, committed, over, _ = report[slot]
            stop = self.on_tokens(self.slots.owner[slot], new[slot][:committed])
            if over or stop:
                ended.append(slot)
        return ended


def speculative_generate(
    target,
    draft,
    prompt_ids: list[list[int]],
    *,
    max_new_tokens: int,
    num_draft_tokens: int = 5,
    gamma_policy: str | GammaPolicy = "fixed",
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    eos_token_id: int | list[int] | None = None,
    seed: int = 0,
    max_slots: int | None = None,
    compile: bool = False,
    pack_weights: PackWeights = "auto",
    verification: str = "block",
    on_tokens: Callable[[int, list[int]], bool | None] | None = None,
) -> SpeculativeOutput:
    """Completes B prompts as the target alone would, faster where the draft guesses well.

    At temperature 0 the text is the target's own greedy text; above, it has the target's law, and is a pure function
    of the models, prompts, draft lengths, `verification` and `seed`, whatever the batch (arXiv 2211.17192,
    2403.10444).

    Args:
        target: a causal language model of transformers, on any device and in any dtype.
        draft: another one with the same tokenizer, or a source of drafts such as `PromptLookup()`. The vocabularies of
            two models may differ in padding: the target's counts.
        prompt_ids: B ragged lists of token ids.
        max_new_tokens: the longest completion, in tokens.
        num_draft_tokens: tokens that the draft proposes a round; where a policy chooses, the most.
        gamma_policy: "fixed", "goodput" (the length that promises the most tokens a second, from measured times and
            acceptance), or a policy object. Above temperature 0 a text depends on the lengths, its law does not.
        temperature, top_k, top_p, repetition_penalty: applied to both models alike, in the order and with the meaning
            that transformers gives them; `top_k=0` keeps every token.
        eos_token_id: tokens that end a row (one or several, of torch or numpy too); the one that did is kept.
        seed: address of the noise.
        max_slots: how many rows run at a time; the others take the places of those that have ended.
        compile: compile the forwards of both models, and on a GPU record them as CUDA graphs.
        pack_weights: "auto" lays the larger linear layers of models in float32 on CPUs out as the processor wants them
            until all rows have ended; True insists on it, for every model; False leaves all as they are. Texts are
            the same but for rounding.
        verification: "block" or "token"; matters above temperature 0 alone.
        on_tokens: called after every round with a row's index and its new tokens; a true answer ends the row.

    Raises:
        ValueError: an argument, prompt or model that cannot work, by name, before anything runs.
        FloatingPointError: the target's logits are no distribution where a row's next token is to be drawn (named).
    """
    prompts = [list(prompt) for prompt in prompt_ids]
    rows = len(prompts)
    if rows == 0:
        raise ValueError("prompt_ids is empty: there is nothing to complete")
    sampling = check_settings(
        max_new_tokens=max_new_tokens, num_draft_tokens=num_draft_tokens,
        max_slots=rows if max_slots is None else max_slots,
        temperature=temperature, top_k=top_k, top_p=top_p,
        repetition_penalty=repetition_penalty,
    )  # fmt: skip
    _one_of("verification", verification, tuple(_VERIFICATIONS))
    _one_of("gamma_policy", gamma_policy, ("fixed", "goodput"))
    if isinstance(gamma_policy, str):
        fixed = gamma_policy == "fixed"
        gamma_policy = Fixed(num_draft_tokens) if fixed else Goodput(num_draft_tokens, bonus=True)
    models = {"target": target} if _is_source(draft) else {"target": target, "draft": draft}
    for role, model in models.items():
        if not hasattr(base_model(model), "config"):
            raise ValueError(
                f"the {role} is a {type(model).__name__}, which has no `config`: pass the transformers model itself "
                "(of a wrapper such as DistributedDataParallel, its `module`)"
            )
        require_support(model, role)
        _check_prompts(role, model, prompts, max_new_tokens, text_config(model).vocab_size)
    eos = token_ids("eos_token_id", eos_token_id)
    used = models.values()
    with evaluating(*used), ragged_attention(*used), packed_weights(models, pack_weights):
        size, capacity = text_config(target).vocab_size, rows if max_slots is None else min(max_slots, rows)
        shape = {"slots": capacity, "max_new_tokens": max_new_tokens, "compile": compile,
                 "widest": num_draft_tokens + 2}  # fmt: skip
        runner, source = Runner(target, prompts, vocab_size=size, **shape), draft
        if not _is_source(draft):
            smaller = Runner(draft, prompts, vocab_size=min(size, text_config(draft).vocab_size), **shape)
            source = DraftModel(smaller, size, sampling)
        runners = [runner] if source.runner is None else [runner, source.runner]
        slots = Slots(runners, rows, capacity, runner.device)
        if isinstance(source, DraftModel):
            slots.track(source.behind, lambda rows: source.behind.new_zeros(len(rows)))
        return Decoder(
            runner, source, slots, _texts(prompts, max_new_tokens, runner.device), max_new_tokens=max_new_tokens,
            num_draft_tokens=num_draft_tokens, gamma_policy=gamma_policy, sampling=sampling,
            verification=verification, eos=eos, keys=row_keys(seed, list(range(rows)), runner.device),
            on_tokens=on_tokens,
        ).run()  # fmt: skip


def check_settings(*, temperature, top_k, top_p, repetition_penalty, **counts: int) -> Sampling:
    """Returns how tokens are drawn; raises ValueError, by name, for a setting out of range and a count below 1."""
    _at_least_one(**{name: _whole(name, count) for name, count in counts.items()})
    return Sampling(float(temperature), _whole("top_k", top_k), float(top_p), float(repetition_penalty))


def _whole(name: str, value, least: int | None = None) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None
    if least is not None and number < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    return number


def token_ids(name: str, value) -> list[int]:
    """Returns a list of ids from None, one id or several, be they numbers, or of torch or numpy."""
    value = value.tolist() if hasattr(value, "tolist") else value
    several = [] if value is None else list(value) if isinstance(value, Iterable) else [value]
    return [_whole(name, number) for number in several]


def check_room(role: str, config, prompts: list[list[int]], max_new_tokens: int) -> None:
    """Raises ValueError for a prompt that a model of this configuration cannot read, or has no room to continue."""
    model = SimpleNamespace(config=config)
    _check_prompts(role, model, prompts, max_new_tokens, text_config(model).vocab_size)


def _is_source(draft) -> bool:
    return hasattr(draft, "propose")


def _texts(prompts: list[list[int]], max_new_tokens: int, device: torch.device) -> Texts:
    width = max(map(len, prompts)) + max_new_tokens + 1
    tokens = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts], device=device)
    return Texts(tokens, torch.tensor([len(prompt) for prompt in prompts], device=device))
