"""KTO equals PyTorch in float64: loss, gradient and metrics of judged answers in packed rows."""

import jax
import numpy as np
import pytest
import torch

from tests.model import tiny
from tests.train.objectives.test_preference import LENGTH, ROWS, batch, stated
from train.objectives.kto import Kto
from train.objectives.objective import HeldOut
from train.token_logprobs import token_logprobs


def judged():
    """Returns rows whose examples have an answer of their own (rank 0) and one of another prompt (rank 1)."""
    rows = batch()
    good = (rows["group_ids"] + np.arange(ROWS)[:, None]) % 2 == 0
    return rows | {"good": (good & (rows["ranks"] == 0)).astype(np.int32)}


def own_answers(rows):
    """Yields (row, group, whether it is good)."""
    for row in range(ROWS):
        for group in range(1, rows["group_ids"][row].max() + 1):
            here = (rows["group_ids"][row] == group) & (rows["ranks"][row] == 0)
            yield row, group, bool(rows["good"][row][here].all())


def expected(model, reference, rows, settings):
    """Returns (loss, z, rewards of good and of bad answers, gradients), written out as in the paper and in TRL."""
    x, table = (torch.tensor(np.asarray(a, np.float64), requires_grad=True) for a in (model.x_BTD, model.table))
    logp = lambda x, table: torch.log_softmax(x @ table.T, -1).gather(
        -1, torch.tensor(rows["targets"]).long()[..., None]
    )
    theirs = logp(*(torch.tensor(np.asarray(a, np.float64)) for a in (reference.x_BTD, reference.table)))
    apart = (logp(x, table) - theirs)[..., 0]

    def ratio(row, group, rank):
        here = (rows["group_ids"][row] == group) & (rows["ranks"][row] == rank) & (rows["weights"][row] > 0)
        return apart[row][torch.tensor(here)].sum()

    answers = list(own_answers(rows))
    kl = torch.stack([ratio(row, group, 1) for row, group, _ in answers]).mean().clamp(min=0).detach()
    losses, good, bad = [], [], []
    for row, group, is_good in answers:
        r = ratio(row, group, 0)
        if is_good:
            losses.append(settings.good_weight * (1 - torch.sigmoid(settings.beta * (r - kl))))
        else:
            losses.append(settings.bad_weight * (1 - torch.sigmoid(settings.beta * (kl - r))))
        (good if is_good else bad).append(settings.beta * r.item())
    loss = torch.stack(losses).sum()
    loss.backward()
    return loss.item(), settings.beta * kl.item(), good, bad, (x.grad.numpy(), table.grad.numpy())


@pytest.mark.parametrize("settings", [{}, dict(beta=0.5, good_weight=1.3), dict(bad_weight=0.2)], ids=str)
@pytest.mark.parametrize("swapped", [False, True])
def test_equals_float64(settings, swapped):
    """In one of the two orders of model and reference, the reference point is above 0."""
    model, reference = (stated(1), stated(0)) if swapped else (stated(0), stated(1))
    rows, objective = judged(), Kto(**settings)
    total = lambda model: (lambda loss: (loss.total, loss))(
        objective(model, rows, jax.random.key(0), reference=reference)
    )
    gradients, loss = jax.jit(jax.grad(total, has_aux=True))(model)
    wanted, z, good, bad, (dx, dtable) = expected(model, reference, rows, objective)
    assert loss.weight == len(good) + len(bad) == 5 and good and bad
    np.testing.assert_allclose(loss.total, wanted, rtol=1e-5)
    np.testing.assert_allclose(gradients.x_BTD, dx, atol=2e-6)
    np.testing.assert_allclose(gradients.table, dtable, atol=2e-5)
    mean = lambda values: sum(values) / len(values)
    right = [r > z for r in good] + [r < z for r in bad]
    figures = objective.figures(jax.device_get(objective(model, rows, None, reference=reference)), HeldOut())
    figures.pop("kl")
    assert figures == pytest.approx(
        {
            "loss": wanted / 5,
            "accuracy": mean(right),
            "margin": mean(good) - mean(bad),
            "good_reward": mean(good),
            "bad_reward": mean(bad),
            "reference_point": z,
        },
        rel=1e-4,
        abs=1e-6,
    )


def test_one_of_the_orders_has_a_reference_point():
    """Otherwise the test above would not see it."""
    found = [Kto()(stated(a), judged(), None, reference=stated(1 - a)).metrics["reference_point"] for a in (0, 1)]
    assert max(found) > 0.1


@pytest.mark.parametrize("swapped", [False, True])
def test_stored_log_probabilities_equal_a_reference_beside_the_model(swapped):
    """Of answers to other prompts too, which give the reference point."""
    model, reference = (stated(1), stated(0)) if swapped else (stated(0), stated(1))
    rows = judged()
    logprobs_BT = token_logprobs(reference.output(reference(*[rows["tokens"]] * 3).x_BTD), rows["targets"])
    stored = rows | {"reference_logprobs": np.where(rows["weights"] > 0, logprobs_BT, 0)}
    beside = Kto()(model, rows, None, reference=reference)
    found = Kto(precompute=True)(model, stored, None)
    assert {*beside.metrics} - {*found.metrics} == {"kl", "tokens"}
    for name, value in found.metrics.items():
        np.testing.assert_allclose(value, beside.metrics[name], rtol=1e-6, err_msg=name)
    figures = Kto().figures(jax.device_get(found), HeldOut())
    assert "kl" not in figures and figures["loss"] == pytest.approx(float(beside.total / beside.weight), rel=1e-6)


def test_a_model_that_is_its_reference():
    figures = Kto().figures(jax.device_get(Kto()(stated(0), judged(), None, reference=stated(0))), HeldOut())
    assert figures == pytest.approx({"loss": 0.5, "accuracy": 0.5} | dict.fromkeys([*figures][2:], 0.0), abs=1e-6)
    assert len(list(Kto().lines(figures, HeldOut()))) == 8


def test_answers_of_one_verdict_have_no_margin():
    rows = judged()
    rows |= {"good": np.where(rows["ranks"] == 0, 1, 0)}
    figures = Kto().figures(jax.device_get(Kto()(stated(0), rows, None, reference=stated(1))), HeldOut())
    assert [*figures] == ["loss", "accuracy", "good_reward", "reference_point", "kl"]


def test_rows_without_weight_give_nothing():
    rows = judged() | {"weights": np.zeros((ROWS, LENGTH), np.float32)}
    total = lambda model: (lambda loss: (loss.total, loss))(Kto()(model, rows, jax.random.key(0), reference=stated(1)))
    gradients, loss = jax.grad(total, has_aux=True)(stated(0))
    assert loss.total == 0 and loss.weight == 0
    assert not any(np.asarray(g).any() for g in (gradients.x_BTD, gradients.table))


def test_only_judged_answers_are_learned():
    data = {"path": "a.jsonl", "sources": (), "format": "unpaired"}
    Kto().check(tiny.LLAMA, data)
    with pytest.raises(ValueError, match=r"config\.data also has preferences"):
        Kto().check(tiny.LLAMA, data | {"format": "preferences"})
