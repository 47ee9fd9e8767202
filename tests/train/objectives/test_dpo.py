"""The DPO objective equals PyTorch in float64: loss, gradient and metrics of pairs in packed rows, also on meshes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from model import architectures, axes, weights
from model.architectures import Hidden
from model.experts.router import RouterStats
from model.output import Output
from tests.model import tiny
from train import state, step
from train.evals.perplexity import added
from train.objectives.dpo import Dpo
from train.objectives.objective import HeldOut

ROWS, LENGTH, WIDTH, VOCAB = 4, 32, 8, 64


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Stated:
    """A model whose hidden states and output layer are its parameters."""

    x_BTD: jax.Array
    table: jax.Array
    router: RouterStats | None = None

    def __call__(self, tokens_BT, segments_BT, positions_BT, *, key=None):
        return Hidden(self.x_BTD, None, self.router)

    def output(self, x_BTD):
        return Output(x_BTD, nnx.Param(self.table), None, 0.0)


def stated(seed):
    rng = np.random.default_rng(seed)
    shapes = ((ROWS, LENGTH, WIDTH), (VOCAB, WIDTH))
    return Stated(*(rng.normal(size=shape).astype(np.float32) for shape in shapes))


def batch(rows=ROWS):
    """Rows of two pairs, of one and a segment of its own, of none, ...; prompts and padding have no weight."""
    rng = np.random.default_rng(5)
    found = {name: np.zeros((rows, LENGTH), np.int32) for name in ("segment_ids", "positions", "group_ids", "ranks")}
    found |= {name: rng.integers(0, VOCAB, (rows, LENGTH), np.int32) for name in ("tokens", "targets")}
    found["weights"] = np.zeros((rows, LENGTH), np.float32)
    for row in range(rows):
        at = segment = 0
        for group in range(1, 3 - row % 3):
            for rank in (0, 1):
                n, segment = int(rng.integers(3, 8)), segment + 1
                here = slice(at, at + n)
                values = dict(segment_ids=segment, group_ids=group, ranks=rank, positions=np.arange(n))
                for name, value in values.items():
                    found[name][row, here] = value
                found["weights"][row, at + int(rng.integers(1, n)) : at + n] = 1
                at += n
    return found


def expected(model, reference, rows, beta):
    """Computes the sums over pairs as the paper's equation 7 says, one answer after another, in float64."""
    tensors = [torch.tensor(np.asarray(a, np.float64), requires_grad=True) for a in (model.x_BTD, model.table)]

    def answer(x, table, row, group, rank):
        at = (rows["group_ids"][row] == group) & (rows["ranks"][row] == rank) & (rows["weights"][row] > 0)
        logp = torch.log_softmax(x[row] @ table.T, -1)[at]
        return logp.gather(-1, torch.tensor(rows["targets"][row][at]).long()[:, None]).sum()

    fixed = [torch.tensor(np.asarray(a, np.float64)) for a in (reference.x_BTD, reference.table)]
    found = dict.fromkeys(("loss", "accuracy", "margin", "chosen_reward", "rejected_reward"), 0.0)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in range(len(rows["tokens"])):
        for group in range(1, rows["group_ids"][row].max() + 1):
            chosen, rejected = (
                beta * (answer(*tensors, row, group, rank) - answer(*fixed, row, group, rank)) for rank in (0, 1)
            )
            loss = -torch.nn.functional.logsigmoid(chosen - rejected)
            total, count = total + loss, count + 1
            figures = (loss, (chosen > rejected).double(), chosen - rejected, chosen, rejected)
            for name, value in zip(found, figures, strict=True):
                found[name] += value.item()
    total.backward()
    return found, count, [t.grad.numpy() for t in tensors]


def outcome(model, reference, rows, **settings):
    total = lambda model: (lambda loss: (loss.total, loss))(
        Dpo(**settings)(model, rows, jax.random.key(0), reference=reference)
    )
    gradients, loss = jax.jit(jax.grad(total, has_aux=True))(model)
    return loss, gradients


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_equals_float64(beta):
    model, reference, rows = stated(0), stated(1), batch()
    loss, gradients = outcome(model, reference, rows, beta=beta)
    sums, count, (dx, dtable) = expected(model, reference, rows, beta)
    assert loss.weight == count == 5 and 0 < sums["accuracy"] < count
    np.testing.assert_allclose(loss.total, sums["loss"], rtol=1e-5)
    assert {*loss.metrics} == {*sums}
    for name, value in sums.items():
        np.testing.assert_allclose(loss.metrics[name], value, rtol=1e-4, err_msg=name)
    assert np.abs(dx).max() > 0.01
    np.testing.assert_allclose(gradients.x_BTD, dx, atol=2e-6)
    np.testing.assert_allclose(gradients.table, dtable, atol=2e-5)


def test_the_order_of_tokens_does_not_count():
    """A mesh with a context axis deals each row's tokens out in another order."""
    order = np.random.default_rng(6).permutation(LENGTH)
    turned = lambda model: dataclasses.replace(model, x_BTD=model.x_BTD[:, order])
    first, _ = outcome(stated(0), stated(1), batch())
    second, _ = outcome(turned(stated(0)), turned(stated(1)), {name: a[:, order] for name, a in batch().items()})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), first, second)


def test_rows_without_weight_are_no_pairs():
    """launch.train --replay evaluates the rows of a batch one at a time; their sums add up to those of the batch."""
    model, reference, rows = stated(0), stated(1), batch()
    whole = Dpo()(model, rows, None, reference=reference)
    only = lambda row: rows | {"weights": np.where(np.arange(ROWS)[:, None] == row, rows["weights"], 0)}
    parts = [jax.device_get(Dpo()(model, only(row), None, reference=reference)) for row in range(ROWS)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), added(parts), jax.device_get(whole))
    assert [part.weight for part in parts] == [2, 1, 0, 2]
    loss, gradients = outcome(model, reference, only(2))
    assert loss.total == 0 and not any(np.asarray(g).any() for g in (gradients.x_BTD, gradients.table))


def test_a_model_that_is_its_reference():
    """Its loss is log 2. No chosen answer is preferred, because no reward is larger than the other."""
    loss = Dpo()(stated(0), batch(), None, reference=stated(0))
    figures = Dpo().figures(jax.device_get(loss), HeldOut())
    assert figures == pytest.approx(
        {"loss": np.log(2), "accuracy": 0, "margin": 0, "chosen_reward": 0, "rejected_reward": 0}
    )
    assert next(iter(figures)) == "loss"
    lines = list(Dpo().lines(figures, HeldOut()))
    assert len(lines) == 6 and "0.6931" in lines[1]


def test_routers_of_experts_are_added():
    router = RouterStats(*np.random.default_rng(0).uniform(1, 2, (len(RouterStats._fields), 2, 4)).astype(np.float32))
    router = router._replace(tokens=jnp.full(2, 24.0), z_loss=jnp.ones(2), dropped=jnp.zeros(2))
    model = dataclasses.replace(stated(0), router=router)
    both = [Dpo(balance_loss=b)(model, batch(), None, reference=stated(1)).total for b in (0.5, 0.0)]
    np.testing.assert_allclose(both[0] - both[1], 0.5 * router.balance_loss().sum() * 5, rtol=1e-4)


@pytest.mark.parametrize("shape", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "context": 2, "tensor": 2}])
def test_a_mesh_gives_the_same(shape):
    config, rows = dataclasses.replace(tiny.LLAMA, num_layers=1), batch(8)

    def run(put):
        objective, found = Dpo(beta=0.5), []
        made = [state.abstract_model(lambda rngs: architectures.make(config, rngs)) for _ in range(2)]
        model, reference = (tiny.filled(abstract, seed) for seed, abstract in enumerate(made))
        tx = optax.sgd(0.1)
        current = state.beside(state.around(model, tx), {"reference": weights.frozen(reference)})
        train_step = step.make_train_step(objective, tx)
        for _ in range(2):
            current, metrics = train_step(current, put(rows))
            names = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "weight", "grad_norm")
            found.append([float(metrics[name]) for name in names])
        return found

    alone = run(lambda rows: rows)
    assert alone[1][0] < alone[0][0]
    mesh = axes.make_mesh(shape)
    with axes.use_mesh(mesh):
        zigzag = axes.zigzag(LENGTH, shape["context"]) if "context" in shape else np.arange(LENGTH)
        sharding = axes.batch_sharding(mesh, LENGTH)
        found = run(lambda rows: jax.device_put({name: a[:, zigzag] for name, a in rows.items()}, sharding))
    np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-5)


def test_no_array_of_tokens_by_pairs_is_held():
    """With four times the length, memory grows by that (states and figures of tokens), not by its square."""

    def needs(length):
        shape = lambda *dims, dtype=np.float32: jax.ShapeDtypeStruct(dims, dtype)
        model = Stated(shape(4, length, WIDTH), shape(VOCAB, WIDTH))
        names = ("tokens", "targets", "segment_ids", "positions", "group_ids", "ranks")
        rows = {name: shape(4, length, dtype=np.int32) for name in names} | {"weights": shape(4, length)}
        total = lambda model, reference, rows: Dpo()(model, rows, None, reference=reference).total
        program = jax.jit(jax.grad(total)).lower(model, model, rows).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert needs(4096) < 5 * needs(1024)


@pytest.mark.parametrize(
    ("model", "change", "said"),
    [
        (dataclasses.replace(tiny.GPT, architecture="encoder", head="masked"), {}, "needs a decoder with head"),
        (tiny.GPT, {"sources": (("stdlib", 0.1),)}, "config.data also has text"),
        (tiny.GPT, {"format": "chat"}, "config.data also has chat"),
    ],
    ids=["encoder", "text", "chat"],
)
def test_what_it_cannot_learn_is_refused(model, change, said):
    data = {"path": "a.jsonl", "sources": (), "format": "preferences"}
    Dpo().check(tiny.GPT, data)
    with pytest.raises(ValueError, match=said):
        Dpo().check(model, data | change)
