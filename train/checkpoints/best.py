"""Ranks checkpoints by a metric, and keeps the best ones."""

from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from train.early_stopping import lower_is_better


class Best(policy.PreservationPolicy):
    """Keeps the best `count` of the evaluated checkpoints. Of checkpoints with equal values the earlier ones stay."""

    def __init__(self, metric: str, count: int):
        self.metric, self.count = metric, count

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        values = {found.step: found.metrics[self.metric] for found in checkpoints if found.metrics}
        best = ranked(self.metric, values)[: self.count]
        return [found.step in best for found in checkpoints]


def ranked(metric: str, values: dict[int, float]) -> list[int]:
    """Returns the steps in {step: value of `metric`}, the best first."""
    return sorted(values, key=lambda step: values[step] if lower_is_better(metric) else -values[step])
