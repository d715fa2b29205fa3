"""Teacher prompts on verl: the sampled prompt with another start, whatever an agent loop put behind it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy import build_tokenizer

pytest.importorskip("transfer_queue")

from omegaconf import OmegaConf

from scgrpo.credit import NONE, Plan
from scgrpo.errors import ConfigError
from scgrpo.integrations.verl.batch import Output, Session
from scgrpo.integrations.verl.prompts import TeacherPrompts, completion_messages
from scgrpo.integrations.verl.settings import VerlSettings
from scgrpo.integrations.verl.setup import teacher_prompts

TOKENIZER = build_tokenizer()
MESSAGES = [{"role": "system", "content": "a"}, {"role": "user", "content": "b c"}]
END = TOKENIZER.eos_token_id


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def rendered(messages: list[dict[str, Any]]) -> list[int]:
    return list(TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))


def output(prompt: list[int], response: list[int], mask: list[int] | None = None, **extra: Any) -> Output:
    flags = torch.tensor(mask or [1] * len(response)).bool()
    return Output(0, prompt, response, flags, torch.zeros(len(response)), extra)


def session(*outputs: Output, messages: list[dict[str, Any]] = MESSAGES) -> Session:
    return Session("g", messages, outputs, {})


def maker(**settings: Any) -> TeacherPrompts:
    rollout = {"response_length": 16, "multi_turn": {}}
    config = OmegaConf.create({"data": {}, "actor_rollout_ref": {"rollout": rollout, "model": {"path": "none"}}})
    return teacher_prompts(config, VerlSettings(**{"teacher_template": "tiny", **settings}), TOKENIZER)


def plan(pairs: list[tuple[int, int, bool]], contrast: list[int] | None = None) -> Plan:
    rows = torch.tensor([(a, b) for a, b, _ in pairs]).view(-1, 2)
    against = None if contrast is None else torch.tensor(contrast)
    return Plan(rows[:, 0], rows[:, 1], torch.tensor([v for *_, v in pairs]), against)


def test_the_demonstration_stands_in_the_system_message_and_nothing_else_changes() -> None:
    prompts, start = maker(), rendered(MESSAGES)
    sessions = [session(output(start, [*ids("d e"), END])), session(output(start, [*ids("f"), END]))]
    chosen = plan([(0, 1, True), (1, 0, False)])
    pairs, places = prompts.pairs(chosen, sessions, prompts.demonstrations(chosen, sessions, []))
    assert places == [(0, 0), (1, 0)]
    assert list(pairs[0].student_ids) == start
    assert pairs[0].completion_ids == [*ids("d e"), END]
    for pair, text in zip(pairs, ("a\n\nverified f", "a\n\nattempt d e"), strict=True):
        assert list(pair.teacher_ids) == rendered([{"role": "system", "content": text}, MESSAGES[1]])


def test_no_demonstration_is_the_prompt_itself_and_a_contrast_stands_in_the_students_context() -> None:
    prompts, start = maker(), rendered(MESSAGES)
    sessions = [session(output(start, [*ids(letter), END])) for letter in "def"]
    chosen = plan([(0, NONE, False), (0, 1, True)], contrast=[NONE, 2])
    pairs, _ = prompts.pairs(chosen, sessions, prompts.demonstrations(chosen, sessions, []))
    assert pairs[0].student_ids == pairs[0].teacher_ids == start
    assert len(pairs[1].student_ids) == len(pairs[1].teacher_ids) > len(start)
    assert pairs[1].student_ids != pairs[1].teacher_ids


def test_each_output_of_a_session_is_scored_under_its_own_prompt() -> None:
    prompts, start = maker(), rendered(MESSAGES)
    later = [{"role": "system", "content": "a"}, {"role": "user", "content": "g h"}]
    grown = [*start, *ids("d"), END, *ids("e")]
    played = session(
        output(start, [*ids("d"), END]),
        output(start, ids("d"), [0]),  # nothing to score
        output(grown, [*ids("e f"), END], [0, 1, 1]),
        output(rendered(later), ids("h"), prompt_messages=later),
    )
    sessions = [played, session(output(start, [*ids("c"), END]))]
    chosen = plan([(0, 1, True)])
    pairs, places = prompts.pairs(chosen, sessions, prompts.demonstrations(chosen, sessions, []))
    assert places == [(0, 0), (0, 3), (0, 6)]
    shown = {"role": "system", "content": "a\n\nverified c"}
    assert list(pairs[1].teacher_ids) == [*rendered([shown, MESSAGES[1]]), *grown[len(start) :]]
    assert list(pairs[2].teacher_ids) == rendered([shown, later[1]])


def test_a_prompt_that_its_messages_do_not_render_to_is_refused() -> None:
    prompts, start = maker(), rendered(MESSAGES)
    sessions = [session(output(start[1:], [END])), session(output(start, [*ids("c"), END]))]
    chosen = plan([(0, 1, True)])
    with pytest.raises(ConfigError, match="max_prompt_length"):
        prompts.pairs(chosen, sessions, prompts.demonstrations(chosen, sessions, []))


def test_completions_as_messages() -> None:
    mixed = session(output([1], [*ids("d e f g"), END], [1, 1, 0, 1, 1]))
    assert completion_messages(mixed, lambda part: TOKENIZER.decode(part, skip_special_tokens=True)) == [
        {"role": "assistant", "content": "d e"},
        {"role": "tool", "content": "f"},
        {"role": "assistant", "content": "g"},
    ]
    told = [{"role": "user", "content": "look"}, {"role": "assistant", "content": "go"}]
    assert completion_messages(session(output([1], [END], transcript=told)), TOKENIZER.decode) == told


def test_an_agents_demonstration_says_who_spoke() -> None:
    prompts, start = maker(teacher_template="agent"), rendered(MESSAGES)
    sessions = [session(output(start, [*ids("d e f"), END], [1, 0, 1, 1]))]
    (text,) = (d.text for d in prompts.demonstrations(plan([(0, 0, True)]), sessions, []).values())
    assert text == "[Action]\nd\n[Tool output]\ne\n[Action]\nf"


def test_a_prompt_function_takes_the_templates_place() -> None:
    prompts, start = maker(teacher_prompt_fn="toy:shout"), rendered(MESSAGES)
    sessions = [session(output(start, [*ids(letter), END])) for letter in "de"]
    chosen = plan([(0, 1, True)])
    ((pair,), _) = prompts.pairs(chosen, sessions, prompts.demonstrations(chosen, sessions, []))
    assert list(pair.teacher_ids) == rendered([*MESSAGES, {"role": "user", "content": "e"}])
