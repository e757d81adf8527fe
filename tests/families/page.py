"""`docs/families.md`: written from the verdicts of all families, and read again."""

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
import transformers

from tests.families.check import CHECKS, Row


PAGE = Path(__file__).parent.parent.parent / "docs" / "families.md"

HEAD = """# Which models work

Every family of causal language models that transformers knows, tried with a tiny random model in float32: what this \
package writes, beside what the same model writes when it reads each text anew, a token at a time, without a cache. \
`make families` makes this page (transformers {transformers}, torch {torch}).

*exact*: the texts are equal, token by token. *refused*: a ValueError says so before anything is written. *wrong* \
must not occur. {counts}

| column | what is tried |
|---|---|
| drafts and verifies | a student and a teacher (`skd_rollout`): prompts of different lengths, random rejections, \
rows that take the places of ended ones, two tokens that end a row, prompts read before (`teacher_prompt_store`) |
| lossless | `speculative_generate`: a target and a draft of the family, and each of them with a Llama |
| student alone, teacher alone | `rollout_policy: student` and `teacher` |
| loss head | logits from the states that a rollout keeps, as losses compute them; refused, so is training |

A family is named by its `model_type`. Encoders, such as BERT, and decoders with an encoder, such as BART, are loaded \
as decoders alone: `is_decoder=True`, `is_encoder_decoder=False`.

## Exact in everything
{exact}

## Not in everything
| family | {columns} | why not |
|---|{lines}---|
"""


def short(sentence: str) -> str:
    """A sentence of refusal without the model's name, what to do instead, and figures that depend on chance."""
    said = re.sub(r" ?\b(of )?the (student|teacher|target|draft) (?!is )\w+", "", sentence).strip()
    said = re.sub(r" \((they differ by|its logits are off by) [^)]*\)", "", said)
    return said.split("; rollout_policy")[0].replace("|", "\\|")


def fate(row: Row) -> str:
    """What a family is in all."""
    words = {verdict.word for verdict in row.verdicts.values()}
    if "wrong" in words or words == {"refused"}:
        return row.word
    return {"exact": "exact in everything", "refused": "exact in part"}.get(row.word, row.word)


def written(rows: Iterable[Row]) -> str:
    """The page."""
    rows = sorted(rows, key=lambda row: row.family)
    counts = Counter(fate(row) for row in rows)
    exact = [row for row in rows if row.word == "exact"]
    head = HEAD.format(
        transformers=transformers.__version__,
        torch=torch.__version__.split("+")[0],
        counts=f"Of {len(rows)} families, {', '.join(f'{counts[each]} are {each}' for each in sorted(counts))}.",
        exact=", ".join(f"`{row.family}`" for row in exact),
        columns=" | ".join(CHECKS),
        lines="---|" * len(CHECKS),
    )
    lines = []
    for row in rows:
        if row.word != "exact":
            whys = dict.fromkeys(short(verdict.why) for verdict in row.verdicts.values() if verdict.why)
            words = " | ".join(verdict.word for verdict in row.verdicts.values())
            lines.append(f"| `{row.family}` | {words} | {'; '.join(whys)} |\n")
    return head + "".join(lines)


def read(text: str) -> tuple[str, dict[str, list[str]]]:
    """The version of transformers that a page was made with; of each family, its words, in the order of `CHECKS`."""
    version = re.search(r"transformers (\S+), torch", text).group(1)
    exact, others = text.split("## Exact in everything")[1].split("## Not in everything")
    found = {name: ["exact"] * len(CHECKS) for name in re.findall(r"`([^`]+)`", exact)}
    for name, words in re.findall(rf"^\| `([^`]+)` \| ((?:[\w ]+ \| ){{{len(CHECKS)}}})", others, re.MULTILINE):
        found[name] = [word.strip() for word in words.strip(" |").split("|")]
    return version, found
