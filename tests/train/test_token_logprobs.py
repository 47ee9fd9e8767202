"""Log-probabilities, entropies and divergences of tokens equal PyTorch's in float64, alone and inside losses.

No [batch, length, vocabulary] array exists, forward or backward.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from model import axes
from model.output import Output
from tests.train.test_losses import sizes_in
from train.token_logprobs import by_token, token_divergences, token_logprobs, token_scores

B, T, D, V = 4, 6, 8, 32


def arrays(length=T, width=D, seed=0):
    """Returns x, table and bias of an output; other seeds give other values."""
    rng = np.random.default_rng(seed)
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in ((B, length, width), (V, width), (V,)))


def targets(length=T):
    return np.random.default_rng(9).integers(0, V, (B, length)).astype(np.int32)


def cotangents(length=T, seed=3):
    return np.random.default_rng(seed).normal(size=(B, length)).astype(np.float32)


def output(x, table, bias=None, softcap=0.0):
    return Output(x, nnx.Param(table), None if bias is None else nnx.Param(bias), softcap)


def log_softmax(x, table, bias=None, softcap=0.0):
    """Computes float64 log-probabilities [B, T, V] with PyTorch."""
    logits = x @ table.T + (0 if bias is None else bias)
    return torch.log_softmax(softcap * torch.tanh(logits / softcap) if softcap else logits, -1)


def chosen(logp_BTV, targets_BT):
    return logp_BTV.gather(-1, torch.tensor(targets_BT).long()[..., None])[..., 0]


def entropy(logp_BTV):
    return -(logp_BTV.exp() * logp_BTV).sum(-1)


def kl(log_p, log_q):
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def in_float64(function, given):
    """Returns (value, gradients) of a scalar function of tensors."""
    tensors = [torch.tensor(np.asarray(a, np.float64), requires_grad=True) for a in given]
    value = function(*tensors)
    value.backward()
    return value.item(), [t.grad.numpy() for t in tensors]


def assert_equal(ours, expected, atol=5e-6):
    np.testing.assert_allclose(ours[0], expected[0], rtol=1e-5, atol=1e-5)
    for gradient, wanted in zip(ours[1], expected[1], strict=True):
        assert np.abs(wanted).max() > 1e-3, "the gradient is zero, so this test checks nothing"
        np.testing.assert_allclose(gradient, wanted, rtol=2e-5, atol=atol)


@pytest.mark.parametrize("length", [T, 7, 1])
@pytest.mark.parametrize("softcap", [0.0, 3.0])
def test_logprobs_and_entropies_equal_float64(softcap, length):
    """Values, and gradients by any cotangent, are equal, also if the length does not divide into chunks."""
    given, ids, (a, b) = arrays(length), targets(length), (cotangents(length), cotangents(length, 4))

    def ours(x, table, bias):
        scores = token_scores(output(x, table, bias, softcap), ids)
        return (a * scores.logprob_BT + b * scores.entropy_BT).sum(), scores

    def expected(x, table, bias):
        logp = log_softmax(x, table, bias, softcap)
        return (torch.tensor(a) * chosen(logp, ids) + torch.tensor(b) * entropy(logp)).sum()

    (value, scores), gradients = jax.jit(jax.value_and_grad(ours, (0, 1, 2), has_aux=True))(*given)
    assert_equal((value, gradients), in_float64(expected, given))
    logp = log_softmax(*map(torch.tensor, given), softcap)
    assert scores.logprob_BT.dtype == scores.entropy_BT.dtype == jnp.float32
    np.testing.assert_allclose(scores.logprob_BT, chosen(logp, ids), atol=1e-5)
    np.testing.assert_allclose(scores.entropy_BT, entropy(logp), atol=1e-5)
    np.testing.assert_allclose(token_logprobs(output(*given, softcap), ids), chosen(logp, ids), atol=1e-5)


@pytest.mark.parametrize("softcaps", [(0.0, 0.0), (3.0, 2.0)])
def test_divergences_equal_float64(softcaps):
    """The two models differ in width, and both get gradients; no divergence is negative in either direction."""
    p, q = arrays(), arrays(width=5, seed=1)
    a, b = cotangents(), cotangents(seed=4)

    def ours(*given):
        found = token_divergences(output(*given[:3], softcaps[0]), output(*given[3:], softcaps[1]))
        return (a * found.p_to_q_BT + b * found.q_to_p_BT).sum(), found

    def expected(*given):
        log_p, log_q = log_softmax(*given[:3], softcaps[0]), log_softmax(*given[3:], softcaps[1])
        return (torch.tensor(a) * kl(log_p, log_q) + torch.tensor(b) * kl(log_q, log_p)).sum()

    (value, found), gradients = jax.jit(jax.value_and_grad(ours, tuple(range(6)), has_aux=True))(*p, *q)
    assert_equal((value, gradients), in_float64(expected, (*p, *q)), atol=2e-5)
    assert np.min(found) >= 0
    same = token_divergences(output(*p), output(*p))
    np.testing.assert_allclose(same, np.zeros((2, B, T)), atol=1e-6)


def test_preference_loss_equals_float64():
    """In DPO (arXiv:2305.18290, equation 7), the weight of a token's gradient depends on all tokens of both answers.

    The first half of the rows are chosen answers, the second half rejected ones.
    """
    given, ids, reference, beta = arrays(), targets(), cotangents()[:, 0], 0.3
    answer = np.random.default_rng(7).random((B, T)) > 0.4

    def ours(*given):
        sums = (token_logprobs(output(*given), ids) * answer).sum(1) - reference
        return -jax.nn.log_sigmoid(beta * (sums[: B // 2] - sums[B // 2 :])).sum()

    def expected(*given):
        sums = (chosen(log_softmax(*given), ids) * torch.tensor(answer)).sum(1) - torch.tensor(reference)
        return -torch.nn.functional.logsigmoid(beta * (sums[: B // 2] - sums[B // 2 :])).sum()

    assert_equal(jax.value_and_grad(ours, (0, 1, 2))(*given), in_float64(expected, given))


def test_bfloat16_stays_near():
    """Inputs are exact in bfloat16. Each logit (about 10) is rounded to 8 bits: 0.02 nats."""
    x, table, _ = (jnp.asarray(a, jnp.bfloat16) for a in arrays(64))
    ids, weights = targets(64), cotangents(64)
    ours = lambda x, table: (weights * token_logprobs(output(x, table), ids)).sum()
    gradients = jax.grad(ours, (0, 1))(x, table)
    expected = lambda x, table: (torch.tensor(weights) * chosen(log_softmax(x, table), ids)).sum()
    _, wanted = in_float64(expected, [np.asarray(a, np.float32) for a in (x, table)])
    for got, want in zip(gradients, wanted, strict=True):
        assert got.dtype == jnp.bfloat16
        assert np.linalg.norm(np.asarray(got, np.float64) - want) < 0.01 * np.linalg.norm(want)


@pytest.mark.parametrize(
    "shape", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}, {"stage": 2, "context": 2, "tensor": 2}]
)
def test_every_mesh_equals_one_device(shape):
    (x, table, bias), (y, other, _) = arrays(), arrays(width=16, seed=1)
    x, y, ids, a = (np.tile(each, (2,) + (1,) * (each.ndim - 1)) for each in (x, y, targets(), cotangents()))

    def total(x, table, bias, y, other, ids, a):
        p = output(x, table, bias, 3.0)
        scores, apart = token_scores(p, ids), token_divergences(p, output(y, other))
        values = (scores.logprob_BT, scores.entropy_BT * a, apart.p_to_q_BT * a, apart.q_to_p_BT)
        return sum(value.sum() for value in values), (scores, apart)

    run = jax.jit(jax.value_and_grad(total, tuple(range(5)), has_aux=True))
    expected = run(x, table, bias, y, other, ids, a)
    mesh = axes.make_mesh(shape)
    with axes.use_mesh(mesh):
        place = lambda a: axes.place(jnp.asarray(a), *("batch", "length", "features")[: a.ndim])
        split = lambda w, *names: jax.device_put(w, jax.NamedSharding(mesh, axes.spec(*names)))
        tables = (split(table, "vocab", "embed"), split(bias, "vocab"), split(other, "vocab", "embed"))
        found = run(place(x), *tables[:2], place(y), tables[2], place(ids), place(a))
        assert jax.typeof(found[0][1][0].logprob_BT).sharding.spec == axes.spec("batch", "length", shape=ids.shape)
    jax.tree.map(lambda ours, wanted: np.testing.assert_allclose(ours, wanted, atol=2e-5, rtol=1e-5), found, expected)


def divergence_program(length):
    """Traces the divergence from a frozen model with its gradient, from shapes only."""
    x, table = jax.ShapeDtypeStruct((4, length, 2), jnp.float32), jax.ShapeDtypeStruct((V * 64, 2), jnp.float32)
    total = lambda x, table, y, other: sum(d.sum() for d in token_divergences(output(x, table), output(y, other)))
    return jax.jit(jax.value_and_grad(total, (0, 1))).trace(x, table, x, table)


@pytest.mark.parametrize("length", [2, 64, 4096])
def test_never_holds_all_logits(length):
    largest, everything = max(sizes_in(divergence_program(length).jaxpr.jaxpr)), 4 * length * V * 64
    assert largest <= everything / 2
    assert largest >= 4 * V * 64, "the program has no chunks of logits, so this test checks nothing"


def test_memory_does_not_grow_with_the_logits():
    """With eight times the tokens (128 MB of logits), the program needs more memory only for [B, T] figures."""
    needs = lambda length: divergence_program(length).lower().compile().memory_analysis().temp_size_in_bytes
    assert needs(4096) < 1.1 * needs(512)


def test_a_frozen_model_costs_no_product_backward():
    """Our logits cost one product forward, one again and two in the gradient; those of the frozen model only two."""
    products = divergence_program(64).lower().compile().as_text().count(" dot(")
    assert products == 2 * 2 + 2


def test_a_measure_of_ones_own():
    """by_token takes any function of the logits: here the largest probability, with a weight per token."""
    given, a = arrays(), cotangents()
    measure = lambda logits_BCV, a_BC: a_BC * jax.nn.softmax(logits_BCV).max(-1)
    ours = lambda *given: by_token(measure, (output(*given),), a).sum()
    expected = lambda *given: (torch.tensor(a) * log_softmax(*given).exp().amax(-1)).sum()
    assert_equal(jax.value_and_grad(ours, (0, 1, 2))(*given), in_float64(expected, given))


def test_arrays_of_more_dims_on_a_mesh():
    """The log-probabilities of a few chosen ids per token, as a teacher stores them."""
    x, table, _ = arrays()
    ids = np.random.default_rng(1).integers(0, V, (B, T, 3)).astype(np.int32)

    def measure(logits_BCV, ids_BCK):
        chosen_BCKV = ids_BCK[..., None] == jnp.arange(V)
        return jnp.where(chosen_BCKV, jax.nn.log_softmax(logits_BCV)[:, :, None], 0).sum((-1, -2))

    wanted = by_token(measure, (output(x, table),), jnp.asarray(ids))
    with axes.use_mesh(axes.make_mesh({"data": 4, "context": 2})):
        rows = lambda a: axes.place(jnp.asarray(a), "batch", "length", None)
        found = jax.jit(lambda x, ids: by_token(measure, (output(x, table),), ids))(rows(x), rows(ids))
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
        with pytest.raises(ValueError, match="rows of 7 tokens can't be split over context=2"):
            token_logprobs(output(jnp.asarray(arrays(7)[0]), table), targets(7))


def test_outputs_of_different_vocabularies_are_refused():
    x, table, _ = arrays()
    with pytest.raises(ValueError, match=r"\(4, 6, 32\), \(4, 6, 31\)"):
        token_divergences(output(x, table), output(x, table[1:]))
