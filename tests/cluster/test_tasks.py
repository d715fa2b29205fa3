"""Tasks inside verl's own parts, without Ray: its data set, its reward manager, its agent-loop worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("verl")

from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.experimental.agent_loop import AgentLoopWorker
from verl.trainer.ppo.metric_utils import process_validation_metrics
from verl.trainer.ppo.reward import load_reward_manager
from verl.trainer.ppo.v1 import agent_loop_tq
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn
from verl.utils.tensordict_utils import get_tensordict
from verl.workers.rollout.replica import TokenOutput

import scgrpo.integrations.verl.agent_loop  # noqa: F401 (what the plug-in does)
from scgrpo.integrations.verl.data import verl_row, write_parquet
from scgrpo.tasks import get_task

EOS, THINK = 2, "{% if enable_thinking is defined %}{% if not enable_thinking %}!{% endif %}{% endif %}"
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}" + THINK + "{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n" + THINK + "{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A token per byte, in Qwen's chat format."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<|im_start|>", "<|im_end|>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*special, *letters])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    found = PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token="<|im_end|>",
        additional_special_tokens=["<|im_start|>"],
    )
    found.chat_template = TEMPLATE
    return found


@pytest.fixture(scope="module")
def model_path(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a model's: tokenizer, config, and generation config."""
    from transformers import GenerationConfig, Qwen3Config

    path = tmp_path_factory.mktemp("model")
    tokenizer.save_pretrained(path)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1}
    Qwen3Config(vocab_size=len(tokenizer), eos_token_id=EOS, pad_token_id=0, **sizes).save_pretrained(path)
    GenerationConfig(eos_token_id=[EOS, 0], pad_token_id=0).save_pretrained(path)
    return path


def written(path: Path, name: str, options: Mapping[str, Any], rows: int = 3) -> Path:
    task = get_task(name, **options)
    found = enumerate(task.rows("train", rows))
    write_parquet(path, [verl_row(name, options, task, "train", i, row) for i, row in found])
    return path


def dataset(path: Path | list[Path], tokenizer: Any, **settings: Any) -> RLHFDataset:
    files = [str(p) for p in (path if isinstance(path, list) else [path])]
    own = {"filter_overlong_prompts_workers": 1, "return_raw_chat": True, "filter_overlong_prompts": False}
    config = OmegaConf.create({"cache_dir": str(Path(files[0]).parent / "cache"), **own, **settings})
    return RLHFDataset(files, tokenizer, config)


def test_verl_reads_what_was_written(tmp_path: Path, tokenizer: Any) -> None:
    game = written(tmp_path / "a.parquet", "guess_number", {"min_numbers": 20})
    words = written(tmp_path / "b.parquet", "countdown", {})
    rows = dataset([game, words], tokenizer)
    assert len(rows) == 6, "two tasks in one data set"
    first = rows[0]
    assert first["raw_prompt"] == get_task("guess_number", min_numbers=20).rows("train", 1)[0]["prompt"]
    assert [rows[i]["index"] for i in range(6)] == [0, 1, 2, 0, 1, 2]
    assert [rows[i]["agent_name"] for i in (0, 5)] == ["scgrpo_environment", "single_turn_agent"]
    short = dataset(game, tokenizer, filter_overlong_prompts=True, max_prompt_length=10)
    assert len(short) == 0, "verl can count its tokens"
    # As the trainer hands rows on: lists of Python values for the workers.
    batch = get_tensordict(collate_fn([rows[0], rows[5]]))
    info = batch["extra_info"][0]
    info = getattr(info, "data", info)
    assert json.loads(info["row"]) == get_task("guess_number", min_numbers=20).rows("train", 1)[0]


def reward_config(model_path: Path, manager: str, **kwargs: Any) -> Any:
    function = {"path": "pkg://scgrpo.integrations.verl.reward", "name": "compute_score", "reward_kwargs": kwargs}
    return OmegaConf.create(
        {
            "reward": {
                "custom_reward_function": function,
                "reward_manager": {"source": "register", "name": manager},
                "reward_model": {"enable": False},
            },
            "actor_rollout_ref": {"model": {"path": str(model_path), "tokenizer_path": None}},
        }
    )


def graded(config: Any, tokenizer: Any, row: Mapping[str, Any], *texts: str) -> list[dict[str, Any]]:
    """By verl's reward manager, all at once as its reward worker does it."""

    async def run() -> list[dict[str, Any]]:
        manager = load_reward_manager(config, tokenizer)
        tasks = []
        for text in texts:
            ids = torch.tensor([[*tokenizer(text)["input_ids"], EOS]])
            batch = TensorDict({"responses": ids, "attention_mask": torch.ones_like(ids)}, batch_size=1)
            columns = ("data_source", "reward_model", "extra_info")
            fields = {key: np.array([dict(row[key]) if key != "data_source" else row[key]]) for key in columns}
            tasks.append(manager.run_single(DataProto(batch=batch, non_tensor_batch=fields)))
        return await asyncio.gather(*tasks)

    return asyncio.run(run())


@pytest.mark.parametrize("manager", ["naive", "dapo"])
def test_verl_s_reward_managers_get_verdicts(tmp_path: Path, tokenizer: Any, model_path: Path, manager: str) -> None:
    pytest.importorskip("math_verify")
    row = get_task("math").canned().row
    task = get_task("math")
    options = {"num_workers": 1}
    write_parquet(tmp_path / "m.parquet", [verl_row("math", {}, task, "train", 0, row)])
    prompt = dataset(tmp_path / "m.parquet", tokenizer)[0]
    config = reward_config(model_path, manager, task_options={"math": options})
    texts = ["It is \\boxed{0.75}.", "It is \\boxed{\\frac{1}{4}}."]
    right, wrong = graded(config, tokenizer, prompt, *texts)
    assert (right["reward_score"], wrong["reward_score"]) == (1.0, 0.0)
    assert right["reward_extra_info"]["verdict"] == wrong["reward_extra_info"]["verdict"] == "graded"
    broken = {**prompt, "extra_info": {**prompt["extra_info"], "task": "mathe"}}
    (found,) = graded(config, tokenizer, broken, texts[0])
    assert found["reward_score"] == 0.0
    assert found["reward_extra_info"]["verdict"] == "error"
    assert "Did you mean 'math'" in found["reward_extra_info"]["detail"]


def test_a_verifier_that_crashes_or_hangs_in_verl(
    tmp_path: Path, tokenizer: Any, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bad_tasks.py").write_text(
        "import time\n"
        "from scgrpo.tasks import Verdict\n"
        "from scgrpo.tasks.reach import ReachTask\n"
        "class Bad(ReachTask):\n"
        "    def verify(self, completions, rows):\n"
        "        if completions[0] == 'hang':\n"
        "            time.sleep(20)\n"
        "        if completions[0] == 'crash':\n"
        "            raise SystemError('gone')\n"
        "        return [Verdict(1.0)]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    prompt = dataset(written(tmp_path / "b.parquet", "bad_tasks:Bad", {}), tokenizer)[0]
    config = reward_config(model_path, "naive", deadline_s=5.0)
    found = graded(config, tokenizer, prompt, "crash", "hang", "fine")
    infos = [f["reward_extra_info"] for f in found]
    assert [info["verdict"] for info in infos] == ["error", "timeout", "graded"]
    assert [f["reward_score"] for f in found] == [0.0, 0.0, 1.0]
    # verl's validation: texts are passed over, and what has no verdict is not in `acc_graded`.
    columns = {key: [info[key] for info in infos] for key in infos[0]}
    metrics = process_validation_metrics(["bad"] * 3, ["u"] * 3, columns)["bad"]
    assert metrics["acc_graded"]["mean@1"] == 1.0
    assert metrics["graded"]["mean@3"] == pytest.approx(1 / 3)
    assert metrics["acc"]["mean@3"] == pytest.approx(1 / 3)
    assert not {"verdict", "detail"} & metrics.keys()


class Server:
    """Says what it is told to say; log-probs are minus the token."""

    def __init__(self, tokenizer: Any, speak: Callable[[str], str], log_probs: bool = True) -> None:
        self.tokenizer, self.speak, self.log_probs = tokenizer, speak, log_probs
        self.asked: list[tuple[str, list[int], dict[str, Any]]] = []

    async def generate(
        self, request_id: str, *, prompt_ids: list[int], sampling_params: dict[str, Any]
    ) -> TokenOutput:
        self.asked.append((request_id, list(prompt_ids), dict(sampling_params)))
        ids = [*self.tokenizer(self.speak(self.tokenizer.decode(prompt_ids)))["input_ids"], EOS]
        ids = ids[: sampling_params.pop("max_tokens")]
        step = len(self.asked)
        return TokenOutput(
            token_ids=ids,
            log_probs=[-float(token) for token in ids] if self.log_probs else None,
            num_preempted=0,
            extra_fields={"global_steps": step, "min_global_steps": step, "max_global_steps": step},
        )


def trainer_config(model_path: Path, **data: Any) -> Any:
    lengths = {"max_prompt_length": 1000, "max_response_length": 900, **data}
    rollout = {"prompt_length": lengths["max_prompt_length"], "response_length": lengths["max_response_length"]}
    return OmegaConf.merge(
        reward_config(model_path, "naive"),
        OmegaConf.create(
            {
                "data": {**lengths, "apply_chat_template_kwargs": {"enable_thinking": False}},
                "actor_rollout_ref": {"rollout": {**rollout, "calculate_log_probs": True}},
            }
        ),
    )


def ran(
    monkeypatch: pytest.MonkeyPatch, config: Any, tokenizer: Any, server: Server, prompt: Mapping[str, Any]
) -> tuple[list[str], TensorDict]:
    """One session of verl's worker, with verl's postprocessing: the rows it puts into its queue."""
    worker_cls = agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class
    assert issubclass(worker_cls, AgentLoopWorker)
    worker = object.__new__(worker_cls)
    for name in ("processor", "reward_loop_worker_handles"):
        setattr(worker, name, None)
    worker.config, worker.llm_client, worker.tokenizer = config, server, tokenizer
    worker.rollout_config = config.actor_rollout_ref.rollout
    worker.hf_model_type, worker.dataset_cls, worker.tools = "qwen3", RLHFDataset, []
    worker.distillation_enabled, worker.mm_processor_kwargs = False, {}
    put: list[Any] = []

    async def kv_put(**what: Any) -> None:
        put.append(what)

    monkeypatch.setattr(agent_loop_tq.tq, "async_kv_batch_put", kv_put)
    trajectory = {"step": 1, "sample_index": 0, "rollout_n": 0, "validate": False}
    columns = {key: value for key, value in prompt.items() if not isinstance(value, torch.Tensor)}
    columns |= {"uid": "u1", "session_id": 4, "global_steps": 1}

    async def session() -> None:
        sampling = {"temperature": 1.0, "top_p": 1.0, "logprobs": True}
        await worker._run_agent_loop(sampling, trajectory, trace=False, **columns)

    asyncio.run(session())
    (what,) = put
    return what["keys"], what["fields"]


def halving(text: str) -> str:
    """Guesses a number from the hints of a conversation, by halves."""
    low, high = (int(word) for word in text.split("whole number from ")[1].split(".")[0].split(" to "))
    for line in text.split("<|im_end|>"):
        hint = line.rpartition("The number is ")[2]
        if hint.startswith("higher"):
            low = max(low, int(hint.split(" than ")[1].split(".")[0]) + 1)
        if hint.startswith("lower"):
            high = min(high, int(hint.split(" than ")[1].split(".")[0]) - 1)
    return f"<action>{(low + high) // 2}</action>"


def plain(value: Any) -> Any:
    return getattr(value, "data", value)


@pytest.fixture
def prompt(tmp_path: Path, tokenizer: Any) -> Any:
    return dataset(written(tmp_path / "g.parquet", "guess_number", {"min_numbers": 40}), tokenizer)[0]


def test_a_growing_conversation_is_one_output(
    monkeypatch: pytest.MonkeyPatch, prompt: Any, tokenizer: Any, model_path: Path
) -> None:
    server = Server(tokenizer, halving)
    keys, rows = ran(monkeypatch, trainer_config(model_path), tokenizer, server, prompt)
    assert keys == ["u1_4_0"]
    extra = plain(rows["extra_fields"][0])
    own = extra["reward_extra_info"]
    assert (own["verdict"], own["acc"], own["score"], extra["done"]) == ("graded", 1.0, 1.0, True)
    # What the model saw and said, in text: the chat template's, with its arguments.
    whole = [*prompt["raw_prompt"], *extra["transcript"]]
    text = tokenizer.apply_chat_template(whole, tokenize=False, enable_thinking=False)
    seen = tokenizer.decode(rows["prompts"][0]) + tokenizer.decode(rows["responses"][0])
    assert seen == text.removesuffix("\n")
    assert seen.count("assistant\n!") == len(server.asked) > 3, "thinking is off in every turn"
    # The mask covers what the model said, end tokens included, and the log-probs are those of just these tokens.
    ids, mask = rows["responses"][0].tolist(), rows["response_mask"][0].tolist()
    assert [i for i, m in zip(ids, mask, strict=True) if m] == [
        token
        for message in extra["transcript"]
        if message["role"] == "assistant"
        for token in [*tokenizer(message["content"])["input_ids"], EOS]
    ]
    assert rows["rollout_log_probs"][0].tolist() == [-float(i) * m for i, m in zip(ids, mask, strict=True)]
    assert rows["rm_scores"][0].tolist() == [0.0] * (len(ids) - 1) + [1.0]
    # Turns of a session go to one server, each with what is left of the budget.
    assert len({request for request, _, _ in server.asked}) == 1
    for number, (_, context, sampling) in enumerate(server.asked):
        said = len(context) - len(rows["prompts"][0])
        assert context == [*rows["prompts"][0].tolist(), *ids[:said]]
        assert sampling["max_tokens"] == 900 - said
        assert number == 0 or mask[said - 1] == 0
    assert (extra["min_global_steps"], extra["max_global_steps"]) == (1, len(server.asked))
    assert plain(rows["num_turns"][0]) == 1 + len(extra["transcript"])


def test_turns_with_prompts_of_their_own_are_outputs_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tokenizer: Any, model_path: Path
) -> None:
    options = {"min_numbers": 40, "prompting": "per_step"}
    prompt = dataset(written(tmp_path / "s.parquet", "guess_number", options), tokenizer)[0]
    said = iter(["<action>1</action>", "I do not know.", "<action>99999</action>", "<action>2</action>"] * 9)
    server = Server(tokenizer, lambda _: next(said))
    keys, rows = ran(monkeypatch, trainer_config(model_path, max_response_length=120), tokenizer, server, prompt)
    extras = [plain(extra) for extra in rows["extra_fields"]]
    assert len(keys) == len(server.asked) > 3
    assert keys == [f"u1_4_{number}" for number in range(len(keys))]
    for row, (_, context, sampling) in enumerate(server.asked):
        assert rows["prompts"][row].tolist() == context
        rendered = tokenizer.apply_chat_template(
            extras[row]["prompt_messages"], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        assert tokenizer.decode(context) == rendered
        assert rows["response_mask"][row].tolist() == [1] * len(rows["responses"][row])
        before = sum(len(rows["responses"][turn]) for turn in range(row))
        assert sampling["max_tokens"] == 120 - before, "the budget is that of all turns together"
    assert extras[0]["prompt_messages"] == prompt["raw_prompt"] != extras[1]["prompt_messages"]
    last = rows["responses"][len(keys) - 1].tolist()
    assert sum(len(rows["responses"][row]) for row in range(len(keys))) <= 120
    assert (last[-1] == EOS) == extras[-1]["done"]
    assert not extras[-1]["done"], "the budget ended it"
    # Every output has the session's reward and verdict; the transcript is with the last one.
    assert [rows["rm_scores"][row].sum().item() for row in range(len(keys))] == [0.0] * len(keys)
    assert {extra["reward_extra_info"]["verdict"] for extra in extras} == {"graded"}
    assert [extra["transcript"] is None for extra in extras] == [True] * (len(keys) - 1) + [False]


def test_an_environment_that_breaks_is_no_reward_of_0(
    monkeypatch: pytest.MonkeyPatch, prompt: Any, tokenizer: Any, model_path: Path
) -> None:
    from scgrpo.tasks.games.guess_number import GuessNumber

    def broken(self: Any, action: str) -> Any:
        raise ConnectionError("no server")

    monkeypatch.setattr(GuessNumber, "step", broken)
    server = Server(tokenizer, halving, log_probs=False)
    _, rows = ran(monkeypatch, trainer_config(model_path), tokenizer, server, prompt)
    own = plain(rows["extra_fields"][0])["reward_extra_info"]
    assert (own["verdict"], own["acc_graded"], own["graded"]) == ("error", None, 0.0)
    assert "no server" in own["detail"]
    assert len(server.asked) == 1
    assert "rollout_log_probs" not in rows.keys()  # noqa: SIM118 (a TensorDict iterates over rows)


def test_setups_that_cannot_work(
    monkeypatch: pytest.MonkeyPatch, prompt: Any, tmp_path: Path, tokenizer: Any, model_path: Path
) -> None:
    server = Server(tokenizer, halving)
    with pytest.raises(ValueError, match="max_prompt_length"):
        ran(monkeypatch, trainer_config(model_path, max_prompt_length=20), tokenizer, server, prompt)
    words = dataset(written(tmp_path / "c.parquet", "countdown", {}), tokenizer)[0]
    with pytest.raises(ValueError, match="has no environments"):
        ran(monkeypatch, trainer_config(model_path), tokenizer, server, {**words, "agent_name": prompt["agent_name"]})
    assert server.asked == []
