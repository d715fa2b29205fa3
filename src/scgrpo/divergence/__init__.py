"""How far two predictions differ, from hidden states and the output head: exact, tiled, in fp32 or better."""

from scgrpo.divergence.exact import TokenEvidence, token_evidence, token_evidence_reference, token_kl
from scgrpo.divergence.head import OutputHead

__all__ = ["OutputHead", "TokenEvidence", "token_evidence", "token_evidence_reference", "token_kl"]
