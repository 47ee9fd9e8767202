"""Finds devices that silently compute or store wrong numbers.

Two checks hash the arrays on each device and compare the hashes on the host:

    twice      a step is computed twice from the same state and batch; each device must get the same bits both times
    replicas   devices that hold the same part of an array must hold the same bits

Both find a difference of a single bit. If two replicas differ, nobody can know which one is right, so both are named;
of more than two, the minority is named. A device that is wrong in the same way each time is found only by the second
check, and only if there are replicas.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from model import weights
from model.fingerprint import device_sums
from train.optimizer import fetched
from train.state import TrainState


class SilentCorruption(Exception):
    """A device computed or stored wrong numbers. The message names it."""


def differing_replicas(state: TrainState) -> dict[str, list[jax.Device]]:
    """Returns {name of an array: devices whose part differs from that of other devices with the same part}."""
    arrays = _arrays(state)
    return _differing(arrays, _sums(arrays))


class Checker:
    """Runs the two checks.

    Args:
      train_step: (state, batch) -> (state, metrics).
      named: returns the name of a device for error messages.
    """

    def __init__(self, train_step: Callable, named: Callable[[jax.Device], str] = str):
        self._train_step, self._named = train_step, named
        self._clean: int | None = None  # the last step that passed

    def twice(self, state: TrainState, batch, step: int) -> tuple[TrainState, dict]:
        """Returns train_step(state, batch) after computing it twice. This needs memory for a second state.

        Args:
          step: its number, for error messages.

        Raises:
          SilentCorruption: the two results differ, or replicas differ before or after the step.
        """
        self.replicas(state, step - 1)
        first = _sums(_arrays(self._train_step(_copied(state), batch)[0]))
        state, result = self._train_step(state, batch)
        arrays = _arrays(state)
        second = _sums(arrays)
        if twice := _by_device(arrays, (first != second).any(axis=-1)):
            raise self._error(f"step {step}, computed twice, had two results", twice)
        if after := _differing(arrays, second):
            raise self._error(f"after step {step}", after)
        self._clean = step
        return state, result

    def replicas(self, state: TrainState, step: int) -> None:
        """Checks that replicas are equal.

        Args:
          step: the number of steps that led to `state`, for error messages.

        Raises:
          SilentCorruption: replicas differ.
        """
        if found := differing_replicas(state):
            raise self._error(f"after step {step}", found)
        self._clean = step

    def _error(self, when: str, found: dict[str, list[jax.Device]]) -> SilentCorruption:
        devices = list(dict.fromkeys(device for those in found.values() for device in those))
        arrays = ", ".join(list(found)[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        good = "; this was the first check" if self._clean is None else f"; the check after step {self._clean} passed"
        return SilentCorruption(
            f"silent corruption, {when}{good}: {', '.join(self._named(device) for device in devices)}, in {arrays}. "
            "The corrupted state was not saved. Take the device out and start again; the run continues from its last "
            "checkpoint"
        )


def _arrays(state: TrainState) -> dict[str, jax.Array]:
    """Returns the arrays of a state by name, with offloaded optimizer states copied to the devices."""
    near = lambda part: dataclasses.replace(part, opt_state=fetched(part.opt_state))
    return weights.by_name(
        near(state if state.critic is None else dataclasses.replace(state, critic=near(state.critic)))
    )


def _sums(arrays: dict[str, jax.Array]) -> np.ndarray:
    return np.asarray(_device_sums(list(arrays.values())))


_device_sums = jax.jit(device_sums)


def _copied(state: TrainState) -> TrainState:
    return jax.tree.map(jnp.copy, state)


def _differing(arrays: dict[str, jax.Array], sums_ADW: np.ndarray) -> dict[str, list[jax.Device]]:
    devices = list(jax.sharding.get_mesh().devices.flat)
    wrong_AD = np.zeros((len(arrays), len(devices)), bool)
    for row, array, sums_DW in zip(wrong_AD, arrays.values(), sums_ADW, strict=True):
        where = array.sharding.devices_indices_map(array.shape)
        groups: dict[str, list[int]] = {}
        for i, device in enumerate(devices):
            groups.setdefault(str(where[device]), []).append(i)
        for group in groups.values():
            counts = Counter(sums_DW[i].tobytes() for i in group)
            if len(counts) > 1:
                (usual, most), (_, second) = counts.most_common(2)
                row[group] = [most == second or sums_DW[i].tobytes() != usual for i in group]
    return _by_device(arrays, wrong_AD)


def _by_device(arrays: dict[str, jax.Array], wrong_AD: np.ndarray) -> dict[str, list[jax.Device]]:
    """Returns {name: devices} of the arrays that are wrong on some device."""
    devices = list(jax.sharding.get_mesh().devices.flat)
    return {
        name: [devices[i] for i in np.flatnonzero(row)] for name, row in zip(arrays, wrong_AD, strict=True) if row.any()
    }
