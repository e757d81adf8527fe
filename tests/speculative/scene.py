"""Two models, their prompts, and what the reference makes of them."""

from lupi_trainer.speculative import TopK, skd_rollout
from lupi_trainer.speculative.rules.acceptance import needs_bare_logits
from tests.speculative.reference import reference_rollout
from tests.speculative.toy_models import perturbed, prompts, toy


ROWS, LIMIT, EOS = 8, 20, (7, 8)
RULE = TopK(5, 0.02)


class Scene:
    """Two models, their prompts, and what the reference makes of them."""

    def __init__(self, family, attention="sdpa", rows=ROWS, rule=RULE, longest=15, layers=2, **options):
        self.teacher = toy(family, attention=attention, layers=layers)
        self.student = perturbed(self.teacher, 0.1)
        queries = prompts(rows, 1, 9, seed=1)
        knowledge = prompts(rows, 3, longest, seed=2)
        self.prompts = queries, [k + q for k, q in zip(knowledge, queries)]
        # prompts without the knowledge, whose last token is another one
        self.bare = [q[:-1] + [q[-1] % 50 + 9] for q in queries] if needs_bare_logits(rule) else None
        self.options = {"max_new_tokens": LIMIT, "acceptance": rule, **options}
        self.tokens, self.by_teacher, self.hidden = reference_rollout(
            self.student, self.teacher, *self.prompts, eos=EOS, bare_prompts=self.bare, **self.options
        )
        assert 0.2 < sum(map(sum, self.by_teacher)) / sum(map(len, self.tokens)) < 0.8, "both must write"

    def roll(self, rows=None, **options):
        rows = list(range(len(self.tokens))) if rows is None else rows
        options = {"eos_token_id": list(EOS), **self.options, **options}
        chosen = [[column[i] for i in rows] for column in self.prompts]
        if self.bare is not None:
            options = {"bare_teacher_prompt_ids": [self.bare[i] for i in rows], **options}
        return skd_rollout(self.student, self.teacher, *chosen, row_ids=rows, **options)

    def check(self, rollout, rows=None):
        rows = list(range(len(self.tokens))) if rows is None else rows
        assert rollout.completion_ids == [self.tokens[i] for i in rows]
        assert rollout.from_teacher == [self.by_teacher[i] for i in rows]
