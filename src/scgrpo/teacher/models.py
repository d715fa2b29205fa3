"""What the conditioned pass needs to know about a Hugging Face causal LM: its parts, its mode, its dropout."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
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


def key_value_cache(model: nn.Module, cache: Any) -> dict[str, Any]:
    """The argument of `forward` and `generate` for cached keys and values: transformers has renamed it."""
    renamed = "cache" in inspect.signature(type(model).forward).parameters
    return {"cache" if renamed else "past_key_values": cache}


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
    """Holds the whole output head where its weights are split among the processes, all of which must enter.

    ZeRO-3 and FSDP2 gather a weight for the forward of the module that owns it; the conditioned pass reads the head
    without. FSDP2 gathers it in the precision of the forward, which `output_head` alone does not; gradients would not
    find their way back through it.
    """
    layer = base_causal_lm(model).get_output_embeddings()
    if _is_fsdp2_unit(layer) and not torch.is_grad_enabled():
        return _unsharded(layer)
    split = _zero3_head(model)
    if not split:
        return nullcontext()
    from deepspeed import zero

    # One that DeepSpeed holds for another module (a tied embedding) is its own to give back.
    return zero.GatheredParameters([parameter for parameter in split if not _is_available(parameter)])


def in_autocast(head: OutputHead, device_type: str) -> OutputHead:
    """On a GPU autocast's precision holds for the product with the head, too, as it does for the policy's own."""
    mixed = device_type != "cpu" and torch.is_autocast_enabled(device_type)
    return replace(head, compute_dtype=torch.get_autocast_dtype(device_type)) if mixed else head


def through_wrapper(wrapper: nn.Module, model: nn.Module) -> Callable[[Callable[[], Any]], Any]:
    """Runs a function inside the distributed wrapper's forward, where sharded parameters are gathered.

    Args:
        wrapper: what is called to train: FSDP, DDP, a DeepSpeed engine, or under FSDP2 the model itself.
        model: the module inside whose forward the wrapper calls.
    """

    def redirect(function: Callable[[], Any]) -> Any:
        own = vars(model).get("forward")  # accelerate and verl put one into the instance

        def restore() -> None:
            if own is None:
                vars(model).pop("forward", None)
            else:
                model.forward = own

        def forward() -> Any:
            restore()  # the function may call the real one
            return function()

        model.forward = forward
        try:
            return wrapper()
        finally:
            restore()

    return redirect


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
    for module in model.modules():
        if _is_fsdp2_unit(module):
            module.reshard()  # type: ignore[operator]
    for parameter in _zero3_head(model):
        if _is_available(parameter) and not parameter.ds_active_sub_modules and not parameter.ds_persist:
            parameter.partition()


def _is_fsdp2_unit(module: nn.Module) -> bool:
    if not distributed.is_available() or not distributed.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


@contextmanager
def _unsharded(unit: Any) -> Iterator[None]:
    unit.unshard()
    try:
        yield
    finally:
        unit.reshard()


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
