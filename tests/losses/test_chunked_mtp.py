"""The trainers' chunked loss against the dense one, with padding and packing, in float64; its memory."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from lupi_trainer import MTPHeads
from lupi_trainer.losses import chunks
from lupi_trainer.losses.chunked_mtp import chunked_ce
from lupi_trainer.losses.reference import compute_weighted_mtp_loss
from lupi_trainer.models.lm_head import Head
from lupi_trainer.models.mtp_heads import attach_mtp_heads
from lupi_trainer.wmtp.weighted_loss import weighted_loss


VOCAB = 37


def model_with_heads(horizon, head_type="residual", family="llama", vocab=VOCAB, width=32, seed=0, **config):
    torch.manual_seed(seed)
    common = {
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": width // 2,
        "max_position_embeddings": 2048,
    }
    kind = {"llama": LlamaConfig, "qwen3": Qwen3Config}[family]
    model = AutoModelForCausalLM.from_config(kind(**{**common, **config}))
    heads = MTPHeads.for_model(model, horizon, head_type)
    for parameter in heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    attach_mtp_heads(model, heads)
    return model


def texts(packed, lengths=(9, 5, 12, 4), prompt=2, vocab=VOCAB):
    """The same texts as TRL's collator gives them: padded, or packed into one row."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, vocab, (n,), generator=generator) for n in lengths]
    labels = [row.clone() for row in rows]
    for label in labels:
        label[:prompt] = -100
    if packed:
        return {
            "input_ids": torch.cat(rows)[None],
            "labels": torch.cat(labels)[None],
            "position_ids": torch.cat([torch.arange(len(row)) for row in rows])[None],
        }
    pad = torch.nn.utils.rnn.pad_sequence
    mask = [torch.ones_like(row) for row in rows]
    return {
        "input_ids": pad(rows, True),
        "labels": pad(labels, True, padding_value=-100),
        "attention_mask": pad(mask, True),
    }


def dense(model, inputs, weights, reduction="position"):
    """All of [B, S, H, V] from the model's own parts, and the reference loss."""
    segments = None if "attention_mask" in inputs else (inputs["position_ids"] == 0).cumsum(-1)
    read = {k: v for k, v in inputs.items() if k != "labels"}
    hidden = model.model(**read, use_cache=False).last_hidden_state
    logits = torch.stack([model.lm_head(state) for state in model.mtp_heads(hidden, segments)], dim=2)
    return compute_weighted_mtp_loss(
        logits, inputs["labels"], weights, model.mtp_heads.horizon, segment_ids=segments, reduction=reduction
    )


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reduction", ["position", "token"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("horizon, head_type", [(1, "linear"), (2, "linear"), (4, "residual"), (7, "transformer")])
def test_chunked_loss_and_gradients_are_the_dense_ones(monkeypatch, horizon, head_type, packed, reduction):
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 5 * VOCAB)  # chunks end inside texts and heads
    model = model_with_heads(horizon, head_type).double()
    inputs = texts(packed)
    weights = torch.rand(*inputs["labels"].shape, horizon, generator=torch.Generator().manual_seed(2)).double()
    weights[0, 4] = 0.0
    expected, _, expected_ce = dense(model, inputs, weights, reduction)
    reference = gradients(model, expected)
    out, batch = weighted_loss(model, inputs, lambda batch: weights, reduction)
    torch.testing.assert_close(batch.ce, expected_ce, atol=1e-10, rtol=0)
    torch.testing.assert_close(out.ce, expected_ce, atol=1e-10, rtol=0)
    assert out.loss.item() == pytest.approx(expected.item(), abs=1e-10)
    ours = gradients(model, out.loss)
    assert ours.keys() == reference.keys() and len(ours) == len(list(model.parameters()))
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, reference[name], atol=1e-10, rtol=0, msg=name)


@pytest.mark.parametrize("head_type", ["residual", "transformer"])
def test_packed_texts_cost_what_they_cost_apart(head_type):
    """Neither the trunk, nor a head's states, nor its targets reach into the next text."""
    model = model_with_heads(4, head_type).double()

    def uniform(batch):
        return batch.has_target.double()

    apart, together = (weighted_loss(model, texts(p), uniform, "position")[0].loss.item() for p in (False, True))
    assert together == pytest.approx(apart, abs=1e-10)


def test_a_shift_by_one_is_seen():
    model = model_with_heads(4).double()
    inputs = texts(False)
    weights = torch.ones(*inputs["labels"].shape, 4).double()
    right = dense(model, inputs, weights)[0].item()
    moved = {**inputs, "labels": torch.nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100)}
    ours = weighted_loss(model, inputs, lambda batch: weights, "position")[0].loss.item()
    assert ours == pytest.approx(right, abs=1e-10)
    assert abs(dense(model, moved, weights)[0].item() - ours) > 1e-3


def test_scaled_and_capped_heads(monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_ELEMENTS", 3 * VOCAB)
    model = model_with_heads(3).double()
    model.config.final_logit_softcapping, model.config.logit_scale = 2.0, 0.7
    model.lm_head.bias = torch.nn.Parameter(torch.randn(VOCAB).double())
    inputs = texts(False)
    weights = torch.rand(*inputs["labels"].shape, 3).double()
    hidden = model.model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
    raw = torch.stack([torch.nn.functional.linear(s, model.lm_head.weight) for s in model.mtp_heads(hidden)], dim=2)
    logits = 2.0 * torch.tanh((raw + model.lm_head.bias) * 0.7 / 2.0)
    reference = gradients(model, compute_weighted_mtp_loss(logits, inputs["labels"], weights, 3)[0])
    ours = gradients(model, weighted_loss(model, inputs, lambda batch: weights, "position")[0].loss)
    assert ours.keys() == reference.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, reference[name], atol=1e-10, rtol=0, msg=name)


def test_float16_keeps_gradients_that_are_scaled_later():
    """A loss scaler multiplies after the forward, in which these gradients are made."""
    head = Head(model_with_heads(1), VOCAB)
    states, targets = torch.randn(5, 32, requires_grad=True), torch.arange(5)
    factors = torch.full((5,), 1e-7)  # of many positions
    (wanted,) = torch.autograd.grad(chunked_ce(states, head, targets, factors)[0], states)
    with torch.autocast("cpu", torch.float16):
        total = chunked_ce(states, head, targets, factors)[0]
    (got,) = torch.autograd.grad(total * 2**16, states)
    torch.testing.assert_close(got / 2**16, wanted, rtol=1e-3, atol=0)


def peak_bytes(run) -> int:
    """The most memory that tensors allocated inside `run` held at one time, as the profiler counted it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.slow
def test_four_heads_hardly_cost_more_memory_than_one():
    """Vocabulary 32,000, 1,024 tokens: weights, activations and gradients of a step."""
    counted = peak_bytes(lambda: torch.ones(2**20) + 1)
    assert counted == pytest.approx(2 * 4 * 2**20, rel=1e-4), "the count itself, but for a few scalars"
    vocab, length = 32_000, 1024
    inputs = {"input_ids": torch.randint(0, vocab, (1, length)), "attention_mask": torch.ones(1, length).long()}
    inputs["labels"] = inputs["input_ids"].clone()
    peaks = {}
    for horizon in (1, 4):
        model = model_with_heads(horizon, vocab=vocab, width=256)
        held = sum(p.numel() * p.element_size() for p in model.parameters())

        def step(model=model):
            loss = weighted_loss(model, inputs, lambda batch: batch.has_target.float(), "position")[0].loss
            loss.backward()

        peaks[horizon] = held + peak_bytes(step)
        model.zero_grad()
    print({k: f"{v / 2**20:.0f} MiB" for k, v in peaks.items()}, f"{peaks[4] / peaks[1]:.3f}x")
    assert peaks[4] <= 1.3 * peaks[1]
    assert peaks[4] < 4 * length * vocab * 4, "less than the logits of four heads alone"
