"""Companions in a step: frozen models beside the one that trains, also the base under an adapter."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from model import architectures, axes, weights
from model.adapt.bottleneck import Bottleneck
from model.adapt.lora import Lora
from model.adapt.prompt import Prompt
from model.adapt.tuning import Tuning, without_adapters
from model.compress.quantize import Settings, quantize
from tests.model import tiny
from train import state, step
from train.checkpoints.checkpoint import Checkpoints
from train.losses import Loss
from train.objectives.objective import Companion, Objective

CONFIG = dataclasses.replace(tiny.LLAMA, num_layers=2)


@dataclasses.dataclass(frozen=True)
class Apart(Objective):
    """The squared distance between the logits of the model and of a reference."""

    companions: ClassVar = (Companion("reference", "init_from"),)

    def __call__(self, model, batch, key, *, reference) -> Loss:
        rows = [batch[name] for name in ("tokens", "segment_ids", "positions")]
        own, other = (m.output(m(*rows).x_BTD).logits() for m in (model, reference))
        distance = jnp.square(own - other + 1).mean(-1)  # the distance starts at 1, so that there is a gradient
        weights_BT = batch["weights"]
        return Loss((distance * weights_BT).sum(), weights_BT.sum(), {"loss": (distance * weights_BT).sum()})


def batch():
    tokens, segments, positions = tiny.packed_rows(4, 16)
    return dict(tokens=tokens, segment_ids=segments, positions=positions, weights=(segments > 0).astype(np.float32))


def sgd():
    return optax.sgd(0.1)


def arrays(model):
    return {name: np.asarray(array) for name, array in weights.by_name(model).items()}


def test_a_companion_is_looked_at_and_stays():
    model, reference = tiny.drawn(CONFIG), weights.frozen(tiny.drawn(CONFIG))
    names, before = list(weights.trained(model)), arrays(reference)
    current = state.beside(state.around(model, sgd()), {"reference": reference})
    assert list(weights.trained(current.model)) == names  # the trainable parameters keep their names
    train_step = step.make_train_step(Apart(), sgd())
    losses = []
    for _ in range(3):
        current, metrics = train_step(current, batch())
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(1.0, rel=1e-5) and losses[2] < losses[1] < losses[0]
    after = arrays(current.companions["reference"])
    assert all(np.array_equal(after[name], before[name]) for name in before)
    found = step.make_eval_step(Apart())(current.model, batch(), current.companions)
    assert found.total / found.weight < losses[2]


def test_accumulation_sees_the_same_companion():
    both = []
    for accumulate in (1, 2):
        current = state.beside(
            state.around(tiny.drawn(CONFIG), sgd()), {"reference": weights.frozen(tiny.drawn(CONFIG))}
        )
        current, metrics = step.make_train_step(Apart(), sgd(), accumulate=accumulate)(current, batch())
        both.append((float(metrics["loss"]), float(metrics["grad_norm"])))
    np.testing.assert_allclose(*both, rtol=1e-5)


def test_a_companion_that_would_train_is_refused():
    with pytest.raises(ValueError, match=r"the companion 'reference' is not frozen: .* would train"):
        state.beside(state.around(tiny.drawn(CONFIG), sgd()), {"reference": tiny.drawn(CONFIG)})


def test_companions_are_not_saved(tmp_path):
    current = state.beside(state.around(tiny.drawn(CONFIG), sgd()), {"reference": weights.frozen(tiny.drawn(CONFIG))})
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, current, {})
    checkpoints.wait()
    names = {name for part in checkpoints.parts(current).values() for name in part}
    assert not any("reference" in name or "companions" in name for name in names)
    restored, _ = checkpoints.restore(current)
    checkpoints.close()
    assert restored.companions is current.companions


@pytest.mark.parametrize("method", [Lora(rank=2), Bottleneck(reduction=4), Bottleneck("houlsby", 4)], ids=repr)
@pytest.mark.parametrize("kind", ["float", "nf4"])
def test_the_base_under_an_adapter_is_the_reference(method, kind):
    """The reference shares the base's arrays and has its logits, and the trainable parameters keep their names."""
    base = tiny.drawn(CONFIG)
    base = quantize(base, Settings("nf4")) if kind == "nf4" else base
    rows = [batch()[name] for name in ("tokens", "segment_ids", "positions")]
    logits = lambda model: np.asarray(model.output(model(*rows).x_BTD).logits())
    expected = logits(base)
    model = Tuning(method).apply(base, jax.random.key(1))
    trains = {name: leaf.replace(leaf[...] + 0.1) for name, leaf in weights.trained(model).items()}
    model = weights.replaced(model, trains)
    assert not np.allclose(logits(model), expected, atol=1e-3)
    off = without_adapters(model)
    np.testing.assert_array_equal(logits(off), expected)
    mine = {id(array) for array in jax.tree.leaves(model)}
    assert all(id(array) in mine for array in jax.tree.leaves(off))  # nothing is copied
    assert not np.allclose(logits(model), expected, atol=1e-3)  # `model` still has its adapter
    train_step = step.make_train_step(Apart(), sgd())
    current, metrics = train_step(state.around(model, sgd()), batch())
    assert list(weights.trained(current.model)) == list(trains) and float(metrics["loss"]) > 0.5


@pytest.mark.parametrize(
    ("tuning", "said"),
    [
        (Tuning(None), "the base under the adapter is not frozen"),
        (Tuning(Lora(rank=2), (("norm", True), (".*", False))), "the base under the adapter is not frozen: .*norm"),
        (Tuning(Prompt(length=2)), "the base under the adapter is not frozen: inputs/tokens/prompt"),
    ],
    ids=["all", "norms", "prompt"],
)
def test_no_frozen_base_no_reference(tuning, said):
    model = tuning.apply(tiny.drawn(CONFIG), jax.random.key(1))
    with pytest.raises(ValueError, match=said):
        without_adapters(model)
    with pytest.raises(ValueError, match="no adapter"):
        without_adapters(weights.frozen(tiny.drawn(CONFIG)))


def test_on_a_mesh_as_on_one_device():
    def losses():
        current = state.create(lambda rngs: architectures.make(CONFIG, rngs), sgd(), seed=0)
        reference = weights.frozen(state.create(lambda rngs: architectures.make(CONFIG, rngs), sgd(), seed=0).model)
        current = state.beside(current, {"reference": reference})
        train_step, found = step.make_train_step(Apart(), sgd()), []
        for _ in range(2):
            current, metrics = train_step(current, rows())
            found.append(float(metrics["loss"]))
        return found

    rows = batch
    alone = losses()
    mesh = axes.make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[:4])
    with axes.use_mesh(mesh):
        rows = lambda: jax.device_put(batch(), axes.batch_sharding(mesh))
        np.testing.assert_allclose(losses(), alone, rtol=1e-5)
