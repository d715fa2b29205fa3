"""Words, tokenizer and chat template of the small models: one word, one token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from scgrpo.tasks.base import Completion
from scgrpo.tasks.environment import as_messages

PAD, BOS, EOS, UNK = "<pad>", "<bos>", "<eos>", "<unk>"
SPECIAL = (PAD, BOS, EOS, UNK)
# Role marks are ordinary words: decoding keeps them, so a completion that writes one is seen to be wrong.
_ROLES = ("<system>", "<user>", "<assistant>")
# What the `tiny` teacher template puts before a demonstration.
_MARKS = ("verified", "attempt")

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


def completion_words(completion: Completion) -> list[tuple[str, bool]]:
    """What follows the prompt, word by word, and whether the model writes it: actions and end tokens, not what the
    chat template puts between them."""
    words: list[tuple[str, bool]] = []
    for message in as_messages(completion):
        own = message["role"] == "assistant"
        parts = message["content"].split(" ")
        parts = [*parts, EOS] if own else [f"<{message['role']}>", *parts, "<assistant>"]
        words += [(part, own) for part in parts]
    return words


@dataclass(frozen=True)
class Vocabulary:
    """The words a model knows.

    Attributes:
        task_words: the words of its tasks, each once.
        context_length: most tokens of a sequence.
    """

    task_words: tuple[str, ...]
    context_length: int

    @property
    def words(self) -> tuple[str, ...]:
        return (*SPECIAL, *_ROLES, *_MARKS, *self.task_words)

    @cached_property
    def ids(self) -> dict[str, int]:
        return {word: index for index, word in enumerate(self.words)}

    def encode(self, text: str) -> list[int]:
        """Ids of words separated by single spaces; `KeyError` for a word outside the vocabulary."""
        return [self.ids[word] for word in text.split(" ")]

    def tokenizer(self) -> Any:
        """The same vocabulary as a Hugging Face tokenizer."""
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        raw = Tokenizer(models.WordLevel(self.ids, unk_token=UNK))
        raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=raw,
            pad_token=PAD,
            bos_token=BOS,
            eos_token=EOS,
            unk_token=UNK,
            padding_side="left",
            model_max_length=self.context_length,
            clean_up_tokenization_spaces=False,
        )
        tokenizer.chat_template = CHAT_TEMPLATE
        return tokenizer
