"""Policy losses equal PyTorch in float64: loss and gradients of packed completions, also on meshes and in parts."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
import torch
from flax import nnx

from model import architectures, axes, weights
from model.value_head import ValueHead
from tests.model import tiny
from tests.train.objectives.test_preference import VOCAB, Stated
from train import state, step
from train.align import layout
from train.align.layout import Completion
from train.objectives.policy import Policy

LENGTH, WIDTH, IDS, N = 32, 8, 60, 12  # ids from 60 to 64 only pad the table


def completions(seed=0, groups=N):
    """Returns completions of random tokens, with random values of every channel."""
    rng, made = np.random.default_rng(seed), []
    for number in range(groups):
        prompt, said = (rng.integers(0, IDS, rng.integers(1, most)).astype(np.int32) for most in (6, 9))
        one = Completion(number, prompt, said, True)
        names = ("sampled_logprobs", "old_logprobs", "reference_logprobs", "advantages", "old_values", "returns")
        one.values = {name: rng.normal(size=len(said)).astype(np.float32) for name in names}
        for name in ("sampled_logprobs", "old_logprobs", "reference_logprobs"):
            one.values[name] = (one.values[name] / 4 - np.log(IDS)).astype(np.float32)
        made.append(one)
    return made


def laid_out(objective, made, length=LENGTH, unit=4, without=()):
    """Returns the batch of completions, and their places."""
    batch, places = layout.rows_of([[one] for one in made], length, unit)
    where = [place for (place,) in places]
    for one in made:
        share, count = objective.shares(len(one.answer))
        one.values |= {"shares": np.full(len(one.answer), share, np.float32)}
        one.values |= {"counts": np.full(len(one.answer), count, np.float32)}
    names = [name for name in made[0].values if name not in without]
    return batch | {name: layout.spread(made, where, batch["weights"].shape, name) for name in names}, where


def stated(seed, rows, length=LENGTH):
    rng = np.random.default_rng(seed)
    shapes = ((rows, length, WIDTH), (VOCAB, WIDTH))
    return Stated(*(rng.normal(0, 0.6, size=shape).astype(np.float32) for shape in shapes))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Values:
    """A critic whose values are its parameters."""

    v_BT: jax.Array

    def classes(self, x_BTD):
        return self.v_BT[..., None]


def expected(objective, model, critic, batch, made, where):
    """Returns (loss, gradients of the hidden states, the table and the values) in float64, completion by completion."""
    leaf = lambda a: torch.tensor(np.asarray(a, np.float64), requires_grad=True)
    x, table, values = leaf(model.x_BTD), leaf(model.table), leaf(critic.v_BT)
    s, losses, sizes = objective, [], []
    for one, (row, begin, n) in zip(made, where, strict=True):
        logits = (x[row, begin : begin + n] @ table.T)[:, :IDS] / s.temperature
        logp = torch.log_softmax(logits, -1)
        own = logp[torch.arange(n), torch.tensor(one.answer).long()]
        t = {name: torch.tensor(np.asarray(value, np.float64)) for name, value in one.values.items()}
        apart = own - t["old_logprobs"]
        level = {"token": apart, "sequence": apart.sum().expand(n), "mean": apart.mean().expand(n)}[s.ratio]
        ratio = level.exp()
        clipped = ratio.clamp(1 - s.clip_low, 1 + s.clip_high) if s.clip_low or s.clip_high else ratio
        loss = -torch.minimum(ratio * t["advantages"], clipped * t["advantages"])
        if s.kl and s.kl_in == "loss":
            x_ref = t["reference_logprobs"] - own
            k3 = x_ref.exp() - x_ref - 1
            loss = loss + s.kl * {"k1": -x_ref, "k2": x_ref**2 / 2, "k3": k3, "k3_ratio": ratio * k3}[s.kl_estimator]
        loss = loss - s.entropy * -(logp.exp() * logp).sum(-1)
        value = torch.zeros(n)
        if s.critic:
            v, old, wanted = values[row, begin : begin + n], t["old_values"], t["returns"]
            near = torch.maximum(torch.minimum(v, old + s.value_clip), old - s.value_clip)
            value = 0.5 * torch.maximum((v - wanted) ** 2, (near - wanted) ** 2)
        losses.append((loss, s.value * value))
        sizes.append(n)
    if s.average == "tokens":
        total = sum((a + b).sum() for a, b in losses) / sum(sizes)
    else:
        divisor = lambda n: n if s.average == "sequences" else s.constant
        total = sum(a.sum() / divisor(n) + b.mean() for (a, b), n in zip(losses, sizes, strict=True)) / len(sizes)
    total.backward()
    gradient = lambda t: np.zeros(t.shape) if t.grad is None else t.grad.numpy()
    return total.item(), gradient(x), gradient(table), gradient(values)


def outcome(objective, model, critic, batch):
    def mean(model, critic):
        more = {"critic": critic} if objective.critic else {}
        loss = objective(model, batch, jax.random.key(0), **more)
        return loss.total / loss.weight, loss

    (value, loss), gradients = jax.jit(jax.value_and_grad(mean, argnums=(0, 1), has_aux=True))(model, critic)
    return float(value), loss, gradients


GAE = dict(advantages="gae", scale="none", critic="head", value=0.5)
CASES = [
    dict(),
    dict(average="sequences", kl=0.3),
    dict(average="constant", constant=7.0, kl=0.3, kl_estimator="k3_ratio"),
    dict(average="sequences", ratio="sequence"),
    dict(average="sequences", ratio="mean", clip_low=0.01, clip_high=0.02, kl=0.1, kl_estimator="k2"),
    dict(average="tokens", ratio="mean"),
    dict(clip_low=0.0, clip_high=0.0, kl=0.2, kl_estimator="k1", entropy=0.1),
    dict(clip_high=0.4, **GAE),
    dict(average="sequences", entropy=0.2, **GAE),
]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("settings", CASES, ids=lambda case: " ".join(f"{k}={v}" for k, v in case.items()) or "plain")
def test_equals_float64(settings, temperature):
    objective = Policy(**settings).sampling(temperature, 8, IDS)
    made = completions()
    batch, where = laid_out(objective, made, without=() if objective.kl else ("reference_logprobs",))
    rows = len(batch["tokens"])
    model, critic = stated(0, rows), Values(np.random.default_rng(1).normal(size=(rows, LENGTH)).astype(np.float32))
    value, loss, (of_model, of_critic) = outcome(objective, model, critic, batch)
    wanted, dx, dtable, dvalues = expected(objective, model, critic, batch, made, where)
    assert value == pytest.approx(wanted, rel=1e-5, abs=1e-5)
    assert loss.weight == pytest.approx(sum(len(one.answer) for one in made) if objective.average == "tokens" else N)
    np.testing.assert_allclose(of_model.x_BTD, dx, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_model.table, dtable, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(of_critic.v_BT, dvalues, rtol=1e-5, atol=1e-5)
    assert 0 < loss.metrics["clip_fraction"] / loss.weight < 1 or not objective.clip_low
    # Prompts, padding and what follows an end token have no gradient: only positions that predict a completion do, less
    # those that are clipped.
    known = batch["weights"] > 0
    assert not np.asarray(of_model.x_BTD)[~known].any() and np.asarray(of_model.x_BTD)[known].any()


def test_what_is_sampled_is_what_is_learned_from():
    """With the log-probabilities of now as the old ones, every ratio is 1 and nothing is clipped."""
    objective = Policy().sampling(1.0, 8, IDS)
    batch, _ = laid_out(objective, completions(), without=("old_logprobs", "reference_logprobs"))
    loss = objective(stated(0, len(batch["tokens"])), batch, None)
    assert loss.metrics["ratio"] / loss.weight == pytest.approx(1, abs=1e-6) and loss.metrics["clip_fraction"] == 0


def test_masked_rows_alone_give_0():
    objective = Policy(kl=0.1, entropy=0.1).sampling(1.0, 8, IDS)
    batch, _ = laid_out(objective, completions())
    batch = {name: np.zeros_like(a) if name == "weights" else a for name, a in batch.items()}
    model = stated(0, len(batch["tokens"]))

    def total(model):
        loss = objective(model, batch, None)
        return loss.total, loss

    gradients, loss = jax.grad(total, has_aux=True)(model)
    assert loss.total == 0 and loss.weight == 0
    assert not np.asarray(gradients.x_BTD).any() and not np.asarray(gradients.table).any()


@pytest.mark.parametrize("settings", [CASES[1], CASES[4], CASES[7]], ids=["grpo", "gspo", "ppo"])
@pytest.mark.parametrize("shape", [None, {"data": 2, "fsdp": 2, "tensor": 2}, {"fsdp": 2, "context": 2, "tensor": 2}])
def test_meshes_micro_batches_and_packing_change_nothing(shape, settings):
    """Two steps of a policy with a critic give the same as on one device with a completion in each row."""
    config = dataclasses.replace(tiny.LLAMA, num_layers=1)
    objective = Policy(**settings).sampling(1.0, 8, IDS)

    def run(put, accumulate=1, unit=8, packed=True):
        made = completions()
        batch, _ = laid_out(objective, made, unit=unit, without=() if objective.kl else ("reference_logprobs",))
        if not packed:
            parts = [laid_out(objective, [one], unit=1, without=() if objective.kl else ("reference_logprobs",))[0]
                     for one in made]  # fmt: skip
            batch = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        model = tiny.filled(state.abstract_model(lambda rngs: architectures.make(config, rngs)), 0)
        tx = optax.sgd(0.1)
        # Its log-probabilities are in the batch already, so any frozen model may be the reference.
        current = state.beside(state.around(model, tx), {"reference": weights.frozen(ValueHead(config, nnx.Rngs(0)))})
        if objective.critic:
            current.critic = state.critic(state.made(lambda rngs: ValueHead(config, rngs), 0), tx)
        train_step = step.make_train_step(objective, tx, critic_tx=tx, accumulate=accumulate)
        found = []
        for _ in range(2):
            current, metrics = train_step(current, put(batch))
            found.append([float(value) for name, value in sorted(metrics.items()) if name != "left_out"])
        return found

    alone = run(lambda batch: batch, packed=False)
    if shape is None:
        np.testing.assert_allclose(run(lambda batch: batch), alone, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(run(lambda batch: batch, accumulate=4), alone, rtol=1e-4, atol=1e-5)
        return
    mesh = axes.make_mesh(shape)
    with axes.use_mesh(mesh):
        zigzag = axes.zigzag(LENGTH, shape["context"]) if "context" in shape else np.arange(LENGTH)
        sharding = axes.batch_sharding(mesh, LENGTH)
        found = run(lambda batch: jax.device_put({name: a[:, zigzag] for name, a in batch.items()}, sharding))
    np.testing.assert_allclose(found, alone, rtol=1e-4, atol=1e-5)


def test_no_logits_of_a_whole_batch_are_held():
    """The step needs less than half of the memory of one array [batch, length, vocabulary] in float32."""
    objective = Policy(kl=0.1, entropy=0.1).sampling(1.0, 8, IDS)

    def needs(vocab):
        shape = lambda *dims, dtype=np.float32: jax.ShapeDtypeStruct(dims, dtype)
        model = Stated(shape(4, 2048, WIDTH), shape(vocab, WIDTH))
        names = ("advantages", "sampled_logprobs", "old_logprobs", "reference_logprobs", "shares", "counts", "weights")
        rows = {name: shape(4, 2048) for name in names}
        rows |= {name: shape(4, 2048, dtype=np.int32) for name in ("tokens", "targets", "segment_ids", "positions")}
        total = lambda model, rows: objective(model, rows, None).total
        program = jax.jit(jax.grad(total)).lower(model, rows).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert needs(4096) < 4 * 2048 * 4096 * 4 / 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (dict(advantages="best"), "advantages is 'best'; choose from gae, group, rloo, batch"),
        (dict(advantages="gae", scale="none"), "advantages 'gae' need one: 'head' or 'model'"),
        (dict(critic="head"), "advantages 'group' read no values"),
        (dict(advantages="gae", critic="head"), "scale has no effect on advantages 'gae'"),
        (dict(kl=0.1, kl_in="reward", kl_estimator="k3_ratio"), "'k3_ratio' is for a KL in the loss"),
        (dict(kl_target=6.0), "kl_target adapts the coefficient of a KL in the reward"),
        (dict(constant=3.0), "constant has no effect with average 'tokens'"),
    ],
)
def test_settings_without_effect_are_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        Policy(**settings)


def test_what_it_cannot_learn_is_refused():
    data = {"path": "a.jsonl", "sources": (), "format": "prompts"}
    Policy().check(tiny.GPT, data)
    with pytest.raises(ValueError, match="needs a decoder"):
        Policy().check(dataclasses.replace(tiny.GPT, architecture="encoder", head="masked"), data)
    with pytest.raises(ValueError, match="also has chat"):
        Policy().check(tiny.GPT, data | {"format": "chat"})
    with pytest.raises(ValueError, match="for rows of text also set"):
        Policy().check(tiny.GPT, data | {"sources": (("stdlib", 0.1),)})
    with pytest.raises(ValueError, match="has no text; add some"):
        Policy(text=0.1).check(tiny.GPT, data)
    Policy(text=0.1).check(tiny.GPT, data | {"sources": (("stdlib", 0.1),)})
    assert not Policy().companions and Policy(kl=0.1).companions
