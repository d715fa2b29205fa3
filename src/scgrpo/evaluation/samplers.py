"""What draws tokens: one small protocol, and transformers behind it (vLLM: `scgrpo.evaluation.vllm`)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from scgrpo.errors import ConfigError
from scgrpo.evaluation.episodes import NewSampler, in_step

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. Of the model's own generation config only the end tokens apply.

    Raises:
        ConfigError: settings out of range.
    """

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
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1 or self.top_k < 0:
            raise ConfigError(
                f"temperature={self.temperature}, top_p={self.top_p}, top_k={self.top_k} cannot work.",
                "Give temperature >= 0, 0 < top_p <= 1, top_k >= 0 (0 = off).",
            )
        if self.temperature == 0 and self.num_samples > 1:
            raise ConfigError(
                f"Temperature 0 gives {self.num_samples} equal completions per problem.",
                "Set k=1, or a temperature above 0.",
            )


@runtime_checkable
class Sampler(Protocol):
    """Draws completions. The same prompts, settings and seed give the same tokens, whatever was drawn before.

    Attributes:
        ends: ids of the tokens that end a completion.
        identity: what besides the settings decides what is drawn: the engine, the weights. JSON values.
        max_prompt_tokens: with a prompt per step, a conversation whose next one is longer is cut off. None: no limit
            is known.
    """

    @property
    def ends(self) -> Collection[int]: ...

    @property
    def identity(self) -> dict[str, Any]: ...

    @property
    def max_prompt_tokens(self) -> int | None: ...

    def sample(self, prompts: Sequence[Sequence[int]], count: int, sampling: Sampling, seed: int) -> list[list[int]]:
        """`count` completions of each prompt, those of one prompt together, each up to and with its end token."""
        ...

    def turns(self, sampling: Sampling, seed: int) -> AbstractContextManager[NewSampler]:
        """For `play`: what samples the turns of conversations, while the context lasts."""
        ...


class TransformersSampler:
    """`model.generate`: a transformers causal LM, on its device, and its tokenizer.

    Args:
        most: where processes share the weights: a number of each -> the largest, on each.
    """

    def __init__(self, model: Any, tokenizer: Any, most: Callable[[int], int] | None = None) -> None:
        self.model, self.tokenizer, self.most = model, tokenizer, most
        self.ends = end_tokens(model, tokenizer)

    @property
    def max_prompt_tokens(self) -> int | None:
        from scgrpo.evaluation.turns import longest_prompt

        return longest_prompt(self.model)

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "engine": "transformers",
            "weights": _digest(self.model),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
        }

    def sample(self, prompts: Sequence[Sequence[int]], count: int, sampling: Sampling, seed: int) -> list[list[int]]:
        config = generation_config(self.tokenizer, self.ends, sampling, count)
        with _sampling_state(self.model, seed):
            return [until_end(ids, self.ends) for ids in _generate(self.model, prompts, config)]

    @contextmanager
    def turns(self, sampling: Sampling, seed: int) -> Iterator[NewSampler]:
        from scgrpo.evaluation.turns import Turns, idle

        config = generation_config(self.tokenizer, self.ends, sampling, 1)
        new_sampler = partial(Turns, self.model, config)
        with _sampling_state(self.model, seed):
            if self.most is None:
                yield new_sampler
            else:
                with in_step(new_sampler, self.most, lambda _: idle(self.model, config)) as together:
                    yield together


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


def generation_config(tokenizer: Any, ends: Collection[int], sampling: Sampling, count: int) -> Any:
    """transformers' GenerationConfig of these settings, for `count` completions of each prompt."""
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


def end_tokens(model: Any, tokenizer: Any) -> set[int]:
    """End tokens of the model's generation config (None: of no model) and of the tokenizer."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = own if isinstance(own, list) else [own]
    return {token for token in [*ends, tokenizer.eos_token_id] if token is not None}


def until_end(ids: list[int], ends: Collection[int]) -> list[int]:
    """The tokens up to and with the first end token."""
    for position, token in enumerate(ids):
        if token in ends:
            return ids[: position + 1]
    return ids


def _digest(model: Any) -> str:
    """Of the first values of every weight tensor: tells models apart, also the steps of one training, at once."""
    import torch

    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        values = weight.detach().reshape(-1)[:64].to("cpu", torch.float32)
        digest.update(f"{name} {tuple(weight.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()[:16]


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
