"""The theory of the method page, numerically, on small vocabularies.

1. Which single distribution is closest to several teachers (the two minimisers), and what no student can remove.
2. Why a weight made of the prefix keeps the policy gradient unbiased, and one made of the sampled token does not.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scgrpo.credit import saturating_weight
from scgrpo.divergence import OutputHead, token_evidence


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum(-1)


def minimise(objective: Callable[[Tensor], Tensor], words: int) -> Tensor:
    """The distribution over `words` words that minimises the objective, by gradient descent on logits."""
    logits = torch.zeros(words, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(logits.softmax(-1))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return logits.detach().softmax(-1)


def teachers(seed: int, count: int, words: int) -> tuple[Tensor, Tensor]:
    """(p_j, their selection law mu)"""
    rng = torch.Generator().manual_seed(seed)
    p = (2 * torch.randn(count, words, generator=rng, dtype=torch.float64)).softmax(-1)
    return p, torch.rand(count, generator=rng, dtype=torch.float64).softmax(-1)


CASES = [(4, 2, 3), (1, 3, 5), (2, 7, 11)]


@pytest.mark.parametrize(("seed", "count", "words"), CASES)
def test_forward_kl_is_minimised_by_the_arithmetic_mixture(seed: int, count: int, words: int) -> None:
    p, mu = teachers(seed, count, words)
    best = minimise(lambda q: (mu * kl(p, q)).sum(), words)
    mixture = mu @ p
    torch.testing.assert_close(best, mixture, atol=1e-7, rtol=0)

    # What is left cannot be learnt away: the mean divergence of the teachers from their own mixture.
    irreducible = (mu * kl(p, mixture)).sum()
    assert irreducible > 0.05
    assert (mu * kl(p, best)).sum().item() == pytest.approx(irreducible.item(), abs=1e-12)
    # And every other student adds exactly its own distance from the mixture.
    other = teachers(seed + 100, 1, words)[0][0]
    assert (mu * kl(p, other)).sum().item() == pytest.approx((irreducible + kl(mixture, other)).item(), abs=1e-12)


@pytest.mark.parametrize(("seed", "count", "words"), CASES)
def test_reverse_kl_is_minimised_by_the_geometric_mixture(seed: int, count: int, words: int) -> None:
    p, mu = teachers(seed, count, words)
    best = minimise(lambda q: (mu * kl(q, p)).sum(), words)
    geometric = (mu @ p.log()).softmax(-1)
    torch.testing.assert_close(best, geometric, atol=1e-7, rtol=0)
    assert (geometric - mu @ p).abs().max() > 0.01  # the two losses pull to different places


@pytest.mark.parametrize(("seed", "count", "words"), CASES)
def test_neither_minimiser_is_any_teacher(seed: int, count: int, words: int) -> None:
    p, mu = teachers(seed, count, words)
    for student in (mu @ p, (mu @ p.log()).softmax(-1)):
        assert (p - student).abs().amax(-1).min() > 0.01


# ---- unbiasedness, by enumerating every completion of two tokens ----

WORDS = 5


class Policy:
    """Two steps over five words: logits of the first token, and of the second given the first."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(0)
        self.first = torch.randn(WORDS, generator=rng, dtype=torch.float64, requires_grad=True)
        self.second = torch.randn(WORDS, WORDS, generator=rng, dtype=torch.float64, requires_grad=True)
        # The same policy under a demonstration.
        self.teacher_first = self.first.detach() + torch.randn(WORDS, generator=rng, dtype=torch.float64)
        self.teacher_second = self.second.detach() + torch.randn(WORDS, WORDS, generator=rng, dtype=torch.float64)

    def expected_gradient(self, weigh: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """`E[ sum_t w_t grad log pi(o_t | o_<t) ]` over all 25 completions; `weigh(student logits, teacher logits,
        token)` gives w_t."""
        total = torch.zeros((), dtype=torch.float64)
        for a in range(WORDS):
            for b in range(WORDS):
                steps = [
                    (self.first, self.teacher_first, torch.tensor([a])),
                    (self.second[a], self.teacher_second[a], torch.tensor([b])),
                ]
                logps = [student.log_softmax(-1)[token[0]] for student, _, token in steps]
                probability = sum(logps).exp().detach()  # type: ignore[union-attr]
                for (student, teacher, token), logp in zip(steps, logps, strict=True):
                    total = total + probability * weigh(student.detach()[None], teacher[None], token)[0] * logp
        return torch.cat([g.flatten() for g in torch.autograd.grad(total, [self.first, self.second])])


HEAD = OutputHead(torch.eye(WORDS, dtype=torch.float64))


def credit_weight(student: Tensor, teacher: Tensor, token: Tensor) -> Tensor:
    """The method's: a function of the two distributions, whatever was sampled."""
    token_kl = token_evidence(student, teacher, token, HEAD).token_kl
    return saturating_weight(token_kl[:, None], token_kl.new_full((len(token),), 0.2))[:, 0]


def sampled_ratio_weight(student: Tensor, teacher: Tensor, token: Tensor) -> Tensor:
    """The same shape of weight, from the sampled token's log-ratio."""
    found = token_evidence(student, teacher, token, HEAD)
    shift = (found.teacher_logps - found.student_logps).abs()
    return saturating_weight(shift[:, None], shift.new_full((len(token),), 0.2))[:, 0]


def test_a_weight_of_the_prefix_keeps_baselines_unbiased() -> None:
    policy = Policy()
    assert policy.expected_gradient(credit_weight).abs().max() < 1e-15
    # Not because the weights are all alike: they differ from prefix to prefix.
    students, shown = policy.second.detach(), policy.teacher_second
    weights = credit_weight(students, shown, torch.zeros(WORDS, dtype=torch.long))
    assert weights.max() - weights.min() > 0.1


def test_a_weight_of_the_sampled_token_does_not() -> None:
    assert Policy().expected_gradient(sampled_ratio_weight).abs().max() > 0.01


def test_the_weight_does_not_depend_on_what_was_sampled() -> None:
    policy = Policy()
    student, teacher = policy.first.detach().repeat(WORDS, 1), policy.teacher_first.repeat(WORDS, 1)
    assert credit_weight(student, teacher, torch.arange(WORDS)).unique().numel() == 1
    assert sampled_ratio_weight(student, teacher, torch.arange(WORDS)).unique().numel() == WORDS
