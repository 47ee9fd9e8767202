"""A policy on a problem small enough to write its optimum down, trained as a run trains it.

A text has up to 4 letters out of 4, and ends with an end token or after the fourth letter: 341 texts. Each has a fixed
utility r. The policy that maximizes mean(r) - beta KL(policy || reference) is proportional to reference x exp(r / beta)
(arXiv:2305.18290, equation 4), so the KL divergence between it and a trained policy can be computed exactly.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from model import architectures
from model.config import ModelConfig
from model.value_head import ValueHead
from model.weights import frozen
from train import state as states
from train import step
from train.align.layout import Completion, rows_of
from train.align.measure import make_measure
from train.align.rollouts import Rollouts
from train.align.rounds import Prompt, Rewards, Rounds, Settings, Tools
from train.align.sampler import make_sampler

LETTERS, END, LONGEST, BETA = 4, 4, 4, 0.5
BEGIN = END  # as in a document, so that there is no id that a model could waste probability on
SEQ_LEN = 32
TEXTS = [text for n in range(LONGEST + 1) for text in itertools.product(range(LETTERS), repeat=n)]
CONFIG = ModelConfig(
    vocab_size=END + 1, embed_dim=64, num_layers=1, num_heads=4, mlp_dim=128, max_length=SEQ_LEN, dtype="float32"
)


def utilities():
    """Returns r of each text: the sum of random values of its letters, pairs of letters and length; of variance 1."""
    rng = np.random.default_rng(0)
    letters, pairs, lengths = (rng.normal(size=shape) for shape in (LETTERS, (LETTERS, LETTERS), LONGEST + 1))
    value = lambda text: sum(letters[list(text)]) + sum(pairs[a, b] for a, b in itertools.pairwise(text))
    found = np.array([value(text) + lengths[len(text)] for text in TEXTS])
    return (found - found.mean()) / found.std()


def answer(text):
    return np.array([*text, END][: LONGEST if len(text) == LONGEST else None], np.int32)


def model(seed=0):
    """Returns a policy whose texts have different probabilities."""
    return architectures.make(CONFIG, nnx.Rngs(seed))


@jax.jit
def _logprobs(model, batch):
    output = model.output(model(batch["tokens"], batch["segment_ids"], batch["positions"]).x_BTD)
    logp_BTV = jax.nn.log_softmax(output.logits())
    own_BT = jnp.take_along_axis(logp_BTV, batch["targets"][..., None], -1)[..., 0]
    return own_BT * batch["weights"]


def logprobs(model):
    """Returns the log-probability of every text, float64 [341], which adds up to 1."""
    made = [[Completion(i, np.array([BEGIN], np.int32), answer(text), True)] for i, text in enumerate(TEXTS)]
    batch, places = rows_of(made, SEQ_LEN, 1)
    own_RT = np.asarray(_logprobs(model, batch), np.float64)
    return np.array([own_RT[row, begin : begin + n].sum() for ((row, begin, n),) in places])


def optimum(reference):
    """Returns the log-probabilities of the best policy."""
    scores = logprobs(reference) + utilities() / BETA
    return scores - np.log(np.exp(scores - scores.max()).sum()) - scores.max()


def distance(model, reference):
    """Returns KL(policy || optimum)."""
    own = logprobs(model)
    return float((np.exp(own) * (own - optimum(reference))).sum())


def trained(objective, *, steps, size, rate, group, epochs=1):
    """Trains a policy with an objective and returns (it, its reference)."""
    objective = objective.sampling(1.0, LONGEST, END + 1)
    reference = model()
    tx = optax.adam(optax.cosine_decay_schedule(rate, steps))
    state = states.beside(states.around(model(), tx), {"reference": frozen(model())})
    if getattr(objective, "critic", ""):
        state.critic = states.critic(ValueHead(CONFIG, nnx.Rngs(1)), tx)
    source = rollouts(objective, size=size, group=group, epochs=epochs)
    run = step.make_train_step(objective, tx, critic_tx=tx)
    for _ in range(steps):
        state, _ = run(state, source.next(state))
    return state.model, reference


def optimized(run):
    """Returns a jitted step (state, batch) that is compiled with the optimizations that tests turn off, because it runs
    so often that this takes less time."""
    compiled = {}

    def step(state, batch):
        shapes = tuple((name, array.shape) for name, array in sorted(batch.items()))
        if shapes not in compiled:
            options = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
            compiled[shapes] = run.lower(state, batch).compile(compiler_options=options)
        return compiled[shapes](state, batch)

    return step


def rollouts(objective, *, size, group, epochs=1, minibatches=1, rewards=None, place=None, unit=1, text=None, rows=0):
    """Returns rollouts of the only prompt; `rows`: those of `text` in each batch, if it is given."""
    reward_of = dict(zip(TEXTS, utilities(), strict=True))

    def score(prompts, texts):
        total = np.array([reward_of[tuple(map(int, text))] for text in texts])
        return Rewards(total, np.ones(len(total), bool), {"utility": total})

    wanted = Settings(group, epochs, minibatches, LONGEST, 1.0, 0, "keep", 0.0, rows, 0)
    sample = make_sampler(
        lambda ids: "".join(str(i) for i in ids if i != END),
        ends=(END,),
        vocab_size=END + 1,
        max_new_tokens=LONGEST,
        temperature=1.0,
    )
    measure = (
        make_measure(objective, lambda batch: batch, epochs * minibatches) if hasattr(objective, "measures") else None
    )
    asked = [Prompt(np.array([BEGIN], np.int32), "", {"columns": {}})]
    rounds = Rounds(asked, objective, wanted, SEQ_LEN, unit, Tools(sample, rewards or score, measure))
    more = dict(batch_size=size, seq_len=SEQ_LEN, unit=unit, seed=0, stream="toy", place=place, text=text)
    return Rollouts(rounds, objective, wanted, 1, **more)
