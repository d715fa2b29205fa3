"""The theory page, numerically, on small vocabularies: every claim of docs/theory.md.

1. Which single distribution is closest to several teachers (the two minimisers), and what no student can remove.
2. Why a weight made of the prefix keeps the policy gradient unbiased, and one made of the sampled token does not.
3. A worked example of two demonstrations whose average follows neither.
4. What the mean of the weight does to the step.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from scgrpo.credit import SCGRPO, Evidence, Groups, saturating_weight
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


# ---- the worked example of docs/theory.md: two demonstrations, three words ----

A, B, C = range(3)  # two ways to solve the task, "aaaa..." and "bbbb..."; c solves nothing


def shown(word: int, hedge: float = 0.1, stray: float = 1e-6) -> Tensor:
    """Next-word distribution of the teacher that was shown the solution made of `word`, at every prefix."""
    p = torch.full((3,), stray, dtype=torch.float64)
    p[C] = hedge
    p[word] = 1 - hedge - stray
    return p


def test_the_average_teacher_follows_no_demonstration() -> None:
    mixture = (shown(A) + shown(B)) / 2
    torch.testing.assert_close(mixture, torch.tensor([0.45, 0.45, 0.1]).double(), atol=1e-6, rtol=0)
    for length, feasible in ((1, 0.9), (2, 0.405), (8, 0.003363)):
        # A trajectory is drawn word by word: all a or all b is a small part of what the mixture produces.
        assert (mixture[A] ** length + mixture[B] ** length).item() == pytest.approx(feasible, rel=1e-3)
    # Each teacher keeps to its own solution: .9 per word.
    assert (shown(A)[A] ** 8).item() == pytest.approx(0.430, abs=1e-3)


def test_the_geometric_average_puts_its_mass_on_no_solution_at_all() -> None:
    geometric = (shown(A).log() / 2 + shown(B).log() / 2).softmax(-1)
    assert geometric[C].item() == pytest.approx(0.981, abs=1e-3)
    assert geometric[:C].tolist() == pytest.approx([0.0093, 0.0093], abs=1e-4)
    best = minimise(lambda q: kl(q, shown(A)) / 2 + kl(q, shown(B)) / 2, 3)
    torch.testing.assert_close(best, geometric, atol=1e-7, rtol=0)


def test_what_no_training_removes_in_the_example() -> None:
    mixture = (shown(A) + shown(B)) / 2
    irreducible = (kl(shown(A), mixture) + kl(shown(B), mixture)) / 2
    assert irreducible.item() == pytest.approx(0.9 * math.log(2), abs=1e-4)  # .624 nats per word, for ever


def test_as_a_weight_the_same_divergence_marks_the_word_where_the_solutions_part() -> None:
    """A student that has not decided (a and b alike), and then follows what it began."""
    undecided, decided = torch.tensor([0.45, 0.45, 0.1]).double(), shown(A)
    c = 0.2
    f = [d / (d + c) for d in (kl(shown(A), undecided), kl(shown(A), decided))]
    assert f[0].item() == pytest.approx(0.757, abs=1e-3)
    assert f[1].item() == 0.0


# ---- what the mean of f does to the step ----


def test_the_weighted_gradient_is_the_mean_weight_times_the_plain_one_plus_a_covariance() -> None:
    rng = torch.Generator().manual_seed(0)
    f, g = torch.rand(50, generator=rng).double(), torch.randn(50, 4, generator=rng).double()
    covariance = ((f - f.mean())[:, None] * (g - g.mean(0))).mean(0)
    torch.testing.assert_close((f[:, None] * g).mean(0), f.mean() * g.mean(0) + covariance, atol=1e-15, rtol=0)


@pytest.mark.parametrize(("name", "shrinks"), [("SGD", True), ("Adam", False)])
def test_a_constant_weight_shrinks_the_steps_of_sgd_and_not_those_of_adam(name: str, shrinks: bool) -> None:
    def travelled(weight: float) -> Tensor:
        x = torch.ones(3, dtype=torch.float64, requires_grad=True)
        optimizer = getattr(torch.optim, name)([x], lr=0.01, **({} if shrinks else {"eps": 1e-12}))
        for step in range(5):
            x.grad = weight * torch.tensor([1.0, -2.0, 0.5 * step], dtype=torch.float64)
            optimizer.step()
        return (x.detach() - 1).abs()

    ratio = travelled(0.25)[:2] / travelled(1.0)[:2]
    torch.testing.assert_close(ratio, torch.full((2,), 0.25 if shrinks else 1.0).double(), atol=1e-6, rtol=0)


def test_weighted_groups_lose_weight_against_plain_ones() -> None:
    """A partial-solve group beside one with a single solved rollout (plain GRPO): their shares of the update change
    by the mean of f, under any optimizer."""
    groups = Groups(
        group=torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]),
        solved=torch.tensor([1, 1, 0, 0, 1, 0, 0, 0]).bool(),
        graded=torch.ones(8).bool(),
        truncated=torch.zeros(8).bool(),
        lengths=torch.full((8,), 6),
        mask=torch.ones(8, 6).bool(),
        advantages=torch.tensor([0.9, 0.9, -0.9, -0.9, 1.5, -0.5, -0.5, -0.5]),
        micro_batch=torch.zeros(8).long(),
    )
    method = SCGRPO()
    plan = method.plan(groups, random.Random(0))
    d = torch.rand(len(plan), 6, generator=torch.Generator().manual_seed(1))
    credit = method.assign(groups, plan, Evidence(d, -d, -d, d))
    assert bool((credit.weights[4:] == 1).all())
    mean_f = credit.weights[:4].mean()
    assert mean_f == pytest.approx(credit.metrics["weight_mean"])
    assert 0.2 < mean_f < 0.5
    # mean_one gives the partial group its share back.
    even = SCGRPO(normalize="mean_one").assign(groups, plan, Evidence(d, -d, -d, d))
    assert even.weights[:4].mean() == pytest.approx(1.0, abs=1e-6)
