"""Exact evidence: closed forms, the plain twin, and the promise never to hold (tokens x vocabulary)."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from scgrpo.divergence import OutputHead, TokenEvidence, exact, token_evidence, token_evidence_reference, token_kl
from scgrpo.errors import ShapeError

FIELDS = ("token_kl", "teacher_logps", "student_logps", "student_entropy")


def random_case(
    tokens: int, hidden: int, words: int, dtype: torch.dtype = torch.float32, sharp: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(student hidden, teacher hidden, tokens, head weight)"""
    rng = torch.Generator().manual_seed(tokens * 1000 + words)
    student = torch.randn(tokens, hidden, generator=rng)
    teacher = student + 0.3 * torch.randn(tokens, hidden, generator=rng)
    weight = sharp * torch.randn(words, hidden, generator=rng) / hidden**0.5
    chosen = torch.randint(words, (tokens,), generator=rng)
    return student.to(dtype), teacher.to(dtype), chosen, weight.to(dtype)


def assert_equal(actual: TokenEvidence, expected: TokenEvidence, atol: float, rtol: float = 0) -> None:
    for name in FIELDS:
        torch.testing.assert_close(
            getattr(actual, name), getattr(expected, name).to(getattr(actual, name)), atol=atol, rtol=rtol, msg=name
        )


def of_logits(student: Tensor, teacher: Tensor, tokens: Tensor | None = None) -> TokenEvidence:
    """With the identity as head, hidden states are logits."""
    tokens = torch.zeros(len(student), dtype=torch.long) if tokens is None else tokens
    return token_evidence(student, teacher, tokens, OutputHead(torch.eye(student.shape[1], dtype=student.dtype)))


# ---- closed forms ----


def test_two_point_distributions() -> None:
    student, teacher = torch.tensor([[0.5, 0.5], [0.2, 0.8]]), torch.tensor([[0.9, 0.1], [0.6, 0.4]])
    found = of_logits(student.double().log(), teacher.double().log(), torch.tensor([0, 1]))
    kl = [0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5), 0.6 * math.log(3) + 0.4 * math.log(0.5)]
    entropy = [math.log(2), -(0.2 * math.log(0.2) + 0.8 * math.log(0.8))]
    assert found.token_kl.tolist() == pytest.approx(kl, rel=1e-6)
    assert found.token_kl.tolist() == pytest.approx([0.36806420, 0.38190850], rel=1e-6)
    assert found.student_entropy.tolist() == pytest.approx(entropy, rel=1e-6)
    assert found.student_logps.tolist() == pytest.approx([math.log(0.5), math.log(0.8)], rel=1e-6)
    assert found.teacher_logps.tolist() == pytest.approx([math.log(0.9), math.log(0.4)], rel=1e-6)


def test_the_direction_is_teacher_to_student() -> None:
    """KL(q || p) is large where the teacher q believes in what the student p rules out, not the other way round."""
    sure, open_minded = torch.tensor([[0.0, -60.0]]).double(), torch.zeros(1, 2).double()
    assert of_logits(student=sure, teacher=open_minded).token_kl.item() == pytest.approx(30 - math.log(2), rel=1e-9)
    assert of_logits(student=open_minded, teacher=sure).token_kl.item() == pytest.approx(math.log(2), rel=1e-9)


def test_shifted_gaussians() -> None:
    """On a fine grid the KL of two Gaussians of one variance is (mu1 - mu2)^2 / (2 sigma^2), whatever the tiles."""
    grid, sigma = torch.linspace(-12, 12, 481, dtype=torch.float64), 1.3
    mu = torch.tensor([0.0, 0.5, -1.0, 2.0], dtype=torch.float64)
    student = -(grid[None] ** 2).repeat(4, 1) / (2 * sigma**2)
    teacher = -((grid[None] - mu[:, None]) ** 2) / (2 * sigma**2)
    found = token_evidence(
        student, teacher, torch.zeros(4).long(), OutputHead(torch.eye(481).double()), words_per_tile=100
    )
    torch.testing.assert_close(found.token_kl, mu**2 / (2 * sigma**2), atol=1e-10, rtol=1e-10)
    differential = 0.5 * math.log(2 * math.pi * math.e * sigma**2)
    assert found.student_entropy[0].item() == pytest.approx(differential - math.log(0.05), abs=1e-10)


def test_identical_contexts_and_shifted_logits_have_no_divergence() -> None:
    student, _, tokens, weight = random_case(50, 16, 200, sharp=4)
    found = token_evidence(student, student.clone(), tokens, OutputHead(weight))
    assert not found.token_kl.any()
    assert torch.equal(found.teacher_logps, found.student_logps)
    logits = torch.randn(20, 30, generator=torch.Generator().manual_seed(0)).double()
    assert of_logits(logits, logits + 7).token_kl.max() < 1e-14


# ---- against other implementations ----


def test_equals_log_softmax_and_kl_div() -> None:
    student, teacher, tokens, weight = random_case(40, 16, 300, torch.float64, sharp=3)
    found = token_evidence(student, teacher, tokens, OutputHead(weight), tokens_per_tile=7, words_per_tile=64)
    p, q = (student @ weight.T).log_softmax(-1), (teacher @ weight.T).log_softmax(-1)
    kl = functional.kl_div(p, q, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(found.token_kl, kl, atol=1e-12, rtol=0)
    torch.testing.assert_close(found.student_logps, p[range(40), tokens], atol=1e-12, rtol=0)
    torch.testing.assert_close(found.teacher_logps, q[range(40), tokens], atol=1e-12, rtol=0)
    entropy = torch.distributions.Categorical(logits=p).entropy()
    torch.testing.assert_close(found.student_entropy, entropy, atol=1e-12, rtol=0)


HEADS = {
    "plain": {},
    "bias": {"bias": True},
    "scale": {"scale": 0.37},
    "softcap": {"softcap": 2.5},
    "temperature": {"temperature": 0.6},
    "all": {"bias": True, "scale": 1.7, "softcap": 3.0, "temperature": 1.3},
}


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize(("rows", "words"), [(1, 1), (3, 7), (5, 97), (512, 4096)])
def test_tiles_do_not_matter(options: dict[str, object], rows: int, words: int) -> None:
    student, teacher, tokens, weight = random_case(11, 8, 97, torch.float64, sharp=3)
    bias = torch.linspace(-1, 1, 97).double() if options.get("bias") else None
    head = OutputHead(weight, **{**options, "bias": bias})  # type: ignore[arg-type]
    found = token_evidence(student, teacher, tokens, head, tokens_per_tile=rows, words_per_tile=words)
    assert_equal(found, token_evidence_reference(student, teacher, tokens, head), atol=1e-12)


def test_the_formula_of_the_head() -> None:
    hidden, weight, bias = (
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([[3.0, 0.0], [0.0, 5.0]]),
        torch.tensor([1.0, -2.0]),
    )
    head = OutputHead(weight, bias, scale=0.5, softcap=2.0, temperature=0.5)
    # (3 + 1) * 0.5 = 2 and (10 - 2) * 0.5 = 4, capped, divided by the temperature.
    expected = [2 * math.tanh(1.0) / 0.5, 2 * math.tanh(2.0) / 0.5]
    assert head.logits(hidden, 0, 2)[0].tolist() == pytest.approx(expected, rel=1e-6)
    assert head.logits(hidden, 1, 2)[0].tolist() == pytest.approx(expected[1:], rel=1e-6)


def test_temperature_flattens_both_distributions() -> None:
    student, teacher, tokens, weight = random_case(30, 8, 50, torch.float64, sharp=3)
    divided = token_evidence(student, teacher, tokens, OutputHead(weight / 2))
    assert_equal(token_evidence(student, teacher, tokens, OutputHead(weight, temperature=2.0)), divided, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision_states_are_scored_in_full_precision(dtype: torch.dtype) -> None:
    """The only error is that of fp32 sums: 2e-5 nats here, however coarse the states and the head are stored."""
    student, teacher, tokens, weight = random_case(64, 64, 2000, dtype, sharp=4)
    found = token_evidence(student, teacher, tokens, OutputHead(weight))
    exact = token_evidence_reference(student.double(), teacher.double(), tokens, OutputHead(weight.double()))
    assert found.token_kl.dtype == torch.float32
    assert_equal(found, exact, atol=2e-5)
    # What rounding the logits themselves would cost, for scale: far more.
    rounded = (student.double() @ weight.double().T).to(torch.bfloat16).double().log_softmax(-1)
    assert (rounded[range(64), tokens] - exact.student_logps).abs().max() > 2e-3


def test_double_stays_double() -> None:
    student, teacher, tokens, weight = random_case(5, 8, 20, torch.float64)
    assert token_evidence(student, teacher, tokens, OutputHead(weight)).token_kl.dtype == torch.float64


def test_autocast_does_not_round_the_projection() -> None:
    student, teacher, tokens, weight = random_case(20, 32, 100, sharp=4)
    plain = token_evidence(student, teacher, tokens, OutputHead(weight))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (student @ weight.T).dtype == torch.bfloat16  # the trap is armed
        inside = token_evidence(student, teacher, tokens, OutputHead(weight))
    for name in FIELDS:
        assert torch.equal(getattr(plain, name), getattr(inside, name))


def test_token_kl_is_the_same_number() -> None:
    student, teacher, tokens, weight = random_case(20, 8, 60)
    head = OutputHead(weight)
    assert torch.equal(token_kl(student, teacher, head), token_evidence(student, teacher, tokens, head).token_kl)


def test_it_carries_no_gradient() -> None:
    student, teacher, tokens, weight = random_case(4, 8, 20)
    found = token_evidence(student.requires_grad_(), teacher, tokens, OutputHead(weight.requires_grad_()))
    assert not any(getattr(found, name).requires_grad for name in FIELDS)


# ---- memory ----


def test_no_tile_exceeds_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    plain = exact.Tiles.over

    def recorded(self: exact.Tiles, *hidden: Tensor) -> Iterator[tuple[slice, Tensor]]:
        for words, tile in plain(self, *hidden):
            shapes.append(tuple(tile.shape))
            yield words, tile

    monkeypatch.setattr(exact.Tiles, "over", recorded)
    student, teacher, tokens, weight = random_case(1200, 4, 9000)
    token_evidence(student, teacher, tokens, OutputHead(weight))
    # Student and teacher rows are stacked: 2 x 512 tokens, 4096 words, and the remainders.
    assert {shape[:2] for shape in shapes} == {(2, 512), (2, 1200 - 1024)}
    assert max(8 * rows * words for _, rows, words in shapes) <= 16 * 2**20
    assert sum(2 * rows * words for _, rows, words in shapes) == 2 * 1200 * 9000

    shapes.clear()
    token_evidence(
        student[:10], teacher[:10], tokens[:10], OutputHead(weight), tokens_per_tile=4, words_per_tile=1000
    )
    assert max(shapes) == (2, 4, 1000)
    assert len(shapes) == 3 * 9


# ---- odd input ----


def test_no_tokens() -> None:
    found = token_evidence(torch.zeros(0, 4), torch.zeros(0, 4), torch.zeros(0).long(), OutputHead(torch.ones(9, 4)))
    assert [getattr(found, name).shape for name in FIELDS] == [(0,)] * 4


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [1e4, 1e4, -1e4]])
    found = of_logits(logits, logits.flip(1).roll(1, 0), torch.tensor([1, 0, 2]))
    for name in FIELDS:
        assert bool(torch.isfinite(getattr(found, name)).all()), name
    pair = of_logits(torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]]), torch.tensor([1]))
    assert pair.token_kl.item() == 2e4
    assert pair.student_logps.item() == -2e4
    assert pair.teacher_logps.item() == 0
    assert pair.student_entropy.item() == 0


def test_a_tile_far_below_the_maximum_adds_nothing() -> None:
    """The running maximum jumps by 2e4 between tiles, both ways."""
    for logits in (torch.tensor([[-1e4, 1e4, 1e4, -1e4]]), torch.tensor([[1e4, 1e4, -1e4, -1e4]])):
        found = token_evidence(
            logits, logits, torch.tensor([1]), OutputHead(torch.eye(4)), tokens_per_tile=1, words_per_tile=1
        )
        assert found.token_kl.item() == 0
        assert found.student_entropy.item() == pytest.approx(math.log(2), abs=1e-3)  # fp32 near 1e4
        assert found.student_logps.item() == pytest.approx(-math.log(2), abs=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("whose", [0, 1])
def test_a_broken_state_breaks_its_own_row_visibly(value: float, whose: int) -> None:
    states = list(random_case(6, 8, 50)[:2])
    _, _, tokens, weight = random_case(6, 8, 50)
    states[whose][2, 3] = value
    found = token_evidence(states[0], states[1], tokens, OutputHead(weight), words_per_tile=16)
    finite = torch.stack([getattr(found, name).isfinite() for name in FIELDS]).all(0)
    assert finite.tolist() == [True, True, False, True, True, True]


def test_a_head_of_another_width_is_an_error() -> None:
    with pytest.raises(ShapeError, match=r"Student hidden states \(3, 4\), teacher \(3, 4\), 3 tokens and a head of"):
        token_evidence(torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(3).long(), OutputHead(torch.zeros(9, 5)))


@pytest.fixture
def unchecked() -> Iterator[ModuleType]:
    """The module as a user imports it, without the type checks of the test suite."""
    spec = importlib.util.spec_from_file_location("plain_divergence", str(exact.__file__))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.parametrize(("teacher", "tokens"), [(2, 3), (3, 2), (1, 3)])
def test_mismatched_lengths_are_an_error(unchecked: ModuleType, teacher: int, tokens: int) -> None:
    head = unchecked.OutputHead(torch.zeros(9, 4))
    with pytest.raises(ShapeError, match="Score the same completion tokens in both contexts"):
        unchecked.token_evidence(torch.zeros(3, 4), torch.zeros(teacher, 4), torch.zeros(tokens).long(), head)
