"""Trials of a sweep are ranked only by evaluations within the bound of config.early_stopping."""

from launch.sweeps import trials
from launch.sweeps.trials import Trials

SPACE = {"optimizer.learning_rate": ("log", 1e-4, 1e-2)}


def test_evaluations_beyond_a_bound_rank_no_trial(tiny, tmp_path, monkeypatch):
    """The lowest loss of the first trial is beyond the bound, and the second trial is never within it."""

    def train(config, workdir, chosen, observe):
        for step, loss, error in ((4, 2.0, 0.1), (8, 1.0, 0.3)):
            observe(step, {"validation/loss": loss, "validation/error": error + (workdir.name == "1")})
        return True

    monkeypatch.setattr(trials, "train", train)
    tiny.early_stopping.update(bounded="validation/error", bound=0.2)
    made = Trials(tiny, SPACE, tmp_path, pruner="none")
    assert made.run(2)
    first, second = made.rows()
    assert (first.value, first.step, first.state) == (2.0, 4, "complete")
    assert second.state == "failed" and "validation/error <= 0.2 held in no evaluation" in second.why
