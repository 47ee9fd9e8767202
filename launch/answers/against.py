"""Compares two models by their answers to the same held-out examples.

Differences are paired: what makes an example hard for both models cancels out, so far fewer examples show a difference
than two separate intervals would need (arXiv:2411.00640).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from launch.answers import grading
from launch.program.checking import ConfigError
from launch.run import build, restore
from launch.run.workdirs import Workdir
from model import axes
from train.evals import intervals


class Against:
    """The other model, which answers the examples that a grader asks.

    Args:
      run: its workdir.
      grader: grades both models.

    Raises:
      ConfigError: the run of the other model holds out other examples.
      DataError: it holds out none that can be graded.
    """

    def __init__(self, run: Workdir, grader: grading.Grader):
        self._run, self._grader = run, grader
        # Its own config and tokenizer ask it the questions, in the form that it was tuned on.
        self._own = grading.Grader(run.config, run.prepared, run.architecture, run.tokenizer, grader.settings)
        if self._own.records != grader.records:
            raise ConfigError(
                f"--against: {run.path} holds out other examples than --workdir, so a difference between their figures "
                "would mean nothing; train both on the same config.data, with the same config.data.validation"
            )

    def answers(self, step: str, dtype: str | None) -> list[grading.Answer]:
        """Loads the checkpoint `step`, and returns its answers; the model is freed."""
        mesh, model, _ = restore.for_inference(self._run, build.mesh(self._run.config), step, dtype)
        with axes.use_mesh(mesh):
            return list(self._own.answers(model))

    def facts(self, ours: Sequence[grading.Answer], theirs: Sequence[grading.Answer]) -> dict[str, Any]:
        """Returns {"workdir", "differences": {metric: ...}}, the entry `grade.against` of summary.json."""
        differences, others = {}, self._grader.graded(theirs)
        for name, own in self._grader.graded(ours).items():
            scored, other = own.scored, others[name].scored
            found = intervals.paired(scored.rows_NK, other.rows_NK, scored.value, own.prompts)
            ends = intervals.entry(found.interval, len(own.prompts))
            differences[name] = {"this": scored.figure(), "other": other.figure(), "difference": found.value}
            differences[name] |= ends | {"p": found.p}
        return {"workdir": str(self._run.path), "differences": differences}


def table(facts: Mapping[str, Any]) -> str:
    """Returns a text with a line for each difference of `Against.facts`."""
    lines = [f"against {facts['workdir']}, on the same examples:"]
    lines += [f"  {'':18} {'this':>6}  {'other':>6}  {'difference':>10}  {'95 % interval':>18}  {'p':>6}"]
    for name, one in facts["differences"].items():
        pair = f"{one['this']:6.2f}  {one['other']:6.2f}  {one['difference']:+10.2f}"
        lines.append(f"  {name:18} {pair}  {intervals.spelled(one, '{:+.2f}'):>18}  {intervals.p_value(one['p']):>6}")
    return "\n".join(lines)
