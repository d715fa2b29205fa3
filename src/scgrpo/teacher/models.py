"""What the conditioned pass needs to know about a Hugging Face causal LM: its parts, its mode, its dropout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, distributed, nn
from torch.nn.modules.dropout import _DropoutNd

from scgrpo.divergence import OutputHead
from scgrpo.errors import ConfigError


def load_teacher(name_or_path: str, *, trust_remote_code: bool = False) -> tuple[Any, dict[str, int]]:
    """A causal LM to be read only, in evaluation mode and the precision it was saved in, and its vocabulary.

    Raises:
        ConfigError: it cannot be read.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=trust_remote_code)
        model = AutoModelForCausalLM.from_pretrained(
            name_or_path, dtype="auto", trust_remote_code=trust_remote_code, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"The teacher {name_or_path!r} cannot be read: {reason}",
            "Give a hub id, or a folder with a model and its tokenizer, such as `model` in a run directory.",
        ) from error
    return model.eval().requires_grad_(False), tokenizer.get_vocab()


def base_causal_lm(model: nn.Module) -> Any:
    """The Hugging Face model itself, inside a PEFT wrapper or not."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def backbone(model: nn.Module) -> Any:
    """The model without its output head."""
    return base_causal_lm(model).base_model


def output_head(model: nn.Module, temperature: float) -> OutputHead:
    """Output head of a causal LM: weights, bias, and the logit scale and soft-cap its configuration names.

    FSDP2's sharded weights (DTensor) are gathered; call it where the wrapper's forward would. Those of ZeRO-3 are
    whole within `gathered_head` only.

    Raises:
        ConfigError: the head carries a LoRA adapter, which its weight alone does not show.
    """
    causal_lm = base_causal_lm(model)
    layer, config = causal_lm.get_output_embeddings(), causal_lm.config.get_text_config()
    if hasattr(layer, "base_layer"):
        raise ConfigError(
            "The output head carries a PEFT adapter; its logits are more than its weight times the hidden state.",
            "Leave the head out of LoraConfig.target_modules, or train it whole with modules_to_save.",
        )
    return OutputHead(
        weight=_whole(layer.weight),
        bias=None if getattr(layer, "bias", None) is None else _whole(layer.bias),
        scale=logit_scale(config),
        softcap=getattr(config, "final_logit_softcapping", None),
        temperature=temperature,
    )


def gathered_head(model: nn.Module) -> AbstractContextManager[Any]:
    """Holds the whole output head where DeepSpeed ZeRO-3 has split it among the processes, all of which must enter.

    ZeRO-3 gathers a weight for the forward of the module that owns it; the conditioned pass reads the head without.
    """
    split = _zero3_head(model)
    if not split:
        return nullcontext()
    from deepspeed import zero

    # One that DeepSpeed holds for another module (a tied embedding) is its own to give back.
    return zero.GatheredParameters([parameter for parameter in split if not _is_available(parameter)])


def logit_scale(config: Any) -> float:
    """Factor a model family applies to its logits; families differ in its name and in whether they divide."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return float(getattr(config, name))
    divisor = getattr(config, "logits_scaling", None)
    if divisor is None:
        return 1.0
    return float(divisor) if config.model_type == "hyperclovax" else 1.0 / float(divisor)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode, then back as each was. With dropout on, two passes over the *same* context
    differ as much as the signal does."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def has_dropout(model: nn.Module) -> bool:
    """Whether two passes in training mode may differ: any dropout module or configured rate above 0."""
    if any(isinstance(m, _DropoutNd) and m.p > 0 for m in model.modules()):
        return True
    # Attention applies its rate without a module of its own; configurations name it freely.
    rates = base_causal_lm(model).config.get_text_config().to_dict()
    return any(("drop" in key) and isinstance(rate, float) and rate > 0 for key, rate in rates.items())


def reshard(model: nn.Module) -> None:
    """Give gathered weights back after a pass. accelerate's FSDP2 units keep those of the head after a forward, for
    the backward to come, and ZeRO-3 may, for a later use: after a pass without a backward they only take memory."""
    if not distributed.is_available() or not distributed.is_initialized():
        return
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    for parameter in _zero3_head(model):
        if _is_available(parameter) and not parameter.ds_active_sub_modules and not parameter.ds_persist:
            parameter.partition()


def _zero3_head(model: nn.Module) -> list[Any]:
    """Parameters of the output head, if ZeRO-3 has split them."""
    parameters = base_causal_lm(model).get_output_embeddings().parameters()
    return [parameter for parameter in parameters if hasattr(parameter, "ds_id")]


def _is_available(parameter: Any) -> bool:
    """Whether ZeRO-3 has gathered this parameter."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    return bool(parameter.ds_status == ZeroParamStatus.AVAILABLE)


def _whole(weight: Tensor) -> Tensor:
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight
