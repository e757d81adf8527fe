"""What a run's logs say is going wrong: one line each, once, with the key to change and a value for it.

Every figure is a mean over at least `FEWEST_TEXTS` texts, or over a third of the steps, so that no single batch warns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


FEWEST_TEXTS = 32  # below, a share of texts is that of one batch, and a small one may be odd
CUT = 0.9  # of the texts: one that is cut has no end to learn from, and nearly all of them teach to go on and on
EMPTY = 0.25  # of the texts: an end token alone teaches to say nothing; a sound run has next to none
LOW_ACCEPTANCE = 0.05  # of drafted tokens: below one in twenty, the texts are the teacher's and drafts are for nothing
TEACHERS = 0.99  # of the tokens: what is left of the student are the ends of texts
FEWEST_DRAFTED = 500  # tokens: if none of so many was rejected, none would be, or one in more than a hundred
FEWEST_STEPS = 30  # whose thirds can be compared: ten noisy losses each
SHARE_OF_RUN = 0.1  # of the steps: a long run, with a long warm-up, is given time
NOTHING_TO_LEARN = 1e-3  # nats a token: such a loss need not fall
HALF = 0.5  # of its probes that a teacher answers open-book: with fewer, most of what it teaches is wrong


def loss_is_stuck(points: Sequence[tuple[int, float]], max_steps: int) -> tuple[float, float] | None:
    """Mean losses of the first and of the last third of the steps, where the second is not the smaller one.

    Args:
        points: (step, loss) of every log, the loss a mean over the steps since the log before.
        max_steps: of the run.
    """
    if not points or points[-1][0] < max(FEWEST_STEPS, SHARE_OF_RUN * max_steps):
        return None
    third = points[-1][0] / 3
    first = [loss for step, loss in points if step <= third]
    last = [loss for step, loss in points if step > 2 * third]
    if not first or not last:
        return None
    before, after = sum(first) / len(first), sum(last) / len(last)
    return (before, after) if after >= before > NOTHING_TO_LEARN else None


class Advice:
    """Watches the logs of one run.

    Args:
        args: its configuration; what rollouts do is watched where it has a `rollout_policy`.
    """

    def __init__(self, args: Any):
        self.args = args
        self.given: set[str] = set()
        self.texts = 0  # in the window
        self.sums: dict[str, float] = {}
        self.last_step = 0  # of the last log; a run that was resumed begins later

    def look(self, state: Any, logs: Mapping[str, Any]) -> list[str]:
        """What is to be said after a log of training that was not said before.

        Args:
            state: transformers' `TrainerState`, whose history has this log.
            logs: the log.
        """
        found = dict(self._of_loss(state))
        if hasattr(self.args, "rollout_policy"):
            found |= self._of_rollouts(state, logs)
        return [text for kind, text in found.items() if self.first(kind)]

    def first(self, kind: str) -> bool:
        """Whether a kind of warning was not given before; it counts as given from now on."""
        new = kind not in self.given
        self.given.add(kind)
        return new

    def _of_loss(self, state: Any) -> Iterator[tuple[str, str]]:
        points = [(log["step"], float(log["loss"])) for log in state.log_history if log.get("loss") is not None]
        stuck = loss_is_stuck(points, state.max_steps)
        if stuck is None:
            return
        before, after = stuck
        rate, rises = self.args.learning_rate, after > 1.1 * before
        how = f"it rises: try learning_rate: {rate / 3:.1e}" if rises else f"try learning_rate: {3 * rate:.1e}"
        yield (
            "loss",
            f"the loss does not fall: {before:.3f} in the first third of {state.global_step} steps, {after:.3f} in "
            f"the last; {how}",
        )

    def _of_rollouts(self, state: Any, logs: Mapping[str, Any]) -> dict[str, str]:
        args, step = self.args, state.global_step
        steps, self.last_step = max(step - self.last_step, 1), step
        texts = steps * args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        for key, value in logs.items():
            if isinstance(value, (int, float)):
                self.sums[key] = self.sums.get(key, 0.0) + texts * float(value)
        self.texts += texts
        if self.texts < FEWEST_TEXTS:
            return {}
        means = {key: total / self.texts for key, total in self.sums.items()}
        self.texts, self.sums = 0, {}
        found = dict(self._of_texts(means))
        if args.rollout_policy == "speculative":
            found |= self._of_drafts(means, logs)
        return found

    def _of_texts(self, means: Mapping[str, float]) -> Iterator[tuple[str, str]]:
        args = self.args
        if (cut := means.get("rollout/unfinished", 0.0)) >= CUT:
            yield (
                "cut",
                f"{cut:.0%} of the texts are cut at max_completion_length={args.max_completion_length}, before their "
                f"end: try max_completion_length: {2 * args.max_completion_length}",
            )
        if (empty := means.get("rollout/empty", 0.0)) >= EMPTY:
            if args.rollout_policy == "speculative" and args.acceptance_rule == "top_k" and args.accept_top_k > 1:
                how = "accept_top_k: 1, so that a text ends only where the teacher would end it"
            else:
                how = 'teacher_system_prompt: "Answer in one sentence."'
            yield "empty", f"{empty:.0%} of the texts are empty, an end and nothing before it: try {how}"

    def _of_drafts(self, means: Mapping[str, float], logs: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        share, rate = means.get("tokens/teacher_share"), means.get("acc_rate/mean")
        drafted, accepted = logs.get("tokens/total_drafted") or 0, logs.get("tokens/total_accepted")
        if share is not None and share >= TEACHERS:
            yield "drafts", f"all tokens are the teacher's ({share:.1%}), none the student's: {self._more()}"
        elif rate is not None and rate < LOW_ACCEPTANCE:
            yield "drafts", f"the teacher accepts {rate:.1%} of the student's tokens only: {self._more()}"
        if drafted >= FEWEST_DRAFTED and drafted == accepted:
            yield (
                "never rejected",
                f"the teacher has accepted all of {int(drafted):,} tokens, so the student's errors stay in the texts: "
                f"{self._less()}",
            )

    def _more(self) -> str:
        """How more is accepted."""
        args = self.args
        if args.acceptance_rule != "top_k":
            return f"try acceptance_rule: top_k in place of {args.acceptance_rule}"
        if args.teacher_min_prob > 0.05:
            return "try teacher_min_prob: 0.05"
        wider = f"try accept_top_k: {4 * args.accept_top_k}"
        known = args.loss_top_k if args.teacher_model_server_url is not None else None  # of a remote teacher's tokens
        return wider if known is None or known >= 4 * args.accept_top_k else f"{wider} and loss_top_k: the same"

    def _less(self) -> str:
        """How less is accepted."""
        args = self.args
        if args.acceptance_rule != "top_k":
            return f"try acceptance_rule: top_k in place of {args.acceptance_rule}"
        if args.accept_top_k > 5:
            return "try accept_top_k: 5"
        if args.teacher_min_prob < 0.05:
            return "try teacher_min_prob: 0.05"
        return "try accept_top_k: 1" if args.accept_top_k > 1 else "try teacher_min_prob: 0.5"


def open_book_advice(right: int, asked: int, args: Any) -> str | None:
    """What is to be said of a teacher that answered `right` of `asked` probes with the knowledge before it."""
    if not asked or right >= HALF * asked:
        return None
    if args.teacher_system_prompt is None:
        how = 'teacher_system_prompt: "Answer from the background knowledge, in one sentence."'
    else:
        how = "teacher_model_name_or_path: a larger model, and look at `privileged_context` of those records"
    return (
        f"the teacher answers {right} of {asked} probes with their knowledge before it (open-book), and cannot teach "
        f"what it does not say: try {how}"
    )
