"""Which prompts a round asks, which of its answers count, and what each one is worth; nothing is sampled by a model."""

import numpy as np
import pytest

from train.align.rollouts import Rollouts
from train.align.rounds import Prompt, Rewards, Rounds, Sampled, Settings, Tools
from train.objectives.policy import Policy
from train.objectives.preference import Preference

PROMPTS, GROUP, SIZE, LONGEST, END = 10, 2, 8, 4, 1
SETTINGS = Settings(GROUP, 1, 1, LONGEST, 1.0, 0, "keep", 0.0, 0, 0)


class Asked:
    """Rollouts whose answers are stated, with a record of what was asked.

    Answer k of the whole run has the tokens k + 100, k + 100, ..., so that batches show which answers they hold.

    Args:
      reward: (number of the prompt, place in its group, its earlier groups) -> reward.
      finished: the same arguments -> whether an end token ends the answer.
    """

    def __init__(self, reward, finished=lambda *_: True, objective=None, **changes):
        self.numbers, self.keys, self.made, self._reward, self._finished = [], [], [], reward, finished
        self.settings = SETTINGS._replace(**changes)
        prompts = [Prompt(np.array([0, number], np.int32), str(number), {}) for number in range(PROMPTS)]
        objective = (objective or Policy(scale="none")).sampling(1.0, 8, 512)
        rounds = Rounds(prompts, objective, self.settings, 32, 1, Tools(self._sample, self._rewards, None))
        more = dict(batch_size=SIZE, seq_len=32, unit=1, seed=0, stream="stated")
        self.source = Rollouts(rounds, objective, self.settings, PROMPTS, **more)

    def next(self):
        return self.source.next(type("State", (), {"model": None}))

    def _sample(self, model, prompts, key):
        self.numbers.append([int(ids[1]) for ids in prompts])
        self.keys.append(key)
        found = []
        for place, number in enumerate(self.numbers[-1]):
            case = (number, place % GROUP, sum(number in asked for asked in self.numbers[:-1]))
            length = 1 + number % (LONGEST - 1) if self._finished(*case) else LONGEST
            answer = np.full(length, len(self.made) + 100, np.int32)
            if self._finished(*case):
                answer[-1] = END
            self.made.append((case, answer))
            found.append(Sampled(answer, np.zeros(length, np.float32), self._finished(*case), ""))
        return found

    def _rewards(self, prompts, texts):
        total = np.array([self._reward(*case) for case, _ in self.made[-len(texts) :]], float)
        return Rewards(total, np.ones(len(total), bool), {"stated": total})


def advantages_of(batch):
    """Returns the advantages of the completions in a batch, in order; they must be equal over a completion's tokens."""
    found = []
    for row, segments in enumerate(batch["segment_ids"]):
        for segment in range(1, segments.max() + 1):
            here = (segments == segment) & (batch["weights"][row] > 0)
            (one,) = set(batch["advantages"][row][here].tolist())
            found.append(one)
    return sorted(found)


TEACHING = {1, 4, 5, 8}  # prompts whose answers have different rewards


def teaches(number, place, *_):
    return 0.1 * number + 3 * place * (number in TEACHING)


def groups(asked):
    return [numbers[::GROUP] for numbers in asked.numbers]


def test_prompts_that_teach_nothing_are_replaced():
    """By further prompts, with new random keys, until the round is full; no prompt is asked twice meanwhile."""
    asked = Asked(teaches, resample=5)
    batch = asked.next()
    drawn = [number for numbers in groups(asked) for number in numbers]
    assert len(set(drawn)) == len(drawn) <= PROMPTS and asked.source.position()["next_prompt"] == len(drawn)
    for asking, earlier in zip(groups(asked)[1:], np.cumsum([len(part) for part in groups(asked)]), strict=False):
        assert len(asking) == SIZE // GROUP - len(TEACHING.intersection(drawn[:earlier])) > 0
    assert len(asked.keys) > 1 and len({repr(key) for key in asked.keys}) == len(asked.keys)
    assert set(drawn) >= TEACHING  # it stops when the last of them is found
    held = {int(number) for row in asked.source.origins() for number in row.split("prompts ")[1].split(", ")}
    assert held == TEACHING
    np.testing.assert_allclose(advantages_of(batch), [-1.5] * 4 + [1.5] * 4)
    # The figures are about all answers that were sampled, so they show what resampling costs.
    figures = asked.source.figures()
    assert figures["equal_groups"] == pytest.approx(1 - 4 / len(drawn))
    rewards = [teaches(*case) for case, _ in asked.made]
    assert len(rewards) == GROUP * len(drawn) and figures["reward"] == pytest.approx(np.mean(rewards))
    assert figures["length"] == pytest.approx(np.mean([len(answer) for _, answer in asked.made]))


def test_prompts_that_teach_nothing_fill_up_what_is_missing():
    """After so many attempts; the round has its size, so the batch has as many answers as were asked for."""
    asked = Asked(lambda number, place, *_: place * (number == groups(asked)[0][0]), resample=2)
    batch = asked.next()
    assert [len(numbers) for numbers in groups(asked)] == [4, 3, 3]
    assert advantages_of(batch) == [-0.5] + [0.0] * 6 + [0.5]


def test_without_resampling_every_group_is_kept():
    asked = Asked(teaches)
    batch = asked.next()
    assert len(asked.numbers) == 1 and len(advantages_of(batch)) == SIZE
    assert asked.source.position()["next_prompt"] == SIZE // GROUP


def test_pairs_are_resampled_too():
    asked = Asked(teaches, resample=5, objective=Preference())
    batch = asked.next()
    assert (batch["ranks"].max(), sum(len(set(row)) - (0 in row) for row in batch["group_ids"])) == (1, len(TEACHING))


def cut(number, place, *_):
    return not (place and number % 2)  # the second answer to an odd prompt is cut


def test_masked_answers_teach_nothing_and_count_nowhere():
    """They have no place in the batch, and the answers beside them have the advantages that they have without them."""
    asked = Asked(lambda number, place, *_: 100.0 * place + number, finished=cut, truncated="mask")
    batch, wanted = asked.next(), []
    lost = [answer for case, answer in asked.made if not cut(*case)]
    assert lost and not np.isin(batch["targets"], [answer[0] for answer in lost]).any()
    assert batch["weights"].sum() == sum(len(answer) for case, answer in asked.made if cut(*case))
    for case, _ in asked.made[::GROUP]:  # of one alone nothing is known
        wanted += [0.0] if case[0] % 2 else [-50.0, 50.0]
    assert advantages_of(batch) == sorted(wanted)
    figures = asked.source.figures()
    assert figures["left_out"] == figures["truncated"] == len(lost) / SIZE
    assert figures["reward"] == pytest.approx(np.mean([100.0 * c[1] + c[0] for c, _ in asked.made if cut(*c)]))


def test_a_penalty_reaches_the_advantages():
    asked = Asked(lambda number, place, *_: 1.0, finished=cut, truncated="penalize", truncated_penalty=0.5)
    batch, wanted = asked.next(), []
    for case, _ in asked.made[::GROUP]:
        wanted += [0.25, -0.25] if case[0] % 2 else [0.0, 0.0]  # rewards 1 and 0.5, of mean 0.75
    assert advantages_of(batch) == sorted(wanted)
    lost = sum(not cut(*case) for case, _ in asked.made) / SIZE
    figures = asked.source.figures()
    assert 0 < lost == figures["truncated"] and figures["left_out"] == 0
    assert figures["reward"] == pytest.approx(1 - 0.5 * lost) and figures["reward/stated"] == 1


def test_answers_that_are_kept_have_their_rewards():
    """A penalty belongs to 'penalize' alone."""
    asked = Asked(lambda number, place, *_: 1.0, finished=cut, truncated_penalty=0.5)
    assert advantages_of(asked.next()) == [0.0] * SIZE and asked.source.figures()["reward"] == 1
