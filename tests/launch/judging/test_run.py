"""Properties of judging: what a judge prefers comes out, and neither orders nor kills change the result."""

import itertools
import json
import random
from collections import Counter

import pytest

from data.batch import DataError
from data.examples import kinds
from launch.answers.growing import Growing
from launch.judging import run
from launch.judging.replies import UNREADABLE, Reply
from launch.judging.samples import ONE_ANSWER, samples
from launch.judging.verdicts import ALL_TIE
from tests.launch.judging.openai_server import answers

WORDS = ["one", "two two", "three three three", "four", "sieben sieben sieben sieben", "six or more", "x", "yy"]


class Stub:
    """Replies to a question by a function of the answers in it, and counts the questions."""

    def __init__(self, weights):
        self.weights, self.asked = weights, []

    def __call__(self, asked, options):
        for key, text in asked:
            self.asked.append(text)
            weights = self.weights(*answers(text))
            yield [(key, Reply(weights) if weights else Reply(None, UNREADABLE, "?"))]


def always_first(first, second):
    return (0.9, 0.1)


def longer(first, second):
    return (1.0, 0.0) if len(first) > len(second) else (0.0, 1.0)


def length(answer):
    """A score of 2, or 8 if there are more than five characters, half sure."""
    weights = [0.0] * 10
    weights[7 if len(answer) > 5 else 1], weights[4] = 0.5, 0.5
    return tuple(weights)


def records(*lists):
    return [{"prompt": f"{i}?", "id": i, "answers": [{"answer": a} for a in own]} for i, own in enumerate(lists)]


def judged(tmp_path, judge, given, name="out", mode="compare"):
    """Returns (the output, the summary)."""
    path, output = tmp_path / f"{name}.samples.jsonl", tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    counts = Counter()
    there = list(samples(path, counts))
    journal = Growing(tmp_path / f"{name}.verdicts.jsonl", {}, output)
    try:
        run.ask(judge, there, journal, principles="Be good.", mode=mode, seed=0)
        summary = run.write(output, there, journal, counts, mode=mode, seed=0)
    finally:
        journal.close()
    return [json.loads(line) for line in output.read_text().splitlines()], summary


def test_a_judge_that_always_says_a_gives_only_ties(tmp_path):
    found, summary = judged(tmp_path, Stub(always_first), records(WORDS[:2], WORDS[:4], WORDS))
    assert found == [] and summary[ALL_TIE] == 3
    assert (summary["flips"], summary["ties"], summary["verdicts for the first"]) == (1, 1, 1)
    assert summary["questions"] == 2 * (1 + 6 + 16) and summary["better answer is longer"] is None


def test_a_judge_that_prefers_longer_answers_gives_those(tmp_path):
    found, summary = judged(tmp_path, Stub(longer), records(WORDS[:2], WORDS[:3], ["aa", "bbb", "c", "dddd"]))
    scores = [{answer["answer"]: answer["score"] for answer in row["answers"]} for row in found]
    assert scores[0] == {"one": 0, "two two": 1} and scores[1]["two two"] == 0.5
    assert scores[2] == {"aa": 1 / 3, "bbb": 2 / 3, "c": 0, "dddd": 1} and [row["id"] for row in found] == [0, 1, 2]
    assert (summary["flips"], summary["ties"], summary["verdicts for the first"]) == (0, 0, 0.5)
    assert summary["better answer is longer"] == 1
    pairs = [pair for row in scores for pair in itertools.combinations(row, 2)]
    assert summary["pairs"] == len(pairs) == 10
    assert summary["characters of better answers"] == pytest.approx(sum(max(map(len, p)) for p in pairs) / 10)
    assert summary["characters of worse answers"] == pytest.approx(sum(min(map(len, p)) for p in pairs) / 10)
    # The kinds of data that DPO and reward models read take the output as it is.
    for kind in ("preferences", "rankings"):
        parsed = kinds.KINDS[kind].parse(found[2], kinds.checked({})[kind])
        assert [message["content"] for message in parsed["answers"]] == ["dddd", "bbb", "aa", "c"]
        assert parsed["ranks"] == [0, 1, 2, 3]


@pytest.mark.parametrize("mode", ["compare", "score"])
def test_the_order_of_answers_changes_nothing(tmp_path, mode):
    given = records(WORDS[:3], WORDS[2:6], WORDS)
    judge = lambda: Stub(longer if mode == "compare" else length)
    found, summary = judged(tmp_path, judge(), given, "a", mode)
    for row in given:
        random.Random(5).shuffle(row["answers"])
    other, same = judged(tmp_path, judge(), given, "b", mode)
    by_answer = lambda rows: [{answer["answer"]: answer["score"] for answer in row["answers"]} for row in rows]
    assert by_answer(found) == by_answer(other) and summary == same
    assert [a["answer"] for a in other[2]["answers"]] == [a["answer"] for a in given[2]["answers"]]


def test_of_many_answers_some_pairs_are_compared_and_every_answer_in_some(tmp_path):
    many = [f"{'n' * i}" for i in range(1, 13)]
    judge = Stub(longer)
    (row,), summary = judged(tmp_path, judge, records(many))
    assert summary["pairs"] == 24 and len(judge.asked) == 48 == len({*judge.asked})
    scores = {answer["answer"]: answer["score"] for answer in row["answers"]}
    assert len(scores) == 12 and scores[many[0]] == 0 and scores[many[-1]] == 1


def test_scores_are_expected_values(tmp_path):
    found, summary = judged(tmp_path, Stub(length), records(["one", "longer one", "x"], ["a", "b"]), mode="score")
    assert [answer["score"] for answer in found[0]["answers"]] == [3.5, 6.5, 3.5]
    assert summary[ALL_TIE] == 1 and summary["questions"] == 5 and summary["mean score"] == pytest.approx(4.1)
    assert summary["pairs"] == 4 and summary["ties"] == 0.5


def test_repeated_and_empty_answers_and_verdicts_that_can_not_be_read(tmp_path):
    given = records(["a", "a"], ["bb", "c", "bb", " "], ["", ""], ["alone"], ["?", "dd", "eee"], ["😀", "👋🏽🙂"])
    unsure = lambda first, second: None if "?" in (first, second) else longer(first, second)
    judge = Stub(unsure)
    found, summary = judged(tmp_path, judge, given)
    assert [row["id"] for row in found] == [1, 4, 5]
    assert [(a["answer"], a["score"]) for a in found[0]["answers"]] == [("bb", 1), ("c", 0), ("bb", 1)]
    assert [(a["answer"], a["score"]) for a in found[1]["answers"]] == [("?", 0.5), ("dd", 0.25), ("eee", 0.75)]
    assert summary[ONE_ANSWER] == 3 and summary["records"] == 6 == summary["written"] + 3
    assert (summary["answers"], summary["empty answers"], summary["repeated answers"]) == (14, 3, 2)
    assert summary["questions unreadable"] == 4 and summary["questions"] == len(judge.asked) == 2 * (1 + 3 + 1)


def test_published_preferences_are_judged_anew(tmp_path):
    turns = [{"role": "user", "content": "0?"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "1"}]
    say = lambda text: [*turns, {"role": "assistant", "content": text}]
    given = [
        {"prompt": "0?", "chosen": "a", "rejected": "bb", "source": "x", "answer": "gold"},
        {"chosen": say("a"), "rejected": say("bb")},
        {"chosen": "\n\nHuman: 0?\n\nAssistant: a", "rejected": "\n\nHuman: 0?\n\nAssistant: bb"},
        {"prompt": turns, "answers": [{"answer": "a", "rank": 1}, {"answer": "bb", "rank": 2}]},
    ]
    judge = Stub(longer)
    found, _ = judged(tmp_path, judge, given)
    scores = [{"answer": "a", "score": 0}, {"answer": "bb", "score": 1}]
    assert found[0] == {"prompt": "0?", "source": "x", "answer": "gold", "answers": scores}
    assert "| user: 0?\n| assistant: b\n| user: 1\n" in judge.asked[2]
    for row, messages in zip(found, (turns[:1], turns, turns[:1], turns), strict=True):
        parsed = kinds.KINDS["preferences"].parse(row, kinds.checked({})["preferences"])
        assert [(m["role"], m["content"]) for m in parsed["messages"]] == [(m["role"], m["content"]) for m in messages]


def test_a_killed_judge_continues_and_asks_nothing_twice(tmp_path):
    given = records(WORDS[:4], WORDS, WORDS[4:])
    whole = Stub(longer)
    found, summary = judged(tmp_path, whole, given, "whole")

    class Killed(Stub):
        def __call__(self, asked, options):
            for number, batch in enumerate(super().__call__(asked, options)):
                if number == 17:
                    raise KeyboardInterrupt
                yield batch

    first, second = Killed(longer), Stub(longer)
    with pytest.raises(KeyboardInterrupt):
        judged(tmp_path, first, given, "killed")
    with (tmp_path / "killed.verdicts.jsonl").open("a") as stream:
        stream.write('{"record": 1, "ans')  # a line that the kill cut short
    assert judged(tmp_path, second, given, "killed") == (found, summary)
    assert first.asked[:17] + second.asked == whole.asked
    third = Stub(longer)
    assert judged(tmp_path, third, given, "killed") == (found, summary) and not third.asked
    verdicts = (tmp_path / "killed.verdicts.jsonl").read_bytes()
    assert verdicts == (tmp_path / "whole.verdicts.jsonl").read_bytes()


def test_replies_in_another_order_give_the_same(tmp_path):
    class Shuffled(Stub):
        def __call__(self, asked, options):
            batches = list(super().__call__(asked, options))
            random.Random(1).shuffle(batches)
            yield from batches

    given = records(WORDS[:4], WORDS, WORDS[4:])
    assert judged(tmp_path, Shuffled(longer), given, "a") == judged(tmp_path, Stub(longer), given, "b")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "a"}, "line 1: there is no answer, only prompt"),
        ({"answers": [{"answer": "a"}, {"answer": "b"}]}, "line 1: no field 'prompt', only answers; name the f"),
        ({"prompt": "a", "answers": ["b", "c"]}, "line 1: field 'answers' must be a list of objects"),
        ({"prompt": "a", "answers": [{"answer": 1}, {"answer": "b"}]}, "line 1: field 'answers' "),
        ({"prompt": "a", "answers": [{"text": "a", "answer": "b"}]}, "line 1: 'answers', item 1 must have exactly one"),
    ],
)
def test_records_that_cannot_be_judged_are_named(tmp_path, record, message):
    with pytest.raises(DataError, match=message):
        judged(tmp_path, Stub(longer), [record])
