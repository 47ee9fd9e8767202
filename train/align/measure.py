"""Log-probabilities and values of a round's completions, by the trainer's own forward pass, before any update.

Dims: R rows, T length.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from model import axes
from train.align import layout
from train.align.layout import Completion
from train.step import companions


def store(measure: Callable, state, completions: Sequence[Completion], share: int, seq_len: int, unit: int) -> None:
    """Measures completions, and stores what is found in their `values`.

    Args:
      measure: what `make_measure` returned.
      state: of training.
      completions: in which the values are stored.
      share: how many are measured at a time.
      seq_len, unit: as in layout.rows_of.
    """
    for first in range(0, len(completions), share):
        some = completions[first : first + share]
        batch, places = layout.rows_of([[one] for one in some], seq_len, unit)
        layout.read(some, [place for (place,) in places], measure(state, batch))


def make_measure(objective, put: Callable, steps: int) -> Callable:
    """Returns a function (state of training, host batch) -> {name: float32 [R, T] on every host}.

    The names are `objective.measures(steps)`. Dropout is off.

    Args:
      objective: a Policy.
      put: host batch -> global batch on the mesh.
      steps: updates on one round.
    """
    names = objective.measures(steps)

    @jax.jit
    def run(model, beside, critic, batch):
        rows, found = [batch[name] for name in ("tokens", "segment_ids", "positions")], {}
        hidden = model(*rows)
        if "old_logprobs" in names:
            found["old_logprobs"] = objective.scores(model.output(hidden.x_BTD), batch["targets"]).logprob_BT
        if "reference_logprobs" in names:
            reference = beside["reference"]
            output = reference.output(reference(*rows).x_BTD)
            found["reference_logprobs"] = objective.scores(output, batch["targets"]).logprob_BT
        if critic is not None:
            found["old_values"] = objective.values(hidden, critic, rows)
        # Replicated, so that every process of a pod can read them.
        return {name: axes.place(a_RT, None, None) for name, a_RT in found.items()}

    def measure(state, batch):
        beside = companions(objective, state.model, state.companions)
        critic = None if state.critic is None else state.critic.model
        wanted = {name: batch[name] for name in ("tokens", "targets", "segment_ids", "positions")}
        return {name: np.asarray(a_RT) for name, a_RT in run(state.model, beside, critic, put(wanted)).items()}

    return measure
