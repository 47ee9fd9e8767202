"""Verdicts of a model are its probabilities of the verdicts, by full passes over whole conversations."""

import json
import shutil

import jax
import numpy as np
import pytest

from launch.conversion.hugging_face import export, import_folder
from launch.judging.questions import SCORES, VERDICTS
from launch.judging.replies import TOO_LONG
from launch.judging.workdir import WorkdirJudge
from launch.program.checking import ConfigError
from launch.run import restore
from launch.run.workdirs import Workdir
from model import axes

ASKED = [((i,), f"Which? {'x' * (37 * i)}") for i in range(8)]


def replies(workdir, options, asked=ASKED):
    return {key: reply for batch in WorkdirJudge(Workdir(workdir))(asked, options) for key, reply in batch}


def probability(mesh, model, prompt, option, vocab_size):
    """Returns the probability of an option behind a prompt, both ids, by one full pass."""
    rows = np.array([[*prompt, *option]], np.int32)
    with axes.use_mesh(mesh):
        logits = np.asarray(jax.jit(type(model).logits)(model, rows))[0].astype(np.float64)
    logits = logits[:, :vocab_size] - logits.max(-1, keepdims=True)  # further ids pad the table
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.exp(sum(log_probs[len(prompt) - 1 + i, token] for i, token in enumerate(option)))


def by_hand(workdir, options, text, form):
    mesh, model, words = restore.for_inference(Workdir(workdir))
    prompt = form(words, text)
    found = [probability(mesh, model, prompt, words.encode(option), words.vocab_size) for option in options]
    if options == SCORES:
        found[0] -= found[9]  # "10" begins with "1"
    return np.array(found)


def chatml(words, text):
    ids = {name: words._backend.token_to_id(name) for name in ("<|im_start|>", "<|im_end|>")}
    start, end = ids.values()
    ask = [start, *words.encode(f"user\n{text}"), end, *words.encode("\n")]
    return [*ask, start, *words.encode("assistant\n")]


@pytest.mark.parametrize("options", [VERDICTS, SCORES], ids=["verdicts", "scores"])
def test_a_model_that_was_tuned_on_conversations(options, talker):
    found = replies(talker, options)
    assert list(found) == [key for key, _ in ASKED]
    for key, text in (ASKED[0], ASKED[5]):
        wanted = by_hand(talker, options, text, chatml)
        np.testing.assert_allclose(found[key].mass, wanted.sum(), rtol=1e-3)
        np.testing.assert_allclose(found[key].weights, wanted / wanted.sum(), rtol=1e-3)
    assert len({reply.weights for reply in found.values()}) == 8


def test_an_imported_model_is_asked_in_its_own_template(talker, tmp_path):
    export(talker, tmp_path / "hf")
    import_folder(tmp_path / "hf", tmp_path / "run")
    there, here = replies(talker, VERDICTS), replies(tmp_path / "run", VERDICTS)
    for key, reply in there.items():
        np.testing.assert_allclose(here[key].weights, reply.weights, rtol=0.05)  # it computes in bfloat16
        np.testing.assert_allclose(here[key].mass, reply.mass, rtol=0.05)


def test_a_model_of_text_continues_the_question(talker, tmp_path):
    shutil.copytree(talker, tmp_path / "run")
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    record["data"]["path"] = ""
    (tmp_path / "run" / "config.json").write_text(json.dumps(record))
    form = lambda words, text: words.prompts([f"{text}\n\nVerdict: "])[0]
    wanted = by_hand(tmp_path / "run", VERDICTS, "Which?", form)
    found = replies(tmp_path / "run", VERDICTS, [((0,), "Which?")])[(0,)]
    np.testing.assert_allclose(found.weights, wanted / wanted.sum(), rtol=1e-3)


def test_a_reply_does_not_depend_on_the_other_questions(talker):
    whole = replies(talker, SCORES)
    assert replies(talker, SCORES, ASKED[3:4]) == {(3,): whole[(3,)]}
    assert replies(talker, SCORES, ASKED[::-1]) == whole


def test_what_does_not_fit_is_named(talker):
    found = replies(talker, VERDICTS, [*ASKED[:1], ((9,), "x" * 2040), ((10,), "x" * 2011)])
    assert [reply.why for reply in found.values()] == ["", TOO_LONG, ""]


def test_a_judge_must_be_a_language_model(rewarder, tmp_path):
    with pytest.raises(ConfigError, match="head sequence; a judge is a decoder with the head language_model"):
        WorkdirJudge(Workdir(rewarder))
    with pytest.raises(ConfigError, match="holds no run"):
        WorkdirJudge(Workdir(tmp_path))
