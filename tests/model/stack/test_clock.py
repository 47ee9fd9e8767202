"""The clock of a pipeline equals a simulation that follows each micro-batch."""

import pytest

from model.stack.clock import Clock


@pytest.mark.parametrize(("stages", "groups", "slots"), [(2, 1, 1), (2, 2, 2), (4, 3, 2), (3, 1, 4)])
def test_every_micro_batch_passes_all_groups_and_is_home(stages, groups, slots):
    clock = Clock(stages, groups, slots)
    at_work, home = {}, {}
    for batch in range(stages * slots):
        slot, lies_at = divmod(batch, stages)
        begins = slot * groups * stages + lies_at
        for step in range(groups * stages):
            place = (begins + step, step % stages)
            assert place not in at_work, "two micro-batches at one stage"
            at_work[place] = step // stages
        done = begins + groups * stages - 1
        back = done + stages - 1 - lies_at  # from the last stage, moving left
        assert home.setdefault(slot, back) == back, "the rows of a slot must come home at the same turn"
    assert max(turn for turn, _ in at_work) == clock.turns - 1
    for (turn, stage), group in at_work.items():
        assert clock.group(turn, stage) == group and clock.since(turn, stage) >= 0
    arrivals = {turn: int(slot) for turn in range(clock.turns) for slot, yes in [clock.arrived(turn)] if yes}
    assert arrivals == {turn: slot for slot, turn in home.items()}
