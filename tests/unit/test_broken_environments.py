"""Environments that break, answer nonsense or too much, and actions that end in white space: what it costs whom."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from scgrpo.errors import ConfigError
from scgrpo.evaluation.conversation import Chat, Sampled
from scgrpo.evaluation.episodes import play
from scgrpo.tasks import Canned, Row, Split, Status, Verdict
from scgrpo.tasks.base import Message
from scgrpo.tasks.environment import EnvironmentTask, Episode, Step

END = 0


class Characters:
    """A token per character, and a chat template that leaves white space alone, as Qwen2.5's does."""

    chat_template = "in apply_chat_template"

    def apply_chat_template(
        self, messages: Sequence[Message], *, tokenize: bool, add_generation_prompt: bool, chat_template: str | None
    ) -> str:
        assert not tokenize
        text = "".join(f"<{m['role']}>{m['content']}<end>\n" for m in messages)
        return text + "<assistant>" if add_generation_prompt else text

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        text.encode()  # as tokenizers do
        return {"input_ids": [END if piece == "<end>" else ord(piece) for piece in re.findall("<end>|.", text, re.S)]}

    def decode(self, ids: Sequence[int], skip_special_tokens: bool) -> str:
        return "".join("<end>" if token == END else chr(token) for token in ids)


class World:
    def __init__(self, kind: str) -> None:
        self.kind, self.steps = kind, 0

    def step(self, action: str) -> Any:
        self.steps += 1
        if self.kind == "exits":
            raise SystemExit(3)
        if self.kind == "late":
            raise TimeoutError("no answer")
        odd = {"nothing": None, "text": "hello", "number": Step(42), "bytes": Step(b"raw")}  # type: ignore[arg-type]
        if self.kind in odd:
            return odd[self.kind]
        if self.kind == "surrogate":
            return Step("a\ud800b", self.steps == 2)
        return Step("y" * 5_000 if self.kind == "long" else f"seen {self.steps}", self.steps == 2)

    def verdict(self) -> Any:
        odd = {"no verdict": None, "score": 1.0, "infinite": Verdict(float("inf"))}
        return odd[self.kind] if self.kind in odd else Verdict(float(self.steps == 2))


class Worlds(EnvironmentTask):
    name = "worlds"
    max_turns = 3

    def rows(self, split: Split, limit: int | None = None) -> list[Row]:
        return [row("sound")]

    def environment(self, row: Mapping[str, Any]) -> World:
        if row["kind"] == "unmade":
            raise ConnectionError("no server")
        if row["kind"] == "impossible":
            raise ConfigError("It is not set up.", "Set it up.")
        return World(row["kind"])

    def step_prompt(self, row: Mapping[str, Any], history: Sequence[Any], observation: str) -> list[Message]:
        return [{"role": "user", "content": observation}]

    def canned(self) -> Canned:
        return Canned(row("sound"), ("a",), ())


def row(kind: str) -> Row:
    return {"problem_id": f"the {kind} one", "prompt": [{"role": "user", "content": "go"}], "kind": kind}


def played(
    rows: Sequence[Row], action: str = "look", task: EnvironmentTask | None = None, **limits: int
) -> list[Any]:
    chat = Chat(Characters(), {END})
    turn = Sampled([*chat.encode(action), END])
    prompts = [row["prompt"] for row in rows]
    sizes = {"max_tokens": 20_000, **limits}
    return play(task or Worlds(), rows, prompts, chat, lambda _: lambda rows, *_: [turn for _ in rows], **sizes)[1]


@pytest.mark.parametrize("action", ["look", "look\n", "\n\nlook \t\n", "look\x0c", " look", "", " \n"])
def test_white_space_around_an_action_is_part_of_it(action: str) -> None:
    (episode,) = played([row("sound")], action)
    assert (episode.done, episode.verdict) == (True, Verdict(1.0))
    text = Characters().decode(episode.completion_ids, skip_special_tokens=False)
    assert text == f"{action}<end>\n<user>seen 1<end>\n<assistant>{action}<end>"
    assert [m["content"] for m in episode.messages] == [action, "seen 1", action]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("nothing", "step() gave None"),
        ("text", "step() gave 'hello'"),
        ("number", "not Step(observation, done) with a text"),
        ("bytes", "not Step(observation, done) with a text"),
        ("exits", "SystemExit(3)"),
        ("late", "no answer"),
        ("unmade", "no server"),
        ("no verdict", "verdict() gave None"),
        ("score", "verdict() gave 1.0"),
        ("infinite", "the score is inf"),
    ],
)
@pytest.mark.parametrize("parallel", [None, 2])
def test_a_broken_environment_costs_its_own_rollout(
    kind: str, says: str, parallel: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    task = Worlds()
    task.max_parallel = parallel
    first, broken, last = played([row("sound"), row(kind), row("sound")], task=task)
    assert (first.verdict, last.verdict) == (Verdict(1.0), Verdict(1.0))
    wanted = Status.TIMEOUT if kind == "late" else Status.ERROR
    assert broken.verdict.status is wanted
    assert says in broken.verdict.detail
    assert kind == "infinite" or f"the {kind} one" in caplog.text
    transcript = [{"role": "assistant", "content": "look"}]
    assert [v.status for v in task.verify([transcript] * 2, [row(kind), row("sound")])] == [wanted, Status.GRADED]


def test_a_task_that_cannot_make_any_says_so() -> None:
    with pytest.raises(ConfigError, match="not set up"):
        played([row("sound"), row("impossible")])


def test_an_observation_that_is_no_text_of_unicode_is_escaped() -> None:
    (episode,) = played([row("surrogate")])
    assert [m["content"] for m in episode.messages] == ["look", "a\\ud800b", "look"]
    assert Worlds().verify([episode.messages], [row("surrogate")]) == [episode.verdict] == [Verdict(1.0)]


def test_a_prompt_without_room_cuts_its_rollout_off(caplog: pytest.LogCaptureFixture) -> None:
    task = Worlds()
    task.prompting = "per_step"
    episodes: list[Episode] = played([row("sound"), row("long")], task=task, max_prompt_tokens=500)
    assert [(e.done, len(e.turns), len(e.contexts)) for e in episodes] == [(True, 2, 2), (False, 1, 1)]
    assert END not in episodes[1].completion_ids, "seen to be cut off"
    assert episodes[1].verdict == Verdict(0.0)
    assert "the long one" in caplog.text


def test_only_so_many_observations_are_kept() -> None:
    chat = Chat(Characters(), {END})
    for number in range(1000):
        chat.continuation([*row("sound")["prompt"], {"role": "assistant", "content": "a"}, said(number)])
    assert len(chat._continuations) < 300


def said(number: int) -> Message:
    return {"role": "user", "content": f"seen {number}"}
