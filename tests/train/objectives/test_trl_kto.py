"""KTO's loss and gradient of whole steps equal TRL's, on the same models and judged answers.

Both estimate the reference point from answers that follow another prompt. TRL rotates the answers of a batch by one and
meshlm takes the answer of the record before (data/examples/judged/unpaired.py), which differs for the first record of a
batch. So meshlm gets TRL's own pairs here. TRL computes in float32, which sets the tolerance.
"""

import importlib
import logging

import numpy as np
import pytest

from data.batch import example_channels, from_rows
from data.examples import kinds
from data.examples.example import Example
from data.examples.judged.unpaired import GOOD
from data.examples.packing import pack
from model import weights
from tests.train.objectives.test_trl import gradients_of, their_gradient
from tests.train.objectives.trl_models import dataset, ours, settings, theirs, tokenizer
from train.objectives.kto import Kto

pytestmark = pytest.mark.xdist_group("trl")  # one worker imports TRL

JUDGED = [("a?", "a fox", True), ("a hen?", "a hen or so", False), ("?", "b", True), ("why", "so it is", True)]
JUDGED += [("who?", "no", False)]


@pytest.fixture(scope="module", params=[(0, 1), (1, 0)], ids=["above 0", "cut to 0"])
def kto(request, tmp_path_factory):
    """Returns (TRL's trainer, its batch, our model, our reference); the name is that of the reference point."""
    trl = importlib.import_module("trl")
    logging.disable(logging.WARNING)
    pair = [theirs("LlamaForCausalLM", seed) for seed in request.param]
    mine = [ours(model, tmp_path_factory.mktemp("model")) for model in pair]
    trainer = trl.KTOTrainer(
        *pair,
        args=settings(trl.KTOConfig, tmp_path_factory.mktemp("trl"), len(JUDGED)),
        train_dataset=dataset([dict(prompt=p, completion=c, label=good) for p, c, good in JUDGED]),
        processing_class=tokenizer(tmp_path_factory.mktemp("tokenizer")),
    )
    trainer.model.eval()  # no dropout, but gradients
    return trainer, next(iter(trainer.get_train_dataloader())), *mine


def packed(batch):
    """Returns our batch of TRL's: each answer with the one that TRL puts after its prompt."""
    examples = []
    for i, good in enumerate(batch["label"]):
        segments = []
        for rank, prefix in enumerate(("", "KL_")):
            ids, marks = (batch[prefix + name][i].numpy() for name in ("input_ids", "completion_mask"))
            one = Example.of_ids(ids, marks > 0)
            segments.append(one._replace(rank=rank, marks=one.marks | GOOD.mark * (bool(good) and rank == 0)))
        examples.append(segments)
    channels = example_channels(kinds.KINDS["unpaired"].channels({}), False)
    (block,) = pack(examples, 64, channels, np.dtype("<u2"))
    return from_rows(block, channels)


@pytest.mark.parametrize("own", [{}, dict(beta=0.02, good_weight=1.3, bad_weight=0.7)], ids=str)
def test_whole_steps(own, kto, request):
    trainer, batch, model, reference = kto
    objective = Kto(**own)
    trainer.beta = objective.beta
    trainer.desirable_weight, trainer.undesirable_weight = objective.good_weight, objective.bad_weight
    found = gradients_of(objective, model, packed(batch), reference=weights.frozen(reference))
    np.testing.assert_allclose(found, their_gradient(trainer, batch), rtol=2e-5)
    assert (trainer._metrics["eval"]["kl"][-1] > 0) == ("above 0" in request.node.name)
