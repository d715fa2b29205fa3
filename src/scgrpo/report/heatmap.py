"""The token heatmap: which rollouts are shown, and each of their tokens with its weight and numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from scgrpo.report.text import harmless, number, visible
from scgrpo.runs import RolloutRow

LEVELS = 10
# Longer completions are cut: the page has to stay small enough for a browser. First every long observation but for so
# many tokens at its ends, as what the model wrote is between them; where that is not enough, the middle.
_OBSERVATION_ENDS = 25
_HEAD_TOKENS, _TAIL_TOKENS = 600, 300


@dataclass(frozen=True)
class Cell:
    """One token: its text, shade (0 to 9, None = not weighted), kind, numbers, how many before it are left out."""

    position: int
    text: str
    level: int | None
    kind: str
    breaks: bool
    title: str
    numbers: tuple[str, ...]
    left_out: int = 0


@dataclass(frozen=True)
class Card:
    """One rollout beside its demonstration."""

    heading: str
    solved: bool | None
    facts: list[str]
    cells: list[Cell]
    scored: bool
    demonstration_heading: str
    demonstration: str
    prompt: str
    teacher_prompt: str


@dataclass(frozen=True)
class Section:
    """The rollouts shown of one step. `scale`: the weight of the darkest shade."""

    step: int
    cards: list[Card]
    scale: float
    summary: str


def build_sections(rollouts: Mapping[int, Sequence[RolloutRow]]) -> list[Section]:
    """First and last recorded steps, of those with scored rollouts if there are any."""
    steps = [step for step in sorted(rollouts) if any(map(is_scored, rollouts[step]))]
    steps = steps or [step for step in sorted(rollouts) if rollouts[step]]
    return [_section(step, rollouts[step]) for step in dict.fromkeys(steps[:1] + steps[-1:])]


def is_scored(row: RolloutRow) -> bool:
    """Was it scored under a demonstration, on at least one token of its own?"""
    return row.token_kl is not None and any(row.mask)


def shift(row: RolloutRow) -> float:
    """Mean token_kl over the tokens the policy produced, nats; 0 if it was not scored."""
    values = [d for d, mine in zip(row.token_kl or [], row.mask, strict=False) if mine]
    return sum(values) / len(values) if values else 0.0


def choose(rows: Sequence[RolloutRow]) -> list[tuple[str, RolloutRow]]:
    """The most and the least shifted rollout, of the solved and of the failed; any, where none was scored."""
    chosen: list[tuple[str, RolloutRow]] = []
    for solved, name in ((True, "solved"), (False, "failed")):
        candidates = [row for row in rows if row.solved is solved and is_scored(row)]
        if candidates:
            chosen.append((f"{name}, most shifted", max(candidates, key=shift)))
        if len(candidates) > 1:
            chosen.append((f"{name}, least shifted", min(candidates, key=shift)))
    if chosen:
        return chosen
    outcomes = ((True, "solved"), (False, "failed"), (None, "no verdict"))
    found = ((name, next((row for row in rows if row.solved is solved), None)) for solved, name in outcomes)
    return [(name, row) for name, row in found if row is not None]


def _section(step: int, rows: Sequence[RolloutRow]) -> Section:
    chosen = choose(rows)
    own = (
        w
        for _, row in chosen
        for w, mine in zip(row.credit_weights, row.mask, strict=True)
        if mine and is_scored(row)
    )
    scale = max(1.0, max(own, default=1.0))
    members = {(row.group, row.rollout): row for row in rows}
    cards = [_card(name, row, members, scale) for name, row in chosen]
    counts = [(sum(row.solved is flag for row in rows), word) for flag, word in ((True, "solved"), (False, "failed"))]
    counts.append((sum(row.status == "error" for row in rows), "not gradable"))
    counts.append((sum(row.status == "timeout" for row in rows), "timed out"))
    counts.append((sum(map(is_scored, rows)), "scored under a demonstration"))
    return Section(step, cards, scale, f"{len(rows)} rollouts recorded: {_listed(counts)}.")


def _listed(counts: Iterable[tuple[int, str]]) -> str:
    return ", ".join(f"{count} {word}" for count, word in counts if count)


def _card(name: str, row: RolloutRow, members: Mapping[tuple[int, int], RolloutRow], scale: float) -> Card:
    positions = shown_positions(row.mask)
    shown = None if row.demonstration is None else members.get((row.group, row.demonstration))
    return Card(
        heading=name,
        solved=row.solved,
        facts=_facts(row),
        cells=[_cell(row, here, scale, here - before - 1) for before, here in pairwise([-1, *positions])],
        scored=is_scored(row),
        demonstration_heading=_demonstration_heading(row, shown),
        demonstration=harmless(row.demonstration_text or ""),
        prompt=harmless(row.prompt),
        teacher_prompt=harmless(row.teacher_prompt or ""),
    )


def shown_positions(mask: Sequence[bool]) -> list[int]:
    """Which tokens of a completion are shown, of which `mask` says whether the model wrote them."""
    most = _HEAD_TOKENS + _TAIL_TOKENS
    positions = list(range(len(mask)))
    if len(positions) > most:
        runs = [(own, list(run)) for own, run in groupby(positions, key=mask.__getitem__)]
        ends = _OBSERVATION_ENDS
        short = [run if own or len(run) <= 2 * ends else run[:ends] + run[-ends:] for own, run in runs]
        positions = [position for run in short for position in run]
    return positions if len(positions) <= most else positions[:_HEAD_TOKENS] + positions[-_TAIL_TOKENS:]


def _facts(row: RolloutRow) -> list[str]:
    rewards = ", ".join(f"{name} {number(value)}" for name, value in row.rewards.items())
    facts = [f"problem {row.problem_id}"] if row.problem_id else []
    facts += [f"group {row.group}, rollout {row.rollout}", f"route {row.route.replace('_', ' ')}"]
    if rewards:
        facts.append(f"reward: {rewards}")
    if row.status != "graded":
        facts.append(f"verification: {row.status} {harmless(row.detail)}".strip())
    facts.append(f"advantage {row.advantage:+.3g}")
    if is_scored(row):
        weights = [w for w, mine in zip(row.credit_weights, row.mask, strict=True) if mine]
        facts += [f"mean weight {number(sum(weights) / len(weights))}", f"mean D {number(shift(row))} nats"]
    return [*facts, f"{len(row.tokens)} tokens"]


def _demonstration_heading(row: RolloutRow, shown: RolloutRow | None) -> str:
    if row.demonstration is None and row.demonstration_text is not None:
        cut = "; truncated to its token budget" if row.demonstration_truncated else ""
        return f"Demonstration: a rollout of another prompt or batch{cut}"
    if row.demonstration is None:
        rest = "this rollout has the weight 1 on every token" if row.token_kl is None else "its weights need none"
        return f"No demonstration: {rest}."
    outcome = {True: ", solved", False: ", failed", None: ""}[shown.solved if shown else None]
    cut = "; truncated to its token budget" if row.demonstration_truncated else ""
    return f"Demonstration: rollout {row.demonstration} of the same group{outcome}{cut}"


def _cell(row: RolloutRow, index: int, scale: float, left_out: int) -> Cell:
    token, mine = row.tokens[index], row.mask[index]

    def at(values: list[float] | None) -> str:
        return number(None if values is None or not mine else values[index], digits=4)

    text = visible(token)
    weight = row.credit_weights[index]
    numbers = (at(row.token_kl), at(row.credit_weights), at(row.student_logps), at(row.teacher_logps))
    head = f"token {index}: {text} (id {row.token_ids[index]})"
    if not mine:
        title = f"{head}; tool output, not trained"
    elif row.token_kl is None:
        title = f"{head}; not scored, weight {numbers[1]}"
    else:
        d, f, student, teacher = numbers
        title = f"{head}; D {d} nats; f {f}; log-prob student {student}, teacher {teacher}"
    level = None
    if mine and row.token_kl is not None and weight == weight:
        level = min(LEVELS - 1, max(0, int(weight / scale * LEVELS)))
    kind = "tool" if not mine else "special" if row.is_special[index] else ""
    return Cell(index, text, level, kind, "\n" in token, title, numbers, left_out)
