"""Search for good hyperparameters: many runs of launch.train with values that Optuna chooses.

    python -m launch.sweep --config=configs/NAME.py:ARG --search=configs/searches/NAME.py --trials=20 --workdir=DIR

The search file names the fields that vary and their values (launch/sweeps/search.py). Each trial is a run in
DIR/trials/NUMBER. Trials are ranked by their best evaluation, measured by config.early_stopping.metric. DIR/sweep.db
(SQLite) records all trials, so the same command continues an interrupted sweep, and a larger --trials adds more trials.
Only the best trial and the running one keep checkpoints. DIR/sweep.html shows a table and plots.
"""

if __package__ in (None, ""):  # as a script, launch/ would come first on sys.path and hide other modules
    raise SystemExit("start it from the checkout as: python -m launch.sweep")

from launch.program import runtime

runtime.configure("training")

import shlex
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from launch.hosts import distributed
from launch.run import places
from launch.sweeps import search
from launch.sweeps.trials import Trials
from train.report import sweep_report

# These flags come from launch.train, which the trials import. Declared as key flags, they are shown by --help.
flags.declare_key_flag("config")
flags.declare_key_flag("workdir")
_SEARCH = flags.DEFINE_string(
    "search",
    None,
    "Search file with the fields that vary and their values (launch/sweeps/search.py). Required.",
    required=True,
)
_TRIALS = flags.DEFINE_integer("trials", 20, "Number of trials, including those already done.", lower_bound=1)
_SAMPLER = flags.DEFINE_enum("sampler", "tpe", ["tpe", "random", "grid"], "How the values of a trial are chosen.")
_PRUNER = flags.DEFINE_enum(
    "pruner",
    "median",
    ["median", "none"],
    "Which trials end early. median: once 5 trials are done, those that after a quarter of their steps were never as "
    "good as the median of the others at the same step.",
)


def command(values: dict, workdir: Path) -> str:
    """Returns the command that trains a model with the values of one trial."""
    flag = flags.FLAGS["config"]
    fields = config_flags.get_override_values(flag) | values
    words = [f"--config={config_flags.get_config_filename(flag)}", f"--workdir={workdir}"]
    words += [f"--config.{name}={value}" for name, value in fields.items()]
    return " ".join(["python -m launch.train", *map(_quoted, words)])


def _quoted(word: str) -> str:
    """Quotes a word for a shell; uses double quotes if they are more readable, as around the file names of a list."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def main() -> None:
    distributed.refuse_several("launch.sweep")
    workdir = places.named(flags.FLAGS.workdir)
    chosen = config_flags.get_override_values(flags.FLAGS["config"])
    trials = Trials(flags.FLAGS.config, search.read(_SEARCH.value), workdir, _SAMPLER.value, _PRUNER.value, chosen)
    done = False
    try:
        done = trials.run(_TRIALS.value)
    except KeyboardInterrupt:  # it came while a trial began or ended; during training, the loop handles it and saves
        pass
    finally:
        report(trials, workdir)
    if not done:
        print("stopped; the same command continues the sweep")


def report(trials: Trials, workdir: Path) -> None:
    """Prints the table and the command that trains the best trial again, and writes sweep.html."""
    rows = trials.rows()
    best = sweep_report.ranked(rows, trials.lower)[0] if rows else None
    again = command(dict(best.parameters), workdir / "best") if best and best.state == "complete" else ""
    kinds = {field: form[0] for field, form in trials.space.items()}
    print("\n" + sweep_report.table(rows, trials.metric, trials.lower))
    print(f"\nreport: {sweep_report.write(workdir, rows, trials.metric, trials.lower, kinds, again)}")
    if best and again:
        print(f"the best run is in {trials.directory(best.number)} (--step=best); to train it again:\n  {again}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    runtime.run(main)
