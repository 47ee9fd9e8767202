"""The classification objective equals PyTorch's losses and gradients, and scikit-learn's confusion matrix."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqeval.metrics as seqeval
import torch
from sklearn.metrics import confusion_matrix

from model import architectures, axes
from model.architectures import Hidden
from model.experts.router import RouterStats
from tests.model import tiny
from train import state
from train.evals.label_metrics import figures
from train.objectives.classification import Classification


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Scorer:
    """A model whose logits are its parameters."""

    scores_BTC: jax.Array
    router: RouterStats | None = None

    def __call__(self, tokens_BT, segments_BT, positions_BT, *, key):
        return Hidden(self.scores_BTC, None, self.router)

    def classes(self, x_BTD):
        return x_BTD


def batch(numbers=False, rows=8):
    tokens, segments, positions = tiny.packed_rows(rows, 16)
    random = np.random.default_rng(1)
    last = (segments > 0) & (segments != np.pad(segments[:, 1:], ((0, 0), (0, 1))))
    targets = random.normal(size=tokens.shape).astype(np.float32) if numbers else random.integers(0, 3, tokens.shape)
    rows = dict(tokens=tokens, segment_ids=segments, positions=positions, weights=last.astype(np.float32))
    return rows | {"targets": targets if numbers else targets.astype(np.int32)}


def scorer(classes):
    return Scorer(np.random.default_rng(2).normal(size=(8, 16, classes)).astype(np.float32))


def outcome(model, rows, **settings):
    """Returns (loss in evaluation, gradients in training)."""
    objective = Classification(**settings, names=("B-X", "I-X", "O"))
    both = lambda model: (objective(model, rows, jax.random.key(0)).total, objective(model, rows, None))
    gradients, loss = jax.jit(jax.grad(both, has_aux=True))(model)
    return loss, gradients


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_classes(smoothing):
    rows, model = batch(), scorer(3)
    loss, gradients = outcome(model, rows, label_smoothing=smoothing)
    read = rows["weights"] > 0
    true = rows["targets"][read]
    scores = torch.tensor(model.scores_BTC, requires_grad=True)
    wanted = lambda **values: torch.nn.functional.cross_entropy(
        scores[torch.tensor(read)], torch.tensor(true, dtype=torch.int64), reduction="sum", **values
    )
    total = wanted(label_smoothing=smoothing)
    total.backward()
    np.testing.assert_allclose(loss.total, total.item(), rtol=1e-6)
    np.testing.assert_allclose(gradients.scores_BTC, scores.grad.numpy(), atol=1e-6)
    np.testing.assert_allclose(loss.metrics["loss"], wanted().item(), rtol=1e-6)
    assert loss.weight == read.sum() == 24
    expected = confusion_matrix(true, model.scores_BTC[read].argmax(-1), labels=range(3))
    np.testing.assert_array_equal(loss.metrics["confusion"], expected)
    assert loss.metrics["accuracy"] == np.trace(expected) and (expected > 0).sum() > 4


def test_numbers():
    rows, model = batch(numbers=True), scorer(1)
    loss, gradients = outcome(model, rows)
    read = rows["weights"] > 0
    x, y = model.scores_BTC[read][:, 0].astype(float), rows["targets"][read].astype(float)
    np.testing.assert_allclose(loss.total, np.square(x - y).sum(), rtol=1e-6)
    np.testing.assert_allclose(gradients.scores_BTC[read][:, 0], 2 * (x - y), rtol=1e-5)
    assert not np.asarray(gradients.scores_BTC)[~read].any()
    np.testing.assert_allclose(loss.metrics["absolute_error"], np.abs(x - y).sum(), rtol=1e-6)
    moments = [np.sum(values) for values in (x, y, x * x, x * y, y * y)]
    np.testing.assert_allclose(loss.metrics["moments"], moments, rtol=1e-4)


NAMES = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]


@pytest.mark.parametrize("likely", [[1, 1, 1, 1, 1], [1, 1, 3, 3, 2]])
def test_entities_are_those_of_seqeval(likely):
    """Tags are random, many entities begin with an I tag, sentences are packed, and some words have no tag."""
    rows, random = batch(rows=64), np.random.default_rng(3)
    shape, odds = rows["targets"].shape, np.array(likely) / sum(likely)
    rows["targets"] = random.choice(5, shape, p=odds).astype(np.int32)
    rows["weights"] = ((random.random(shape) < 0.8) & (rows["segment_ids"] > 0)).astype(np.float32)
    said = np.where(random.random(shape) < 0.7, rows["targets"], random.choice(5, shape, p=odds))
    model = Scorer(np.eye(5, dtype=np.float32)[said])
    loss = jax.jit(lambda model: Classification(names=NAMES)(model, rows, None))(model)
    true_lists, said_lists = [], []
    for row in range(len(said)):
        for segment in range(1, rows["segment_ids"][row].max() + 1):
            here = (rows["segment_ids"][row] == segment) & (rows["weights"][row] > 0)
            true_lists.append([NAMES[i] for i in rows["targets"][row][here]])
            said_lists.append([NAMES[i] for i in said[row][here]])
    expected = {
        "entity_precision": seqeval.precision_score(true_lists, said_lists),
        "entity_recall": seqeval.recall_score(true_lists, said_lists),
        "entity_f1": seqeval.f1_score(true_lists, said_lists),
    }
    found = figures(jax.device_get(loss), {"counts": [1] * 5})
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert 0.3 < expected["entity_f1"] < 0.9 and loss.metrics["entities"][0] > 50


@pytest.mark.parametrize("names", [["O", "X"], ["B", "I", "O"], ["O"], []])
def test_other_names_are_no_tags(names):
    assert "entities" not in Classification(names=names)(scorer(3), batch(), None).metrics


def test_numbers_need_one_score():
    with pytest.raises(ValueError, match="the model gives 3 scores"):
        Classification()(scorer(3), batch(numbers=True), None)


def test_routers_of_experts_are_added():
    router = RouterStats(*np.random.default_rng(0).uniform(1, 2, (len(RouterStats._fields), 2, 4)).astype(np.float32))
    router = router._replace(tokens=jnp.full(2, 24.0), z_loss=jnp.ones(2), dropped=jnp.zeros(2))
    model, rows = dataclasses.replace(scorer(3), router=router), batch()
    added = Classification(balance_loss=0.5)(model, rows, None).total - Classification()(model, rows, None).total
    np.testing.assert_allclose(added, 0.5 * router.balance_loss().sum() * 24, rtol=1e-4)
    assert added > 0.1


def test_a_mesh_gives_the_same():
    config = dataclasses.replace(tiny.GPT, num_layers=1, architecture="encoder", head="sequence", num_labels=3)
    model, rows = tiny.drawn(config), batch()
    loss, gradients = jax.device_get(outcome(model, rows))
    mesh = axes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    with axes.use_mesh(mesh):
        abstract, tree = jax.tree.flatten(state.abstract_model(lambda rngs: architectures.make(config, rngs)))
        leaves = [jax.device_put(a, like.sharding) for a, like in zip(jax.tree.leaves(model), abstract, strict=True)]
        found = outcome(tree.unflatten(leaves), jax.device_put(rows, axes.batch_sharding(mesh)))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), found[0], loss)
    for a, b in zip(jax.tree.leaves(found[1]), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
