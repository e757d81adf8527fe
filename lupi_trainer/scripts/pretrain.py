"""Make the lab's pair again: `python -m lupi_trainer.scripts.pretrain --output_dir DIR` (minutes on two cores).

The teacher learns to read facts out of the context it is given; teacher and student both learn the common islands by
heart. Neither ever meets a new island.
"""

import argparse
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ..data.prompts import KNOWLEDGE_TEMPLATE
from ..lab import world
from ..lab.tokenizer import build_tokenizer


def make_model(hidden_size: int, num_layers: int, num_heads: int, tokenizer: PreTrainedTokenizerFast, seed: int):
    """A tiny Llama with heads of 32 dimensions and tied embeddings, in float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        head_dim=32,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def conversation(rng: random.Random, island: world.Island, *, knowledge: bool, num_facts: int) -> list[dict]:
    """Questions about `num_facts` facts of an island; the first user turn carries the knowledge, if any."""
    relations = rng.sample(world.RELATIONS, num_facts)
    known = " ".join(island.statement(r) for r in relations)
    rng.shuffle(relations)
    turns = [(rng.choice(world.SHORT).format(relation=r, island=island.name), island.answer(r)) for r in relations]
    if num_facts == len(world.RELATIONS):
        turns.insert(
            rng.randint(0, num_facts), (rng.choice(world.LONG).format(island=island.name), island.description())
        )
    persona = knowledge and rng.random() < 0.8
    messages = [{"role": "system", "content": world.PERSONA}] if persona else []
    for n, (question, answer) in enumerate(turns):
        if knowledge and n == 0:
            question = KNOWLEDGE_TEMPLATE.replace("{privileged_context}", known).replace("{query}", question)
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


@dataclass(frozen=True)
class Stage:
    """So many steps on conversations about up to `max_facts` facts, in these proportions."""

    steps: int
    max_facts: int = len(world.RELATIONS)
    context: float = 1.0  # a random island, its facts in the first turn
    common: float = 0.0  # a common island, closed-book; what is left over: a random island, closed-book


# One fact, then two, then all: reading a context is learned several times faster than from all six at once.
TEACHER_STAGES = (Stage(60, 1), Stage(140, 2), Stage(200), Stage(320, context=0.75, common=0.25))
STUDENT_STAGES = (Stage(300, context=0.1, common=0.6),)


def make_batch(rng: random.Random, tokenizer, size: int, stage: Stage):
    """input_ids, labels: [size, S], right-padded; only answers are labeled."""
    samples, all_facts = [], len(world.RELATIONS)
    for _ in range(size):
        kind = rng.random()
        if stage.context < kind <= stage.context + stage.common:
            sample = conversation(rng, rng.choice(world.COMMON), knowledge=False, num_facts=all_facts)
        else:
            # without the knowledge only the form of an answer can be learned, for names never seen
            island, knowledge = world.make_island(rng, world.RESERVED), kind <= stage.context
            # while only contexts are read, their number of facts varies up to the stage's; then it is always all
            num_facts = all_facts if stage.common > 0 else rng.randint(1, stage.max_facts)
            sample = conversation(rng, island, knowledge=knowledge, num_facts=num_facts)
        samples.append(sample)
    encoded = tokenizer.apply_chat_template(samples, return_dict=True, return_assistant_tokens_mask=True)
    length = max(map(len, encoded["input_ids"]))
    input_ids = torch.full((size, length), tokenizer.pad_token_id)
    labels = torch.full((size, length), -100)
    for row, (ids, mask) in enumerate(zip(encoded["input_ids"], encoded["assistant_masks"])):
        ids, mask = torch.tensor(ids), torch.tensor(mask, dtype=torch.bool)
        input_ids[row, : len(ids)] = ids
        labels[row, : len(ids)] = torch.where(mask, ids, -100)
    return input_ids, labels


def pretrain(model, tokenizer, stages: tuple[Stage, ...], *, name: str, batch_size: int = 16, seed: int = 1):
    """Train `model` in place through `stages`; Muon for the matrices, AdamW for the rest."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=2e-3, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    total, decay = sum(s.steps for s in stages), 100
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(o, lambda n: min(1.0, (n + 1) / 30, max(total - n, 1) / decay))
        for o in optimizers
    ]
    rng, start = random.Random(seed), time.perf_counter()
    model.train()
    step = 0
    for stage in stages:
        for _ in range(stage.steps):
            step += 1
            input_ids, labels = make_batch(rng, tokenizer, batch_size, stage)
            loss = model(input_ids=input_ids, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer, schedule in zip(optimizers, schedules):
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            if step % 20 == 0 or step == total:
                seconds = time.perf_counter() - start
                print(f"{name}: step {step}/{total}, loss {loss.item():.4f}, {seconds:.0f} s", flush=True)
    return model.eval()


def build(output_dir: Path, seed: int = 0) -> None:
    """Train the pair and save it as `teacher/` and `student/` under `output_dir`."""
    tokenizer = build_tokenizer()
    for name, shape, stages in (("teacher", (128, 4, 4), TEACHER_STAGES), ("student", (96, 2, 3), STUDENT_STAGES)):
        model = pretrain(make_model(*shape, tokenizer, seed), tokenizer, stages, name=name)
        model.save_pretrained(output_dir / name)
        tokenizer.save_pretrained(output_dir / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    build(args.output_dir, args.seed)


if __name__ == "__main__":
    main()
