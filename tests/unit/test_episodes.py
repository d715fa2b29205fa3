"""Conversations with environments: the batched sampler against a loop over single ones, masks, limits, templates."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch

from scgrpo.errors import ConfigError, DataError
from scgrpo.evaluation import evaluate
from scgrpo.evaluation.conversation import Chat, Sampled
from scgrpo.evaluation.episodes import in_step, play
from scgrpo.evaluation.turns import Turns
from scgrpo.tasks import Canned, Row, Split, Status, Verdict
from scgrpo.tasks.environment import EnvironmentTask, Episode, Step
from scgrpo.teacher.models import key_value_cache

EOS = 2
TEMPLATE = (
    "<bos>{% for m in messages %} <{{ m['role'] }}> {{ m['content'] }}"
    "{% if m['role'] == 'assistant' %} <eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} <assistant>{% endif %}"
)


class Echo:
    """Answers with the first word of the action and how many words there were; done after a number of turns."""

    def __init__(self, turns: int, breaks_at: int = -1) -> None:
        self.left, self.breaks_at, self.seen = turns, breaks_at, list[str]()

    def step(self, action: str) -> Step:
        if len(self.seen) == self.breaks_at:
            raise ConnectionError("no server")
        self.seen.append(action)
        self.left -= 1
        words = action.split()
        return Step(" ".join([*words[:1], str(len(words))]), done=self.left == 0)

    def verdict(self) -> Verdict:
        return Verdict(float(self.left == 0))


class Echoes(EnvironmentTask):
    name = "echoes"
    max_turns = 6
    max_action_tokens = 5

    def rows(self, split: Split, limit: int | None = None) -> list[Row]:
        return [
            {"problem_id": str(n), "prompt": [{"role": "user", "content": text}], "turns": 1 + n % 5}
            for n, text in enumerate(["a b c", "d", "e f 7", "solve g 3 2 1", "h", "i j", "k l", "m"])
        ][:limit]

    def environment(self, row: Mapping[str, Any]) -> Echo:
        return Echo(row["turns"], row.get("breaks_at", -1))

    def canned(self) -> Canned:
        return Canned(self.rows("eval")[0], ("a",), ())


class Forgetful(Echoes):
    prompting = "per_step"

    def step_prompt(self, row: Mapping[str, Any], history: Any, observation: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": f"a {observation}"}]


TASK = Echoes()
ROWS = TASK.rows("eval")


@pytest.fixture(scope="module")
def chat_tokenizer(tokenizer: Any) -> Any:
    own = copy.deepcopy(tokenizer)
    own.chat_template = TEMPLATE
    return own


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Any]) -> Any:
    """Ends its turns often enough: the end token's embedding is long."""
    return with_short_turns(make_model(seed=8))


def with_short_turns(model: Any) -> Any:
    with torch.no_grad():
        model.get_input_embeddings().weight[EOS] *= 3
    return model.eval()


def config(**settings: Any) -> Any:
    from transformers import GenerationConfig

    greedy = {"do_sample": False, "eos_token_id": [EOS], "pad_token_id": 0, "repetition_penalty": 1.0}
    return GenerationConfig(**{**greedy, "disable_compile": True, **settings})


def played(
    model: Any, tokenizer: Any, task: EnvironmentTask = TASK, rows: Sequence[Row] = ROWS, max_tokens: int = 40
) -> list[Episode]:
    chat = Chat(tokenizer, {EOS})
    with torch.no_grad():
        new_sampler = partial(Turns, model, config())
        return play(task, rows, [row["prompt"] for row in rows], chat, new_sampler, max_tokens)[1]


def one_by_one(model: Any, tokenizer: Any, row: Row, max_tokens: int, task: EnvironmentTask) -> tuple[Any, ...]:
    """Tokens, mask and state of one conversation: the highest logit of a whole forward, token after token."""

    def ids_of(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    environment = task.environment(row)
    prompt = ids_of(f"<bos> <user> {row['prompt'][0]['content']} <assistant>")
    ids: list[int] = []
    mask: list[bool] = []
    for _ in range(task.max_turns):
        action: list[int] = []
        while len(ids) < max_tokens and len(action) < task.max_action_tokens and EOS not in action:
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, -1]
            action.append(int(logits.argmax()))
            ids.append(action[-1])
            mask.append(True)
        if EOS not in action:
            return ids, mask, False
        answer = environment.step(tokenizer.decode(action[:-1]))
        if answer.done:
            return ids, mask, True
        for token in ids_of(f"<user> {answer.observation} <assistant>"):
            if len(ids) < max_tokens:
                ids.append(token)
                mask.append(False)
        if len(ids) == max_tokens:
            break
    if ids[-1] == EOS:
        ids.pop()
        mask.pop()
    return ids, mask, False


@pytest.mark.parametrize("max_tokens", [40, 17, 9, 2])
def test_batched_conversations_are_those_of_a_loop(model: Any, chat_tokenizer: Any, max_tokens: int) -> None:
    episodes = played(model, chat_tokenizer, max_tokens=max_tokens)
    with torch.no_grad():
        expected = [one_by_one(model, chat_tokenizer, row, max_tokens, TASK) for row in ROWS]
    assert [(e.completion_ids, e.mask, e.done) for e in episodes] == expected
    if max_tokens == 40:
        lengths = {len(e.turns) for e in episodes}
        assert len(lengths) >= 3, "conversations of several lengths, or this shows little"
        assert {e.done for e in episodes} == {True, False}


@pytest.mark.parametrize("prompting", ["concat", "per_step"])
def test_processes_in_step_play_what_each_would_alone(model: Any, chat_tokenizer: Any, prompting: str) -> None:
    """Threads for processes. Every turn is one call of both, whoever still plays; a process that raises in its own
    way, or calls once too often, breaks the barrier."""
    task = Forgetful() if prompting == "per_step" else TASK
    shares, barrier, calls = [ROWS[:2], ROWS[2:]], threading.Barrier(2, timeout=60), [0, 0]
    told = [0, 0]

    def play_one(index: int) -> list[Episode]:
        def most(mine: int) -> int:
            told[index] = mine
            barrier.wait()
            found = max(told)
            barrier.wait()
            return found

        def counted(num_rows: int) -> Any:
            turns = Turns(model, config(), num_rows)

            def sample_turn(*args: Any) -> list[Sampled]:
                calls[index] += 1
                barrier.wait()
                with lock:
                    return turns(*args)

            return sample_turn

        def wait(longest: int) -> None:
            assert longest > 0
            calls[index] += 1
            barrier.wait()

        rows = shares[index]
        with torch.no_grad(), in_step(counted, most, wait) as together:
            return play(task, rows, [row["prompt"] for row in rows], Chat(chat_tokenizer, {EOS}), together, 40)[1]

    lock = threading.Lock()
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(play_one, range(2)))
    alone = [played(model, chat_tokenizer, task, rows) for rows in shares]
    assert found == alone
    turns = [max(len(e.turns) for e in episodes) for episodes in alone]
    assert turns[0] != turns[1], "one must wait for the other, or this shows little"
    assert calls == [max(turns)] * 2


def test_keys_of_no_token_are_forgotten(model: Any, chat_tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where weights are shared, `generate` goes on with empty steps until all processes are done."""
    generate = type(model).generate

    def as_with_others(self: Any, **kwargs: Any) -> Any:
        output = generate(self, **kwargs)
        (cache,) = (value for name, value in kwargs.items() if name in key_value_cache(self, None))
        self(output.sequences[:, -1:].repeat(1, 3), **key_value_cache(self, cache))
        return output

    expected = played(model, chat_tokenizer)
    monkeypatch.setattr(type(model), "generate", as_with_others)
    assert played(model, chat_tokenizer) == expected


def test_layers_that_forget_start_from_the_tokens_again(make_model: Callable[..., Any], chat_tokenizer: Any) -> None:
    """A sliding window counts positions in the cache, so there must be no holes."""
    window = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
    model = with_short_turns(make_model(seed=8, layer_types=["full_attention", "sliding_attention"], **window))
    assert Turns(model, config(), 1)._cache is None
    episodes = played(model, chat_tokenizer)
    with torch.no_grad():
        expected = [one_by_one(model, chat_tokenizer, row, 40, TASK) for row in ROWS]
    assert [(e.completion_ids, e.mask, e.done) for e in episodes] == expected
    assert max(len(e.turns) for e in episodes) > 1


def test_what_an_episode_says(model: Any, chat_tokenizer: Any) -> None:
    for row, episode in zip(ROWS, played(model, chat_tokenizer), strict=True):
        words = chat_tokenizer.convert_ids_to_tokens(episode.completion_ids)
        assert len(words) == len(episode.mask)
        assert (words[-1] == "<eos>") == episode.done == (episode.verdict.score == 1)
        assert episode.turns == [
            at for at, own in enumerate(episode.mask) if own and (at == 0 or not episode.mask[at - 1])
        ]
        roles = [message["role"] for message in episode.messages]
        assert roles == (["assistant", "user"] * len(episode.turns))[: len(roles)]
        conversation = [*row["prompt"], *episode.messages]
        generate = roles[-1] == "user"
        whole = chat_tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=generate)
        prompt = chat_tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        assert whole.split()[: len(prompt.split()) + len(words)] == [*prompt.split(), *words]
        hidden = [word for word, own in zip(words, episode.mask, strict=True) if not own]
        assert "<eos>" not in hidden
        own = " ".join(word for word, mine in zip(words, episode.mask, strict=True) if mine).split("<eos>")
        assert [text.strip() for text in own][: len(episode.turns)] == [
            m["content"] for m in episode.messages if m["role"] == "assistant"
        ]


def test_an_environment_that_breaks_costs_its_own_rollout(model: Any, chat_tokenizer: Any) -> None:
    sound = played(model, chat_tokenizer)
    rows = [{**row, "breaks_at": 0 if n == 1 else -1} for n, row in enumerate(ROWS)]
    episodes = played(model, chat_tokenizer, rows=rows)
    assert episodes[1].verdict.status is Status.ERROR
    assert "no server" in episodes[1].verdict.detail
    assert not episodes[1].done
    assert [e for n, e in enumerate(episodes) if n != 1] == [e for n, e in enumerate(sound) if n != 1]


def said(chat_tokenizer: Any, template: str, *actions: str) -> list[Episode]:
    """One conversation with the given actions, under a template."""
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template = template
    turns = iter([tokenizer(f"{action} <eos>", add_special_tokens=False)["input_ids"] for action in actions])
    row = {**ROWS[0], "turns": len(actions)}
    return play(
        TASK, [row], [row["prompt"]], Chat(tokenizer, {EOS}), lambda _: lambda *_: [Sampled(next(turns))], 60
    )[1]


CONTENT = "{{ m['content'] }}"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (TEMPLATE.replace(" <eos>", ""), "does not close"),
        # Earlier actions are left out, as templates do with thinking.
        (TEMPLATE.replace(CONTENT, "{{ m['content'] if loop.last or m['role'] == 'user' else 'z' }}"), "only append"),
        # The number of messages changes what stands before them.
        (TEMPLATE.replace("<bos>", "<bos> {{ messages | length }}"), "only append"),
        # An observation that was rendered before is not rendered again, but the whole conversation is.
        (TEMPLATE.replace(CONTENT, CONTENT + "{{ ' 9' if loop.index == 5 }}"), "only append"),
    ],
)
def test_a_template_that_does_not_append(chat_tokenizer: Any, template: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        said(chat_tokenizer, template, "a b", "a c", "a d")


def test_a_template_that_trims_appends(chat_tokenizer: Any) -> None:
    (episode,) = said(chat_tokenizer, TEMPLATE.replace(CONTENT, "{{ m['content'] | trim }}"), "a", "a", " b", "a")
    assert len(episode.turns) == 4
    assert episode.done


def test_inputs_that_cannot_work(model: Any, chat_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="is a string"):
        played(model, chat_tokenizer, rows=[{**ROWS[0], "prompt": "a b"}])
    with pytest.raises(DataError, match="Row 0 has no column 'turns'"):
        played(model, chat_tokenizer, rows=[{"prompt": ROWS[0]["prompt"]}])
    with pytest.raises(ConfigError, match="no room"):
        played(model, chat_tokenizer, max_tokens=1)
    tokenizer = copy.deepcopy(chat_tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="no chat template"):
        Chat(tokenizer, {EOS})


def test_evaluation_plays(model: Any, chat_tokenizer: Any) -> None:
    settings = {"k": 2, "max_new_tokens": 40, "temperature": 1.0}
    result = evaluate(model, chat_tokenizer, TASK, batch_size=5, **settings)
    assert [p.problem_id for p in result.per_problem] == [row["problem_id"] for row in ROWS]
    assert result.num_problems == 8
    assert 0 < result.avg_at_k.value < 1
    assert result.truncated_frac == pytest.approx(1 - result.avg_at_k.value), "here all that is done is right"
    assert evaluate(model, chat_tokenizer, TASK, batch_size=5, **settings).per_problem == result.per_problem
    greedy = evaluate(model, chat_tokenizer, TASK, k=1, temperature=0, max_new_tokens=40, batch_size=8)
    episodes = played(model, chat_tokenizer)
    assert greedy.avg_at_k.value == sum(e.verdict.score for e in episodes) / 8
    assert greedy.mean_completion_tokens == sum(sum(e.mask) for e in episodes) / 8
    with pytest.raises(DataError, match="no rows"):
        evaluate(model, chat_tokenizer, TASK, rows=[])


class Watched(Echo):
    """Counts those alive, and meets the others of its wave in every step."""

    alive, most, closed = 0, 0, 0

    def __init__(self, turns: int, breaks_at: int = -1, barrier: threading.Barrier | None = None) -> None:
        super().__init__(turns, breaks_at)
        self.barrier = barrier
        Watched.alive += 1
        Watched.most = max(Watched.most, Watched.alive)

    def step(self, action: str) -> Step:
        if self.barrier is not None:
            self.barrier.wait(timeout=60)  # breaks unless all are here at the same time
        return super().step(action)

    def close(self) -> None:
        Watched.alive -= 1
        Watched.closed += 1
        raise OSError("cannot be closed")


class Watchers(Echoes):
    max_parallel = 3
    barrier: threading.Barrier | None = None

    def environment(self, row: Mapping[str, Any]) -> Echo:
        return Watched(row["turns"], row.get("breaks_at", -1), self.barrier)


@pytest.fixture
def watchers() -> Watchers:
    Watched.alive = Watched.most = Watched.closed = 0
    return Watchers()


def test_only_so_many_environments_are_alive(model: Any, chat_tokenizer: Any, watchers: Watchers) -> None:
    assert played(model, chat_tokenizer, watchers) == played(model, chat_tokenizer)
    assert (Watched.alive, Watched.most, Watched.closed) == (0, 3, len(ROWS))


def test_environments_are_closed_when_they_break(model: Any, chat_tokenizer: Any, watchers: Watchers) -> None:
    rows = [{**row, "breaks_at": 0} for row in ROWS]
    episodes = played(model, chat_tokenizer, watchers, rows)
    assert sum(e.verdict.status is Status.ERROR for e in episodes) > 1  # the others' first action was cut off
    assert (Watched.alive, Watched.closed) == (0, len(ROWS))
    transcript = [{"role": "assistant", "content": "a"}]
    assert [verdict.status for verdict in watchers.verify([transcript], rows[:1])] == [Status.ERROR]
    assert (Watched.alive, Watched.closed) == (0, len(ROWS) + 1)


def test_steps_of_a_wave_run_at_the_same_time(model: Any, chat_tokenizer: Any, watchers: Watchers) -> None:
    watchers.barrier = threading.Barrier(3)
    rows = [ROWS[0]] * 3  # one turn each, ended or cut off alike
    assert {e.verdict.status for e in played(model, chat_tokenizer, watchers, rows)} == {Status.GRADED}


def test_a_prompt_per_step_must_exist(model: Any, chat_tokenizer: Any, watchers: Watchers) -> None:
    watchers.prompting = "per_step"
    rows = [{**row, "turns": 3} for row in ROWS]
    with pytest.raises(ConfigError, match="no prompts per step"):
        played(model, chat_tokenizer, watchers, rows)
    assert Watched.alive == 0
