"""Tests answers to a file of prompts: any batch size, kills, other settings, prompts in every form, best of n."""

import functools
import json
import math
from collections import Counter

import jax
import numpy as np
import pytest

from data.batch import DataError
from data.examples import kinds
from launch.answers import answering, best, growing, prompts, samples
from launch.answers.completer import Completer
from launch.answers.completion import Request
from launch.program.checking import ConfigError
from launch.run import restore
from launch.run.workdirs import Workdir
from model import axes
from model.decode import sampling
from model.decode.generate import generate
from train.align.rewards.scoring import Scoring

WARM = sampling.settings(1.0)
ROWS = [{"prompt": f"{i} {'fox ' * (i % 5)}?", "id": i} for i in range(12)]
NEW = 12


@pytest.fixture(scope="module")
def model(talker):
    return restore.for_inference(Workdir(talker))


@pytest.fixture
def asked(talker, tmp_path):
    """Returns a function: records -> what the model is asked."""

    def make(rows=ROWS, system="", plain=False):
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        run = Workdir(talker)
        completer = Completer(run.config, run.tokenizer, run.architecture)
        request = functools.partial(Request, settings=WARM, max_new_tokens=NEW, raw=plain)
        return answering.read(path, completer, request, system, plain)

    return make


def written(model, given, path, settings=(), **options):
    """Returns the lines of a file of answers that this call writes or continues."""
    output = growing.Growing(path, dict(settings), path)
    with axes.use_mesh(model[0]):
        answering.write(model[1], given, output, **dict(count=3, seed=1, batch_size=4) | options)
    output.close()
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_answer_depends_only_on_its_prompt_and_numbers(model, asked, tmp_path):
    """Brute force: each answer alone, with the key of its two numbers."""
    given = asked()
    found = written(model, given, tmp_path / "a.jsonl")
    assert [row["id"] for row in found] == list(range(12)) and all(len(row["answers"]) == 3 for row in found)
    assert len({answer["answer"] for row in found for answer in row["answers"]}) > 30
    for number, sample in ((0, 0), (4, 2), (11, 1)):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(1), number), sample)
        one = given.completions[number]
        with axes.use_mesh(model[0]):
            out = generate(
                model[1], [one.prompt], key[None], max_new_tokens=NEW, settings=WARM, eos_id=one.ends,
                vocab_size=model[2].vocab_size,
            )  # fmt: skip
        ids = out.tokens[0, : out.lengths[0]].tolist()
        answer = found[number]["answers"][sample]
        assert answer == {"answer": one.text(ids), "finished": ids[-1] in one.ends, "tokens": len(ids)}
    assert written(model, given, tmp_path / "b.jsonl", batch_size=32) == found
    few = written(model, asked(ROWS[:2]), tmp_path / "c.jsonl")
    assert few == found[:2]
    assert written(model, given, tmp_path / "d.jsonl", seed=2) != found


def test_a_killed_run_continues_to_the_same_bytes(model, asked, tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "_BATCHES", 3)  # windows of 4 prompts
    given = asked()
    written(model, given, tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    for kept in (0, len(lines[0]), len(lines[0]) + 7, len(b"".join(lines[:5])) + 1, len(whole) - 1, len(whole)):
        path = tmp_path / "killed.jsonl"
        growing.Growing(path, {}, path).close()
        path.write_bytes(whole[:kept])
        written(model, given, path)
        assert path.read_bytes() == whole
    calls, real = [], samples.sampled

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # in the second of three windows
        patch.setattr(samples, "sampled", interrupted)
        written(model, given, tmp_path / "stopped.jsonl")
    assert len((tmp_path / "stopped.jsonl").read_bytes().splitlines()) == 4
    written(model, given, tmp_path / "stopped.jsonl")
    assert (tmp_path / "stopped.jsonl").read_bytes() == whole


def test_an_output_of_other_settings_or_another_program_is_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    file = growing.Growing(path, {"seed": 1, "step": (1, 2)}, path)
    file.append([{"a": "é"}])
    with pytest.raises(ConfigError, match="another process is writing"):
        growing.Growing(path, {"seed": 1, "step": (1, 2)}, path)
    file.finish({"n": 1})
    file.close()
    again = growing.Growing(path, {"seed": 1, "step": (1, 2)}, path)
    assert again.count == 1 and list(again.lines()) == [{"a": "é"}]
    again.close()
    assert json.loads((tmp_path / "a.about.json").read_text())["summary"] == {"n": 1}
    with pytest.raises(
        ConfigError, match=r"begun with other settings \(seed: 1, now 2\); use another --output, or del"
    ):
        growing.Growing(path, {"seed": 2, "step": (1, 2)}, path)
    path.unlink()
    growing.Growing(path, {"seed": 2}, path).close()  # begins again
    (tmp_path / "b.jsonl").write_text("mine\n")
    with pytest.raises(ConfigError, match=r"b.about.json does not say how it was made"):
        growing.Growing(tmp_path / "b.jsonl", {}, tmp_path / "b.jsonl")
    assert (tmp_path / "b.jsonl").read_text() == "mine\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "ends in .jsonl"), ("a.json", "ends in .jsonl"), ("x/a.jsonl", "the folder .* does not exist")],
)
def test_names_of_outputs(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        growing.output_of(name)


def test_prompts_in_every_form(asked):
    turns = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    rows = [
        {"prompt": "c", "answer": "gold", "weight": 3},
        {"prompt": "c", "system": "Be brief."},
        {"prompt": turns, "id": 1},
        {"messages": turns},
        {"messages": [*turns, {"role": "assistant", "content": "gold"}]},
        {"prompt": "\n\nHuman: a?\n\nAssistant: b\n\nHuman: c\n\nAssistant:"},
        {"conversations": [{"from": "human", "value": "c"}]},
    ]
    rows[0].pop("weight")
    words = lambda given: [completion.tokenizer.decode(completion.prompt) for completion in given.completions]
    found = words(asked(rows))
    alone, brief, *dialogues, shared = found
    assert alone == shared == "user\nc\nassistant\n" and brief == "system\nBe brief.\nuser\nc\nassistant\n"
    assert {*dialogues} == {"user\na?\nassistant\nb\nuser\nc\nassistant\n"}
    system = asked(rows, system="Be kind.")
    assert words(system)[:2] == ["system\nBe kind.\nuser\nc\nassistant\n", brief]
    assert [row.record["system"] for row in system.prompts[:2]] == ["Be kind.", "Be brief."]
    # Preference data with these columns ask the same.
    for prompt, text in zip(system.prompts, words(system), strict=True):
        answers = [{"answer": "x", "score": 1}, {"answer": "y", "score": 0}]
        kind, settings = kinds.KINDS["preferences"], kinds.checked({})["preferences"]
        messages = kind.parse(prompt.record | {"answers": answers}, settings)["messages"]
        assert "".join(f"{m['role']}\n{m['content']}\n" for m in messages) + "assistant\n" == text
    assert words(asked([{"prompt": "c"}], plain=True)) == ["c"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "holds no records"),
        ([{"prompt": "a"}, {"question": "b"}], "line 2: there is no prompt, only question; name the field prompt"),
        ([{"prompt": " "}], "line 1: field 'prompt' is empty"),
        ([{"prompt": 3}], "line 1: field 'prompt' is not a string but int"),
        ([{"prompt": [{"role": "assistant", "content": "a"}]}], "line 1: the first message is an answer"),
        ([{"messages": "a"}], "line 1: field 'messages' is not a list of messages"),
        ([{"prompt": "a", "images": [1]}, {"prompt": "a", "tools": [{}]}], "line 1: .*only text can be trained on"),
        ([{"prompt": "a" * 3000}], "no prompt is left; lower --max_new_tokens"),
    ],
)
def test_records_that_cannot_be_asked_are_named(rows, message, asked):
    with pytest.raises(DataError, match=message):
        asked(rows)


def test_prompts_that_are_too_long_are_counted_and_keep_the_keys_of_the_others(model, asked, tmp_path, capsys):
    given = asked([ROWS[0], {"prompt": "x" * 2040}, ROWS[2]])
    assert given.left_out == {answering.TOO_LONG: 1} and "1 of 3 prompts" in capsys.readouterr().err
    assert written(model, given, tmp_path / "a.jsonl") == [
        row for row in written(model, asked(ROWS[:3]), tmp_path / "b.jsonl") if row["id"] != 1
    ]


def test_the_best_of_several_answers(model, asked, rewarder, tmp_path):
    scores = best.of_reward_model(Workdir(rewarder))
    given = asked()
    path = tmp_path / "best.samples.jsonl"
    lines = written(model, given, path, scores=scores)
    plain = written(model, given, tmp_path / "plain.jsonl")
    without = lambda row: row | {"answers": [{k: v for k, v in a.items() if k != "score"} for a in row["answers"]]}
    assert [without(row) for row in lines] == plain
    left_out = Counter()
    answering.best_of(growing.Growing(path, {}, path), tmp_path / "best.jsonl", -math.inf, left_out)
    kept = [json.loads(line) for line in (tmp_path / "best.jsonl").read_text().splitlines()]
    assert len(kept) == 12 and not left_out
    for row, line in zip(kept, lines, strict=True):
        values = [answer["score"] for answer in line["answers"]]
        question = [{"role": "user", "content": line["prompt"]}]
        said = {"messages": question, "answer": {"role": "assistant", "content": row["messages"][-1]["content"]}}
        np.testing.assert_allclose(scores([said])[0], row["score"], atol=1e-6)
        assert row["score"] == max(values) and row["mean_score"] == pytest.approx(np.mean(values))
        assert row["messages"][:-1] == question and row["id"] == line["id"]
        assert kinds.KINDS["chat"].parse(row, {})["messages"][-1]["content"] == row["messages"][-1]["content"]


def test_ties_and_scores_that_are_no_numbers():
    assert best.highest([1.0, 2.0, 2.0]) == 1 and best.highest([None, -3.0]) == 1 and best.highest([None]) is None
    given = lambda records: [{"a": math.nan, "b": math.inf, "c": 1.0}[r["answer"]["content"]] for r in records]
    conversation = {"messages": [{"role": "user", "content": "?"}]}
    assert best.scored([conversation] * 2, [["a", "c", " "], ["b", "b", ""]], given) == [[None, 1.0, None], [None] * 3]
    answers = [{"answer": "a", "finished": True, "score": None}]
    assert best.record({"prompt": "?", "answers": answers}) is None
    answers[0]["score"] = 0.5
    assert best.record({"prompt": "?", "answers": answers}, 0.5) and not best.record(
        {"prompt": "?", "answers": answers}, 0.6
    )


def test_reward_functions_score_answers(tmp_path, capsys):
    """They read the columns of the file; where one fails, the answer has no score."""
    own = tmp_path / "rewards.py"
    own.write_text("def half(prompt, completion, columns):\n    return 1 / (prompt == '1+1?') / 2\n")
    conversation = lambda text, answer: {"messages": [{"role": "user", "content": text}], "columns": {"answer": answer}}
    asked = [conversation("1+1?", 2), conversation("2+2?", 4)]
    texts = [["so 2", "3", ""], ["4", "5", "6"]]
    with Scoring([("numeric:answer", 1.0)], on_error="skip") as scoring:
        assert best.scored(asked, texts, best.of_functions(scoring)) == [[1.0, 0.0, None], [1.0, 0.0, 0.0]]
    with Scoring([(f"{own}:half", 1.0)], on_error="skip") as scoring:
        assert best.scored(asked, texts, best.of_functions(scoring)) == [[0.5, 0.5, None], [None] * 3]
    assert "division by zero" in capsys.readouterr().err


def test_columns_that_would_spoil_the_best_answer_are_named_early():
    good = prompts.Prompt(0, "line 1", {"prompt": "a", "input": "b", "instruction": "c"})
    best.check(good, "p.jsonl")
    assert prompts.asked(good.record)["messages"] == [{"content": "a\n\nb", "role": "user"}]
    with pytest.raises(DataError, match=r'p\.jsonl, line 1: the best answer could not .*"loss" is 0\.5'):
        best.check(good._replace(record={"prompt": [{"role": "user", "content": "a"}], "loss": 0.5}), "p.jsonl")
