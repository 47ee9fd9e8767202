"""Runs the trials of a sweep one after another. Each is a run of launch.train with values that Optuna chooses.

One SQLite file records them. A trial that was interrupted continues in its own workdir; the file already has the
evaluations that it reported. Left out: several processes that share a sweep.
"""

import contextlib
import gc
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import optuna
from jax.errors import JaxRuntimeError
from ml_collections import ConfigDict
from optuna.trial import TrialState

from data.batch import DataError
from launch.program.checking import ConfigError
from launch.run import build, continuing, early_stopping, locks, recorded
from launch.run.defaults import completed, flat
from launch.run.workdirs import Workdir
from launch.sweeps import search
from launch.train import train
from launch.training.runs import checked
from train.early_stopping import UnknownMetric, lower_is_better
from train.loop import TrainingStopped
from train.report.sweep_report import Trial, ranked, show

# The sweep ends after so many trials in a row that can't run.
_UNFIT = 3

_HOW = ("search", "sampler", "pruner")  # recorded in the study beside the config of its runs
_STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}


class Trials:
    """The trials of a sweep in `workdir`.

    Args:
      config: of the runs.
      space: the fields that vary, and their values.
      workdir: of the sweep.
      sampler: 'tpe', 'random' or 'grid'.
      pruner: 'median' or 'none'.
      chosen: fields of the config that the user has set.

    Raises:
      ConfigError: a trial could not run, or `workdir` holds another sweep or a run.
      DataError: there are no data, or they cannot be prepared.
    """

    def __init__(
        self,
        config: ConfigDict,
        space: search.Space,
        workdir: Path,
        sampler: str = "tpe",
        pruner: str = "median",
        chosen: Iterable[str] = (),
    ):
        self.config, self.space, self.workdir, self.sampler = config, space, workdir, sampler
        self.chosen, self.metric = [*chosen, *space], config.early_stopping.metric
        if (workdir / "config.json").exists():
            raise ConfigError(f"{workdir} holds a run of launch.train; use another --workdir")
        search.check(space, config)
        self.points = search.grid(space, config.seed) if sampler == "grid" else []
        if not config.eval_every:
            raise ConfigError("config.eval_every is 0, but trials are ranked by their evaluations")
        self._check()
        self.lower = lower_is_better(self.metric)
        # Trials are pruned only after a quarter of their steps: a slow start in the warmup is not a bad sign.
        pruners = {"median": optuna.pruners.MedianPruner(n_warmup_steps=config.steps // 4)}
        workdir.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.study = optuna.create_study(
            storage=f"sqlite:///{workdir / 'sweep.db'}",
            study_name="sweep",
            direction="minimize" if self.lower else "maximize",
            pruner=pruners.get(pruner, optuna.pruners.NopPruner()),
            load_if_exists=True,
        )
        self._claim(dict(zip(_HOW, (space, sampler, pruner), strict=True)))

    def _check(self) -> None:
        """Checks the config at the ends of the space, and prepares the data, before `workdir` is created."""
        resolved = []
        for point in search.corners(self.space):
            try:
                resolved.append(checked(search.applied(self.config, point), Workdir(self.workdir), self.chosen))
            except ConfigError as error:
                raise ConfigError(f"a trial with {_words(point)} cannot run: {error}") from error
        build.data(resolved[0].config, self.workdir)

    def _claim(self, how: dict) -> None:
        """Records in a new study how it searches and the config; checks that those of an old study are the same."""
        new = json.loads(json.dumps(how)) | recorded.written(self.config)
        old = self.study.user_attrs.get("sweep")
        if old is None:
            self.study.set_user_attr("sweep", new)
        elif lines := continuing.differing(self._today(old), self._today(new), continuing.SAME_FIGURES):
            raise ConfigError(
                f"{self.workdir} holds another sweep; use a new --workdir or the same values. They differ in:\n  "
                + "\n  ".join(lines)
            )

    def _today(self, sweep: dict) -> dict:
        """Converts the record of a study, which may be of an older version, to today's {name with dots: value}."""
        how = {name: value for name, value in sweep.items() if name in _HOW}
        fields = {name: value for name, value in sweep.items() if name not in _HOW}
        return flat(how | completed(recorded.current(fields, f"the config in {self.workdir / 'sweep.db'}")))

    def run(self, total: int) -> bool:
        """Runs trials until there are `total`, or all points of a grid; returns False if a signal stopped it.

        Raises:
          ConfigError: several trials in a row can't run, or one can't before any was evaluated; or another process runs
            this sweep.
        """
        self._unfit = 0
        total = min(total, len(self.points)) if self.points else total
        with locks.alone(self.workdir, "runs a sweep"):
            self._tidy()
            while trial := self._next(total):
                if not self._run(trial, total):
                    return False
                self._tidy()
        return True

    def _next(self, total: int) -> optuna.Trial | None:
        """Returns the trial that was interrupted or a new one; None if there are `total`."""
        frozen = self.study.get_trials(deepcopy=False)
        running = [trial for trial in frozen if trial.state == TrialState.RUNNING]
        number = running[0].number if running else len(frozen)
        if number >= total and not running:
            return None
        self.study.sampler = search.sampler(self.sampler, self.config.seed, number, self.points)
        return optuna.Trial(self.study, running[0]._trial_id) if running else self.study.ask()

    def _run(self, trial: optuna.Trial, total: int) -> bool:
        """Runs a trial and prints its outcome; returns False if a signal stopped it."""
        values = search.suggest(trial, self.space)
        print(f"\ntrial {trial.number} of {total}: {_words(values)}")
        try:
            with _memory():
                if not self._train(trial, values):
                    return False
            self._unfit = 0
        except (ConfigError, DataError, UnknownMetric) as error:
            self._fail(trial, str(error))
            self._unfit += 1
            several = self._unfit == _UNFIT
            if several or not any(row.values for row in self.rows()):
                others = f"nor could the {_UNFIT - 1} before it" if several else "and none was evaluated yet"
                raise ConfigError(
                    f"trial {trial.number} ({_words(values)}) cannot run, {others}: {str(error).rstrip('.')}. The same "
                    "command continues with other values; another search needs a new --workdir"
                ) from error
        rows = self.rows()
        best = ranked(rows, self.lower)[0]
        so_far = f"; best: trial {best.number}, {best.outcome()}" if best.state == "complete" else ""
        why = rows[trial.number].why
        print(f"trial {trial.number}: {rows[trial.number].outcome()}{why and f' ({why})'}{so_far}")
        return True

    def _train(self, trial: optuna.Trial, values: dict) -> bool:
        """Runs a trial and reports its end to Optuna; returns False if a signal stopped it."""
        config = search.applied(self.config, values)
        config.update(keep_last=1, keep_best=1, checkpoint_every=config.eval_every)
        ranking = early_stopping.make(config)
        reported = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values

        def observe(step: int, figures: dict) -> None:
            value = ranking.rank(figures)
            if step not in reported:  # an interrupted trial repeats the evaluations after its last checkpoint
                trial.report(value, step)
            if step < config.steps and trial.should_prune():
                raise optuna.TrialPruned

        gc.collect()  # reference cycles keep the last trial's arrays alive, and Python may collect them much later
        try:
            if not train(config, self.directory(trial.number), self.chosen, observe):
                return False
        except optuna.TrialPruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        except TrainingStopped as error:
            self._fail(trial, str(error))
        else:
            value = self.rows()[trial.number].value
            if value is None:
                self._fail(trial, ranking.outcome() or f"{self.metric} was never finite")
            else:
                self.study.tell(trial, value)
        return True

    def _fail(self, trial: optuna.Trial, why: str) -> None:
        trial.set_user_attr("why", why)
        self.study.tell(trial, state=TrialState.FAIL)

    def rows(self) -> list[Trial]:
        """Returns the trials so far, by number."""
        return [
            Trial(
                number=trial.number,
                state=_STATES.get(trial.state, "unfinished"),
                parameters=trial.params,
                values=trial.intermediate_values,
                lower=self.lower,
                why=trial.user_attrs.get("why", ""),
            )
            for trial in self.study.get_trials(deepcopy=False)
        ]

    def _tidy(self) -> None:
        """Deletes the checkpoints of all finished trials except the best one."""
        for row in ranked(self.rows(), self.lower)[1:]:
            if row.state != "unfinished":
                shutil.rmtree(self.directory(row.number) / "checkpoints", ignore_errors=True)

    def directory(self, number: int) -> Path:
        return self.workdir / "trials" / str(number)


def _words(values: dict) -> str:
    return "  ".join(f"{name} {show(value)}" for name, value in values.items())


@contextlib.contextmanager
def _memory() -> Iterator[None]:
    """Turns an out-of-memory error inside into ConfigError, because the values of the trial cause it."""
    try:
        yield
    except JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ConfigError(str(error).splitlines()[0]) from error
