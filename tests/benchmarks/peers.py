"""What there was before: on-policy generation by transformers, and the rollout as it was first written down."""

from __future__ import annotations

import torch
from transformers import DynamicCache

from lupi_trainer.speculative import Judged
from lupi_trainer.speculative.rules.noise import STUDENT, TEACHER, row_keys, sample
from tests.benchmarks.setting import Setting


@torch.no_grad()
def on_policy(student, teacher, setting: Setting, queries, informed) -> list[list[int]]:
    """The student writes by `generate`; then the teacher reads its own prompts and the completions, once."""
    ids = torch.tensor(queries, device=setting.device)
    new = setting.new_tokens
    text = student.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=True,
        temperature=0.7,
        top_k=0,
        top_p=1.0,
        pad_token_id=0,
        eos_token_id=None,
    )[:, ids.shape[1] :]
    whole = torch.cat([torch.tensor(informed, device=setting.device), text], 1)
    # as TRL does, the teacher's states are kept, and the loss makes logits of them
    teacher.base_model(whole, use_cache=False).last_hidden_state[:, -new - 1 : -1].contiguous()
    return text.tolist()


@torch.no_grad()
def read_once(teacher, setting: Setting, informed) -> None:
    """The part of the on-policy cost that any rollout has: the teacher reads its prompts."""
    teacher.base_model(torch.tensor(informed, device=setting.device), use_cache=False)


@torch.no_grad()
def first_version(student, teacher, setting: Setting, queries, informed, rule) -> list[list[int]]:
    """Batch 1; every block prefills the student anew; every rejection costs a second teacher forward.

    Its noise and rule are those of `skd_rollout`, and so are its tokens.
    """
    texts = []
    for row, (query, known) in enumerate(zip(queries, informed)):
        key, text = row_keys(0, [row], setting.device), []
        state = torch.tensor([rule.initial_state()], dtype=torch.float64, device=setting.device)
        cache = DynamicCache(config=teacher.config)
        last = _read(teacher, known, cache, 1)  # what the teacher says after all that it has read
        while len(text) < setting.new_tokens:
            gamma = min(setting.gamma, setting.new_tokens - len(text))
            drafts = _draft(student, query + text, gamma, key, len(text))
            logits = torch.cat([last, _read(teacher, drafts, cache, gamma)])
            stood = 0
            while stood < gamma and _stands(rule, logits[stood], drafts[stood], state):
                state = rule.next_state(state, True)
                stood += 1
            text += drafts[:stood]
            last = logits[stood : stood + 1]
            if stood < gamma:
                at = torch.tensor([len(text)], device=setting.device)
                text.append(int(sample(last, 0.7, key, at, TEACHER)))
                state = rule.next_state(state, False)
                cache.crop(stood - gamma)
                last = _read(teacher, text[-1:], cache, 1)
        texts.append(text)
    return texts


def _read(model, tokens, cache, last: int) -> torch.Tensor:
    """Token ids -> logits [last, V] float32 after each of the `last` ones."""
    ids = torch.tensor([tokens], device=model.device)
    return model(ids, past_key_values=cache, logits_to_keep=last).logits[0].float()


def _draft(student, tokens, gamma, key, position) -> list[int]:
    cache, drafts = DynamicCache(config=student.config), []
    for i in range(gamma):
        at = torch.tensor([position + i], device=key.device)
        drafts.append(int(sample(_read(student, tokens, cache, 1), 0.7, key, at, STUDENT)))
        tokens = drafts[-1:]
    return drafts


def _stands(rule, logits, token, state) -> bool:
    draft = torch.tensor([[token]], device=logits.device)
    return bool(rule.accept(Judged(logits[None, None], draft, 0.7, state=state[:, None])))
