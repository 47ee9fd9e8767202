"""Policy losses and gradients of whole steps equal TRL's GRPO and RLOO, on the same models and completions.

TRL pads each completion to a row of its own; here they are packed. TRL computes in float32, which sets the tolerances.
"""

import importlib
import logging

import numpy as np
import pytest
import torch

from tests.train.objectives.test_policy import laid_out
from tests.train.objectives.test_trl import gradients_of
from tests.train.objectives.trl_models import SHAPE, dataset, ours, settings, theirs, tokenizer
from train.align.layout import Completion
from train.objectives.policy import Policy

pytestmark = pytest.mark.xdist_group("trl")  # one worker imports TRL

N, IDS, LONGEST = 8, SHAPE["vocab_size"], 10


def completions():
    rng, made = np.random.default_rng(0), []
    for number in range(N):
        prompt, said = (rng.integers(2, IDS, rng.integers(1, most)).astype(np.int32) for most in (6, LONGEST))
        one = Completion(number, prompt, said, True)
        logp = lambda said=said: (rng.normal(size=len(said)) / 4 - np.log(IDS)).astype(np.float32)
        one.values = {name: logp() for name in ("sampled_logprobs", "old_logprobs", "reference_logprobs")}
        one.values["advantages"] = np.full(len(said), rng.normal(), np.float32)
        made.append(one)
    return made


def their_batch(made):
    """Returns TRL's inputs: prompts padded on the left, completions on the right."""
    width, found = max(len(one.prompt) for one in made), {}
    left = lambda a: np.pad(a, (width - len(a), 0))
    right = lambda a: np.pad(a, (0, LONGEST - len(a)))
    found["prompt_ids"] = [left(one.prompt) for one in made]
    found["prompt_mask"] = [left(np.ones_like(one.prompt)) for one in made]
    found["completion_ids"] = [right(one.answer) for one in made]
    found["completion_mask"] = [right(np.ones_like(one.answer)) for one in made]
    found["old_per_token_logps"] = [right(one.values["old_logprobs"]) for one in made]
    found["ref_per_token_logps"] = [right(one.values["reference_logprobs"]) for one in made]
    found["old_logps"] = [one.values["old_logprobs"].sum() for one in made]
    found["advantages"] = [one.values["advantages"][0] for one in made]
    found["num_items_in_batch"] = sum(len(one.answer) for one in made)
    tensor = lambda a: torch.tensor(np.array(a))
    return {name: tensor(a).long() if "mask" in name or "ids" in name else tensor(a) for name, a in found.items()}


@pytest.fixture(scope="module")
def trainers(tmp_path_factory):
    """Returns (TRL's GRPO and RLOO trainers by name, our model)."""
    trl, model = importlib.import_module("trl"), theirs("LlamaForCausalLM", 0)
    folder = tmp_path_factory.mktemp("model")
    mine = ours(model, folder)
    model.config._name_or_path = str(folder)  # where TRL looks for further files of the model
    logging.disable(logging.WARNING)
    words, made = tokenizer(tmp_path_factory.mktemp("tokenizer")), {}
    for name in ("GRPO", "RLOO"):
        args = settings(getattr(trl, f"{name}Config"), tmp_path_factory.mktemp("trl"), N, num_generations=4)
        made[name] = getattr(trl, f"{name}Trainer")(
            model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=args,
            train_dataset=dataset([{"prompt": "a"}] * N),
            processing_class=words,
        )
        made[name].model.eval()  # no dropout, but gradients
    return made, mine


# TRL's settings, and ours.
GRPO = {
    "grpo": (dict(loss_type="grpo"), dict(average="sequences")),
    "grpo with a KL": (dict(loss_type="grpo", beta=0.04), dict(average="sequences", kl=0.04)),
    "its unbiased form": (
        dict(loss_type="dapo", beta=0.1, use_bias_correction_kl=True),
        dict(kl=0.1, kl_estimator="k3_ratio"),
    ),
    "bnpo": (dict(loss_type="bnpo"), dict(average="tokens")),
    "dr_grpo": (dict(loss_type="dr_grpo"), dict(average="constant")),
    "dapo": (dict(loss_type="dapo", epsilon_high=0.28), dict(average="tokens", clip_high=0.28)),
    "gspo": (
        dict(loss_type="grpo", importance_sampling_level="sequence", epsilon_low=0.03, epsilon_high=0.04),
        dict(average="sequences", ratio="mean", clip_low=0.03, clip_high=0.04),
    ),
}


@pytest.mark.parametrize("name", GRPO)
def test_grpo(name, trainers):
    made, model = trainers
    trainer, (given, own) = made["GRPO"], GRPO[name]
    defaults = dict(beta=0.0, epsilon_low=0.2, epsilon_high=0.2, importance_sampling_level="token")
    defaults |= dict(use_bias_correction_kl=False, max_completion_length=7)
    for field, value in (defaults | given).items():
        setattr(trainer.args if hasattr(trainer.args, field) and not hasattr(trainer, field) else trainer, field, value)
    check(trainer, Policy(**own), model)


def test_rloo(trainers):
    made, model = trainers
    check(made["RLOO"], Policy(advantages="rloo", scale="none", ratio="sequence", average="sequences"), model)


def check(trainer, objective, model):
    objective, made = objective.sampling(1.0, 7, IDS), completions()  # 7: TRL's max_completion_length
    batch, _ = laid_out(objective, made, length=64, without=() if objective.kl else ("reference_logprobs",))
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, their_batch(made))
    loss.backward()
    norm = torch.sqrt(sum((p.grad.double() ** 2).sum() for p in trainer.model.parameters() if p.grad is not None))
    found = gradients_of(objective, model, batch)
    assert abs(loss.item()) > 1e-3
    np.testing.assert_allclose(found, [loss.item(), norm.item()], rtol=2e-5)
