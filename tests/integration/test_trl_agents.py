"""Multi-turn rollouts through TRL's environments: tool output gets no credit, and demonstrations are transcripts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TOOLS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]


class GuessEnv:
    """Guess a number; the secret is the row's."""

    def reset(self, secret: int = 0, **_: Any) -> str:
        self.secret, self.ok = secret, False
        return " Between 1 and 3."

    def guess(self, number: int) -> str:
        """
        Guess the secret number.

        Args:
            number: The number to guess.

        Returns:
            Whether the guess is right.
        """
        self.ok = self.ok or int(number) == self.secret
        return "correct" if int(number) == self.secret else "wrong"

    def get_reward(self) -> float:
        return float(self.ok)


@pytest.fixture(scope="module")
def agent_tokenizer() -> Any:
    import trl
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    template = (Path(trl.__file__).parent / "chat_templates/qwen3.jinja").read_text()
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokens.train_from_iterator(
        [template] * 3, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, special_tokens=SPECIAL)
    )
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, padding_side="left", **names)
    tokenizer.chat_template = template
    tokenizer.add_tokens(TOOLS)
    return tokenizer


@pytest.mark.parametrize("refilled", [False, True])
def test_an_environment_is_trained_on_with_tool_output_masked(
    agent_tokenizer: Any, tmp_path: Path, refilled: bool
) -> None:
    """Refilled: of the rollouts sampled first none is solved, and dynamic sampling replaces them."""
    from datasets import Dataset
    from transformers import PrinterCallback, Qwen3Config, Qwen3ForCausalLM

    from scgrpo import SCGRPOConfig, SCGRPOTrainer

    class Scripted(SCGRPOTrainer):
        first_turns = 0

        def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
            out = []
            answered = "<tool_response>" in self._tokenizer.decode(prompt_ids[0])
            self.first_turns += not answered
            lost = refilled and self.first_turns % 2
            for row in range(len(prompt_ids)):
                if answered:
                    text = "<think>\n\n</think>\n\nDone.<|im_end|>"
                else:
                    call = json.dumps({"name": "guess", "arguments": {"number": 2 if lost else 1 + row % 2}})
                    text = f"<think>\n\n</think>\n\n<tool_call>\n{call}\n</tool_call><|im_end|>"
                out.append(self._tokenizer(text, add_special_tokens=False)["input_ids"])
            return out, None

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Qwen3Config(
        vocab_size=len(agent_tokenizer), num_key_value_heads=1, head_dim=16, max_position_embeddings=4096, **shape
    )
    rows = [{"prompt": [{"role": "user", "content": "Guess the number."}], "secret": 1} for _ in range(8)]
    arguments = SCGRPOConfig(
        str(tmp_path),
        teacher_template="agent",
        dynamic_sampling_max_rounds=int(refilled),
        overlong_frac=0.5 if refilled else 0.0,
        num_generations=4,
        per_device_train_batch_size=4,
        max_completion_length=400,
        max_steps=2,
        learning_rate=1e-3,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Scripted(
        Qwen3ForCausalLM(config),
        None,
        arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=agent_tokenizer,
        environment_factory=GuessEnv,
    )
    trainer.remove_callback(PrinterCallback)
    seen: list[Any] = []
    trainer.listeners.append(seen.append)
    trainer.train()
    assert len(seen) == 2
    assert bool(trainer._sampling) == refilled
    assert trainer.reward_func_names[trainer._success] == "GuessEnv"
    scored = seen[0]
    assert scored.groups.solved.tolist() == [True, False, True, False]
    assert sorted(scored.plan.rollout.tolist()) == [0, 1, 2, 3]
    for pair, row in enumerate(scored.plan.rollout.tolist()):
        ids = scored.rollouts.completion_ids[row]
        counted = scored.groups.mask[row, : len(ids)]
        hidden = agent_tokenizer.decode([i for i, kept in zip(ids, counted.tolist(), strict=True) if not kept])
        assert re.search("correct" if scored.groups.solved[row] else "wrong", hidden)  # what the tool said
        assert "Done." in agent_tokenizer.decode([i for i, kept in zip(ids, counted.tolist(), strict=True) if kept])
        assert not scored.evidence.token_kl[pair, : len(ids)][~counted].any()
        assert scored.evidence.token_kl[pair, : len(ids)][counted].max() > 0
        shown = scored.demonstrations[int(scored.plan.demonstration[pair])].text
        assert "guess" in shown
        assert "correct" in shown  # a demonstration is the whole transcript, tool output included
        assert shown in agent_tokenizer.decode(scored.teacher_prompt_ids[pair])
