"""How far two predictions differ, from hidden states and the output head: exact, tiled, in fp32 or better."""

from scgrpo.divergence.approximate import TopkTokenKL, sampled_token_kl, topk_token_kl
from scgrpo.divergence.choice import Divergence
from scgrpo.divergence.distillation import Distillation, distillation_reference
from scgrpo.divergence.exact import (
    TokenEvidence,
    VocabularySums,
    merge_vocab_shards,
    token_evidence,
    token_kl,
    vocabulary_sums,
)
from scgrpo.divergence.gradient import differentiable_evidence
from scgrpo.divergence.head import OutputHead
from scgrpo.divergence.reference import token_evidence_reference

__all__ = [
    "Distillation",
    "Divergence",
    "OutputHead",
    "TokenEvidence",
    "TopkTokenKL",
    "VocabularySums",
    "differentiable_evidence",
    "distillation_reference",
    "merge_vocab_shards",
    "sampled_token_kl",
    "token_evidence",
    "token_evidence_reference",
    "token_kl",
    "topk_token_kl",
    "vocabulary_sums",
]
