"""Scores completions with the rewards that config.reward names: functions, and a reward model.

The reward of a completion is the weighted sum of its functions plus the score of the reward model. config.reward.gold
is another reward model that is only watched: its score is logged and never learned from, so a report can show when the
policy exploits the first one (arXiv:2210.10760).
"""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from launch.answers import origins, scorer
from launch.hosts import distributed
from launch.program.checking import ConfigError, checking
from launch.run.workdirs import Workdir
from train.align.rewards import table
from train.align.rewards.scoring import Item, Scoring
from train.align.rounds import Prompt, Rewards


def check(config: ConfigDict) -> None:
    """Checks config.reward before anything is loaded.

    Raises:
      ConfigError: it names no reward, or one that does not exist or can't run here.
    """
    if not config.reward.functions and not config.reward.model:
        raise ConfigError(
            "config.reward names nothing to learn from: set config.reward.functions, such as "
            "\"(('exact:answer', 1.0),)\", or config.reward.model to the workdir of a reward model (train/README.md)"
        )
    for field in ("model", "gold"):
        if path := config.reward[field]:
            if jax.process_count() > 1:
                raise ConfigError(
                    f"config.reward.{field} needs a run of one process, because a reward model scores on one of its "
                    "devices; use reward functions here"
                )
            if not (Path(path) / "config.json").exists():
                raise ConfigError(
                    f"config.reward.{field} {path} holds no run (no config.json in {Path(path).absolute()})"
                )
            scorer.check(Workdir(Path(path).absolute()), f"config.reward.{field}")
    if config.reward.functions:
        _scoring(config).close()


def _scoring(config: ConfigDict) -> Scoring:
    given = config.reward
    with checking("config.reward"):
        functions = [(str(spec), float(weight)) for spec, weight in given.functions]
        return Scoring(functions, given.seconds, given.on_error, tuple(given.packages))


class Rewarding:
    """Computes the rewards of completions; the same on all processes.

    Args:
      config: the whole config.
      recorded: `record` of the run's checkpoint; {} for a new run.

    Attributes:
      record: where each reward model and the user's functions come from, with hashes of their files. Files that those
        of the user import are not hashed.

    Raises:
      ConfigError: a reward model or a file is another one than when the run began.
    """

    def __init__(self, config: ConfigDict, recorded: Mapping[str, dict]):
        self._recorded = recorded
        self.record: dict[str, dict] = {}
        for path in table.files(spec for spec, _ in config.reward.functions):
            self._note(str(path), {"content": origins.digest(path)}, "config.reward.functions")
        self._scoring = _scoring(config) if config.reward.functions else None
        self._names = [_name(spec) for spec, _ in config.reward.functions]
        self._names = [
            name if self._names.count(name) == 1 else f"{name}_{self._names[:i].count(name) + 1}"
            for i, name in enumerate(self._names)
        ]
        self._models = {
            field: self._loaded(f"reward.{field}", Workdir(Path(config.reward[field]).absolute()))
            for field in ("model", "gold")
            if config.reward[field]
        }
        self._said: set[str] = set()  # reasons that were printed

    def _loaded(self, field: str, workdir: Workdir) -> scorer.Scorer:
        """Returns a reward model, of the step that the run began with."""
        before = self._recorded.get(field, {})
        same = before.get("workdir") == str(workdir.path)  # the gold one may be exchanged
        step, content = origins.checkpoint(workdir, str(before["step"]) if same else "")
        self._note(field, {"workdir": str(workdir.path), "step": int(step), "content": content}, f"config.{field}")
        return scorer.Scorer(workdir, step)

    def _note(self, name: str, now: dict, field: str) -> None:
        """Adds to `record`, or raises a ConfigError if the run began with other rewards."""
        before = self._recorded.get(name, now)
        if before["content"] != now["content"] and before.get("workdir") == now.get("workdir"):
            what = now.get("workdir", name)
            raise ConfigError(
                f"{field}: {what} is not the same as when the run began, so its rewards would differ: bring it back, "
                "or use a new --workdir"
            )
        self.record[name] = now

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Checks, before anything is sampled, that these prompts have the columns that the functions need.

        Raises:
          ConfigError: a prompt lacks one.
        """
        if self._scoring is not None:
            with checking("config.reward.functions"):
                self._scoring.check(prompt.record["columns"] for prompt in prompts)

    def __call__(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> Rewards:
        """Returns the rewards of these texts, each an answer to the prompt at its place."""
        total, counted, failed, notes = np.zeros(len(texts)), np.ones(len(texts), bool), 0, ()
        parts: dict[str, np.ndarray] = {}
        if self._scoring is not None:
            found = json.loads(distributed.gathered("rewards", json.dumps(self._scored(prompts, texts)))[0])
            notes = tuple(found["notes"])
            self._say(notes)
            total += np.array(found["rewards"])
            counted &= ~np.array(found["skipped"], bool)
            failed = found["failed"]
            parts |= dict(zip(self._names, np.array(found["values"]).T, strict=True))
        for name, model in self._models.items():
            pairs = zip(prompts, texts, strict=True)
            parts[name] = np.array(list(model([_conversation(prompt, text) for prompt, text in pairs])), np.float64)
        if "model" in self._models:
            total += parts["model"]
        return Rewards(total, counted, parts, failed, notes)

    def _say(self, notes: Sequence[str]) -> None:
        """Prints notes, each reason once; all of them are in metrics.jsonl."""
        for note in notes:
            reason = re.sub(r" on \d+ of \d+ completions|; first prompt: .*", "", note)
            if reason not in self._said and jax.process_index() == 0:
                self._said.add(reason)
                print(f"warning: {note}", file=sys.stderr)

    def _scored(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> dict[str, Any]:
        """Returns the results of the functions as JSON; {} in all processes but the first, which runs them."""
        if jax.process_index() or self._scoring is None:
            return {}
        pairs = zip(prompts, texts, strict=True)
        found = self._scoring.score([Item(prompt.text, text, prompt.record["columns"]) for prompt, text in pairs])
        return {
            "values": found.values_NF.tolist(),
            "rewards": found.rewards_N.tolist(),
            "skipped": found.skipped_N.tolist(),
            "failed": int(found.failed_NF.sum()),
            "notes": found.notes,
        }

    def close(self) -> None:
        if self._scoring is not None:
            self._scoring.close()


def _name(spec: str) -> str:
    """Returns the name of a reward function in metrics: that of a ready one, or of the user's function."""
    first, _, rest = spec.partition(":")
    name = rest if first.endswith(".py") else first
    return f"{name}_function" if name in ("model", "gold") else name  # those two are reward models


def _conversation(prompt: Prompt, text: str) -> dict[str, Any]:
    record = {"messages": prompt.record["messages"], "answer": {"role": "assistant", "content": text}}
    return record | ({"tools": prompt.record["tools"]} if prompt.record.get("tools") else {})
