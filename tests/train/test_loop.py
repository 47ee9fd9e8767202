"""The loop acts in the right order (its parts only record calls here), and releases its objects at the end."""

import contextlib
import gc
import types
import weakref
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from train import loop
from train.early_stopping import EarlyStopping
from train.parts import Parts, Schedule


class State:
    """Replaces TrainState and counts the steps."""

    def __init__(self, steps: int):
        self.steps = self.model = steps


class Notes:
    """Parts that record the loop's calls in their order."""

    def __init__(self, bad=(), figures=lambda steps: {"validation/loss": 1.0}, patience=0):
        self.seen, self.taken, self.bad, self.figures = [], 0, bad, figures
        self.parts = Parts(
            train_step=self._step,
            source=types.SimpleNamespace(
                next=lambda state: self._batch(),
                figures=dict,
                position=lambda: self.taken,
                to_json=lambda: self.taken,
                events=lambda: (),
                phase="data",
            ),
            checker=types.SimpleNamespace(
                twice=lambda state, batch, step: (self._note(f"twice {step}"), self._stepped(state))[1],
                replicas=lambda state, step: self._note(f"replicas {step}"),
            ),
            put=lambda batch: batch,
            evaluate=lambda state: (self._note(f"evaluate {state.model}"), self.figures(state.model))[1],
            observe=lambda step, figures: self._note(f"observe {step}"),
            stopping=EarlyStopping("validation/loss", patience, 0.0),
            learning_rates=np.ones(100),
            checkpoints=types.SimpleNamespace(
                check=lambda: None,
                newest_complete=lambda: 0,
                save=lambda step, state, counters, figures: self._note(
                    f"save {step}: data {counters['position']}, {figures}"
                ),
                wait=lambda: self._note("wait"),
            ),
            phases=lambda name, behind=None: contextlib.nullcontext(),
            goodput=types.SimpleNamespace(wall=dict),
            meet=lambda what: self._note(f"meet for {what}"),
            writer=types.SimpleNamespace(
                write=lambda step, values: self._note(f"write {step}: {sorted(values)[0]}"),
                event=lambda step, what: self._note(f"event {step}: {sorted(what)}"),
                flush=lambda: self._note("flush"),
            ),
            progress=Progress(),
            workdir=Path(),
        )

    def _note(self, text: str) -> None:
        self.seen.append(text)

    def _batch(self):
        self.taken += 1
        self._note(f"batch {self.taken}")

    def _step(self, state: State, batch):
        self._note(f"step {state.steps + 1}")
        return self._stepped(state)

    def _stepped(self, state: State):
        new = State(state.steps + 1)
        left_out = float(new.steps in self.bad)
        names = {"loss": 2.0, "grad_norm": 1.0, "weight": 1.0, "skipped": left_out, "streak": left_out}
        return new, {name: jnp.float32(value) for name, value in names.items()} | {"left_out": jnp.float32(left_out)}


class Progress(contextlib.nullcontext):
    perplexity, peak_flops, tokens_per_step = False, 0.0, 1

    def update(self, *_):
        pass

    message = update


def schedule(steps: int, **fields) -> Schedule:
    never = dict(log_every=0, eval_every=0, checkpoint_every=0, max_bad_steps=10)
    return Schedule(steps, **(never | fields))


def test_results_are_read_while_the_next_step_is_made():
    notes = Notes()
    loop.train(State(0), 0, {}, schedule(3, log_every=1), notes.parts)
    assert notes.seen == [
        *("batch 1", "step 1"),
        *("batch 2", "step 2", "write 1: goodput"),
        *("batch 3", "step 3", "write 2: goodput"),
        *("write 3: goodput", "wait", "flush"),
    ]


def test_a_step_is_read_before_it_is_evaluated_and_saved():
    notes = Notes()
    loop.train(State(0), 0, {}, schedule(3, log_every=1, eval_every=2, checkpoint_every=2, check_every=3), notes.parts)
    assert notes.seen == [
        *("batch 1", "step 1"),
        *("batch 2", "step 2", "write 1: goodput", "write 2: goodput"),
        *("evaluate 2", "write 2: validation/loss", "observe 2"),
        *("replicas 2", "meet for the save of step 2", "save 2: data 2, {'validation/loss': 1.0}"),
        *("batch 3", "twice 3", "write 3: goodput"),
        *("evaluate 3", "write 3: validation/loss", "observe 3"),
        *("replicas 3", "meet for the save of step 3", "save 3: data 3, {'validation/loss': 1.0}"),
        # The last step is saved again and waited for, whatever happened to its first save.
        *("replicas 3", "meet for the save of step 3", "save 3: data 3, {'validation/loss': 1.0}"),
        *("wait", "wait", "flush"),
    ]


def test_the_best_evaluation_is_saved_and_too_many_others_end_the_run():
    notes = Notes(figures=lambda steps: {"validation/loss": float(steps)}, patience=2)
    _, step = loop.train(State(0), 0, {}, schedule(9, eval_every=1), notes.parts)
    assert step == 3
    saves = [text.split(":")[0] for text in notes.seen if text.startswith("save")]
    assert saves == ["save 1", "save 3", "save 3"]


def test_a_roll_back_lets_the_state_go_at_once():
    """Another state is restored next, and two would not fit into memory."""
    notes = Notes(bad=(2,))
    state = State(0)
    gone, step = [], notes.parts.train_step

    def watched(state, batch):
        new, result = step(state, batch)
        gone.append(weakref.ref(new))
        return new, result

    notes.parts.train_step = watched
    gc.disable()
    try:
        back = None
        try:
            loop.train(state, 0, {}, schedule(5, max_bad_steps=1, on_bad_steps="roll_back"), notes.parts)
        except loop.RollBack as error:
            back = error.with_traceback(None)  # as launch.train does
        assert (back.step, back.position) == (2, 2)
        assert [ref() for ref in gone] == [None, None, None]
    finally:
        gc.enable()
