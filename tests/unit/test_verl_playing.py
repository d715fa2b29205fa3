"""Rollouts in environments for a server that samples one conversation at a time: the same episodes as the batched
player's, whatever runs beside them; environments that break, hang and are scarce."""

from __future__ import annotations

import asyncio
import copy
import random
import threading
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest
import torch

from scgrpo.errors import ConfigError, DataError
from scgrpo.evaluation import episodes
from scgrpo.evaluation.conversation import Chat, Sampled
from scgrpo.integrations.verl.batch import FIELDS, read_groups, read_sessions
from scgrpo.integrations.verl.playing import Played, Worlds, play, worlds_of
from scgrpo.integrations.verl.settings import VerlSettings
from scgrpo.tasks import Canned, Row, Split, Status, Verdict
from scgrpo.tasks.base import Message
from scgrpo.tasks.environment import EnvironmentTask, Step

EOS = 2
TEMPLATE = (
    "<bos>{% for m in messages %} <{{ m['role'] }}> {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %} <eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} <assistant>{% endif %}"
)


class Echo:
    """Answers with the action's first word; done after a number of turns."""

    threads: ClassVar[set[str]] = set()
    alive, most = 0, 0

    def __init__(self, row: Mapping[str, Any]) -> None:
        self.row, self.turn, self.turns = row, 0, row["turns"]
        Echo.alive += 1
        Echo.most = max(Echo.most, Echo.alive)

    def step(self, action: str) -> Step:
        Echo.threads.add(threading.current_thread().name)
        if self.turn == self.row.get("hangs_at"):
            self.row["until"].wait(600)
        if self.turn == self.row.get("breaks_at"):
            raise ConnectionError("no server")
        self.turn += 1
        return Step(" ".join([*action.split()[:1], str(self.turn)]), done=self.turn == self.turns)

    def verdict(self) -> Verdict:
        return Verdict(float(self.turn == self.turns))

    def close(self) -> None:
        Echo.alive -= 1


class Echoes(EnvironmentTask):
    name = "echoes"
    max_turns = 5
    max_action_tokens = 5

    def rows(self, split: Split, limit: int | None = None) -> list[Row]:
        texts = ["a b c", "d", "e f 7", "solve g 3 2 1", "h", "i j", "k l", "m"]
        return [
            {"problem_id": str(n), "prompt": [{"role": "user", "content": text}], "turns": 1 + n % 6}
            for n, text in enumerate(texts)
        ]

    def environment(self, row: Mapping[str, Any]) -> Echo:
        return Echo(row)

    def step_prompt(
        self, row: Mapping[str, Any], history: Sequence[tuple[str, str]], observation: str
    ) -> list[Message]:
        return [{"role": "user", "content": f"solve {observation} {' '.join(row.get('more', []))}"}]

    def canned(self) -> Canned:
        return Canned(self.rows("eval")[0], ("a",), ())


ROWS = Echoes().rows("eval")


@pytest.fixture(autouse=True)
def counters() -> None:
    Echo.threads, Echo.alive, Echo.most = set(), 0, 0


@pytest.fixture(scope="module")
def chat(tokenizer: Any) -> Chat:
    own = copy.deepcopy(tokenizer)
    own.chat_template = TEMPLATE
    return Chat(own, {EOS})


def said(context_ids: Sequence[int], most: int) -> list[int]:
    """A model: the same tokens for the same context, of which some end and some do not."""
    rng = random.Random(repr(list(context_ids)))
    words = [rng.randrange(7, 30) for _ in range(rng.choice([1, 2, 2, 3, 3, 4, 9]))]
    return [*words, EOS][:most]


async def sample(context_ids: list[int], most: int) -> Sampled:
    await asyncio.sleep(0)
    ids = said(context_ids, most)
    return Sampled(ids, [-float(token) for token in ids])


def batched(task: EnvironmentTask, chat: Chat, rows: Sequence[Row], max_tokens: int) -> Any:
    """The player for hosts that sample all conversations at once, on the same model."""

    def new_sampler(count: int) -> episodes.SampleTurn:
        so_far: list[list[int]] = [[] for _ in range(count)]

        def turn(playing: Sequence[int], added: Sequence[Sequence[int]], most: int) -> list[Sampled]:
            turns = []
            for index, more in zip(playing, added, strict=True):
                so_far[index] += more
                ids = said(so_far[index], min(most, max_tokens - lengths[index]))
                turns.append(Sampled(ids, [-float(token) for token in ids]))
                so_far[index] += ids
            return turns

        lengths = [0] * count
        return turn

    return episodes.play(task, rows, [row["prompt"] for row in rows], chat, new_sampler, max_tokens)


def played(
    task: EnvironmentTask,
    chat: Chat,
    rows: Sequence[Row] = ROWS,
    max_tokens: int = 40,
    deadline_s: float = 600.0,
    max_prompt_tokens: int = 100,
    sampler: Any = sample,
) -> list[Any]:
    """All at once in one event loop; exceptions in place of what failed."""

    async def run() -> list[Any]:
        worlds = Worlds(task, deadline_s)
        limits = {"max_tokens": max_tokens, "max_prompt_tokens": max_prompt_tokens}
        each = (play(worlds, row, row["prompt"], chat, sampler, **limits) for row in rows)
        return await asyncio.gather(*each, return_exceptions=True)

    return asyncio.run(run())


@pytest.mark.parametrize("prompting", ["concat", "per_step"])
@pytest.mark.parametrize("max_tokens", [40, 17, 9, 2])
@pytest.mark.parametrize("max_parallel", [None, 3])
def test_the_same_episodes_as_the_batched_player(
    chat: Chat, prompting: str, max_tokens: int, max_parallel: int | None
) -> None:
    task = Echoes()
    task.prompting, task.max_parallel = prompting, max_parallel
    found = played(task, chat, max_tokens=max_tokens)
    prompt_ids, expected = batched(task, chat, ROWS, max_tokens)
    assert [f.episode for f in found] == expected
    assert [f.prompt_ids for f in found] == prompt_ids
    for f in found:
        own = zip(f.episode.completion_ids, f.episode.mask, strict=True)
        assert f.episode.logps == [-float(token) if mine else 0.0 for token, mine in own]
    assert Echo.alive == 0
    if max_tokens == 40:
        assert {f.episode.done for f in found} == {True, False}
        assert len({len(f.episode.turns) for f in found}) >= 3, "of several lengths, or this shows little"


def test_threads_and_lives(chat: Chat) -> None:
    """Without a limit all live at once in one thread; with one, no more than that many live."""
    task = Echoes()
    played(task, chat, ROWS * 3)
    assert (len(Echo.threads), Echo.most) == (1, 24)
    Echo.most = 0
    task.max_parallel = 3
    played(task, chat, ROWS * 3)
    assert Echo.most == 3


def test_a_server_without_log_probs(chat: Chat) -> None:
    async def plain(context_ids: list[int], most: int) -> Sampled:
        return Sampled(said(context_ids, most))

    assert {f.episode.logps for f in played(Echoes(), chat, sampler=plain)} == {None}


def test_an_environment_that_breaks_costs_its_own_rollout(chat: Chat) -> None:
    sound = played(Echoes(), chat)
    ends = [n for n, f in enumerate(sound) if len(f.episode.turns) > 1]
    rows = [{**row, "breaks_at": 0 if n == ends[0] else -1} for n, row in enumerate(ROWS)]
    found = played(Echoes(), chat, rows)
    assert found[ends[0]].episode.verdict.status is Status.ERROR
    assert "no server" in found[ends[0]].episode.verdict.detail
    assert [f for n, f in enumerate(found) if n != ends[0]] == [f for n, f in enumerate(sound) if n != ends[0]]


@pytest.mark.parametrize("max_parallel", [None, 2])
def test_an_environment_that_hangs_costs_its_own_rollout(chat: Chat, max_parallel: int | None) -> None:
    until = threading.Event()
    task = Echoes()
    task.max_parallel = max_parallel
    turns = [len(f.episode.turns) for f in played(task, chat)]
    hangs = turns.index(max(turns))
    rows = [{**row, "until": until, "hangs_at": 0 if n == hangs else -1} for n, row in enumerate(ROWS)]
    try:
        found = played(task, chat, [rows[hangs]], deadline_s=0.3)[0]
        assert found.episode.verdict.status is Status.TIMEOUT
        assert not found.episode.done
    finally:
        until.set()


def test_a_hang_does_not_block_what_comes_after(chat: Chat) -> None:
    until, task = threading.Event(), Echoes()

    async def run() -> tuple[Played, Played]:
        worlds = Worlds(task, deadline_s=0.3)
        limits = {"max_tokens": 40, "max_prompt_tokens": 100}
        row = {**ROWS[6], "until": until, "hangs_at": 0}
        first = await play(worlds, row, row["prompt"], chat, sample, **limits)
        worlds.deadline_s = 600.0
        return first, await play(worlds, ROWS[6], row["prompt"], chat, sample, **limits)

    try:
        first, second = asyncio.run(run())
    finally:
        until.set()
    assert first.episode.verdict.status is Status.TIMEOUT
    assert second.episode.verdict.status is Status.GRADED


def test_a_step_s_prompt_that_is_too_long_cuts_the_rollout_off(chat: Chat) -> None:
    task = Echoes()
    task.prompting = "per_step"
    whole = played(task, chat)
    rows = [{**row, "more": ["a"] * 90} for row in ROWS]
    for row, before, f in zip(ROWS, whole, played(task, chat, rows, max_prompt_tokens=20), strict=True):
        assert len(f.episode.contexts) == len(f.episode.turns) == 1
        assert f.episode.done == (row["turns"] == 1 and before.episode.done)
        assert f.episode.done or f.episode.completion_ids[-1] != EOS or len(f.episode.completion_ids) == 1


def test_what_cannot_be_played(chat: Chat) -> None:
    async def silent(context_ids: list[int], most: int) -> Sampled:
        return Sampled([])

    task = Echoes()
    for options, error, says in (
        ({"max_tokens": 1}, ConfigError, "no room"),
        ({"max_prompt_tokens": 3}, DataError, "more than 3"),
        ({"sampler": silent}, DataError, "no token"),
        ({"rows": [{"prompt": ROWS[0]["prompt"]}] * 2}, DataError, "no column"),
    ):
        found = played(task, chat, **options)
        assert [type(f) for f in found] == [error] * len(found)
        assert says in str(found[0])
    assert Echo.alive == 0, "all were closed"


def test_worlds_are_a_task_s(chat: Chat) -> None:
    task, other = Echoes(), Echoes()
    assert worlds_of(task) is worlds_of(task)
    assert worlds_of(other) is not worlds_of(task)


def test_what_a_limit_cut_off_is_truncated_however_short() -> None:
    told = {"prompts": torch.tensor([1]), "responses": torch.tensor([9, EOS]), "raw_prompt": []}
    told |= {"response_mask": torch.ones(2), "rm_scores": torch.tensor([0.0, 1.0])}
    data = {name: [told.get(name)] * 2 for name in FIELDS}
    data["extra_fields"] = [{"done": True}, {"done": False}]
    sessions = read_sessions(["u_0_0", "u_1_0"], [{}, {}], data)
    limits = {"step": 0, "eos_token_ids": frozenset({EOS}), "response_length": 40}
    groups = read_groups(sessions, [torch.ones(2)] * 2, VerlSettings(), **limits)
    assert groups.truncated.tolist() == [False, True]
