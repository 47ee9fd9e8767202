"""Tests requests as ids: prompts for models of each tuning, early errors, and ids turned back into text."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from data.batch import DataError
from data.examples import kinds
from data.examples.example import Context
from data.tokens import tokenizer
from launch.answers.completer import Completer
from launch.answers.completion import Request, completed
from model import architectures
from model.adapt.bank import bank
from model.adapt.lora import Lora
from model.adapt.tuning import Tuning
from model.decode.generate import generate
from model.decode.sampling import settings
from model.weights import replaced, trained
from tests.model import tiny

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one?"}]
SAID = [*MESSAGES, {"role": "assistant", "content": "1"}]


@pytest.fixture(scope="module")
def words():
    return tokenizer.train(["a"], "byte", specials=["<extra_id_0>"])


def config(kind="", **fields):
    """Returns the config of a run that learnt from examples of a kind, or from text ('')."""
    found = importlib.import_module("configs.sft").get_config()
    found.data.update(path="a.jsonl" if kind else "", format=kind or "chat", sources=(("stdlib", 1.0),))
    found.data.pairs.prefix = "translate: "
    found.update_from_flattened_dict(fields)
    return found


def completer(words, kind="", model=tiny.LLAMA, adapters=(), **fields):
    return Completer(config(kind, **fields), words, _sized(model, words), adapters=adapters)


def _sized(model, words):
    return dataclasses.replace(model, vocab_size=words.vocab_size, max_length=512)


def test_a_text_is_continued_and_a_question_answered(words):
    (text,) = completer(words).completions([Request("one?")])
    assert text.prompt == words.prompts(["one?"])[0] and not text.answers
    new = [*words.encode(" 1"), words.eot_id]
    assert (text.text(new), text.whole(new)) == (" 1", "one? 1")
    chat = completer(words, "chat")
    raw, question, messages = chat.completions(
        [Request("one?", raw=True), Request("one?", system="Be brief."), Request(MESSAGES)]
    )
    assert raw.prompt == text.prompt and question.prompt == messages.prompt != raw.prompt
    assert "Be brief." in words.decode(question.prompt) and question.answers and question.whole(new) == " 1"
    (pair,) = completer(words, "pairs").completions([Request("one")])
    assert words.decode(pair.prompt) == "translate: one\n" and pair.answers


def test_requests_of_all_kinds_in_one_order(words):
    """Each adapter was tuned on other data, and one request has a stop id of its own."""
    model = completer(words, "chat", adapters=[config("pairs"), config()])
    requests = [Request("b", adapter=1), Request("a"), Request("b", adapter=0), Request("c", raw=True, stop=(5,))]
    found = model.completions(requests)
    alone = [model.completions([request])[0] for request in requests]
    assert [one.prompt for one in found] == [one.prompt for one in alone]
    assert [words.decode(one.prompt) for one in (found[0], found[2])] == ["b", "translate: b\n"]
    assert found[3].ends[-1] == 5 and 5 not in found[1].ends
    assert found[3].text([*words.encode("x"), 5]) == "x" and found[3].whole([*words.encode("x"), 5]) == "cx"


def test_ids_of_prompt_tuning_stand_before_and_are_not_shown(words):
    adapt = {"method": "prompt", "length": 3}
    run = config()
    run.adapt = type(run)(adapt)
    run.model.vocab_size = words.vocab_size
    (found,) = Completer(run, words, _sized(tiny.LLAMA, words), words.vocab_size + 3).completions([Request("ab")])
    assert found.prompt[3:] == words.prompts(["ab"])[0] and min(found.prompt[:3]) >= words.vocab_size
    assert found.whole(words.encode("c")) == "abc"


@pytest.mark.parametrize(
    ("kind", "request_", "message"),
    [
        (
            "",
            Request("a", system="b"),
            "a system text is for models that were tuned on conversations; give a text alone",
        ),
        (
            "chat",
            Request("a", system="b", raw=True),
            "a system text is for questions, but the prompt is to be continued as it is",
        ),
        ("", Request(MESSAGES), "messages are for models that were tuned on conversations; give a text"),
        ("chat", Request(MESSAGES, raw=True), "messages are for questions, but the prompt is to be continued as it is"),
        ("pairs", Request(MESSAGES), "tuned on pairs of texts, and messages are for conversations; give a text"),
        ("pairs", Request("a", system="b"), "pairs of texts have no system text"),
        (
            "chat",
            Request(MESSAGES, system="b"),
            "a system text can't be given along with messages; make it the first message",
        ),
        ("chat", Request([]), "there are no messages"),
        ("chat", Request(SAID), "the last message is of the role assistant; a model answers a question"),
        ("chat", Request([{"role": "judge", "content": "a"}]), "message 1 has the unknown role 'judge'; there are sys"),
        ("chat", Request([MESSAGES[1], MESSAGES[1]]), "questions and answers don't alternate"),
        ("chat", Request(MESSAGES, tools=({"name": "f"},)), 'can.t be written as a question: "tools" is not read by'),
        ("", Request("a" * 499), "prompt 0 has 500 tokens, with 100 new ones 600, but the model's context is 512"),
        ("", Request("a", max_new_tokens=0), "max_new_tokens is 0; it must be at least 1"),
        ("", Request("a", adapter=1), "there is no adapter 1; the model has 0, counted from 0"),
    ],
)
def test_refused_before_anything_runs(kind, request_, message, words):
    with pytest.raises(ValueError, match=message):
        completer(words, kind).completions([request_])


def test_the_request_that_is_too_long_is_named_by_its_own_limit(words):
    requests = [
        Request("a" * 9, max_new_tokens=500),
        Request("a" * 499, max_new_tokens=12),
        Request("a" * 499, max_new_tokens=13),
    ]
    with pytest.raises(ValueError, match="prompt 2 has 500 tokens, with 13 new ones 513"):
        completer(words).completions(requests)
    assert len(completer(words).completions(requests[:2])) == 2


def test_gaps_of_an_encoder_decoder(words):
    (found,) = completer(words, model=tiny.SWITCH).completions([Request("a<extra_id_0>c")])
    sentinel = words.sentinel_ids[0]
    assert found.prompt == [words.start_id] and found.source == [
        *words.encode("a"),
        sentinel,
        *words.encode("c"),
        words.eot_id,
    ]
    assert found.whole([sentinel, *words.encode("b"), words.eot_id]) == words.decode_spans(
        [sentinel, *words.encode("b")]
    )
    with pytest.raises(DataError, match="the tokenizer has 1 sentinels"):
        completer(words, model=tiny.SWITCH).completions([Request("a<extra_id_3>c")])


RECORDS = {"chat": {"messages": [MESSAGES[1], SAID[2], {"role": "user", "content": "two?"}, SAID[2]]}}
RECORDS["pairs"] = {"source": "one", "target": "eins"}


@pytest.mark.parametrize("encoder", [False, True])
@pytest.mark.parametrize("kind", RECORDS)
def test_of_a_record_the_model_reads_what_it_read_before_the_last_answer_in_training(kind, encoder, words):
    asked = completer(words, kind, tiny.SWITCH if encoder else tiny.LLAMA)
    encoding = kinds.KINDS[kind].encoding(config(kind).data[kind].to_dict(), Context(words, 256, encoder, None))
    example = encoding.encode(RECORDS[kind])
    # The position that predicts the first token of the last answer.
    begins = max(np.flatnonzero(~example.trained), default=-1) + 1
    (given,) = asked.of_records(kind, [RECORDS[kind]], 256, 8)
    assert given.prompt == example.tokens[: begins + 1].tolist() and not given.cut
    assert given.source == (example.source.tolist() if encoder else None)
    assert given.text(example.targets[begins:]) == {"chat": "1", "pairs": "eins"}[kind]
    (short,) = asked.of_records(kind, [RECORDS[kind]], 10, 8)
    read = short.source if encoder else short.prompt
    assert short.cut and len(read) == 10
    assert asked.room(256, 8) == 256 and asked.room(256, 400) == 112


def test_one_batch_is_one_call_of_generate(words):
    model = architectures.make(_sized(tiny.LLAMA, words), nnx.Rngs(0))
    drawn = settings(1.0, top_k=5)
    requests = [Request(text, max_new_tokens=6, settings=drawn) for text in ("ab", "c")]
    batch = completer(words).completions(requests)
    found = completed(model, batch, jax.random.key(3))
    options = dict(max_new_tokens=6, settings=drawn, eos_id=words.special.end, vocab_size=words.vocab_size)
    wanted = generate(model, words.prompts(["ab", "c"]), jax.random.key(3), **options)
    assert found == [ids[:length].tolist() for ids, length in zip(wanted.tokens, wanted.lengths, strict=True)]
    for change in ({"max_new_tokens": 7}, {"settings": settings(1.0)}, {"stop": (5,)}):
        with_adapter = completer(words, adapters=[config()])
        other = with_adapter.completions([requests[0], dataclasses.replace(requests[1], **change)])
        with pytest.raises(ValueError, match="the requests of one batch must have the same sampling settings"):
            completed(model, other, jax.random.key(3))
    asking = completer(words, adapters=[config()]).completions([Request("a", adapter=0)])
    with pytest.raises(ValueError, match="a request names an adapter, but the model has none"):
        completed(model, asking, jax.random.key(3))


def test_rows_of_one_batch_may_have_an_adapter_or_none(words):
    base = _sized(tiny.LLAMA, words)
    lora = Tuning(Lora(rank=2))
    adapted = jax.jit(lambda: lora.apply(architectures.make(base, nnx.Rngs(0)), jax.random.key(1)))()
    b = {n: leaf.replace(jnp.ones_like(leaf[...])) for n, leaf in trained(adapted).items() if n.endswith("/b")}
    several = bank(architectures.make(base, nnx.Rngs(0)), [replaced(adapted, b)])
    made = completer(words, adapters=[config()])
    asked = lambda *adapters: [Request("ab", max_new_tokens=6, adapter=adapter) for adapter in adapters]
    answers = lambda *adapters: completed(several, made.completions(asked(*adapters)), jax.random.key(3))
    without, with_one = answers(None, 0)
    assert without == answers(None)[0] != with_one == answers(0)[0]


def test_what_a_model_is_asked_by_follows_from_what_it_learnt():
    data = {"sources": (("stdlib", 1.0), ("pairs:a", 1.0), ("chat:b", 0.0))}
    assert kinds.asked(data) == "pairs"
    assert kinds.asked({"sources": (("pairs:a", 1.0), ("chat:b", 0.5))}) == "chat"
    assert kinds.asked({"sources": (("labels:a", 1.0),)}) == kinds.asked({"sources": ()}) == kinds.TEXT
