"""Evaluates a policy on held-out prompts: samples an answer to each, and scores it.

The prompts, and the random key of each answer, are the same in every evaluation. `win_rate` compares the rewards with
those of the model that the run began with, prompt by prompt.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data import files
from launch.program.checking import ConfigError
from launch.training import prompting
from train.align.layout import Completion
from train.align.measure import store
from train.report import summary
from train.state import TrainState

_SHOWN = 5  # answers that the report shows
_FILE = "start_rewards.json"  # the rewards of the model that the run began with


def evaluated(
    config, prepared, tokenizer, objective, mesh, model, beside: Mapping[str, Any], recorded: Mapping[str, dict]
) -> dict[str, float]:
    """Returns the figures of a model that was read from a checkpoint.

    Args:
      config, prepared, tokenizer, objective, mesh: of the run.
      model: the model.
      beside: its companions.
      recorded: the frozen models that the checkpoint names.
    """
    asked = prompting.Asked(config, prepared, tokenizer, objective, mesh, recorded)
    with contextlib.closing(asked.rewarding):
        zero = jnp.zeros((), jnp.int32)
        return SampledEvaluation(asked, None)(TrainState(zero, model, None, zero, zero, zero, dict(beside)))


class SampledEvaluation:
    """Evaluates models on held-out prompts: state of training -> {'validation/...': value}.

    Args:
      asked: samples and scores.
      workdir: of the run, for what the report shows; None: nothing is written, and all prompts are asked.
    """

    def __init__(self, asked: prompting.Asked, workdir: Path | None):
        config = asked.config
        prompts = prompting.read(config, asked.prepared, asked.tokenizer, "validation")
        asked.rewarding.check(prompts)
        limit = (config.eval_rows if workdir else 0) or len(prompts)
        self._prompts = [prompts[i * len(prompts) // limit] for i in range(min(limit, len(prompts)))]
        self._asked, self._workdir = asked, workdir
        self._measure = asked.measure(2) if asked.objective.rollouts == "advantages" else None

    def __call__(self, state) -> dict[str, float]:
        asked, prompts = self._asked, self._prompts
        if not prompts:
            raise ConfigError(
                f"no prompt is held out in {asked.prepared.directory}: raise config.data.validation, or set "
                "config.eval_every=0"
            )
        sampled = asked.sample(state.model, [prompt.ids for prompt in prompts], jax.random.key(asked.config.seed))
        rewards = asked.rewarding(prompts, [one.text for one in sampled])
        total = np.where(rewards.counted, rewards.total, np.nan)
        figures = {"reward": float(np.nanmean(total)) if rewards.counted.any() else float("nan")}
        figures |= {f"reward/{name}": float(values.mean()) for name, values in rewards.parts.items()}
        if (rate := self._win_rate(total, int(state.step))) is not None:
            figures["win_rate"] = rate
        if "gold" in rewards.parts:
            figures["gold"] = figures["reward/gold"]
        figures["length"] = float(np.mean([len(one.answer) for one in sampled]))
        figures["truncated"] = float(np.mean([not one.finished for one in sampled]))
        if self._measure is not None:
            figures |= self._distance(state, sampled)
        shown = [
            {"prompt": prompt.text, "completion": one.text, "reward": float(reward) if np.isfinite(reward) else None}
            for prompt, one, reward in zip(prompts[:_SHOWN], sampled, total, strict=False)
        ]
        self._show(int(state.step), shown)
        return {f"validation/{name}": value for name, value in figures.items()}

    def _distance(self, state, sampled) -> dict[str, float]:
        """Returns the KL divergence from the reference, in nats per answer, and the error of the sampler."""
        assert self._measure is not None
        made = [
            Completion(number, prompt.ids, one.answer, one.finished)
            for number, (prompt, one) in enumerate(zip(self._prompts, sampled, strict=True))
        ]
        config = self._asked.config
        store(self._measure, state, made, config.batch_size, config.data.seq_len, self._asked.unit)
        own = [one.values["old_logprobs"] for one in made]
        gaps = [np.abs(mine - one.logprobs) for mine, one in zip(own, sampled, strict=True)]
        found = {"sampler_gap": float(np.concatenate(gaps).mean())}
        if "reference_logprobs" in made[0].values:
            apart = [(mine - one.values["reference_logprobs"]).sum() for mine, one in zip(own, made, strict=True)]
            found["kl"] = float(np.mean(apart))
        return found

    def _win_rate(self, total: np.ndarray, step: int) -> float | None:
        """Returns the share of prompts whose reward is higher than at the start of the run; equal ones count half.

        It is None if the rewards at the start are not known.
        """
        if self._workdir is None:
            return None
        path = self._workdir / _FILE
        if step == 0:
            if jax.process_index() == 0:
                files.replace(path, json.dumps([None if np.isnan(value) else float(value) for value in total]))
            return 0.5
        if not path.exists():
            return None
        start: Any = np.array([np.nan if value is None else value for value in json.loads(path.read_text())])
        if len(start) != len(total):
            return None
        known = np.isfinite(start) & np.isfinite(total)
        return float(np.mean((np.sign(total - start)[known] + 1) / 2)) if known.any() else None

    def _show(self, step: int, shown: list[dict]) -> None:
        if self._workdir is None or jax.process_index():
            return
        path = self._workdir / "summary.json"
        before = json.loads(path.read_text()).get("completions", {}) if path.exists() else {}
        now = {"step": step, "shown": shown}
        summary.update(
            self._workdir, {"completions": {"first": before.get("first", now) if step else now, "last": now}}
        )
