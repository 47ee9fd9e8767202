"""Mixture-of-experts feed-forward (arXiv:1701.06538): a router, experts of which a token uses a few, a shared expert.

Each device routes its own tokens. Whole experts are on the devices of `expert`, and tokens travel there and back
(dispatch.py). Each expert is gathered over fsdp and split over `tensor` along F, so the layer ends with one sum over
`tensor`.

Dims: B rows, T length, D embed, F hidden of an expert, E experts.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

from model import axes
from model.config import ModelConfig
from model.experts import dispatch
from model.experts.router import RouterStats, balanced_by_correction, route
from model.layers import FeedForward, activate, residual_init
from model.roles import Role
from model.weights import Weight, einsum, gathered, param


class MoE(nnx.Module):
    """A mixture of experts in place of a FeedForward, described by config.experts. The experts have no biases."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        experts = config.experts
        assert experts is not None  # ModelConfig requires it for sparse layers
        e, d, f, dtype = experts.count, config.embed_dim, experts.mlp_dim, jnp.dtype(config.param_dtype)
        init = nnx.initializers.normal(config.init_std)
        self.experts, self.activation = experts, config.activation
        self.router = param(rngs, (d, e), ("embed", "choices"), init, dtype, role=Role.ROUTER)
        matrix = lambda shape, *names, init=init: param(
            rngs, shape, ("experts", *names), init, dtype, role=Role.EXPERT, inputs=names[:1]
        )
        self.experts_gate = matrix((e, d, f), "expert_embed", "mlp") if config.gated else None
        self.experts_up = matrix((e, d, f), "expert_embed", "mlp")
        self.experts_down = matrix((e, f, d), "mlp", "expert_embed", init=residual_init(config))
        # Always float32, because it is updated in small steps.
        correction = lambda: param(rngs, (e,), ("choices",), nnx.initializers.zeros, jnp.float32, role=Role.CORRECTION)
        self.correction = correction() if experts.correction else None
        self.shared = FeedForward(config, rngs, experts.shared_dim) if experts.shared_dim else None
        gate = lambda: param(rngs, (d, 1), ("embed", "choices"), init, dtype, role=Role.GATE)
        self.shared_gate = gate() if experts.shared_gate else None

    def __call__(self, x_BTD: jax.Array, real_BT: jax.Array | None = None) -> tuple[jax.Array, RouterStats]:
        """Runs the feed-forward.

        Args:
          real_BT: False for padding, which only the shared expert processes and no statistic counts; None: no padding.

        Returns:
          (y [B, T, D] in x's dtype, the router's statistics of the whole batch, float32).
        """
        with jax.default_matmul_precision("highest"):  # true float32 on a TPU too
            logits = einsum("BTD,DE->BTE", x_BTD.astype(jnp.float32), self.router, ("batch", "length", "choices"))
        routed = self._routed
        if any(isinstance(w, Weight) for w in (self.experts_gate, self.experts_up, self.experts_down)):
            # Recompute the arrays that such weights expand to in the backward pass, so that no layer stores its own.
            routed = jax.checkpoint(routed, policy=jax.checkpoint_policies.save_only_these_names("products"))
        y_BTD, stats = routed(x_BTD, logits, real_BT)
        if self.correction is not None:
            y_BTD = balanced_by_correction(y_BTD, self.correction[...], stats.load_E)
        if self.shared is not None:
            shared_BTD = self.shared(x_BTD)
            if self.shared_gate is not None:
                gate = einsum("BTD,DE->BTE", x_BTD, self.shared_gate, ("batch", "length", "choices"))
                shared_BTD *= jax.nn.sigmoid(gate.astype(jnp.float32)).astype(x_BTD.dtype)
            y_BTD += shared_BTD
        return y_BTD, stats

    def _routed(self, x_BTD, logits_BTE, real_BT):
        """Runs the chosen experts: every device on its own rows, with its part of each expert."""
        weights = (self.experts_gate, self.experts_up, self.experts_down)
        weights = [None if w is None else gathered(w, x_BTD.dtype) for w in weights]
        correction_E = None if self.correction is None else jax.lax.stop_gradient(self.correction[...])
        if not axes.has_mesh():
            return self._local(x_BTD, logits_BTE, real_BT, correction_E, *weights)
        real_BT = None if real_BT is None else axes.place(real_BT, "batch", "length")  # default masks are replicated
        place = lambda *logical: axes.out(*logical, shape=x_BTD.shape[:2])
        tokens, stream = place("batch", "length"), place("batch", "stream")
        split, inner, scattered = axes.axes_of(tokens), axes.axes_of(axes.out("mlp")), stream != tokens
        copied = tuple(name for name in split if name not in axes.axes_of(axes.out("experts")))

        def on_each_device(x_BTD, logits_BTE, real_BT, correction_E, *weights):
            # In the backward pass, these casts become sums of gradients over devices, one per array.
            x_BTD = jax.lax.pcast(x_BTD, inner, to="varying")
            weights = [None if w is None else jax.lax.pcast(w, copied, to="varying") for w in weights]
            y_BTD, stats = self._local(x_BTD, logits_BTE, real_BT, correction_E, *weights)
            if scattered:
                y_BTD = jax.lax.psum_scatter(y_BTD, inner, scatter_dimension=1, tiled=True)
            else:
                y_BTD = jax.lax.psum(y_BTD, inner)
            return y_BTD, jax.lax.psum(stats, split)

        wide, narrow = axes.out("experts", None, "mlp"), axes.out("experts", "mlp", None)
        in_specs = (tokens, tokens, tokens, PartitionSpec(), wide, wide, narrow)
        mesh = jax.sharding.get_abstract_mesh()
        return jax.shard_map(
            on_each_device,
            axis_names=set(mesh.axis_names) - set(mesh.manual_axes),
            in_specs=in_specs,
            out_specs=(stream, PartitionSpec()),
        )(x_BTD, logits_BTE, real_BT, correction_E, *weights)

    def _local(self, x_BTD, logits_BTE, real_BT, correction_E, gate, up, down):
        real_N = jnp.ones(x_BTD.shape[:2], bool) if real_BT is None else real_BT
        logits_NE = logits_BTE.reshape(-1, self.experts.count)
        routing, stats = route(self.experts, logits_NE, correction_E, real_N.reshape(-1))

        def apply(x, multiply):
            product = lambda x, w: checkpoint_name(multiply(x, w), "products")
            h = product(x, up)
            h = activate(h, self.activation) if gate is None else activate(product(x, gate), self.activation) * h
            return product(h, down)

        limited = self.experts.capacity or self.experts.capacity_factor
        run = dispatch.capacity if limited else dispatch.dropless
        y_BTD, dropped = run(self.experts, x_BTD, routing, apply)
        return y_BTD, stats._replace(dropped=stats.dropped + dropped)
