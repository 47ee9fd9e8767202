"""Losses and gradients of whole steps equal TRL's, on the same models (transformers' LLaMA, imported here).

TRL pads each answer to a row of its own; here they are packed. TRL computes in float32, which sets the tolerances. Its
modules are imported only where they are used, because that is slow.
"""

import importlib
import logging
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch

from data.batch import example_channels, from_rows
from data.examples import kinds
from data.examples.example import Example
from data.examples.packing import pack
from model import weights
from tests.train.objectives.trl_models import dataset, ours, settings, theirs, tokenizer
from train.objectives.preference import Preference
from train.objectives.reward import Reward

pytestmark = pytest.mark.xdist_group("trl")  # one worker imports TRL

TEXTS = [("a?", "a fox", "no"), ("a hen?", "yes", "a hen or so"), ("?", "b", "a fox"), ("why", "so it is", "b")]


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def trl():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        for name in ("cpo", "orpo"):
            importlib.import_module(f"trl.experimental.{name}")
    return importlib.import_module("trl")


@pytest.fixture(scope="module")
def dpo(trl, words, tmp_path_factory):
    """Returns (TRL's trainer, its batch, our model, our reference)."""
    logging.disable(logging.WARNING)
    pair = [theirs("LlamaForCausalLM", seed) for seed in (0, 1)]
    mine = [ours(model, tmp_path_factory.mktemp("model")) for model in pair]
    rows = dataset([dict(prompt=p, chosen=a, rejected=b) for p, a, b in TEXTS])
    trainer = trl.DPOTrainer(
        *pair,
        args=settings(trl.DPOConfig, tmp_path_factory.mktemp("trl"), len(TEXTS)),
        train_dataset=rows,
        processing_class=words,
    )
    trainer.model.eval()  # no dropout, but gradients
    return trainer, next(iter(trainer.get_train_dataloader())), *mine


def packed(ids, marks, scored=False):
    """Returns our batch of TRL's rows, [chosen; rejected]: pairs of segments, packed.

    Args:
      ids: int [2 N, T]; marks: bool [2 N, T], the tokens of the answers.
      scored: only the last token of an answer is trained, as in reward models.
    """
    n, examples = len(ids) // 2, []
    for pair in range(n):
        segments = []
        for rank, row in enumerate((pair, n + pair)):
            end = np.flatnonzero(marks[row])[-1] + 1
            if scored:
                one = Example(ids[row, :end], np.zeros(end, np.int32), (np.arange(end) == end - 1).astype(np.uint8))
            else:
                one = Example.of_ids(ids[row, :end], marks[row, :end])
            segments.append(one._replace(rank=rank))
        examples.append(segments)
    channels = example_channels(kinds.KINDS["preferences"].channels({}), False)
    (block,) = pack(examples, 64, channels, np.dtype("<u2"))
    return from_rows(block, channels)


def gradients_of(objective, model, rows, **companions):
    """Returns (mean loss, norm of its gradient)."""

    def total(params):
        loss = objective(weights.replaced(model, params), rows, jax.random.key(0), **companions)
        return loss.total / loss.weight

    value, gradients = jax.jit(jax.value_and_grad(total))(weights.trained(model))
    return float(value), np.sqrt(sum(float((g[...] ** 2).sum()) for g in gradients.values()))


def their_gradient(trainer, batch):
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, {name: a.clone() for name, a in batch.items()})
    loss.backward()
    norm = torch.sqrt(sum((p.grad.double() ** 2).sum() for p in trainer.model.parameters() if p.grad is not None))
    return loss.item(), norm.item()


# TRL's loss types, and our settings.
DPO = {
    "sigmoid": dict(beta=0.3),
    "sigmoid_norm": dict(beta=2.0, per_token=True),
    "hinge": dict(method="hinge", beta=0.2),
    "robust": dict(method="robust", beta=0.2, label_smoothing=0.2),
    "ipo": dict(method="ipo", beta=0.3, per_token=True),
}


@pytest.mark.parametrize("name", DPO)
def test_direct_methods(name, dpo):
    trainer, batch, model, reference = dpo
    objective = Preference(**DPO[name])
    trainer.loss_types, trainer.loss_weights = [name], [1.0]
    trainer.beta, trainer.label_smoothing = objective.beta, objective.label_smoothing
    rows = packed(batch["input_ids"].numpy(), batch["completion_mask"].numpy() > 0)
    found = gradients_of(objective, model, rows, reference=weights.frozen(reference))
    np.testing.assert_allclose(found, their_gradient(trainer, batch), rtol=2e-5)


# Methods without a reference: our settings, and TRL's function of (chosen, rejected) log-probabilities per token.
def simpo(trl, objective, *logps):
    fields = dict(alpha=0.0, loss_type="simpo", beta=objective.beta, simpo_gamma=objective.target_margin)
    fields |= dict(label_smoothing=objective.label_smoothing, accelerator=SimpleNamespace(device="cpu"))
    return trl.experimental.cpo.CPOTrainer.cpo_loss(SimpleNamespace(**fields), *logps)[0]


def orpo(trl, objective, *logps):
    fields = SimpleNamespace(beta=objective.beta, accelerator=SimpleNamespace(device="cpu"))
    return -trl.experimental.orpo.ORPOTrainer.odds_ratio_loss(fields, *logps)[0] - objective.sft * logps[0]


ALONE = {
    "simpo": (dict(method="simpo", beta=2.0, target_margin=1.0), simpo),
    "simpo smoothed": (dict(method="simpo", beta=2.5, target_margin=0.5, label_smoothing=0.1), simpo),
    "orpo": (dict(method="orpo", beta=0.2, sft=1.0), orpo),
}


@pytest.mark.parametrize("name", ALONE)
def test_methods_without_a_reference(name, trl, dpo):
    trainer, batch, model, _ = dpo
    own, loss_of = ALONE[name]
    objective = Preference(**own)
    ids, marks = batch["input_ids"], batch["completion_mask"] > 0
    trainer.model.zero_grad()
    logits = trainer.model(ids, attention_mask=batch["attention_mask"]).logits[:, :-1]
    logp = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])[..., 0]
    means = (logp * marks[:, 1:]).sum(-1) / marks[:, 1:].sum(-1)
    loss = loss_of(trl, objective, *means.chunk(2)).mean()
    loss.backward()
    norm = torch.sqrt(sum((p.grad.double() ** 2).sum() for p in trainer.model.parameters()))
    found = gradients_of(objective, model, packed(ids.numpy(), marks.numpy()))
    np.testing.assert_allclose(found, [loss.item(), norm.item()], rtol=2e-5)


@pytest.mark.parametrize("own", [{}, dict(centre=0.05), dict(margin=1.0)], ids=str)
def test_reward_models(own, trl, words, tmp_path_factory):
    rows = [dict(chosen=p + a, rejected=p + b, margin=0.5 * i) for i, (p, a, b) in enumerate(TEXTS)]
    rows = rows if "margin" in own else [{n: row[n] for n in ("chosen", "rejected")} for row in rows]
    fields = dict(center_rewards_coefficient=own.get("centre"))
    model = theirs("LlamaForSequenceClassification", 2)
    mine = ours(model, tmp_path_factory.mktemp("model"))
    trainer = trl.RewardTrainer(
        model,
        args=settings(trl.RewardConfig, tmp_path_factory.mktemp("trl"), len(TEXTS), **fields),
        train_dataset=dataset(rows),
        processing_class=words,
    )
    trainer.model.eval()
    batch = next(iter(trainer.get_train_dataloader()))
    found = packed(batch["input_ids"].numpy(), batch["attention_mask"].numpy() > 0, scored=True)
    if "margin" in own:  # of a pair: that of its better answer, at all its tokens
        found["scores"] = np.zeros(found["tokens"].shape, np.float32)
        for segment, margin in by_pair(found, batch):
            found["scores"][segment] = margin
    np.testing.assert_allclose(gradients_of(Reward(**own), mine, found), their_gradient(trainer, batch), rtol=2e-5)


def by_pair(found, batch):
    """Yields (the places of a better answer in our batch, the margin of its pair in TRL's)."""
    masks = batch["attention_mask"].numpy() > 0
    ids = [row[mask].tolist() for row, mask in zip(batch["input_ids"].numpy(), masks, strict=True)]
    for row in range(len(found["ranks"])):
        for group in range(1, found["group_ids"][row].max() + 1):
            place = np.zeros(found["ranks"].shape, bool)
            place[row] = (found["group_ids"][row] == group) & (found["ranks"][row] == 0)
            yield place, batch["margin"][ids.index(found["tokens"][place].tolist())].item()
