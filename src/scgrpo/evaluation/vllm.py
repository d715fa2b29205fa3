"""vLLM behind the `Sampler` protocol. Imported only when it is asked for; needs a GPU and `pip install vllm`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scgrpo.errors import ConfigError, MissingExtraError
from scgrpo.evaluation.conversation import Sampled
from scgrpo.evaluation.episodes import NewSampler, SampleTurn
from scgrpo.evaluation.samplers import Sampling, until_end

# vLLM takes seeds of 64 bits, and adds the number of a completion to that of its prompt.
_SEED_BITS = 62


class VllmSampler:
    """`vllm.LLM.generate` on token ids.

    Every prompt has a seed of its own, so that its completions do not depend on what else is in the batch, as far as
    vLLM's kernels do not either.

    Args:
        model: hub id or folder.
        tokenizer: its tokenizer; its end tokens, and those of the model's generation config, end a completion.
        revision: of a model on the hub.
        dtype: of the weights; "auto": as they are stored.
        options: further arguments of `vllm.LLM`, such as `{"tensor_parallel_size": 2, "max_model_len": 32768}`.

    Raises:
        MissingExtraError: vLLM is not installed.
        ConfigError: vLLM refuses the model or the options.
    """

    def __init__(
        self,
        model: str,
        tokenizer: Any,
        *,
        ends: Collection[int] | None = None,
        revision: str | None = None,
        dtype: str = "auto",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            import vllm
        except ImportError as error:
            raise MissingExtraError(
                f"The engine vllm cannot be used: {error}.",
                "Install it into this environment (pip install vllm; it needs a GPU), or use --engine transformers.",
            ) from error
        self._params: Callable[..., Any] = vllm.SamplingParams
        longest = (options or {}).get("max_model_len")
        self.max_prompt_tokens: int | None = None if longest is None else int(longest) - 1
        self.ends = set(ends or ()) | ({tokenizer.eos_token_id} - {None})
        # Its own sampling settings must not leak in: what is not set is off.
        settings = {"model": model, "dtype": dtype, "generation_config": "vllm", **(options or {})}
        if revision is not None:
            settings["revision"] = revision
        try:
            self._llm = vllm.LLM(**settings)
        except (ValueError, TypeError, RuntimeError, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ConfigError(
                f"vLLM cannot load {model!r}: {reason}",
                "Check the model, --dtype, --engine_options, and that there is a GPU; or use --engine transformers.",
            ) from error
        self.identity: dict[str, Any] = {
            "engine": "vllm",
            "weights": _digest(Path(model)) if Path(model).is_dir() else revision,
            "dtype": dtype,
            "engine_options": dict(options or {}),
        }

    def sample(self, prompts: Sequence[Sequence[int]], count: int, sampling: Sampling, seed: int) -> list[list[int]]:
        return self._generate(prompts, count, sampling, seed, sampling.max_new_tokens)

    @contextmanager
    def turns(self, sampling: Sampling, seed: int) -> Iterator[NewSampler]:
        """Every turn is a prompt of all tokens before it; vLLM's prefix cache has most of them."""
        num_calls = 0

        def new_sampler(num_rows: int) -> SampleTurn:
            so_far: list[list[int]] = [[] for _ in range(num_rows)]

            def sample_turn(
                rows: Sequence[int], added: Sequence[Sequence[int]], max_new_tokens: int
            ) -> list[Sampled]:
                nonlocal num_calls
                num_calls += 1
                for row, ids in zip(rows, added, strict=True):
                    so_far[row] += ids
                prompts = [so_far[row] for row in rows]
                taken = self._generate(prompts, 1, sampling, _seed(seed, num_calls), max_new_tokens)
                for row, ids in zip(rows, taken, strict=True):
                    so_far[row] += ids
                return [Sampled(ids) for ids in taken]

            return sample_turn

        yield new_sampler

    def _generate(
        self, prompts: Sequence[Sequence[int]], count: int, sampling: Sampling, seed: int, max_tokens: int
    ) -> list[list[int]]:
        params = [
            self._params(
                n=count,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k or -1,
                max_tokens=max_tokens,
                seed=_seed(seed, place),
                stop_token_ids=sorted(self.ends),
                skip_special_tokens=False,
                detokenize=False,
            )
            for place in range(len(prompts))
        ]
        inputs = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._llm.generate(inputs, params, use_tqdm=False)
        return [until_end(list(one.token_ids), self.ends) for output in outputs for one in output.outputs]


def _seed(seed: int, place: int) -> int:
    digest = hashlib.sha256(f"{seed}:{place}".encode()).digest()
    return int.from_bytes(digest[:8]) >> (64 - _SEED_BITS)


def _digest(folder: Path) -> str:
    """Of names, sizes and beginnings of the weight files: tells checkpoints apart without reading them whole."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        with path.open("rb") as file:
            digest.update(f"{path.name} {path.stat().st_size}".encode() + file.read(1 << 20))
    return digest.hexdigest()[:16]
