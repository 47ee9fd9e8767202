"""Reward models equal PyTorch in float64: loss, gradient and metrics of ranked answers in packed rows."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
import torch

from model import architectures, axes
from model.architectures import Hidden
from tests.model import tiny
from tests.train.objectives.test_preference import LENGTH, ROWS, batch
from train import state, step
from train.objectives.objective import HeldOut, numbers
from train.objectives.reward import BINS, MARGINS, Reward

REWARD = dataclasses.replace(tiny.LLAMA, head="sequence", num_labels=1)
DATA = {"path": "a.jsonl", "sources": (), "format": "rankings"}


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Scored:
    """A model whose scores are its parameters."""

    scores_BT: jax.Array

    def __call__(self, tokens_BT, segments_BT, positions_BT, *, key=None):
        return Hidden(None, None, None)

    def classes(self, x_BTD):
        return self.scores_BT[..., None]


def ranked(answers=2):
    """Returns rows in which only the last token of each answer has a weight."""
    rows = batch(answers=answers)
    after = np.pad(rows["segment_ids"], ((0, 0), (0, 1)))[:, 1:]
    return rows | {"weights": ((rows["segment_ids"] != after) & (rows["segment_ids"] > 0)).astype(np.float32)}


def model(seed=0):
    return Scored(np.random.default_rng(seed).normal(size=(ROWS, LENGTH)).astype(np.float32))


def pairs(rows):
    """Yields (row, better place, worse place, weight) of each pair."""
    for row, group in itertools.product(range(ROWS), range(1, 3)):
        at = np.flatnonzero((rows["group_ids"][row] == group) & (rows["weights"][row] > 0))
        found = list(itertools.combinations(at, 2))  # later answers are worse
        yield from ((row, better, worse, 1 / len(found)) for better, worse in found)


@pytest.mark.parametrize(("centre", "answers"), [(0.0, 2), (0.05, 2), (0.0, 4)])
def test_equals_float64(centre, answers):
    rows, scored = ranked(answers), model()
    total = lambda scored: (lambda loss: (loss.total, loss))(Reward(centre=centre)(scored, rows, jax.random.key(0)))
    gradient, loss = jax.jit(jax.grad(total, has_aux=True))(scored)
    scores = torch.tensor(np.asarray(scored.scores_BT, np.float64), requires_grad=True)
    values = scores.detach().numpy()
    wanted = torch.zeros((), dtype=torch.float64)
    right = margin = 0.0
    for row, better, worse, weight in pairs(rows):
        a, b = scores[row, better], scores[row, worse]
        wanted = wanted + weight * (centre * (a + b) ** 2 - torch.nn.functional.logsigmoid(a - b))
        apart = values[row, better] - values[row, worse]
        right, margin = right + weight * (apart > 0), margin + weight * apart
    wanted.backward()
    assert loss.weight == pytest.approx(5) and 0 < right < 5
    np.testing.assert_allclose(loss.total, wanted.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient.scores_BT, scores.grad, atol=1e-6)
    assert not np.asarray(gradient.scores_BT)[rows["weights"] == 0].any()
    np.testing.assert_allclose([loss.metrics["accuracy"], loss.metrics["margin"]], [right, margin], rtol=1e-5)


def test_margins_equal_float64():
    """Also for lists: each pair's margin is the difference of its stated scores."""
    rows, scored = ranked(4), model()
    rows |= {"scores": (5 - 0.7 * rows["ranks"] ** 1.5).astype(np.float32)}
    loss = Reward(margin=0.3)(scored, rows, jax.random.key(0))
    wanted = 0.0
    for row, better, worse, weight in pairs(rows):
        apart = float(rows["scores"][row, better] - rows["scores"][row, worse])
        z = torch.tensor(float(scored.scores_BT[row, better]) - float(scored.scores_BT[row, worse])).double()
        wanted -= weight * torch.nn.functional.logsigmoid(z - 0.3 * apart).item()
        assert apart > 0
    np.testing.assert_allclose(loss.total, wanted, rtol=1e-5)


@pytest.mark.parametrize("ties", [False, True])
def test_choices_equal_float64(ties):
    """Plackett and Luce, written out choice by choice; two answers of equal rank are both in each other's set."""
    rows, scored = ranked(4), model()
    if ties:
        rows["ranks"] = np.where(rows["ranks"] == 2, 1, rows["ranks"])
    objective = Reward(method="list")
    total = lambda scored: (lambda loss: (loss.total, loss))(objective(scored, rows, jax.random.key(0)))
    gradient, loss = jax.jit(jax.grad(total, has_aux=True))(scored)
    scores = torch.tensor(np.asarray(scored.scores_BT, np.float64), requires_grad=True)
    wanted, lists = torch.zeros((), dtype=torch.float64), 0
    for row, group in itertools.product(range(ROWS), range(1, 3)):
        at = np.flatnonzero((rows["group_ids"][row] == group) & (rows["weights"][row] > 0))
        ranks = rows["ranks"][row][at]
        choices = [
            torch.logsumexp(scores[row, at[ranks >= rank]], 0) - scores[row, place]
            for place, rank in zip(at, ranks, strict=True)
            if (ranks > rank).any()
        ]
        if choices:
            wanted, lists = wanted + torch.stack(choices).mean(), lists + 1
    wanted.backward()
    assert loss.weight == pytest.approx(5) and lists == 5
    np.testing.assert_allclose(loss.total, wanted.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient.scores_BT, scores.grad, atol=1e-6)


def test_the_choice_in_a_pair_is_that_of_bradley_and_terry():
    pair, choice = (Reward(method=name)(model(), ranked(2), jax.random.key(0)).total for name in ("pairs", "list"))
    np.testing.assert_allclose(pair, choice, rtol=1e-6)


def test_calibration():
    """The expected calibration error over bins of the predicted probability, as by its definition."""
    rows, scored = ranked(4), model(1)
    figures = Reward().figures(jax.device_get(Reward()(scored, rows, None)), HeldOut())
    bins = [[] for _ in range(BINS)]
    for row, better, worse, weight in pairs(rows):
        z = float(scored.scores_BT[row, better]) - float(scored.scores_BT[row, worse])
        sure = 1 / (1 + np.exp(-abs(z)))
        bins[min(int((sure - 0.5) * 2 * BINS), BINS - 1)].append((weight, weight * sure, weight * (z > 0)))
    sums = [np.sum(one, axis=0) for one in bins if one]
    wanted = sum(abs(sure - right) for _, sure, right in sums) / sum(count for count, _, _ in sums)
    assert figures["calibration_error"] == pytest.approx(wanted, rel=1e-4) and wanted > 0.05
    assert [*numbers(figures)] == ["loss", "accuracy", "margin", "calibration_error", "score"]
    np.testing.assert_allclose(figures["reliability"], [np.sum([(0, 0, 0), *one], axis=0) for one in bins], rtol=1e-4)
    assert len(list(Reward().lines(figures, HeldOut()))) == 6


@pytest.mark.parametrize("margin", [0.0, 0.3])
def test_bins_of_margins(margin):
    """Pairs by the margin that the data state, or else by the difference of scores; by brute force in float64."""
    rows, scored = ranked(4), model(1)
    rows |= {"scores": (3 - rows["ranks"] ** 1.4).astype(np.float32)}
    figures = Reward(margin=margin).figures(jax.device_get(Reward(margin=margin)(scored, rows, None)), HeldOut())
    wanted = np.zeros((len(MARGINS) + 1, 3))
    for row, better, worse, weight in pairs(rows):
        z = float(scored.scores_BT[row, better]) - float(scored.scores_BT[row, worse])
        apart = float(rows["scores"][row, better] - rows["scores"][row, worse]) if margin else abs(z)
        wanted[np.searchsorted(MARGINS, apart, side="right")] += (weight, weight * apart, weight * (z > 0))
    name, other = ("by_margin", "by_difference") if margin else ("by_difference", "by_margin")
    np.testing.assert_allclose(figures[name], wanted, rtol=1e-4, atol=1e-6)
    assert (wanted[:, 0] > 0).sum() >= 3 and wanted[:, 0].sum() == pytest.approx(5) and other not in figures
    json.dumps(figures)  # metrics.jsonl and summary.json hold them


@pytest.mark.parametrize("shape", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "context": 2, "tensor": 2}])
def test_an_evaluation_on_a_mesh_gives_the_same(shape):
    rows = ranked(4) | {"scores": model(2).scores_BT}
    abstract = state.abstract_model(lambda rngs: architectures.make(dataclasses.replace(REWARD, num_layers=1), rngs))
    objective = Reward(margin=0.3)

    def run(put):
        loss = step.make_eval_step(objective)(tiny.filled(abstract, 0), put(rows), None)
        return objective.figures(jax.device_get(loss), HeldOut())

    alone, mesh = run(lambda rows: rows), axes.make_mesh(shape)
    with axes.use_mesh(mesh):
        zigzag = axes.zigzag(LENGTH, shape["context"]) if "context" in shape else np.arange(LENGTH)
        sharding = axes.batch_sharding(mesh, LENGTH)
        found = run(lambda rows: jax.device_put({name: a[:, zigzag] for name, a in rows.items()}, sharding))
    assert found.keys() == alone.keys()
    for name, value in alone.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_whole_margins_have_bins_of_their_own():
    assert (np.diff(np.searchsorted(MARGINS, [0, 1, 2, 3, 4, 8], side="right")) > 0).all()


def test_equal_scores():
    """A model that scores all answers the same knows nothing, which is calibrated."""
    same = Scored(np.full((ROWS, LENGTH), 3, np.float32))
    figures = Reward().figures(jax.device_get(Reward()(same, ranked(4), None)), HeldOut())
    wanted = {"loss": np.log(2), "accuracy": 0.5, "margin": 0, "calibration_error": 0, "score": 3}
    assert numbers(figures) == pytest.approx(wanted, abs=1e-6)


def test_rows_without_weight_are_no_pairs():
    rows = ranked() | {"weights": np.zeros((ROWS, LENGTH), np.float32)}
    loss = Reward()(model(), rows, jax.random.key(0))
    assert loss.total == 0 and loss.weight == 0


@pytest.mark.parametrize(
    ("config", "change", "said"),
    [
        (tiny.LLAMA, {}, "needs a decoder with head 'sequence' and 1 label"),
        (dataclasses.replace(REWARD, num_labels=2), {}, "num_labels 2"),
        (REWARD, {"format": "preferences"}, "config.data also has preferences"),
        (
            REWARD,
            {"rankings": {"margin": "m"}},
            r"objective.margin is 0.0 and config.data.rankings.margin is 'm'",
        ),
    ],
)
def test_what_it_cannot_learn_is_refused(config, change, said):
    Reward().check(REWARD, DATA)
    with pytest.raises(ValueError, match=said):
        Reward().check(config, DATA | change)
