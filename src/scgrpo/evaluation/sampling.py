"""Sampling k completions per problem and grading them."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from scgrpo.errors import ConfigError, DataError
from scgrpo.evaluation.episodes import Chat, play
from scgrpo.evaluation.metrics import Estimate, ProblemResult, avg_at_k, mean_pass_at_k
from scgrpo.tasks.base import Row, Status, Task, Verdict
from scgrpo.tasks.environment import EnvironmentTask, Episode

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class EvalResult:
    """Outcome of one evaluation.

    Attributes:
        task: name of the task.
        k: of Avg@k and Pass@k.
        num_problems: problems sampled.
        temperature, top_p, top_k, max_new_tokens: how.
        avg_at_k, pass_at_k: estimates with 95 % intervals over problems.
        error_frac: share of completions without a grade; they are in neither estimate.
        truncated_frac: share of completions that reached max_new_tokens without ending.
        mean_completion_tokens: mean length, end tokens included; of a conversation, what the model wrote.
        seconds: all in. tokens_per_s: completion tokens per second of generation.
        per_problem: one entry per problem, in the order of the rows.
    """

    task: str
    k: int
    num_problems: int
    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    avg_at_k: Estimate
    pass_at_k: Estimate
    error_frac: float
    truncated_frac: float
    mean_completion_tokens: float
    seconds: float
    tokens_per_s: float
    per_problem: list[ProblemResult]

    def to_record(self, step: int, label: str) -> dict[str, Any]:
        """The line of `evals.jsonl`: JSON values only, None where a number is undefined."""
        record = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        record["avg_at_k"], record["pass_at_k"] = self.avg_at_k.to_record(), self.pass_at_k.to_record()
        record["per_problem"] = [
            dataclasses.asdict(p) | {"mean_score": None if math.isnan(p.mean_score) else p.mean_score}
            for p in self.per_problem
        ]
        return {"step": step, "label": label, **record}


@dataclass(frozen=True)
class _Sampling:
    """How completions are drawn. Of the model's own generation config only the end tokens apply."""

    num_samples: int
    temperature: float
    top_p: float
    top_k: int
    max_new_tokens: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        if min(self.num_samples, self.batch_size, self.max_new_tokens) < 1:
            raise ConfigError(
                f"num_samples={self.num_samples}, batch_size={self.batch_size}, "
                f"max_new_tokens={self.max_new_tokens} cannot work.",
                "All must be at least 1.",
            )
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ConfigError(
                f"temperature={self.temperature}, top_p={self.top_p}, top_k={self.top_k} cannot work.",
                "Give temperature >= 0, 0 < top_p <= 1, top_k >= 0 (0 = off).",
            )
        if self.temperature == 0 and self.num_samples > 1:
            raise ConfigError(
                f"Temperature 0 gives {self.num_samples} equal completions per problem.",
                "Set k=1, or a temperature above 0.",
            )


class _Drawn(NamedTuple):
    """Completions per prompt, each up to and with its end token; how many tokens the model wrote in all; the end
    tokens; how long it took; verdicts in order, where completions come with them."""

    ids: list[list[list[int]]]
    num_tokens: int
    ends: set[int]
    seconds: float
    verdicts: list[Verdict] | None = None


def evaluate(
    model: Any,
    tokenizer: Any,
    task: Task,
    *,
    rows: Sequence[Row] | None = None,
    k: int = 8,
    num_samples: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 512,
    batch_size: int = 64,
    seed: int = 0,
    success_threshold: float = 0.5,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EvalResult:
    """Avg@k and Pass@k of a causal language model on a task.

    The model is put into evaluation mode and back; the random streams of the caller are left as they were. The same
    seed, rows and batch_size give the same completions.

    Args:
        model: a transformers causal LM, on its device.
        tokenizer: its tokenizer.
        task: the verifier.
        rows: problems; default: all of `task.rows("eval")`.
        k: of Avg@k and Pass@k.
        num_samples: completions per problem, at least k (default k). More make Pass@k less noisy.
        temperature: 0 samples greedily, which only makes sense for one completion per problem.
        top_p, top_k: 1.0 and 0 do not cut the distribution.
        max_new_tokens: completions end here at the latest.
        batch_size: completions per call of generate.
        success_threshold: score from which a completion counts as solved in Pass@k.
        chat_template_kwargs: passed to the chat template, for example `{"enable_thinking": False}`.
        progress: called with (problems sampled, problems) after each batch.

    Raises:
        ConfigError: settings out of range.
        DataError: no rows, or chat prompts with a tokenizer that has no chat template.
    """
    start = time.perf_counter()
    rows = task.rows("eval") if rows is None else rows
    num_samples = k if num_samples is None else num_samples
    if not 1 <= k <= num_samples:
        raise ConfigError(f"k={k}, num_samples={num_samples} cannot work.", "Give 1 <= k <= num_samples.")
    sampling = _Sampling(num_samples, temperature, top_p, top_k, max_new_tokens, batch_size, seed)
    progress = progress or (lambda done, total: None)
    if isinstance(task, EnvironmentTask):
        drawn = _play(model, tokenizer, task, rows, sampling, chat_template_kwargs or {}, progress)
    else:
        prompts = _tokenized(rows, tokenizer, chat_template_kwargs or {})
        drawn = _sample(model, tokenizer, prompts, sampling, progress)
    problems = _graded(drawn, rows, task, tokenizer, success_threshold)
    return _result(task.name, k, sampling, drawn, problems, time.perf_counter() - start)


def _result(
    task: str, k: int, sampling: _Sampling, drawn: _Drawn, problems: list[ProblemResult], seconds: float
) -> EvalResult:
    flat = [ids for group in drawn.ids for ids in group]
    return EvalResult(
        task=task,
        k=k,
        num_problems=len(problems),
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_new_tokens=sampling.max_new_tokens,
        avg_at_k=avg_at_k(problems),
        pass_at_k=mean_pass_at_k(problems, k),
        error_frac=sum(p.num_errors for p in problems) / len(flat),
        truncated_frac=sum(not ids or ids[-1] not in drawn.ends for ids in flat) / len(flat),
        mean_completion_tokens=drawn.num_tokens / len(flat),
        seconds=seconds,
        tokens_per_s=drawn.num_tokens / drawn.seconds,
        per_problem=problems,
    )


def _graded(drawn: _Drawn, rows: Sequence[Row], task: Task, tokenizer: Any, threshold: float) -> list[ProblemResult]:
    graded = drawn.verdicts
    if graded is None:
        texts = tokenizer.batch_decode([ids for group in drawn.ids for ids in group], skip_special_tokens=True)
        repeated = [row for row, group in zip(rows, drawn.ids, strict=True) for _ in group]
        graded = task.verify(texts, repeated)
    verdicts = iter(graded)
    problems = []
    for index, (row, group) in enumerate(zip(rows, drawn.ids, strict=True)):
        own = itertools.islice(verdicts, len(group))
        scores = [v.score if v.status is Status.GRADED else math.nan for v in own]
        problems.append(ProblemResult.from_scores(str(row.get("problem_id", index)), scores, threshold))
    return problems


def _tokenized(rows: Sequence[Row], tokenizer: Any, template_kwargs: Mapping[str, Any]) -> list[list[int]]:
    """Prompt ids as TRL makes them: chats by the chat template alone, strings with the usual special tokens."""
    if not rows:
        raise _no_rows()
    prompts = [row["prompt"] for row in rows]
    if any(not isinstance(prompt, str) for prompt in prompts) and not getattr(tokenizer, "chat_template", None):
        raise DataError("The prompts are chats, but the tokenizer has no chat template.", "Use a chat model.")
    ids: list[list[int]] = []
    for prompt in prompts:
        if isinstance(prompt, str):
            ids.append(tokenizer(prompt)["input_ids"])
        else:
            text = tokenizer.apply_chat_template(
                prompt, tokenize=False, add_generation_prompt=True, **template_kwargs
            )
            ids.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids


def _sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    sampling: _Sampling,
    progress: Callable[[int, int], None],
) -> _Drawn:
    """Prompts of like length share a batch."""
    start = time.perf_counter()
    ends = _end_tokens(model, tokenizer)
    completions: list[list[list[int]]] = [[] for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    per_prompt = min(sampling.num_samples, sampling.batch_size)
    per_batch = sampling.batch_size // per_prompt
    with _sampling_state(model, sampling.seed):
        for first in range(0, len(by_length), per_batch):
            chosen = by_length[first : first + per_batch]
            for drawn in range(0, sampling.num_samples, per_prompt):
                count = min(per_prompt, sampling.num_samples - drawn)
                config = _generation_config(tokenizer, ends, sampling, count)
                for position, ids in enumerate(_generate(model, [prompts[index] for index in chosen], config)):
                    completions[chosen[position // count]].append(_until_end(ids, ends))
            progress(min(first + per_batch, len(by_length)), len(by_length))
    num_tokens = sum(len(ids) for group in completions for ids in group)
    return _Drawn(completions, num_tokens, ends, time.perf_counter() - start)


def _play(
    model: Any,
    tokenizer: Any,
    task: EnvironmentTask,
    rows: Sequence[Row],
    sampling: _Sampling,
    template_kwargs: Mapping[str, Any],
    progress: Callable[[int, int], None],
) -> _Drawn:
    """Conversations with the task's environments, `batch_size` of them at once."""
    from scgrpo.evaluation.turns import Turns

    if not rows:
        raise _no_rows()
    start = time.perf_counter()
    ends = _end_tokens(model, tokenizer)
    chat = Chat(tokenizer, ends, template_kwargs)
    config = _generation_config(tokenizer, ends, sampling, 1)
    repeated = [row for row in rows for _ in range(sampling.num_samples)]
    episodes: list[Episode] = []
    with _sampling_state(model, sampling.seed):
        for first in range(0, len(repeated), sampling.batch_size):
            batch = repeated[first : first + sampling.batch_size]
            prompts = [row["prompt"] for row in batch]
            episodes += play(task, batch, prompts, chat, partial(Turns, model, config), sampling.max_new_tokens)[1]
            progress(len(episodes) // sampling.num_samples, len(rows))
    seconds = time.perf_counter() - start
    grouped = [
        [episode.completion_ids for episode in episodes[first : first + sampling.num_samples]]
        for first in range(0, len(episodes), sampling.num_samples)
    ]
    num_tokens = sum(sum(episode.mask) for episode in episodes)
    return _Drawn(grouped, num_tokens, ends, seconds, [episode.verdict for episode in episodes])


def _no_rows() -> DataError:
    return DataError("There are no rows to evaluate on.", "Check the task's data, or pass rows.")


def _generate(model: Any, prompts: Sequence[Sequence[int]], config: Any) -> list[list[int]]:
    import torch

    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), config.pad_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    output = model.generate(
        input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=config
    )
    return output[:, width:].tolist()


def _generation_config(tokenizer: Any, ends: set[int], sampling: _Sampling, count: int) -> Any:
    from transformers import GenerationConfig

    draw: dict[str, Any] = {"do_sample": False}
    if sampling.temperature > 0:
        draw = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "num_return_sequences": count,
        }
    # What is not set here would be taken from the model's own generation config.
    return GenerationConfig(
        **draw,
        max_new_tokens=sampling.max_new_tokens,
        repetition_penalty=1.0,
        use_cache=True,
        eos_token_id=sorted(ends) or None,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0),
    )


def _end_tokens(model: Any, tokenizer: Any) -> set[int]:
    own = getattr(model.generation_config, "eos_token_id", None)
    ends = own if isinstance(own, list) else [own]
    return {token for token in [*ends, tokenizer.eos_token_id] if token is not None}


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in ends:
            return ids[: position + 1]
    return ids


@contextmanager
def _sampling_state(model: Any, seed: int) -> Iterator[None]:
    """Evaluation mode, no gradients and a seeded random stream; all as before afterwards."""
    import torch

    modes = [(module, module.training) for module in model.modules()]
    device: torch.device = model.device
    accelerators = [] if device.type == "cpu" else [device]
    model.eval()
    try:
        with torch.random.fork_rng(accelerators, device_type=device.type if accelerators else None), torch.no_grad():
            # Not torch.manual_seed: it seeds all devices, and only this one is restored.
            torch.default_generator.manual_seed(seed)
            if accelerators:
                with torch.accelerator.device_index(device.index):
                    torch.get_device_module(device).manual_seed(seed)
            yield
    finally:
        for module, training in modes:
            module.training = training
