"""Train a small model from scratch, export it, and check what came out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scgrpo.errors import ScgrpoError
from scgrpo.tiny.measure import PassRates
from scgrpo.tiny.recipe import Recipe, Shape

# How much better than plain a wrong demonstration may measure, by chance.
WRONG_TOLERANCE = 0.03
MAX_LOGIT_DIFFERENCE = 1e-5


@dataclass(frozen=True)
class BuildReport:
    """What a build made; written as `build.json` beside the weights.

    Attributes:
        pass_rates: measured on held-out problems, by task.
        missed: the bands that were missed, as sentences; empty if the model is as intended.
        max_logit_difference: exported and reloaded model against the trained one.
        duration_s: wall time of the training.
    """

    seed: int
    steps: int
    num_parameters: int
    pass_rates: dict[str, PassRates]
    missed: tuple[str, ...]
    max_logit_difference: float
    duration_s: float

    @property
    def ok(self) -> bool:
        return not self.missed

    def __str__(self) -> str:
        lines = [
            f"{self.num_parameters} parameters, {self.steps} steps, seed {self.seed}, {self.duration_s:.0f} s",
            f"{'task':<16} {'plain':>6} {'verified':>9} {'wrong':>6} {'attempt':>8} {'samples each':>13}",
        ]
        lines += [
            f"{name:<16} {rates.plain:>6.3f} {rates.verified:>9.3f} {rates.wrong:>6.3f} {rates.attempt:>8.3f} "
            f"{rates.num_samples:>13}"
            for name, rates in self.pass_rates.items()
        ]
        return "\n".join([*lines, *(self.missed or ["All bands met."])])


def build(
    recipe: Recipe,
    out_dir: Path,
    *,
    seed: int,
    num_samples: int = 4,
    progress: Callable[[str], None] = print,
) -> BuildReport:
    """Train, export to `out_dir`, reload, measure. A model as large as the embedded one takes minutes of one core;
    larger ones are trained on a GPU if there is one.

    The same recipe, seed and library versions give the same weights on the same kind of CPU, and the same pass rates
    within sampling noise elsewhere. The global random state and the number of threads are left as they were.

    Args:
        num_samples: completions per held-out problem and condition in the check (200 problems per task).

    Raises:
        ScgrpoError: the exported checkpoint does not compute what the trained model computes.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from scgrpo.tiny.measure import measure
    from scgrpo.tiny.train import make_model, train

    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make_model(recipe).to(_device(recipe))
        start = time.monotonic()
        train(model, recipe, seed=seed, progress=progress)
        duration_s = time.monotonic() - start
        model.save_pretrained(out_dir)
        recipe.vocabulary.tokenizer().save_pretrained(out_dir)
        progress(f"written to {out_dir}; now reloaded and measured on held-out problems")
        exported = AutoModelForCausalLM.from_pretrained(out_dir, dtype=torch.float32).to(model.device)
        tokenizer = AutoTokenizer.from_pretrained(out_dir)
        difference = logit_difference(recipe, model, exported)
        rates = {
            subject.task.name: measure(exported, tokenizer, subject.task, num_samples=num_samples, seed=seed)
            for subject in recipe.subjects
        }
    report = BuildReport(
        seed=seed,
        steps=recipe.steps,
        num_parameters=model.num_parameters(),
        pass_rates=rates,
        missed=missed_bands(recipe, rates),
        max_logit_difference=difference,
        duration_s=round(duration_s, 1),
    )
    (out_dir / "build.json").write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return report


def missed_bands(recipe: Recipe, pass_rates: Mapping[str, PassRates]) -> tuple[str, ...]:
    """One sentence per band a model misses."""
    missed = []
    for subject in recipe.subjects:
        name, (low, high) = subject.task.name, subject.plain_band
        rates = pass_rates[name]
        if not low <= rates.plain <= high:
            missed.append(f"{name}: plain pass rate {rates.plain:.3f} is outside {low} to {high}.")
        if rates.verified < (least := subject.verified_min):
            missed.append(f"{name}: pass rate {rates.verified:.3f} with a correct demonstration is below {least}.")
        if rates.wrong > rates.plain + WRONG_TOLERANCE:
            missed.append(
                f"{name}: pass rate {rates.wrong:.3f} with a wrong demonstration is above the plain "
                f"{rates.plain:.3f} by more than {WRONG_TOLERANCE}."
            )
    return tuple(missed)


def logit_difference(recipe: Recipe, trained: Any, exported: Any) -> float:
    """Largest absolute difference of the two models' logits on training documents.

    Raises:
        ScgrpoError: it is not below `MAX_LOGIT_DIFFERENCE`.
    """
    import torch

    from scgrpo.tiny.documents import Documents
    from scgrpo.tiny.train import tensors

    input_ids, _ = tensors(Documents(recipe, seed=0).batch(32), recipe.vocabulary)
    input_ids = input_ids.to(trained.device)
    with torch.no_grad():
        difference = (trained(input_ids).logits - exported(input_ids).logits).abs().max().item()
    if not difference < MAX_LOGIT_DIFFERENCE:
        raise ScgrpoError(
            f"The exported checkpoint's logits differ from the trained model's by {difference:.2g}.",
            "Use a transformers version inside the range the package declares.",
        )
    return difference


def _device(recipe: Recipe) -> str:
    """Small models are as fast on one core, and the same everywhere."""
    import torch

    return "cuda" if recipe.shape.hidden_size > Shape.hidden_size and torch.cuda.is_available() else "cpu"


@contextmanager
def _one_thread() -> Iterator[None]:
    """Matrices this small are fastest on one thread, and one thread adds up in one order."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
