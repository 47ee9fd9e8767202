"""Turns a judge's replies to the questions about a record into scores of its answers, and counts what happened."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from launch.judging.questions import SCORES
from launch.judging.replies import Key, Reply
from launch.judging.samples import Sample

ALL_TIE = "whose answers all tie or have no score"
Replies = Mapping[Key, Reply]


def _prefers_first(reply: Reply | None) -> int:
    """Returns 1 if the first answer is better, -1 if the second one is, and 0 if the judge does not say."""
    if reply is None or reply.weights is None:
        return 0
    first, second = reply.weights
    return (first > second) - (first < second)


@dataclasses.dataclass
class Tally:
    """Counts over all records.

    Attributes:
      decided: pairs of answers of which one is better.
      tied: pairs of which none is.
      flips: pairs whose verdict changed with the order of the answers; they are ties.
      both: pairs with a verdict in both orders.
      longer: decided pairs whose better answer is the longer one.
      characters: total lengths of the better and of the worse answers of decided pairs.
      replies: how many replies there are, by what is wrong with them ('': nothing).
      first: verdicts for the answer that is shown first.
      mass: sum of the probabilities of all verdicts together.
      points: sum of the scores, of --mode=score.
      verdicts: of each compared pair (record, i, j) of texts: 1 if the first one is better, -1 if the second one is,
        0 for a tie.
    """

    decided: int = 0
    tied: int = 0
    flips: int = 0
    both: int = 0
    longer: int = 0
    characters: list[int] = dataclasses.field(default_factory=lambda: [0, 0])
    replies: Counter[str] = dataclasses.field(default_factory=Counter)
    first: int = 0
    mass: float = 0.0
    points: float = 0.0
    verdicts: dict[tuple[int, int, int], int] = dataclasses.field(default_factory=dict)

    def compared(self, sample: Sample, seed: int, replies: Replies) -> list[float | None]:
        """Returns the score of each of a record's texts: the share of its comparisons that it won; a tie is half."""
        pairs = sample.compared(seed)
        won, played = [0.0] * len(sample.texts), [0] * len(sample.texts)
        for i, j in pairs:
            orders = [_prefers_first(self._heard(replies, (sample.number, *order))) for order in ((i, j), (j, i))]
            forth, back = orders[0], -orders[1]
            self.first += orders.count(1)
            self.both += all(orders)
            self.flips += forth == -back != 0
            verdict = forth if forth == back else 0
            self.verdicts[sample.number, i, j] = verdict
            won[i], won[j] = won[i] + (1 + verdict) / 2, won[j] + (1 - verdict) / 2
            played[i], played[j] = played[i] + 1, played[j] + 1
            self._pair(sample, (i, j) if verdict >= 0 else (j, i), verdict != 0)
        return [w / p for w, p in zip(won, played, strict=True)]

    def scored(self, sample: Sample, replies: Replies) -> list[float | None]:
        """Returns the score of each of a record's texts: the expected one, to hundredths; None: the judge gave none."""
        found: list[float | None] = []
        for i in range(len(sample.texts)):
            reply = self._heard(replies, (sample.number, i))
            if reply is None or reply.weights is None:
                found.append(None)
                continue
            value = sum(weight * int(score) for weight, score in zip(reply.weights, SCORES, strict=True))
            self.points += value
            found.append(round(value, 2))
        there = sorted(((score, i) for i, score in enumerate(found) if score is not None), reverse=True)
        for (best, i), (worse, j) in itertools.combinations(there, 2):
            self._pair(sample, (i, j), best != worse)
        return found

    def _heard(self, replies: Replies, key: Key) -> Reply | None:
        reply = replies.get(key)
        self.replies["unanswered" if reply is None else reply.why] += 1
        self.mass += (reply.mass or 0.0) if reply else 0.0
        return reply

    def _pair(self, sample: Sample, better: tuple[int, int], decided: bool) -> None:
        if not decided:
            self.tied += 1
            return
        lengths = [len(sample.texts[i]) for i in better]
        self.decided += 1
        self.longer += lengths[0] > lengths[1]
        self.characters = [total + length for total, length in zip(self.characters, lengths, strict=True)]

    def summary(self, mode: str, model: bool) -> dict[str, Any]:
        """Returns the counts and shares.

        Args:
          mode: compare or score.
          model: the judge is a model, whose probabilities are known.
        """
        asked, read = self.replies.total(), self.replies[""]
        share = lambda part, whole: round(part / whole, 4) if whole else None
        found: dict[str, Any] = {"questions": asked}
        found |= {f"questions {why}": count for why, count in sorted(self.replies.items()) if why}
        if model:
            found["probability of a verdict"] = share(self.mass, read)
        found |= {"pairs": self.decided + self.tied, "ties": share(self.tied, self.decided + self.tied)}
        if mode == "compare":
            found |= {"flips": share(self.flips, self.both), "verdicts for the first": share(self.first, read)}
        else:
            found["mean score"] = share(self.points, read)
        better, worse = (share(total, self.decided) for total in self.characters)
        found |= {"characters of better answers": better, "characters of worse answers": worse}
        return found | {"better answer is longer": share(self.longer, self.decided)}


def ranked(sample: Sample, scores: Sequence[float | None]) -> dict[str, Any] | None:
    """Returns the record with "answers": [{"answer", "score"}], or None if no two answers have different scores."""
    of = {text: score for text, score in zip(sample.texts, scores, strict=True) if score is not None}
    if len({*of.values()}) < 2:
        return None
    return sample.record | {"answers": [{"answer": text, "score": of[text]} for text in sample.answers if text in of]}
