"""Sampling k completions per problem and grading them.

Problems are sampled in batches whose make-up and seeds follow from the settings alone. So an evaluation that was
interrupted draws, for what is missing, the completions that it would have drawn, and ends with the same numbers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from scgrpo.errors import ConfigError, DataError, ScgrpoError, VerifierError
from scgrpo.evaluation.conversation import Chat
from scgrpo.evaluation.directory import EvalDirectory
from scgrpo.evaluation.episodes import play
from scgrpo.evaluation.results import EvalResult, Sample, result_of
from scgrpo.evaluation.samplers import Sampler, Sampling, TransformersSampler
from scgrpo.tasks.base import Completion, Row, Status, Task, Verdict
from scgrpo.tasks.environment import EnvironmentTask

logger = logging.getLogger(__name__)


def evaluate(
    model: Any,
    tokenizer: Any,
    task: Task,
    *,
    rows: Sequence[Row] | None = None,
    k: int | Sequence[int] = 8,
    num_samples: int | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    max_new_tokens: int = 512,
    batch_size: int = 64,
    seed: int = 0,
    success_threshold: float | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    out: EvalDirectory | None = None,
    progress: Callable[[int, int], None] | None = None,
    crew: Crew | None = None,
) -> EvalResult:
    """Sample completions of each problem, grade them, and estimate Avg@k and Pass@k. A completion whose verification
    fails is in no estimate. The model comes back in the mode it was in, the caller's random state untouched.

    Args:
        model: a transformers causal LM, on its device; or a `Sampler`.
        tokenizer: its tokenizer.
        task: the verifier.
        rows: problems; default: all of `task.rows("eval")`.
        k: of Avg@k and Pass@k; of several, Pass@k is estimated for each, and the largest is the main one.
        num_samples: completions per problem, at least k (default k). More make Pass@k less noisy.
        temperature: 0 samples greedily, which only makes sense for one completion per problem.
        top_p, top_k: 1.0 and 0 do not cut the distribution.
        max_new_tokens: completions end here at the latest.
        batch_size: completions per call of generate. What is drawn depends on it.
        success_threshold: score from which a completion counts as solved; default: the task's.
        chat_template_kwargs: passed to the chat template, for example `{"enable_thinking": False}`.
        out: where each completion is kept as it is graded; what it holds already is not sampled again.
        progress: called with (completions graded, completions) after each batch.
        crew: the processes that share the work; default: this one does all of it. `out` is for one process.

    Raises:
        ConfigError: settings out of range.
        DataError: no rows, or chat prompts with a tokenizer that has no chat template.
        VerifierError: the task does not return a verdict for each completion.
        RunError: `out` holds another evaluation, or cannot be written.
    """
    rows = _rows_of(task, rows)
    ks, num_samples = _counts(k, num_samples)
    sampling = Sampling(num_samples, temperature, top_p, top_k, max_new_tokens, batch_size, seed)
    crew = crew or Crew()
    sampler: Sampler = model if isinstance(model, Sampler) else TransformersSampler(model, tokenizer, crew.most)
    kwargs = dict(chat_template_kwargs or {})
    draws = _draws_of(sampler, tokenizer, task, rows, sampling, kwargs)
    with _opened(out, sampler, task, rows, sampling, kwargs) as known:
        samples = _sampled(draws, task, rows, sampling, known, out, progress or (lambda done, total: None), crew)
        threshold = task.success_threshold if success_threshold is None else success_threshold
        result = result_of(task.name, ks, sampling, threshold, samples)
        if out:
            out.finish(result.to_record(0, "eval"))
    return result


@dataclass(frozen=True)
class Crew:
    """Processes that share an evaluation: each calls `evaluate` with the same arguments but this, and draws every
    `count`-th batch. All return the result that one process alone would, up to times.

    Attributes:
        index, count: this process, of how many.
        gather: a list of each process -> all their elements, on each process.
        in_step: drawing needs all of them (split weights, a server), so that one without a batch draws another's in
            vain.
    """

    index: int = 0
    count: int = 1
    gather: Callable[[list[Any]], list[Any]] = list
    in_step: bool = False

    @property
    def most(self) -> Callable[[int], int] | None:
        """Where they must go in step: a number of each process -> the largest."""
        return (lambda mine: max(self.gather([mine]))) if self.in_step else None

    def turns(self, batches: Sequence[Batch]) -> Iterator[tuple[Batch, bool]]:
        """This process's batches, and whether each counts."""
        for first in range(0, len(batches), self.count):
            if first + self.index < len(batches):
                yield batches[first + self.index], True
            elif self.in_step:
                yield batches[-1], False


def _rows_of(task: Task, rows: Sequence[Row] | None) -> Sequence[Row]:
    rows = task.rows("eval") if rows is None else rows
    if not rows:
        raise DataError("There are no rows to evaluate on.", "Check the task's data, or pass rows.")
    return rows


def _counts(k: int | Sequence[int], num_samples: int | None) -> tuple[list[int], int]:
    """Every k, ascending, and n."""
    ks = [k] if isinstance(k, int) else sorted(set(k))
    n = max(ks, default=0) if num_samples is None else num_samples
    if not ks or not 1 <= min(ks) <= max(ks) <= n:
        raise ConfigError(
            f"k={k}, num_samples={n} cannot work: n samples say nothing unbiased about Pass@k of k > n.",
            "Give 1 <= k <= num_samples.",
        )
    return ks, n


def _opened(
    out: EvalDirectory | None,
    sampler: Sampler,
    task: Task,
    rows: Sequence[Row],
    sampling: Sampling,
    template_kwargs: Mapping[str, Any],
) -> AbstractContextManager[dict[tuple[int, int], Sample]]:
    """What is known already, for as long as it is worked on."""
    if out is None:
        return nullcontext({})
    data = {"num_problems": len(rows), "problems": _digest_of(rows)}
    settings = {"task": task.name, **asdict(sampling), "chat_template_kwargs": template_kwargs}
    return out.opened({**settings, **data, **sampler.identity})


@dataclass(frozen=True)
class Batch:
    """What one call draws: `count` completions for each of some rows, numbered from `first` on."""

    rows: tuple[int, ...]
    first: int
    count: int

    def completions(self) -> list[tuple[int, int]]:
        """(row, sample) of its completions, in order."""
        return [(row, self.first + place) for row in self.rows for place in range(self.count)]

    def seed(self, seed: int) -> int:
        """Of its random stream."""
        digest = hashlib.sha256(f"{seed}:{self.rows[0]}:{self.first}".encode()).digest()
        return int.from_bytes(digest[:4])


class _Drawn(NamedTuple):
    """A completion before it is graded; conversations come with their verdicts."""

    completion: Completion
    num_tokens: int
    truncated: bool
    verdict: Verdict | None = None


class _Draws(NamedTuple):
    """The batches of an evaluation, and what draws one."""

    batches: list[Batch]
    draw: Callable[[Batch], list[_Drawn]]


def _draws_of(
    sampler: Sampler,
    tokenizer: Any,
    task: Task,
    rows: Sequence[Row],
    sampling: Sampling,
    template_kwargs: Mapping[str, Any],
) -> _Draws:
    if isinstance(task, EnvironmentTask):
        return _conversations(sampler, tokenizer, task, rows, sampling, template_kwargs)
    prompts = _tokenized(rows, tokenizer, template_kwargs)

    def draw(batch: Batch) -> list[_Drawn]:
        chosen = [prompts[row] for row in batch.rows]
        ids = sampler.sample(chosen, batch.count, sampling, batch.seed(sampling.seed))
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        return [
            _Drawn(text, len(own), not own or own[-1] not in sampler.ends)
            for text, own in zip(texts, ids, strict=True)
        ]

    return _Draws(batches([len(prompt) for prompt in prompts], sampling), draw)


def _conversations(
    sampler: Sampler,
    tokenizer: Any,
    task: EnvironmentTask,
    rows: Sequence[Row],
    sampling: Sampling,
    template_kwargs: Mapping[str, Any],
) -> _Draws:
    """Conversations with the task's environments, those of a batch at once."""
    chat = Chat(tokenizer, set(sampler.ends), template_kwargs)

    def draw(batch: Batch) -> list[_Drawn]:
        own = [rows[row] for row, _ in batch.completions()]
        prompts = [row["prompt"] for row in own]
        with sampler.turns(sampling, batch.seed(sampling.seed)) as new_sampler:
            played = play(task, own, prompts, chat, new_sampler, sampling.max_new_tokens, sampler.max_prompt_tokens)
        return [
            _Drawn(e.messages, sum(e.mask), not e.completion_ids or e.completion_ids[-1] not in chat.ends, e.verdict)
            for e in played[1]
        ]

    return _Draws(batches([0] * len(rows), sampling), draw)


def batches(lengths: Sequence[int], sampling: Sampling) -> list[Batch]:
    """All completions in batches of at most `batch_size`: prompts of like length share one."""
    by_length = sorted(range(len(lengths)), key=lambda row: lengths[row])
    per_prompt = min(sampling.num_samples, sampling.batch_size)
    per_batch = sampling.batch_size // per_prompt
    return [
        Batch(tuple(by_length[start : start + per_batch]), first, min(per_prompt, sampling.num_samples - first))
        for start in range(0, len(by_length), per_batch)
        for first in range(0, sampling.num_samples, per_prompt)
    ]


def _sampled(
    draws: _Draws,
    task: Task,
    rows: Sequence[Row],
    sampling: Sampling,
    known: Mapping[tuple[int, int], Sample],
    out: EvalDirectory | None,
    progress: Callable[[int, int], None],
    crew: Crew,
) -> list[Sample]:
    """Every completion, in the order of rows and samples; those not known are drawn, graded and kept."""
    samples = dict(known)
    for batch, counts in crew.turns(draws.batches):
        if not counts:
            draws.draw(batch)
            continue
        missing = [key for key in batch.completions() if key not in samples]
        if missing:
            graded = _graded(batch, draws, task, rows)
            new = [sample for sample in graded if sample.key not in samples]
            if out:
                out.append(new)
            samples |= {sample.key: sample for sample in new}
        progress(len(samples), len(rows) * sampling.num_samples)
    samples = {sample.key: sample for sample in crew.gather(list(samples.values()))}
    return [samples[row, sample] for row in range(len(rows)) for sample in range(sampling.num_samples)]


def _graded(batch: Batch, draws: _Draws, task: Task, rows: Sequence[Row]) -> list[Sample]:
    start = time.perf_counter()
    drawn = draws.draw(batch)
    drawn_at = time.perf_counter()
    keys = batch.completions()
    verdicts = [own.verdict for own in drawn]
    if None in verdicts:
        verdicts = _verdicts(task, [own.completion for own in drawn], [rows[row] for row, _ in keys])
    share, grading = (drawn_at - start) / len(keys), (time.perf_counter() - drawn_at) / len(keys)
    return [
        Sample(
            row=row,
            sample=sample,
            problem_id=str(rows[row].get("problem_id", row)),
            completion=own.completion,
            verdict=_checked(verdict),
            num_tokens=own.num_tokens,
            truncated=own.truncated,
            sampling_s=share,
            grading_s=grading,
        )
        for (row, sample), own, verdict in zip(keys, drawn, verdicts, strict=True)
    ]


def _verdicts(task: Task, completions: Sequence[Completion], rows: Sequence[Row]) -> list[Verdict | None]:
    """The task's; where it raises although it should not, each completion alone, and an error for those it is about.

    Raises:
        ScgrpoError: the task's own words that it cannot grade at all.
    """
    try:
        verdicts: list[Verdict | None] = list(task.verify(completions, rows))
    except ScgrpoError:
        raise
    except Exception as error:  # noqa: BLE001 (a verifier may be anything; broken is not wrong)
        logger.warning("The verifier of %s raised %r.", task.name, error)
        if len(completions) == 1:
            return [Verdict.error(f"the verifier raised {error!r}")]
        return [_verdicts(task, [own], [row])[0] for own, row in zip(completions, rows, strict=True)]
    if len(verdicts) != len(completions):
        raise VerifierError(
            f"The verifier of task {task.name!r} gave {len(verdicts)} verdicts for {len(completions)} completions.",
            "It must return one for each, in order.",
        )
    return verdicts


def _checked(verdict: Verdict | None) -> Verdict:
    assert verdict is not None
    if verdict.status is Status.GRADED and not math.isfinite(verdict.score):
        return Verdict.error(f"the score is {verdict.score}")
    return verdict


def _tokenized(rows: Sequence[Row], tokenizer: Any, template_kwargs: Mapping[str, Any]) -> list[list[int]]:
    """Prompt ids as TRL makes them: chats by the chat template alone, strings with the usual special tokens."""
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


def _digest_of(rows: Sequence[Row]) -> str:
    """Of the problems: other data, or other tests, are another evaluation."""
    text = json.dumps(list(rows), sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]
