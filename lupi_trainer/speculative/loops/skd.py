"""Draft, verify, commit: the rollout in blocks.

A round reads gamma tokens with the student and as many with the teacher, and asks the device one question: what became
of every row.
"""

from __future__ import annotations

import time

import torch

from ...teachers.remote import RemoteTeacher
from ..rules.acceptance import AcceptNone, Judged
from ..rules.gamma import Outcome, usable_length
from ..rules.logits import is_distribution, probability, rank
from ..rules.noise import row_keys
from ..runners.remote_runner import RemoteRunner
from ..runners.runner import Runner
from ..runners.slots import Slots
from .request import Request
from .results import Block, Rollout, RolloutStats
from .trace import Tracer


_DICTATED = 4  # tokens that a teacher writes by itself before anybody asks which rows have ended


class Engine:
    """One rollout. A is the number of slots in use, gamma the draft length, S the acceptance rule's memory."""

    def __init__(self, student, teacher, request: Request, on_block=None, on_round=None):
        self.r, self.on_block, self.on_round = request, on_block, on_round
        slots, limit, rows = request.slots, request.max_new_tokens, len(request.row_ids)
        shape = {"slots": slots, "max_new_tokens": limit, "vocab_size": request.vocab_size}
        shape |= {"compile": request.compile, "lockstep": request.lockstep, "widest": request.gamma}
        self.student = Runner(student, request.student_prompts, **shape)
        if isinstance(teacher, RemoteTeacher):
            self.teacher = RemoteRunner(
                teacher,
                request.teacher_prompts,
                slots=slots,
                max_new_tokens=limit,
                vocab_size=request.vocab_size,
                temperature=request.teacher_temperature,
                eos_token_ids=request.eos_token_ids,
                device=self.student.device,
            )
        else:
            self.teacher = Runner(teacher, request.teacher_prompts, **shape)
        # Nobody drafts in vain, unless a caller looks at drafts or another process in lockstep may run the student.
        self.nothing_stands = isinstance(request.acceptance, AcceptNone)
        shown = on_block is not None or request.trace_rows or request.lockstep.together
        self.teacher_alone = self.nothing_stands and not shown and not isinstance(teacher, RemoteTeacher)
        self.runners = [self.teacher] if self.teacher_alone else [self.student, self.teacher]
        device = self.teacher.device
        self.recorded = any(runner.recorded for runner in self.runners)
        self.slots = Slots(self.runners, rows, slots, device)
        last = torch.tensor([[s[-1], t[-1]] for s, t in zip(request.student_prompts, request.teacher_prompts)])
        blank = torch.tensor(request.acceptance.initial_state(), dtype=torch.float64, device=device)
        # each row's last token, which neither model has read yet, and what the acceptance rule remembers of it
        self.pending = self.slots.track(last[:slots].to(device), lambda rows: last[rows].to(device))
        self.memory = self.slots.track(blank.repeat(slots, 1), lambda rows: blank.repeat(len(rows), 1))

        self.keys = row_keys(request.seed, request.row_ids, device)
        self.eos = torch.tensor(request.eos_token_ids, dtype=torch.long, device=device)
        self.tokens = torch.zeros(rows, limit + 1, dtype=torch.long, device=device)  # the last column is a bin
        self.by_teacher = torch.zeros(rows, limit + 1, dtype=torch.bool, device=device)
        self.hidden: torch.Tensor | None = None  # [rows, limit + 1, H]
        self.lengths = [0] * rows
        self.broken: dict[int, str] = {}
        self.stats = RolloutStats()
        temperatures = request.student_temperature, request.teacher_temperature
        self.tracer = Tracer(request.trace_rows, limit, *temperatures, device) if request.trace_rows else None

    def run(self) -> Rollout:
        """Rolls out every row of the request."""
        waiting = len(self.r.row_ids) - self.r.slots
        self.slots.in_step = self.r.lockstep.together and self.r.lockstep.most(waiting) > 0
        self.slots.admit(list(range(self.r.slots)))
        while True:
            running, started = self.slots.running(), time.perf_counter()
            rooms = [self.r.max_new_tokens - self.slots.written[slot] for slot in running]
            gamma = self._gamma(dict(zip([self.slots.owner[slot] for slot in running], rooms)))
            if gamma == 0:
                break
            if not running:
                self._idle(gamma)
                continue
            if self.teacher_alone:
                report, drafted = self.dictate(gamma), 0
            else:
                drafts, sound, student_logits = self.draft(gamma)
                memories = self._foreseen(gamma)
                logits, hidden, stands = self.verify(drafts, student_logits, memories)
                report = self.commit(drafts, sound, student_logits, logits, hidden, stands, memories)
                drafted = gamma
            report = report.tolist()  # the one question to the device
            seconds = time.perf_counter() - started
            outcomes = [self._outcome(slot, *report[slot][:5]) for slot in running]
            self._clear([slot for slot in running if report[slot][5]])
            self.stats.count_round(drafted, rooms, outcomes, self.broken)
            if not self.nothing_stands:
                self.r.gamma_policy.observe(gamma, outcomes, seconds)
            if self.on_block is not None:
                self._tell(drafts, logits, running, outcomes, seconds)
            self._retire([slot for slot, outcome in zip(running, outcomes) if outcome.room == 0])
            if self.on_round is not None:
                self.on_round(self.stats)
        return self._result()

    def _gamma(self, rooms: dict[int, int]) -> int:
        """The next draft length, the same for all processes in lockstep; 0 when no row runs on any of them."""
        gamma = 0
        if rooms:
            policy = self.r.gamma_policy
            if self.nothing_stands:  # of a draft, all but the first token would be wasted
                gamma = _DICTATED if self.teacher_alone else 1
            else:
                gamma = policy.choose(rooms, len(self.slots.waiting))
            if not isinstance(gamma, int) or gamma < 1:
                raise ValueError(f"{type(policy).__name__}.choose() must return an int of 1 or more, got {gamma!r}")
            gamma = min(gamma, self.r.gamma)
            compiled = self.r.compile and not self.nothing_stands
            gamma = usable_length(gamma, self.r.gamma, max(rooms.values()), compiled, self.recorded)
        return self.r.lockstep.most(gamma)

    def _idle(self, gamma: int) -> None:
        """A round without a row, while other processes have some."""
        for _ in range(gamma):
            self.student.idle()
        for _ in range(gamma if self.r.verification == "sequential" else 1):
            self.teacher.idle()
        if self.slots.in_step:
            self.slots.admit([])

    def draft(self, gamma: int):
        """Returns drafted tokens [A, gamma], which of them came from a distribution [A, gamma] bool, and their logits.

        The logits are of all rows [A, gamma, V] for a rule that wants them, else of the traced rows alone, else None.
        """
        a, device = self.slots.used, self.student.device
        n, token = self.slots.n[:a].to(device), self.pending[:a, :1].contiguous().to(device)
        keys = self.keys[self.slots.row[:a]].to(device)
        keep = bool(self.r.acceptance.needs_student_logits)
        traced = self.tracer.slots(self.slots.owner) if self.tracer else []
        if traced and not keep:
            keep = torch.tensor(traced, device=device)
        longest, temperature = self.slots.longest(self.student), self.r.student_temperature
        drafts, sound, logits = self.student.draft(token, n, longest, gamma, temperature, keys, keep)
        device = self.teacher.device
        return drafts.to(device), sound.to(device), None if logits is None else logits.to(device)

    def verify(self, drafts: torch.Tensor, student_logits: torch.Tensor | None, memories: torch.Tensor):
        """drafts [A, gamma] -> teacher logits [A, Q, V], what lm_head read [A, Q, H] or None, stands [A, Q] bool.

        Q is gamma, or less where sequential verification found every row's first rejection earlier.
        """
        a, gamma = drafts.shape
        fed = torch.cat([self.pending[:a, 1:], drafts[:, :-1]], 1)
        n, longest, keep = self.slots.n[:a], self.slots.longest(self.teacher), self.r.return_teacher_hidden
        if self.r.verification == "parallel":
            logits, hidden = self.teacher.read(fed, n, longest, keep)
            return logits, hidden, self._judge(logits, drafts, student_logits, memories)
        parts, standing = [], torch.ones_like(self.slots.idle[:a])
        for i in range(gamma):
            logits, hidden = self.teacher.read(fed[:, i : i + 1], n + i, longest + i, keep)
            of_student = None if student_logits is None else student_logits[:, i : i + 1]
            stands = self._judge(logits, drafts[:, i : i + 1], of_student, memories[:, i : i + 1])
            parts.append((logits, hidden, stands))
            standing = standing & stands[:, 0]
            if not self.r.lockstep.together and not (standing & ~self.slots.idle[:a]).any():
                break
        logits, hidden, stands = zip(*parts)
        return torch.cat(logits, 1), torch.cat(hidden, 1) if keep else None, torch.cat(stands, 1)

    def _foreseen(self, gamma: int) -> torch.Tensor:
        """Returns [A, gamma + 1, S]: the rule's memory before each place, if all tokens before it stand."""
        memories = [self.memory[: self.slots.used]]
        for _ in range(gamma):
            memories.append(self.r.acceptance.next_state(memories[-1], True))
        return torch.stack(memories, 1)

    def _judge(self, logits, drafts, student_logits, memories) -> torch.Tensor:
        judged = Judged(
            teacher_logits=logits,
            draft=drafts,
            teacher_temperature=self.r.teacher_temperature,
            student_logits=student_logits if self.r.acceptance.needs_student_logits else None,
            student_temperature=self.r.student_temperature,
            state=memories[:, : drafts.shape[1]],
        )
        return self.r.acceptance.accept(judged)

    def commit(self, drafts, sound, student_logits, logits, hidden, stands, memories) -> torch.Tensor:
        """Writes what stands and the teacher's corrections.

        Returns [A, 6]: accepted, rejected, count, room, broken, unsound. A row is unsound if a model has no
        distribution at any place, be it dropped; it ends, broken, before the first that counts: 1 the student,
        2 the teacher.
        """
        a, width = stands.shape
        teacher_sound = is_distribution(logits)
        unsound = ~(sound.all(1) & teacher_sound.all(1))
        sound = sound[:, :width]
        stands = stands & sound & teacher_sound
        slots, places = torch.arange(a, device=stands.device), torch.arange(width, device=stands.device)
        n, row, limit = self.slots.n[:a], self.slots.row[:a], self.r.max_new_tokens
        accepted = stands.long().cumprod(1).sum(1)
        rejected = accepted < width
        at = accepted.clamp(max=width - 1)
        broken = rejected & ~(sound & teacher_sound)[slots, at] & ~self.slots.idle[:a]
        corrects = rejected & ~broken
        correction = self.teacher.draw(logits, at, self.r.teacher_temperature, self.keys[row], n + at, corrects)
        corrected = corrects[:, None] & (places == at[:, None])
        new = torch.where(corrected, correction[:, None], drafts[:, :width])

        count = torch.minimum(accepted + corrects, limit - n).masked_fill(self.slots.idle[:a], 0)
        ends, count, column = self._ends(new, count, n)
        self.tokens[row[:, None], column] = new
        self.by_teacher[row[:, None], column] = corrected
        if hidden is not None:
            self._keep(hidden, row, column)
        if self.tracer is not None:
            self._trace(drafts[:, :width], student_logits, logits, new, column)

        before = memories[slots, accepted]
        after = self.r.acceptance.next_state(before, False)
        self.memory[:a] = torch.where(rejected[:, None], after, before)
        self.pending[:a] = new[slots, count - 1][:, None]
        self.slots.n[:a] += count  # and so does its view `n`
        broken = broken & ~ends & (n < limit)
        room = (limit - n).masked_fill(ends | broken, 0)
        who = broken * (2 - (~sound)[slots, at].long())
        report = torch.minimum(accepted, count), (count > accepted).long(), count, room, who, unsound.long()
        return torch.stack(report, 1)

    def dictate(self, gamma: int) -> torch.Tensor:
        """The teacher writes `gamma` tokens of every row by itself, without a draft. Returns what `commit` does."""
        a, keep = self.slots.used, self.r.return_teacher_hidden
        n, row, limit = self.slots.n[:a], self.slots.row[:a], self.r.max_new_tokens
        longest, first = self.slots.longest(self.teacher), torch.zeros_like(n)
        token, parts, temperature = self.pending[:a, 1:].contiguous(), [], self.r.teacher_temperature
        keys, running = self.keys[row], ~self.slots.idle[:a]
        for i in range(gamma):
            logits, hidden = self.teacher.read(token, n + i, longest + i, keep)
            token = self.teacher.draw(logits, first, temperature, keys, n + i, running)[:, None]
            parts.append((token, is_distribution(logits), hidden))
        tokens, sound, hidden = zip(*parts)
        new, sound = torch.cat(tokens, 1), torch.cat(sound, 1)
        whole = sound.long().cumprod(1).sum(1)
        ends, count, column = self._ends(new, torch.minimum(whole, limit - n) * running, n)
        self.tokens[row[:, None], column] = new
        self.by_teacher[row[:, None], column] = True
        if keep:
            self._keep(torch.cat(hidden, 1), row, column)
        broken = (whole < torch.minimum(limit - n, first + gamma)) & ~ends & running
        self.pending[:a] = new[torch.arange(a, device=n.device), count - 1][:, None]
        self.slots.n[:a] += count
        room = (limit - n).masked_fill(ends | broken, 0)
        report = first, (count > 0).long(), count, room, 2 * broken.long(), (~sound.all(1)).long()
        return torch.stack(report, 1)

    def _ends(self, new: torch.Tensor, count: torch.Tensor, n: torch.Tensor):
        """Cuts `count` [A] of the tokens `new` [A, Q] behind the first that ends a row.

        Returns which rows end [A] bool, the counts [A], and each token's column [A, Q]: the bin's where it is dropped.
        """
        places = torch.arange(new.shape[1], device=new.device)
        ends = torch.isin(new, self.eos) & (places < count[:, None])
        count = torch.where(ends.any(1), ends.long().argmax(1) + 1, count)
        return ends.any(1), count, torch.where(places < count[:, None], n[:, None] + places, self.r.max_new_tokens)

    def _keep(self, hidden: torch.Tensor, row: torch.Tensor, column: torch.Tensor) -> None:
        if self.hidden is None:
            shape = (*self.tokens.shape, hidden.shape[-1])
            self.hidden = torch.empty(shape, dtype=hidden.dtype, device=hidden.device)
        self.hidden[row[:, None].to(hidden.device), column.to(hidden.device)] = hidden

    def _trace(self, drafts, student_logits, logits, new, column) -> None:
        slots = self.tracer.slots(self.slots.owner)
        if slots:
            if self.r.acceptance.needs_student_logits:
                student_logits = student_logits[slots]
            rows = [self.slots.owner[slot] for slot in slots]
            student_logits = student_logits[:, : drafts.shape[1]]
            self.tracer.add(rows, column[slots], drafts[slots], new[slots], student_logits, logits[slots])

    def _outcome(self, slot: int, accepted: int, rejected: int, count: int, room: int, broken: int) -> Outcome:
        self.slots.written[slot] += count
        self.stats.committed += count
        self.stats.finished += room == 0
        if broken:
            self.broken[self.slots.owner[slot]] = ("student", "teacher")[broken - 1]
        return Outcome(self.slots.owner[slot], accepted, bool(rejected), room)

    def _clear(self, slots: list[int]) -> None:
        """Zeroes what dropped tokens left in these slots: numbers that are not finite would reach those after them."""
        for slot in slots:
            for runner in self.runners:
                runner.clear(slot, len(runner.prompts[self.slots.owner[slot]]) - 1 + self.slots.written[slot])

    def _retire(self, slots: list[int]) -> None:
        for slot in slots:
            self.lengths[self.slots.owner[slot]] = self.slots.written[slot]
            if self.slots.owner[slot] in self.broken:
                for runner in self.runners:
                    runner.clear(slot)
        self.slots.retire(slots)

    def _tell(self, drafts, logits, running: list[int], outcomes: list[Outcome], seconds: float) -> None:
        """Hands every row's block to `on_block`; only then are more device values read."""
        seen = drafts[:, : logits.shape[1]]
        ranks = rank(logits, seen).tolist()
        chances = probability(logits, seen, self.r.teacher_temperature).tolist()
        tokens, drafted = self.tokens.tolist(), drafts.tolist()
        for slot, o in zip(running, outcomes):
            end = self.slots.written[slot]
            block = Block(
                round=self.stats.rounds - 1,
                row=o.row,
                position=end - o.accepted - o.rejected,
                drafted=drafted[slot],
                accepted=o.accepted,
                correction=tokens[o.row][end - 1] if o.rejected else None,
                teacher_rank=ranks[slot],
                teacher_probability=chances[slot],
                ended=o.room == 0,
                seconds=seconds,
            )
            self.on_block(block)

    def _result(self) -> Rollout:
        tokens, by_teacher = self.tokens.tolist(), self.by_teacher.tolist()
        self.stats.student_forwards = self.student.forwards
        self.stats.teacher_forwards = self.teacher.forwards
        kept = None if self.hidden is None else [h[:n] for h, n in zip(self.hidden, self.lengths)]
        remote = isinstance(self.teacher, RemoteRunner)
        return Rollout(
            completion_ids=[row[:n] for row, n in zip(tokens, self.lengths)],
            from_teacher=[row[:n] for row, n in zip(by_teacher, self.lengths)],
            stats=self.stats,
            broken=self.broken,
            teacher_hidden=None if remote else kept,
            teacher_top=kept if remote else None,
            traces=self.tracer.traces(self.lengths) if self.tracer else None,
        )
