"""Preference methods equal PyTorch in float64: loss, gradient and metrics of answers in packed rows, also on meshes."""

import dataclasses
import itertools

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
from train.objectives.objective import HeldOut
from train.objectives.preference import METHODS, Preference

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


def batch(rows=ROWS, answers=2):
    """Returns rows of two examples, of one, of none, ...; an example has this many answers of falling rank. Prompts and
    padding have no weight."""
    rng = np.random.default_rng(5)
    found = {name: np.zeros((rows, LENGTH), np.int32) for name in ("segment_ids", "positions", "group_ids", "ranks")}
    found |= {name: rng.integers(0, VOCAB, (rows, LENGTH), np.int32) for name in ("tokens", "targets")}
    found["weights"] = np.zeros((rows, LENGTH), np.float32)
    for row in range(rows):
        at = segment = 0
        for group in range(1, 3 - row % 3):
            for rank in range(answers):
                n, segment = int(rng.integers(3, 16 // answers)), segment + 1
                here = slice(at, at + n)
                values = dict(segment_ids=segment, group_ids=group, ranks=rank, positions=np.arange(n))
                for name, value in values.items():
                    found[name][row, here] = value
                found["weights"][row, at + int(rng.integers(1, n)) : at + n] = 1
                at += n
    return found


logsig = torch.nn.functional.logsigmoid
# method: settings -> z -> loss of a pair, as in its paper (train/objectives/preference.py has their numbers). z is the
# difference of the scores.
PAPERS = {
    "dpo": lambda s: lambda z: -(1 - s.label_smoothing) * logsig(z) - s.label_smoothing * logsig(-z),
    "robust": lambda s: (
        lambda z: (-(1 - s.label_smoothing) * logsig(z) + s.label_smoothing * logsig(-z)) / (1 - 2 * s.label_smoothing)
    ),
    "ipo": lambda s: lambda z: (z / s.beta - 1 / (2 * s.beta)) ** 2,
    "hinge": lambda s: lambda z: torch.relu(1 - z),
    "simpo": lambda s: lambda z: -logsig(z - s.target_margin),
    "orpo": lambda s: lambda z: -s.beta * logsig(z),
}


def expected(model, reference, rows, settings):
    """Computes the sums over examples by the papers' formulas, one pair of answers after another, in float64."""
    tensors = [torch.tensor(np.asarray(a, np.float64), requires_grad=True) for a in (model.x_BTD, model.table)]
    fixed = [torch.tensor(np.asarray(a, np.float64)) for a in (reference.x_BTD, reference.table)]

    def logp(x, table, row, group, rank):
        at = (rows["group_ids"][row] == group) & (rows["ranks"][row] == rank) & (rows["weights"][row] > 0)
        found = torch.log_softmax(x[row] @ table.T, -1)[at]
        return found.gather(-1, torch.tensor(rows["targets"][row][at]).long()[:, None])[:, 0]

    def score(*at):
        own, other = logp(*tensors, *at), logp(*fixed, *at)
        if settings.method == "orpo":
            p = own.mean().exp()
            return torch.log(p / (1 - p))
        relative = own if settings.method == "simpo" else own - other
        average = settings.per_token or settings.method == "simpo"
        return settings.beta * (relative.mean() if average else relative.sum())

    found = dict.fromkeys(("loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "sft_loss"), 0.0)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row in range(len(rows["tokens"])):
        for group in range(1, rows["group_ids"][row].max() + 1):
            answers = 1 + rows["ranks"][row][rows["group_ids"][row] == group].max()
            pairs = list(itertools.combinations(range(answers), 2))
            for better, worse in pairs:
                chosen, rejected = score(row, group, better), score(row, group, worse)
                nll = -logp(*tensors, row, group, better).mean()
                loss = PAPERS[settings.method](settings)(chosen - rejected) + settings.sft * nll
                total = total + loss / len(pairs)
                figures = (loss, (chosen > rejected).double(), chosen - rejected, chosen, rejected, nll)
                for name, value in zip(found, figures, strict=True):
                    found[name] += value.item() / len(pairs)
            count += 1
    total.backward()
    return found, count, [t.grad.numpy() for t in tensors]


def outcome(model, reference, rows, **settings):
    objective = Preference(**settings)
    beside = {"reference": reference} if objective.companions else {}
    total = lambda model: (lambda loss: (loss.total, loss))(objective(model, rows, jax.random.key(0), **beside))
    gradients, loss = jax.jit(jax.grad(total, has_aux=True))(model)
    return loss, gradients


VARIANTS = [
    *(dict(method="dpo", beta=beta) for beta in (0.1, 0.7)),
    dict(method="dpo", label_smoothing=0.2, per_token=True, sft=0.3),
    dict(method="robust", beta=0.5, label_smoothing=0.3),
    dict(method="ipo", beta=0.3),
    dict(method="ipo", beta=0.3, per_token=True),
    dict(method="hinge", beta=0.2),
    dict(method="simpo", beta=2.0, target_margin=0.5),
    dict(method="orpo", beta=0.4, sft=1.0),
]


def test_every_method_is_compared():
    assert {variant["method"] for variant in VARIANTS} == {*METHODS} == {*PAPERS}


@pytest.mark.parametrize(
    ("settings", "answers"),
    [*((settings, 2) for settings in VARIANTS), (VARIANTS[2], 4), (VARIANTS[-1], 4)],
    ids=lambda value: str(value) if isinstance(value, int) else " ".join(map(str, value.values())),
)
def test_equals_float64(settings, answers):
    """Also for lists of four answers, whose six pairs count one sixth each."""
    model, reference, rows = stated(0), stated(1), batch(answers=answers)
    loss, gradients = outcome(model, reference, rows, **settings)
    sums, count, (dx, dtable) = expected(model, reference, rows, Preference(**settings))
    np.testing.assert_allclose(loss.weight, count, rtol=1e-6)
    assert count == 5 and 0 < sums["accuracy"] < count
    np.testing.assert_allclose(loss.total, sums["loss"], rtol=1e-5)
    assert {*loss.metrics} == {*sums}
    for name, value in sums.items():
        np.testing.assert_allclose(loss.metrics[name], value, rtol=1e-4, err_msg=name)
    assert np.abs(dx).max() > 0.01
    scale = max(1, np.abs(dtable).max())
    np.testing.assert_allclose(gradients.x_BTD, dx, atol=2e-6 * scale)
    np.testing.assert_allclose(gradients.table, dtable, atol=2e-5 * scale)


def test_the_divergence_of_an_evaluation():
    """KL(model || reference), the mean over the answers' tokens, against PyTorch in float64."""
    model, reference, rows = stated(0), stated(1), batch()
    loss = jax.device_get(Preference()(model, rows, None, reference=reference))
    log = lambda m: torch.log_softmax(torch.tensor(np.asarray(m.x_BTD @ m.table.T, np.float64)), -1)
    kl = torch.nn.functional.kl_div(log(reference), log(model), reduction="none", log_target=True).sum(-1).numpy()
    wanted = (kl * rows["weights"]).sum() / rows["weights"].sum()
    assert Preference().figures(loss, HeldOut())["kl"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(method="kto2"), "method is 'kto2'; choose from dpo, robust, "),
        (dict(method="ipo", label_smoothing=0.1), "label_smoothing has no effect in method 'ipo'"),
        (dict(method="robust", label_smoothing=0.5), "method 'robust' needs less than 0.5"),
        (dict(method="simpo", per_token=True), "per_token has no effect in method 'simpo', which always divides"),
        (dict(target_margin=0.5), "target_margin has no effect in method 'dpo'"),
        (dict(method="orpo"), "sft is 0, but method 'orpo' adds its term to an SFT loss"),
    ],
)
def test_settings_without_effect_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Preference(**settings)


def test_a_method_without_a_reference_asks_for_none():
    made = [Preference(method=name, sft=float(name == "orpo")) for name in METHODS]
    assert {one.method for one in made if not one.companions} == {"simpo", "orpo"}


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
    whole = Preference()(model, rows, None, reference=reference)
    only = lambda row: rows | {"weights": np.where(np.arange(ROWS)[:, None] == row, rows["weights"], 0)}
    parts = [jax.device_get(Preference()(model, only(row), None, reference=reference)) for row in range(ROWS)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), added(parts), jax.device_get(whole))
    assert [part.weight for part in parts] == [2, 1, 0, 2]
    loss, gradients = outcome(model, reference, only(2))
    assert loss.total == 0 and not any(np.asarray(g).any() for g in (gradients.x_BTD, gradients.table))


def test_a_model_that_is_its_reference():
    """Its loss is log 2 and its accuracy 1/2, because no reward is larger than the other."""
    loss = Preference()(stated(0), batch(), None, reference=stated(0))
    figures = Preference().figures(jax.device_get(loss), HeldOut())
    assert figures == pytest.approx(
        {"loss": np.log(2), "accuracy": 0.5, "margin": 0, "chosen_reward": 0, "rejected_reward": 0, "kl": 0}
        | {"sft_loss": figures["sft_loss"]},
        abs=1e-6,
    )
    assert next(iter(figures)) == "loss"
    lines = list(Preference().lines(figures, HeldOut()))
    assert len(lines) == 8 and "0.6931" in lines[1]


def test_routers_of_experts_are_added():
    router = RouterStats(*np.random.default_rng(0).uniform(1, 2, (len(RouterStats._fields), 2, 4)).astype(np.float32))
    router = router._replace(tokens=jnp.full(2, 24.0), z_loss=jnp.ones(2), dropped=jnp.zeros(2))
    model = dataclasses.replace(stated(0), router=router)
    both = [Preference(balance_loss=b)(model, batch(), None, reference=stated(1)).total for b in (0.5, 0.0)]
    np.testing.assert_allclose(both[0] - both[1], 0.5 * router.balance_loss().sum() * 5, rtol=1e-4)


@pytest.mark.parametrize("shape", [{"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "context": 2, "tensor": 2}])
def test_a_mesh_gives_the_same(shape):
    config, rows = dataclasses.replace(tiny.LLAMA, num_layers=1), batch(8)

    def run(put):
        objective, found = Preference(beta=0.5), []
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
        total = lambda model, reference, rows: Preference()(model, rows, None, reference=reference).total
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
    Preference().check(tiny.GPT, data)
    with pytest.raises(ValueError, match=said):
        Preference().check(model, data | change)
