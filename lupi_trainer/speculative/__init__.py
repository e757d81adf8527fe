"""Rollouts that a student drafts and a privileged teacher verifies: token ids in, token ids out.

The contract is the one of arXiv 2410.11325, algorithm 1, stated a token at a time: a token is drawn from the student;
if the teacher's rule does not accept it, it is dropped and drawn from the full teacher distribution. Everything else
in this package only makes that faster, and none of it changes a token.
"""

from .acceptance import (
    AcceptanceRule,
    AcceptNone,
    AdaptiveTopK,
    JensenShannon,
    Judged,
    RelativeProbability,
    TopK,
    TopP,
)
from .custom_generate import draft_and_verify
from .decode import SpeculativeOutput, SpeculativeStats, speculative_generate
from .draft_length import Adaptive, DraftLength, Fixed, Goodput, Outcome
from .draft_source import DraftSource
from .heads_draft import HeadsDraft
from .lockstep import Lockstep
from .models import AdapterDisabled
from .prompt_lookup import PromptLookup
from .remote import RemoteError, RemoteTeacher
from .results import Block, Rollout, RolloutStats
from .rollout import skd_rollout
from .trace import TokenTrace


__all__ = [
    "AcceptNone",
    "AcceptanceRule",
    "Adaptive",
    "AdaptiveTopK",
    "AdapterDisabled",
    "Block",
    "DraftLength",
    "DraftSource",
    "Fixed",
    "Goodput",
    "HeadsDraft",
    "JensenShannon",
    "Judged",
    "Lockstep",
    "Outcome",
    "PromptLookup",
    "RelativeProbability",
    "RemoteError",
    "RemoteTeacher",
    "Rollout",
    "RolloutStats",
    "SpeculativeOutput",
    "SpeculativeStats",
    "TokenTrace",
    "TopK",
    "TopP",
    "draft_and_verify",
    "skd_rollout",
    "speculative_generate",
]
