"""A model in a workdir that answers the prompts of a file: what it is asked, and what its answers depend on."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

from data.examples import kinds
from launch.answers import answering, best, origins
from launch.answers.completer import Completer
from launch.answers.completion import Request
from launch.answers.growing import Growing
from launch.program.checking import checking
from launch.run import models, restore
from launch.run.workdirs import Workdir
from model import axes
from model.decode import sampling


class Wanted(NamedTuple):
    """How answers are sampled (the flags of launch.generate)."""

    step: str
    dtype: str | None
    system: str
    raw: bool
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    num_samples: int  # answers to each prompt
    batch_size: int  # of all of these, it alone changes no answer


class Answerer:
    """Reads the prompts before the model is loaded.

    Args:
      run: the model's workdir.
      path: the file of prompts.
      wanted: how it answers.

    Attributes:
      given: the prompts that it can answer.
      settings: everything that its answers depend on, as JSON; for Growing.

    Raises:
      ConfigError, DataError: the workdir holds no model that answers, or a prompt can't be read.
    """

    def __init__(self, run: Workdir, path: Path, wanted: Wanted):
        with checking("flags"):
            settings = sampling.settings(wanted.temperature, wanted.top_k, wanted.top_p)
        request = functools.partial(
            Request, system=wanted.system, raw=wanted.raw, settings=settings, max_new_tokens=wanted.max_new_tokens
        )
        plain = wanted.raw or kinds.asked(run.config.data) in (kinds.TEXT, "pairs")
        known = run.architecture.vocab_size + len(models.prefix(run.config))
        completer = Completer(run.config, run.tokenizer, run.architecture, known)
        self.given = answering.read(path, completer, request, wanted.system, plain)
        self._step, content = origins.checkpoint(run, wanted.step)
        self._run, self._wanted = run, wanted
        self.settings = {
            "prompts": origins.digest(path),
            "workdir": str(run.path),
            "step": self._step,
            "checkpoint": content,
            "answers to each prompt": wanted.num_samples,
        }
        names = ("dtype", "system", "raw", "max_new_tokens", "temperature", "top_k", "top_p", "seed")
        self.settings |= {name: getattr(wanted, name) for name in names}

    def write(self, file: Growing, scores: best.Scores | None = None) -> None:
        """Appends the answers that the file lacks; the model is loaded only if there are any.

        Args:
          file: of the answers, with these settings.
          scores: scores the answers.
        """
        if file.count >= len(self.given.prompts):
            return
        mesh, model, _ = restore.for_inference(self._run, step=self._step, dtype=self._wanted.dtype)
        how: dict[str, Any] = dict(
            count=self._wanted.num_samples, seed=self._wanted.seed, batch_size=self._wanted.batch_size
        )
        with axes.use_mesh(mesh):
            answering.write(model, self.given, file, **how, scores=scores)
