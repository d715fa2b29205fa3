"""What is shown and what is not, in sentences."""

from __future__ import annotations

import math

from scgrpo.report.compare.contrasts import LEVEL, Contrast
from scgrpo.report.compare.outcomes import OutcomeKey
from scgrpo.report.text import NOTHING

_DOES: dict[OutcomeKey, str] = {
    "final": "ends",
    "area_steps": "is on average over training steps",
    "area_tokens": "is on average over the tokens sampled",
}


def sentence(contrast: Contrast, margin: float) -> str:
    """The difference, its interval, its corrected p, the verdict, and what limits it."""
    if not contrast.num_pairs:
        names = f"{contrast.method} and {contrast.reference}"
        return f"{_where(contrast)} {names} have no pair of runs: nothing is known. {_limits(contrast)}".strip()
    difference = contrast.difference
    sign = -1 if difference.value < 0 else 1
    ends = sorted((sign * difference.low, sign * difference.high))
    amount = f"{abs(difference.value):.3f} {'below' if sign < 0 else 'above'}"
    interval = "no interval" if math.isnan(difference.low) else f"[{ends[0]:.3f}, {ends[1]:.3f}]"
    head = (
        f"{_where(contrast)} {contrast.method} {_DOES[contrast.outcome]} {amount} {contrast.reference} "
        f"{interval}, Holm p {p_text(contrast.corrected)}"
    )
    if contrast.verdict != "not shown":
        return f"{head}: shown. {_limits(contrast)}".strip()
    if math.isnan(difference.low):
        return f"{head}: not shown either way; one unit says nothing of the spread. {_limits(contrast)}".strip()
    inside = -margin <= difference.low and difference.high <= margin
    known = "is excluded" if inside else "cannot be excluded"
    return (
        f"{head}: not shown either way; a difference of more than {margin:g} in either direction {known}. "
        f"{_why_not(contrast)}{_limits(contrast)}"
    ).strip()


def hopeless(contrast: Contrast) -> str:
    """Why so few paired units could not have shown anything."""
    least = contrast.difference.smallest_p
    units = _count(contrast.difference.num_units, "paired unit")
    correction = ""
    if contrast.family > 1:
        correction = f", {p_text(min(1, least * contrast.family))} after correction for {contrast.family} contrasts"
    return (
        f"Nothing could be shown here: {units} cannot give a p below {p_text(least)}{correction}; "
        f"at least {contrast.units_needed} are needed."
    )


def p_text(p: float) -> str:
    """A p-value as papers print it."""
    if math.isnan(p):
        return NOTHING
    return "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def size_text(contrast: Contrast) -> str:
    """Bases, seeds and problems that a contrast is a mean over."""
    problems = f"{contrast.num_problems} problems" if contrast.num_problems else "problems not recorded"
    if contrast.testbed is None:
        return (
            f"{_count(contrast.num_testbeds, 'testbed')}, {contrast.num_bases} units of testbed and base, "
            f"{_count(contrast.num_pairs, 'pair')}"
        )
    bases = _count(contrast.num_bases, "base")
    if contrast.num_bases and contrast.num_pairs % contrast.num_bases == 0 and not contrast.missing:
        return f"{bases} × {_count(contrast.num_pairs // contrast.num_bases, 'seed')}, {problems}"
    return f"{bases}, {_count(contrast.num_pairs, 'pair')}, {problems}"


def _where(contrast: Contrast) -> str:
    place = "Over all testbeds" if contrast.testbed is None else f"On {contrast.testbed}"
    return f"{place} ({size_text(contrast)})"


def _why_not(contrast: Contrast) -> str:
    """Where the reason is not simply a small difference."""
    difference = contrast.difference
    if contrast.is_hopeless:
        return f"{hopeless(contrast)} "
    excludes = difference.low > 0 or difference.high < 0
    if excludes:
        return "The interval excludes 0, but the corrected test does not reach 0.05. "
    if contrast.corrected < LEVEL:
        return "The test finds a difference on these problems; the interval, for problems like these, holds 0. "
    return ""


def _limits(contrast: Contrast) -> str:
    parts = []
    for name, failed in zip((contrast.method, contrast.reference), contrast.failed, strict=True):
        if failed:
            parts.append(f"{_count(failed, 'run')} of {name} failed and {'is' if failed == 1 else 'are'} not in it.")
    others = len(contrast.missing)
    if others:
        parts.append(f"{_count(others, 'pair')} {'is' if others == 1 else 'are'} missing.")
    if contrast.num_left_out:
        parts.append(f"{contrast.num_left_out} problems are left out that not all its runs have.")
    if contrast.num_pairs and not contrast.num_problems and contrast.testbed is not None:
        parts.append("The interval is over runs alone: results by problem were not recorded, or not for all.")
    if contrast.likeness == "same_rate":
        parts.append("Both at the same learning rate, not tuned: it speaks of this rate only.")
    elif contrast.likeness == "unlike":
        parts.append(
            "Their learning rates were not tuned alike: it is a difference of methods and rates together, and ranks "
            "neither."
        )
    return " ".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
