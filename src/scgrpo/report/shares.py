"""Where the credit went: share of the weight by kind of token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from scgrpo.report.heatmap import is_scored
from scgrpo.report.text import TOKEN_CLASSES, token_class
from scgrpo.runs import RolloutRow


@dataclass
class Share:
    """Tokens of one kind. Fractions are of all weighted tokens of the same outcome; `mean_kl` is in nats."""

    kind: str
    num_tokens: int = 0
    weight: float = 0.0
    kl: float = 0.0
    token_frac: float = 0.0
    weight_frac: float = 0.0

    @property
    def mean_weight(self) -> float | None:
        return self.weight / self.num_tokens if self.num_tokens else None

    @property
    def mean_kl(self) -> float | None:
        return self.kl / self.num_tokens if self.num_tokens else None


@dataclass
class Outcome:
    """Shares over the scored rollouts of one outcome."""

    name: str
    shares: list[Share]
    num_rollouts: int = 0
    num_tokens: int = 0


def credit_shares(rows: Iterable[RolloutRow]) -> list[Outcome]:
    """Solved and failed rollouts apart; outcomes without scored rollouts are left out.

    Counts the tokens the policy produced in rollouts that were scored under a demonstration. Goes over `rows` once.
    """
    outcomes = {
        True: Outcome("Solved rollouts", [Share(kind) for kind in TOKEN_CLASSES]),
        False: Outcome("Failed rollouts", [Share(kind) for kind in TOKEN_CLASSES]),
    }
    for row in rows:
        if row.solved is not None and is_scored(row):
            _count(outcomes[row.solved], row)
    return [_divided(outcome) for outcome in outcomes.values() if outcome.num_rollouts]


def _count(outcome: Outcome, row: RolloutRow) -> None:
    shares = {share.kind: share for share in outcome.shares}
    values = zip(row.tokens, row.is_special, row.mask, row.credit_weights, row.token_kl or [], strict=True)
    for token, special, mine, weight, kl in values:
        if mine:
            share = shares[token_class(token, special)]
            share.num_tokens += 1
            share.weight += weight
            share.kl += kl
    outcome.num_rollouts += 1


def _divided(outcome: Outcome) -> Outcome:
    """Fill in the fractions; kinds of token that do not occur are dropped."""
    num_tokens = sum(share.num_tokens for share in outcome.shares)
    weight = sum(share.weight for share in outcome.shares)
    for share in outcome.shares:
        share.token_frac = share.num_tokens / num_tokens
        share.weight_frac = share.weight / weight if weight else 0.0
    present = [share for share in outcome.shares if share.num_tokens]
    return Outcome(outcome.name, present, outcome.num_rollouts, num_tokens)
