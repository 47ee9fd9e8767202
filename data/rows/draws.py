"""Random numbers for rows, and choices that are drawn with them.

The numbers of a row depend only on the seed and on its place in the stream; not on the batch, the process or what was
read before. A row has another place in each epoch, so it gets new numbers.

B rows, T tokens per row.
"""

import numpy as np

_LAST = np.uint64(2**64 - 1)


def random_numbers(seed: int, places: np.ndarray, count: int) -> np.ndarray:
    """Returns random numbers, uint64 [B, count], where row i depends on (seed, places[i]) alone.

    They are raw Philox output, which stays the same in every NumPy version.
    """
    generator = np.random.Philox(0)
    state = generator.state
    numbers = np.empty((len(places), count), np.uint64)
    for i, place in enumerate(places):
        state["state"]["key"] = np.array([seed % 2**64, place], np.uint64)
        generator.state = state  # six times faster than one generator per row
        numbers[i] = generator.random_raw(count)
    return numbers


def smallest(numbers: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Returns each row's columns sorted by their numbers, int [B, T], with columns that are not `valid` last."""
    return np.argsort(np.where(valid, numbers >> np.uint64(1), _LAST), axis=1)
