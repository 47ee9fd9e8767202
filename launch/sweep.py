"""Search over hyper-parameters: many runs of launch.train, their values chosen by Optuna.

    python -m launch.sweep --config=configs/NAME.py:ARG --search=configs/searches/NAME.py --trials=20 --workdir=DIR

What varies, and over what, stands in the search file (launch/sweeps/search.py). Each trial is a run in
DIR/trials/NUMBER; trials are ranked by the best of their evaluations, by config.early_stopping.metric. DIR/sweep.db
(SQLite) holds all that is known of them, so that the same command goes on after any end, and a larger --trials adds
more. Only the best trial and the one that runs have checkpoints. DIR/sweep.html shows the table and plots.
"""

if __package__ in (None, ""):  # as a script, launch/ would be the first place where modules are looked for
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

# Those of launch.train, which the trials import; so --help shows them.
flags.declare_key_flag("config")
flags.declare_key_flag("workdir")
_SEARCH = flags.DEFINE_string(
    "search", None, "Search file: which fields vary, and over what (launch/sweeps/search.py). Required.", required=True
)
_TRIALS = flags.DEFINE_integer("trials", 20, "All trials of the sweep, those included that are done.", lower_bound=1)
_SAMPLER = flags.DEFINE_enum("sampler", "tpe", ["tpe", "random", "grid"], "How the values of a trial are chosen.")
_PRUNER = flags.DEFINE_enum(
    "pruner",
    "median",
    ["median", "none"],
    "Which trials end early. median: those that, after a quarter of their steps, never were as good as the median of "
    "the others at the same step, once there are 5.",
)


def command(values: dict, workdir: Path) -> str:
    """The command that trains one trial again."""
    flag = flags.FLAGS["config"]
    fields = config_flags.get_override_values(flag) | values
    words = [f"--config={config_flags.get_config_filename(flag)}", f"--workdir={workdir}"]
    words += [f"--config.{name}={value}" for name, value in fields.items()]
    return " ".join(["python -m launch.train", *map(_quoted, words)])


def _quoted(word: str) -> str:
    """As a shell reads it back; readable also where names of files are quoted inside."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)


def main() -> None:
    distributed.refuse_several("launch.sweep")
    workdir = places.named(flags.FLAGS.workdir)
    chosen = config_flags.get_override_values(flags.FLAGS["config"])
    trials = Trials(flags.FLAGS.config, search.read(_SEARCH.value), workdir, _SAMPLER.value, _PRUNER.value, chosen)
    done = False
    try:
        done = trials.run(_TRIALS.value)
    except KeyboardInterrupt:  # while a trial began or ended; its loop saves by itself
        pass
    finally:
        report(trials, workdir)
    if not done:
        print("stopped; the same command continues the sweep")


def report(trials: Trials, workdir: Path) -> None:
    """Print the table and the command that trains the best trial again; write sweep.html."""
    rows = trials.rows()
    best = sweep_report.ranked(rows, trials.lower)[0] if rows else None
    again = command(dict(best.parameters), workdir / "best") if best and best.state == "complete" else ""
    kinds = {field: form[0] for field, form in trials.space.items()}
    print("\n" + sweep_report.table(rows, trials.metric, trials.lower))
    print(f"\nreport: {sweep_report.write(workdir, rows, trials.metric, trials.lower, kinds, again)}")
    if best and again:
        print(f"the best run is in {trials.directory(best.number)} (--step=best), this trains it again:\n  {again}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "workdir"])
    runtime.run(main)
