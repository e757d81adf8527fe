"""Speculative knowledge distillation: the student drafts, the teacher verifies, accepted tokens and corrections stay.

A round reads gamma tokens with the student and as many with the teacher.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from ...teachers.remote import RemoteTeacher
from ..rules.acceptance import AcceptNone, Judged, needs_bare_logits
from ..rules.close_calls import close_verdict
from ..rules.gamma import GAMMA_POLICIES, Fixed, GammaPolicy
from ..rules.logits import is_distribution, probability, rank
from ..rules.noise import row_keys
from ..runners.prompt_store import PromptStore
from ..runners.remote_runner import RemoteRunner
from ..runners.runner import Runner
from ..runners.slots import Slots
from .completions import Completions, either
from .report import Report
from .request import Request
from .results import Block, Rollout, RolloutStats
from .rounds import Rounds
from .trace import Tracer


class Draft(NamedTuple):
    """What the student wrote for A rows."""

    tokens: torch.Tensor  # [A, g] int64
    valid: torch.Tensor  # [A, g] bool: drawn from a distribution
    close: torch.Tensor | None  # [A, g] bool: another token was as likely but for rounding; None in float32
    logits: torch.Tensor | None  # [A, g, V] where the rule wants them, else of the traced rows alone, else None


class Verified(NamedTuple):
    """What the teacher made of a draft.

    Q is g, or less where sequential verification found every row's first rejection earlier.
    """

    logits: torch.Tensor  # [A, Q, V]
    hidden: torch.Tensor | None  # [A, Q, H], what lm_head read
    accepted: torch.Tensor  # [A, Q] bool
    close: torch.Tensor | None  # [A, Q] bool: but for rounding, it would have been judged otherwise; None in float32


class SKD(Rounds[RolloutStats]):
    """One rollout. A is the number of slots in use, g the draft length, S the size of the acceptance rule's state."""

    def __init__(self, student, teacher, request: Request, on_block=None, on_round=None):
        self.r, self.on_block = request, on_block
        rows, limit = len(request.row_ids), request.max_new_tokens
        if request.vocab_size is None:
            raise ValueError("the request was not `checked` for these models")
        slots, vocab_size, takes_back = request.slots, request.vocab_size, request.writer is None

        def run(role: str, model, prompts: list[list[int]], store: PromptStore | None = None) -> Runner:
            given = request.compile, request.lockstep, request.gamma, store
            held = None if request.kept is None else request.kept.take(role)
            return Runner(model, prompts, slots, limit, vocab_size, *given, takes_back=takes_back, held=held)

        self.student = run("student", student, request.student_prompts)
        self.teacher: Runner | RemoteRunner
        self.remote = isinstance(teacher, RemoteTeacher)
        if isinstance(teacher, RemoteTeacher):
            self.teacher = RemoteRunner(
                teacher,
                request.teacher_prompts,
                slots=slots,
                max_new_tokens=limit,
                vocab_size=vocab_size,
                temperature=request.teacher_temperature,
                eos_token_ids=request.eos_token_ids,
                device=self.student.device,
            )
        else:
            self.teacher = run("teacher", teacher, request.teacher_prompts, request.teacher_prompt_store)
        self.bare: Runner | None = None  # the teacher once more, without the knowledge
        if needs_bare_logits(request.acceptance):
            assert not self.remote and request.bare_prompts is not None  # `checked`
            self.bare = run("bare", teacher, request.bare_prompts)
        runners = [self.student, self.teacher] if self.drafts else [self.teacher]
        runners += [] if self.bare is None else [self.bare]
        device = self.teacher.device
        super().__init__(
            Slots(runners, rows, request.slots, device),
            RolloutStats(),
            limit=limit,
            gamma=request.gamma,
            gamma_policy=self._policy(),
            eos=request.eos_token_ids,
            compile=request.compile and not isinstance(request.acceptance, AcceptNone),
            recorded=any(runner.recorded for runner in runners),
            lockstep=request.lockstep,
            on_round=on_round,
        )
        prompts = request.student_prompts, request.teacher_prompts, *([request.bare_prompts] if self.bare else [])
        last = torch.tensor([[prompt[-1] for prompt in of_row] for of_row in zip(*prompts)], device=device)
        initial = torch.tensor(request.acceptance.initial_state(), dtype=torch.float64, device=device)
        # each row's last token, which its model has not read yet (of each prompt one), and the acceptance rule's
        # state after it
        self.pending = self.slots.track(last[: request.slots].clone(), lambda row: last[row])
        self.state = self.slots.track(initial.repeat(request.slots, 1), lambda row: initial)
        self.keys = row_keys(request.seed, request.row_ids, device)
        self.completions = Completions(rows, limit, device)
        self.broken: dict[int, str] = {}
        temperatures = request.student_temperature, request.teacher_temperature
        self.tracer = Tracer(request.trace_rows, limit, *temperatures, device) if request.trace_rows else None

    def _policy(self) -> GammaPolicy:
        policy = self.r.gamma_policy
        if isinstance(self.r.acceptance, AcceptNone):
            return Fixed(1)  # of a draft, all but the first token would be wasted
        return GAMMA_POLICIES[policy](self.r.gamma) if isinstance(policy, str) else policy

    def step(self, gamma: int):
        draft = self.draft(gamma)
        states = self._predicted_states(gamma)
        verified = self.verify(draft, states)
        return self.commit(draft, verified, states), (draft.tokens, verified.logits)

    def idle(self, gamma: int) -> None:
        for _ in range(gamma):
            self.student.idle()
        for _ in range(gamma if self.r.verification == "sequential" else 1):
            self.teacher.idle()
            if self.bare is not None:
                self.bare.idle()

    def draft(self, gamma: int) -> Draft:
        """The student writes `gamma` tokens of every row."""
        a, device = self.slots.used, self.student.device
        n, token = self.slots.n[:a].to(device), self.pending[:a, :1].contiguous().to(device)
        keys = self.keys[self.slots.row[:a]].to(device)
        wanted = self.r.acceptance.needs_student_logits
        traced = self.tracer.slots(self.slots.owner) if self.tracer and not wanted else []
        rows = self.student.cache.index(traced, device) if traced else None
        longest, temperature = self.slots.longest(self.student), self.r.student_temperature
        keep, home = bool(wanted or traced), self.teacher.device
        drafted = self.student.draft(token, n, longest, gamma, temperature, keys, keep, rows)
        tokens, valid, close, logits = (None if part is None else part.to(home) for part in drafted)
        assert tokens is not None and valid is not None  # these two always are there
        return Draft(tokens, valid, close, logits)

    def verify(self, draft: Draft, states: torch.Tensor) -> Verified:
        """The teacher reads the draft, and its rule accepts or rejects each token; `states` [A, g + 1, S]."""
        a, gamma = draft.tokens.shape
        fed = torch.cat([self.pending[:a, 1:2], draft.tokens[:, :-1]], 1)
        n, longest, keep = self.slots.n[:a], self.slots.longest(self.teacher), self.r.return_teacher_hidden
        if self.r.verification == "parallel":
            logits, hidden = self.teacher.read(fed, n, longest, keep)
            return Verified(logits, hidden, *self._judge(logits, draft, states, 0, n))
        parts, running = [], ~self.slots.idle[:a]
        for i in range(gamma):
            logits, hidden = self.teacher.read(fed[:, i : i + 1], n + i, longest + i, keep)
            parts.append(Verified(logits, hidden, *self._judge(logits, draft, states, i, n)))
            running = running & parts[-1].accepted[:, 0]
            if not self.lockstep.together and not running.any():
                break
        logits, hidden, accepted, close = (None if part[0] is None else torch.cat(part, 1) for part in zip(*parts))
        assert logits is not None and accepted is not None
        return Verified(logits, hidden, accepted, close)

    def _predicted_states(self, gamma: int) -> torch.Tensor:
        """Returns [A, gamma + 1, S]: the rule's state before each place, if all tokens before it are accepted."""
        states = [self.state[: self.slots.used]]
        for _ in range(gamma):
            states.append(self.r.acceptance.next_state(states[-1], True))
        return torch.stack(states, 1)

    def _bare_logits(self, draft: Draft, places: slice, n: torch.Tensor) -> torch.Tensor | None:
        """[A, Q, V], where the rule looks at them: the teacher's at these places of a draft, without the knowledge."""
        if self.bare is None:
            return None
        fed = torch.cat([self.pending[: len(n), 2:], draft.tokens[:, :-1]], 1)[:, places]
        return self.bare.read(fed, n + places.start, self.slots.longest(self.bare) + places.start)[0]

    def _judge(self, logits: torch.Tensor, draft: Draft, states: torch.Tensor, first: int, n: torch.Tensor):
        """Returns which are accepted [A, Q] bool, and which of these verdicts were close [A, Q] bool or None.

        `logits` [A, Q, V] are the teacher's at the places of the draft from `first` on; `n` [A], written before it.
        """
        places = slice(first, first + logits.shape[1])
        student_logits = draft.logits if self.r.acceptance.needs_student_logits else None
        judged = Judged(
            teacher_logits=logits,
            draft=draft.tokens[:, places],
            teacher_temperature=self.r.teacher_temperature,
            student_logits=None if student_logits is None else student_logits[:, places],
            student_temperature=self.r.student_temperature,
            bare_logits=self._bare_logits(draft, places, n),
            state=states[:, places],
        )
        accepted, resolution = self.r.acceptance.accept(judged), self.teacher.resolution
        return accepted, close_verdict(self.r.acceptance, judged, accepted, resolution) if resolution else None

    def commit(self, draft: Draft, verified: Verified, states: torch.Tensor) -> Report[torch.Tensor]:
        """Writes the accepted tokens and the teacher's corrections.

        A row ends, broken, before the first token that is to be written where a model has no distribution.
        """
        logits, (a, width) = verified.logits, verified.accepted.shape
        slots, places = torch.arange(a, device=logits.device), torch.arange(width, device=logits.device)
        n, row = self.slots.n[:a], self.slots.row[:a]
        left = self.limit - n
        student_valid, teacher_valid = draft.valid[:, :width], is_distribution(logits)
        valid = student_valid & teacher_valid
        accepted = (verified.accepted & valid).long().cumprod(1).sum(1)
        rejected = accepted < width
        at = accepted.clamp(max=width - 1)
        broken = rejected & ~valid[slots, at] & ~self.slots.idle[:a]
        corrects = rejected & ~broken
        drawn = logits, at, self.r.teacher_temperature, self.keys[row], n + at, corrects
        correction, close = self.teacher.draw(*drawn)
        corrected = corrects[:, None] & (places == at[:, None])
        new = torch.where(corrected, correction[:, None], draft.tokens[:, :width])

        count = torch.minimum(accepted + corrects, left).masked_fill(self.slots.idle[:a], 0)
        ends, count, column = self.cut(new, count, n)
        drafted_closely = None if draft.close is None else draft.close[:, :width]
        drawn_closely = None if close is None else corrected & close[:, None]
        close = either(drafted_closely, verified.close, drawn_closely)
        self.completions.write(row, column, new, corrected, verified.hidden, close)
        if self.tracer is not None and draft.logits is not None:
            self._trace(self.tracer, draft.tokens, draft.logits, logits, new, column)

        before = states[slots, accepted]
        after = self.r.acceptance.next_state(before, False)
        self.state[:a] = torch.where(rejected[:, None], after, before)
        self.pending[:a] = new[slots, count - 1][:, None]
        self.slots.n[:a] += count
        broken = broken & ~ends & (count < left)
        kept = torch.minimum(accepted, count)
        return Report(
            drafted=torch.where(count > accepted, left.clamp(max=draft.tokens.shape[1]), kept),
            accepted=kept,
            rejected=count > accepted,
            committed=count,
            remaining=(left - count).masked_fill(ends | broken, 0),
            broken=broken * (1 + student_valid[slots, at].long()),
            invalid=~(draft.valid.all(1) & teacher_valid.all(1)),
        )

    def _trace(self, tracer: Tracer, drafts, student_logits, teacher_logits, new, column) -> None:
        slots, width = tracer.slots(self.slots.owner), new.shape[1]
        if slots:
            rows, index = [self.slots.owner[slot] for slot in slots], self.slots.numbers.of(slots)
            if self.r.acceptance.needs_student_logits:  # of all rows, not of the traced ones alone
                student_logits = student_logits[index]
            seen = column[index], drafts[index, :width], new[index]
            tracer.add(rows, *seen, student_logits[:, :width], teacher_logits[index])

    def on_broken(self, slot: int, report: Report[int]) -> None:
        self.broken[self.slots.running()[slot]] = ("student", "teacher")[report.broken - 1]

    def settle(self, gamma: int, reports: dict[int, Report[int]], kept, seconds: float) -> list[int]:
        owner = self.slots.running()
        for slot in (slot for slot, row in reports.items() if row.invalid):
            # numbers that are not finite, left by discarded tokens, would reach those that take their place
            for runner in self.slots.runners:
                runner.clear(slot, len(runner.prompts[owner[slot]]) - 1 + self.slots.written[slot])
        if self.on_block is not None:
            self._report_blocks(self.on_block, owner, *kept, reports, seconds)
        ended = [slot for slot, row in reports.items() if row.remaining == 0]
        for slot in (slot for slot in ended if owner[slot] in self.broken):
            for runner in self.slots.runners:
                runner.clear(slot)
        return ended

    def _report_blocks(self, on_block, owner, drafts, logits, reports: dict[int, Report[int]], seconds: float) -> None:
        """Calls `on_block` for every row; only for this are more values read from the device."""
        seen = drafts[:, : logits.shape[1]]
        ranks = rank(logits, seen).tolist()
        probabilities = probability(logits, seen, self.r.teacher_temperature).tolist()
        tokens, drafted = self.completions.tokens.tolist(), drafts.tolist()
        for slot, report in reports.items():
            row, end = owner[slot], self.slots.written[slot]
            block = Block(
                round=self.stats.rounds - 1,
                row=row,
                position=end - report.committed,
                drafted=drafted[slot],
                accepted=report.accepted,
                correction=tokens[row][end - 1] if report.rejected else None,
                teacher_rank=ranks[slot],
                teacher_probability=probabilities[slot],
                ended=report.remaining == 0,
                seconds=seconds,
            )
            on_block(block)

    def _leave(self) -> None:
        """Keeps for the next rollout what it can go on with."""
        runners = {"student": self.student, "teacher": self.teacher, "bare": self.bare}
        for role, runner in runners.items():
            if self.r.kept is not None and isinstance(runner, Runner):
                self.r.kept.leave(role, runner)

    def result(self) -> Rollout:
        self._leave()
        tokens, by_teacher, hidden, close = self.completions.of_lengths(self.lengths)
        self.stats.close_calls = sum(map(sum, close or []))
        self.stats.student_forwards = self.student.forwards
        self.stats.teacher_forwards = self.teacher.forwards
        if isinstance(self.teacher, RemoteRunner):
            self.stats.teacher_requests = self.teacher.requests
        self.stats.count_replay(self.slots.runners)
        return Rollout(
            completion_ids=tokens,
            from_teacher=by_teacher,
            stats=self.stats,
            broken=self.broken,
            close_calls=close,
            teacher_hidden=None if self.remote else hidden,
            teacher_top=hidden if self.remote else None,
            traces=self.tracer.traces(self.lengths) if self.tracer else None,
        )
