"""What the words of a page mean, in a sentence each, shown where the pointer rests on them."""

METRICS = {
    "loss": "How far the student's next-token distribution is from the one that it learns, a mean over tokens; it "
    "should fall.",
    "loss/gold": "Cross-entropy of the gold answers, a mean over their tokens; it should fall.",
    "eval_loss": "The loss on records that are not trained on; it should fall, and rises where the run overfits.",
    "eval_perplexity": "e to the power of the mean cross-entropy on the evaluation's answers: lower is better.",
    "acc_rate/mean": "Share of the tokens drafted by the student that the teacher accepted.",
    "acc_rate/first_token": "Share of the drafted blocks whose first token was accepted.",
    "acc_rate/full_match": "Share of the drafted blocks of which every token was accepted.",
    "gamma/mean": "Tokens that the student drafted at a time, on average over the blocks.",
    "gamma/max": "The longest block that was drafted.",
    "gamma/min": "The shortest block that was drafted.",
    "eval_closed_book_strict": "Share of the questions that the student answers without the knowledge: an accepted "
    "answer in its first sentence, and an end of its own.",
    "eval_closed_book_lenient": "Share of the questions that the student answers without the knowledge: an accepted "
    "answer anywhere in its text.",
    "rollout/tokens_per_second": "Tokens that student and teacher wrote a second, all rows together.",
    "rollout/close_calls": "Share of the tokens written that hung on rounding, in half precision: read in other "
    "shapes, another one might stand there.",
    "knowledge/gain": "What the knowledge changes in the teacher's distributions, in nats, a mean over the tokens of "
    "texts that have some.",
    "knowledge/effective_tokens": "Share of those tokens that the loss's weights amount to: 1 where all count alike.",
    "tokens/teacher_share": "Share of the tokens of the texts that the teacher wrote, since it rejected the draft.",
}
_KINDS = {"knowledge": "Of records with knowledge", "base": "Of base records"}
METRICS |= {
    f"{name}_{kind}": f"{of}, in a mixture: {METRICS[name][0].lower()}{METRICS[name][1:]}"
    for kind, of in _KINDS.items()
    for name in (
        "acc_rate/mean",
        "acc_rate/first_token",
        "acc_rate/full_match",
        "gamma/mean",
        "tokens/teacher_share",
        "rollout/tokens_per_second",
    )
}


def explained(metric: str) -> str:
    """What a metric means; one of the rows of a teacher is as that of all."""
    name, _, teacher = metric.partition("_of_")
    about = METRICS[name]
    return f"Of records of the teacher {teacher}: {about[0].lower()}{about[1:]}" if teacher else about


CURVES = {
    "loss": "What is minimized, step by step.",
    "acceptance": "How often the teacher accepts what the student drafts: it rises as the two come to agree.",
    "gamma": "How many tokens the student drafts before the teacher verifies them: the speed, and in float32 "
    "never the text.",
    "closed_book": "What the student answers without the knowledge: what has moved into its weights.",
    "speed": "How fast texts are written.",
    "teacher_share": "How much of the texts is the teacher's: it falls as the student learns.",
}
# parts of the names of figures that are fractions of 1, in a log and in `metrics.json`
SHARES = (
    "closed_book",
    "open_book",
    "phrasing",
    "long_form",
    "common_facts",
    "acc_rate",
    "acceptance",
    "close_calls",
    "_share",
)
MARKS = {  # metric -> its name on the page
    "eval_closed_book_strict": "closed-book, strict",
    "eval_closed_book_lenient": "closed-book, lenient",
    "eval_perplexity": "perplexity",
    "eval_loss": "validation loss",
    "loss": "training loss",
    "acc_rate/mean": "accepted drafts",
    "tokens/teacher_share": "teacher's share",
}


def is_share(metric: str) -> bool:
    """Whether a figure is a fraction of 1, to be shown as a percentage."""
    return any(part in metric for part in SHARES) and not metric.endswith("length")
