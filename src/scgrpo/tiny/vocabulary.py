"""The tiny model's words, tokenizer and chat template: one word, one token."""

from __future__ import annotations

from typing import Any

from scgrpo.tasks import countdown, reach

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
SPECIAL = (PAD, BOS, EOS, UNK)
# Role marks are ordinary words: decoding keeps them, so a completion that writes one is seen to be wrong.
_ROLES = ("<system>", "<user>", "<assistant>")
_MARKS = ("verified", "attempt", reach.ReachTask.name, countdown.CountdownTask.name, ">", "=", ";")

WORDS = (
    *SPECIAL,
    *_ROLES,
    *_MARKS,
    *countdown.OPERATIONS,
    *reach.OPERATIONS,
    *(str(number) for number in range(max(countdown.MAX_VALUE + 1, reach.MODULUS))),
)
WORD_IDS = {word: index for index, word in enumerate(WORDS)}

# `<bos> <system> ... <user> ... <assistant>`, and `<eos>` after each finished assistant turn.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ ' <' + message['role'] + '> ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ ' <assistant>' }}{% endif %}"
)


def prompt_text(messages: list[dict[str, str]]) -> str:
    """The chat template with a generation prompt, without the cost of a template engine."""
    return " ".join([BOS, *(f"<{message['role']}> {message['content']}" for message in messages), "<assistant>"])


def encode(text: str) -> list[int]:
    """Ids of words separated by single spaces; `KeyError` for a word outside the vocabulary."""
    return [WORD_IDS[word] for word in text.split(" ")]


def make_tokenizer() -> Any:
    """The `PreTrainedTokenizerFast` that is saved beside the weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.WordLevel(WORD_IDS, unk_token=UNK))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side="left",
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


CONTEXT_LENGTH = 256
