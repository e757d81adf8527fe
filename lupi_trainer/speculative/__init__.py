"""Rollouts that a student drafts and a privileged teacher verifies: token ids in, token ids out.

The contract is the one of arXiv 2410.11325, algorithm 1, stated a token at a time: a token is drawn from the student;
if the teacher's rule rejects it, it is drawn again, from the full teacher distribution. Everything else
in this package only makes that faster, and none of it changes a token.
"""

from ..teachers.remote import RemoteError, RemoteTeacher
from ..teachers.self_taught import AdapterDisabled
from .drafts.heads import HeadsDraft
from .drafts.prompt_lookup import PromptLookup
from .drafts.source import DraftSource
from .loops.custom_generate import draft_and_verify
from .loops.generation import speculative_generate
from .loops.results import Block, Rollout, RolloutStats, SpeculativeOutput, SpeculativeStats
from .loops.rollout import skd_rollout
from .loops.trace import TokenTrace
from .rules.acceptance import (
    AcceptanceRule,
    AcceptNone,
    AdaptiveTopK,
    JensenShannon,
    Judged,
    Knowledge,
    RelativeProbability,
    TopK,
    TopP,
)
from .rules.gamma import Adaptive, Fixed, GammaPolicy, Goodput, Outcome
from .runners.kept import KeptRunners
from .runners.lockstep import Lockstep


__all__ = [
    "AcceptNone",
    "AcceptanceRule",
    "Adaptive",
    "AdaptiveTopK",
    "AdapterDisabled",
    "Block",
    "GammaPolicy",
    "DraftSource",
    "Fixed",
    "Goodput",
    "HeadsDraft",
    "JensenShannon",
    "Judged",
    "KeptRunners",
    "Knowledge",
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
