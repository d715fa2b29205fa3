"""Distillation losses: closed forms, literal values, gradients, tiles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from scgrpo.divergence import Distillation, OutputHead, distillation_reference
from scgrpo.divergence.tiles import Tiles
from scgrpo.errors import ConfigError

KINDS: dict[str, Distillation] = {
    "forward": Distillation("forward"),
    "reverse": Distillation("reverse"),
    "both": Distillation("both"),
    "jsd": Distillation("jsd"),
    "jsd .1": Distillation("jsd", jsd_beta=0.1),
    "sampled": Distillation("sampled"),
    "forward clipped": Distillation("forward", clip=0.05),
    "reverse clipped": Distillation("reverse", clip=0.02),
    "both clipped": Distillation("both", clip=0.05),
    "jsd clipped": Distillation("jsd", clip=0.01),
}


def of_probabilities(
    kind: Distillation, student: list[float], teacher: list[float], token: int = 0
) -> tuple[Any, Any]:
    """Loss and gradient with respect to the logits, for one token: with the identity as head, states are logits."""
    p, q = (torch.tensor([x], dtype=torch.float64).log() for x in (student, teacher))
    head = OutputHead(torch.eye(len(student), dtype=torch.float64))
    _, loss = kind(p.requires_grad_(), q, torch.tensor([token]), head)
    loss.sum().backward()
    assert p.grad is not None
    return loss.item(), p.grad[0].tolist()


def case(n: int = 13, hidden: int = 6, words: int = 37, **options: Any) -> tuple[Tensor, Tensor, Tensor, OutputHead]:
    rng = torch.Generator().manual_seed(0)
    student = torch.randn(n, hidden, generator=rng, dtype=torch.float64)
    teacher = student + 0.6 * torch.randn(n, hidden, generator=rng, dtype=torch.float64)
    weight = torch.randn(words, hidden, generator=rng, dtype=torch.float64)
    tokens = torch.randint(words, (n,), generator=rng)
    bias = torch.linspace(-1, 1, words, dtype=torch.float64) if options.pop("bias", False) else None
    return student, teacher, tokens, OutputHead(weight, bias, **options)


# ---- literal values: p = (.5, .5), q = (.9, .1) ----


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("forward", 0.36806420),  # .9 log 1.8 + .1 log .2
        ("reverse", 0.51082562),  # -.5 log 1.8 - .5 log .2
        ("both", 0.43944492),
        ("jsd", 0.10174923),  # m = (.7, .3)
        ("jsd .1", 0.03360300),  # m = (.54, .46)
        ("sampled", -0.58778666),  # -log 1.8: the teacher likes the first word better
        ("forward clipped", 0.05 - 0.16094379),  # min(.9 log 1.8, .05) + .1 log .2
        ("reverse clipped", 0.02 - 0.29389333),
    ],
)
def test_the_value_of_a_token(name: str, expected: float) -> None:
    found, _ = of_probabilities(KINDS[name], [0.5, 0.5], [0.9, 0.1])
    assert found == pytest.approx(expected, abs=1e-8)


def test_the_values_above_are_those_of_their_formulas() -> None:
    p, q = (0.5, 0.5), (0.9, 0.1)

    def kl(a: Any, b: Any) -> float:
        return sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))

    assert kl(q, p) == pytest.approx(0.36806420, abs=1e-8)
    assert kl(p, q) == pytest.approx(0.51082562, abs=1e-8)
    for beta, expected in ((0.5, 0.10174923), (0.1, 0.03360300)):
        m = [(1 - beta) * x + beta * y for x, y in zip(p, q, strict=True)]
        assert beta * kl(q, m) + (1 - beta) * kl(p, m) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("forward", [-0.4, 0.4]),  # p - q
        ("reverse", [-0.54930614, 0.54930614]),  # p (log(p/q) - KL)
        ("both", [-0.47465307, 0.47465307]),
        ("sampled", [-0.29389333, 0.29389333]),  # -log 1.8 ([j = y] - p_j)
        # Only the second word has a gradient: -(.1) [j = 2] + .1 p_j.
        ("forward clipped", [0.05, -0.05]),
    ],
)
def test_the_gradient_of_a_token(name: str, expected: list[float]) -> None:
    _, found = of_probabilities(KINDS[name], [0.5, 0.5], [0.9, 0.1])
    assert found == pytest.approx(expected, abs=1e-8)


def test_equal_predictions_cost_nothing_and_pull_nowhere() -> None:
    for name, kind in KINDS.items():
        loss, gradient = of_probabilities(kind, [0.2, 0.3, 0.5], [0.2, 0.3, 0.5])
        assert loss == pytest.approx(0, abs=1e-12), name
        assert gradient == pytest.approx([0, 0, 0], abs=1e-12), name


def test_the_sampled_form_is_unbiased_for_the_reverse_divergence() -> None:
    """Over the tokens the student samples: expected value and gradient."""
    p, q = [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]
    value, gradient = of_probabilities(KINDS["reverse"], p, q)
    each = [of_probabilities(KINDS["sampled"], p, q, token) for token in range(3)]
    assert sum(x * loss for x, (loss, _) in zip(p, each, strict=True)) == pytest.approx(value, abs=1e-12)
    for word in range(3):
        mean = sum(x * slope[word] for x, (_, slope) in zip(p, each, strict=True))
        assert mean == pytest.approx(gradient[word], abs=1e-12)


# ---- against the plain twin ----

HEADS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {"bias": True, "scale": 1.7, "softcap": 3.0, "temperature": 1.3},
}


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize(("rows", "words"), [(1, 1), (5, 7), (512, 4096)])
def test_equals_the_plain_twin_whatever_the_tiles(
    kind: Distillation, options: dict[str, Any], rows: int, words: int
) -> None:
    student, teacher, tokens, head = case(**options)
    upstream = torch.linspace(-1, 2, len(tokens), dtype=torch.float64)
    results = []
    for tiled in (True, False):
        states = student.clone().requires_grad_()
        weight = head.weight.clone().requires_grad_()
        bias = None if head.bias is None else head.bias.clone().requires_grad_()
        own = replace(head, weight=weight, bias=bias)
        if tiled:
            _, loss = kind(states, teacher, tokens, own, tokens_per_tile=rows, words_per_tile=words)
        else:
            loss = distillation_reference(kind, states, teacher, tokens, own)
        (loss * upstream).sum().backward()
        results.append([loss.detach(), states.grad, weight.grad, *([] if bias is None else [bias.grad])])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("kind", [k for name, k in KINDS.items() if name != "sampled"], ids=lambda k: k.kind)
def test_gradients_are_those_of_the_values(kind: Distillation) -> None:
    """Finite differences, with a teacher that has a head of its own of another width."""
    student, _, tokens, head = case(n=4, words=9)
    teacher = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    other = OutputHead(torch.randn(9, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)))

    def loss(states: Tensor, weight: Tensor) -> Tensor:
        own = replace(head, weight=weight)
        return kind(states, teacher, tokens, other, student_head=own, tokens_per_tile=3, words_per_tile=4)[1]

    assert torch.autograd.gradcheck(loss, (student.requires_grad_(), head.weight.requires_grad_()))


def test_the_evidence_beside_it_has_its_own_gradients() -> None:
    """The loss uses log-probs and entropy of the same call."""
    student, teacher, tokens, head = case()
    for kind in KINDS.values():
        states = student.clone().requires_grad_()
        evidence, loss = kind(states, teacher, tokens, head)
        (evidence.student_logps.sum() + 0.5 * evidence.student_entropy.sum() + loss.sum()).backward()
        plain = student.clone().requires_grad_()
        log_p = head.logits(plain, 0, len(head)).log_softmax(-1)
        logps, entropy = log_p.gather(1, tokens[:, None]).sum(), -(log_p.exp() * log_p).sum()
        (logps + 0.5 * entropy + distillation_reference(kind, plain, teacher, tokens, head).sum()).backward()
        torch.testing.assert_close(states.grad, plain.grad, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_teacher_is_a_constant(kind: Distillation) -> None:
    student, teacher, tokens, head = case()
    _, loss = kind(student.requires_grad_(), teacher.requires_grad_(), tokens, head)
    loss.sum().backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_no_tokens_are_no_problem() -> None:
    student, teacher, tokens, head = case()
    for kind in KINDS.values():
        states = student[:0].clone().requires_grad_()
        _, loss = kind(states, teacher[:0], tokens[:0], head)
        loss.sum().backward()
        assert loss.shape == (0,)
        assert states.grad is not None


def test_half_precision_states_are_summed_in_full_precision() -> None:
    student, teacher, tokens, head = (x for x in case(n=50, hidden=32, words=500))
    exact = distillation_reference(
        Distillation("jsd"),
        student.bfloat16().double(),
        teacher.bfloat16().double(),
        tokens,
        replace(head, weight=head.weight.bfloat16().double()),
    )
    low = replace(head, weight=head.weight.bfloat16())
    states = student.bfloat16().requires_grad_()
    _, loss = Distillation("jsd")(states, teacher.bfloat16(), tokens, low)
    loss.sum().backward()
    assert loss.dtype == torch.float32
    assert states.grad is not None
    assert states.grad.dtype == torch.bfloat16
    torch.testing.assert_close(loss.double(), exact, atol=1e-5, rtol=1e-4)


def test_memory_is_bounded_by_the_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    plain = Tiles.over

    def recorded(self: Tiles, *hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
        for words, tile in plain(self, *hidden):
            shapes.append(tuple(tile.shape))
            yield words, tile

    monkeypatch.setattr(Tiles, "over", recorded)
    student, teacher, tokens, head = case(n=700, words=90)
    _, loss = Distillation("jsd")(
        student.requires_grad_(), teacher, tokens, head, tokens_per_tile=64, words_per_tile=40
    )
    loss.sum().backward()
    assert max(rows for _, rows, _ in shapes) == 64
    assert max(words for _, _, words in shapes) == 40


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"kind": "jsd", "jsd_beta": 1.0}, "distill_jsd_beta is 1.0"),
        ({"clip": -1.0}, "distill_clip is -1.0"),
        ({"kind": "sampled", "clip": 0.1}, "there is none"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        Distillation(**options)
