"""The trainer as it is, with what it decides written down: `trainer_mode=scgrpo_probe`, folder in PROBE_FOLDER."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch
from verl.trainer.ppo.v1.trainer_base import register_trainer

from scgrpo.integrations.verl import transfer
from scgrpo.integrations.verl.batch import read_sessions
from scgrpo.integrations.verl.trainer import SCGRPOTrainer


def _plain(value: Any) -> dict[str, Any]:
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {name: dict(entry) if name == "metrics" else entry for name, entry in fields.items()}


@register_trainer("scgrpo_probe")
class Probe(SCGRPOTrainer):
    def _assign_credit(self, sessions: Any, advantages: Any, metrics: Any) -> bool:
        self.before = [row.clone() for row in advantages]
        self.seen = {
            "sessions": [
                {
                    "uid": session.uid,
                    "reward": session.reward,
                    "status": str(session.verdict.status),
                    "rows": [output.row for output in session.outputs],
                    "prompts": [output.prompt_ids for output in session.outputs],
                    "responses": [output.response_ids for output in session.outputs],
                    "masks": [output.mask for output in session.outputs],
                }
                for session in sessions
            ]
        }
        return super()._assign_credit(sessions, advantages, metrics)

    def _record(self, decided: Any) -> None:
        for name in ("groups", "plan", "evidence", "credit"):
            self.seen[name] = _plain(getattr(decided, name))
        prompts = {pair: list(ids) for pair, ids in decided.teacher_prompts.items()}
        self.seen |= {"teacher_prompts": prompts, "shown": {row: d.text for row, d in decided.shown.items()}}
        super()._record(decided)

    def _compute_advantage(self, batch: Any, metrics: Any) -> Any:
        sessions = read_sessions(batch.keys, batch.tags, transfer.read(batch))
        graded = [session.reward for session in sessions if session.verdict.status == "graded"]
        write, written = transfer.write_advantages, []
        transfer.write_advantages = lambda *args: written.append(True) or write(*args)
        try:
            done = super()._compute_advantage(batch, metrics)
        finally:
            transfer.write_advantages = write
        advantages, *_ = transfer.read_advantages(batch)
        scores = transfer.read(batch)["rm_scores"].unbind()
        found = {
            "replay_buffer": type(self.replay_buffer).__name__,
            "keys": list(batch.keys),
            "padding": [bool(tag.get("is_padding", False)) for tag in batch.tags],
            "scores": [float(row.sum()) for row in scores],
            "graded": graded,
            "written": bool(written),
            "before": self.before,
            "after": advantages,
            **self.seen,
        }
        torch.save(found, Path(os.environ["PROBE_FOLDER"]) / f"step-{self.global_steps}.pt")
        return done
