"""Results from verdicts of people and judges, and their export as preferences."""

import itertools
import json
import random

import pytest

from data.examples import kinds
from data.read import records
from launch.comparing import exported, judged, outcome, page
from launch.comparing.pairs import TIE, Answered, Pair, Verdict, pairs, ties
from launch.judging.replies import UNREADABLE, Reply
from tests.launch.comparing.made import answered
from tests.launch.judging.test_run import Stub, always_first, longer


def alphabetical(given, rater="ann"):
    return [Verdict(pair, pair.first, rater) for pair in pairs(given)[0]]


def test_results_do_not_depend_on_the_order_of_votes_or_models():
    given = answered(20)
    draw = random.Random(0)
    verdicts = [v._replace(winner=draw.choice([*v.pair.names, TIE])) for v in alphabetical(given)]
    found = outcome.outcome(given, verdicts)
    for _ in range(3):
        draw.shuffle(verdicts)
        other = [one._replace(answers=dict(reversed(one.answers.items()))) for one in given]
        assert outcome.outcome(other, verdicts) == found
    assert found["comparisons"] == 60 == found["raters"]["ann"] and json.loads(json.dumps(found)) == found
    assert sum(own["wins"] for own in found["models"].values()) == 60
    for (a, own), (b, other) in itertools.combinations(found["models"].items(), 2):
        assert own["wins over"][b][0] + other["wins over"][a][0] == own["wins over"][b][1] == 20


def test_the_text_names_the_best_model_first_and_says_what_it_rests_on():
    given = answered(20)
    verdicts = alphabetical(given) + [v._replace(rater="bob", winner=v.pair.second) for v in alphabetical(given)[:20]]
    found = outcome.outcome(given, verdicts)
    text = outcome.text(found)
    lines = text.splitlines()
    assert [line.split()[0] for line in lines if line.startswith(("dpo", "kto", "sft"))] == ["dpo", "kto", "sft"] * 2
    assert "80 comparisons on 20 prompts, 0 of them ties (ann 60, bob 20)." in text
    assert "equal answers" not in text and "Krippendorff's alpha (1: full, 0: chance): -" in text
    assert page.results(found).count("<table>") == 2
    none = outcome.outcome(given, [])
    assert outcome.text(none) == "No comparisons yet, on 20 prompts." and "Results" in page.results(none)


def test_equal_answers_count_as_ties_as_often_as_they_would_if_they_were_shown():
    given = answered(400, ("a", "b"))
    for one in given[::2]:
        one.answers.update(a="same", b="same")
    asked, equal = pairs(given)
    whole = [Verdict(pair, "a", "ann") for pair in asked]
    assert len(ties(asked, equal, whole)) == len(equal) == 200 and ties(asked, equal, []) == []
    some = whole[:50] + [Verdict(pair, "b", "bob") for pair in asked[:100]]
    shares = [sum(tie.rater == name for tie in ties(asked, equal, some)) for name in ("ann", "bob")]
    assert 35 <= shares[0] <= 65 and 80 <= shares[1] <= 120  # half of all pairs are equal, in a random order
    found = outcome.outcome(given, whole, ties(asked, equal, whole))
    assert found["models"]["a"]["wins over"] == {"b": [300, 400]} and found["agreement"] is None
    assert "200 further comparisons are ties because the answers are equal." in outcome.text(found)


def test_groups_without_comparisons_between_them_are_named():
    given = answered(4, ("a", "b", "c", "d"))
    apart = [v for v in alphabetical(given) if v.pair.names in (("a", "b"), ("c", "d"))]
    assert "only ratings within one can be compared: a, b | c, d" in outcome.text(outcome.outcome(given, apart))
    assert "only ratings" not in outcome.text(outcome.outcome(given, alphabetical(given)))
    one = outcome.outcome(given, [v for v in alphabetical(given) if v.pair.names == ("a", "b")])
    assert "only ratings" not in outcome.text(one) and [name for name, _ in outcome.ranked(one)] == ["a", "b"]


def test_names_are_escaped_on_the_page():
    given = answered(2, ("<b>a", "z"))
    text = page.results(outcome.outcome(given, alphabetical(given)))
    assert "&lt;b&gt;a" in text and "<b>a" not in text


def by_judge(tmp_path, judge, given):
    return judged.judged(judge, {"judge": "stub"}, "Be good.", given, pairs(given)[0], tmp_path)


def test_a_judge_that_prefers_longer_answers(tmp_path):
    given = answered(5, sft="")  # to prompt 0, sft has no answer, which loses
    judge = Stub(longer)
    verdicts, counted = by_judge(tmp_path, judge, given)
    of = {one.number: one.answers for one in given}
    assert len(verdicts) == 15 and len(judge.asked) == 30 and counted["flips"] == 0
    for (prompt, *names, _), winner, rater in verdicts:
        assert len(of[prompt][winner].strip()) == max(len(of[prompt][name].strip()) for name in names)
        assert rater == "judge"
    again = Stub(longer)
    assert by_judge(tmp_path, again, given) == (verdicts, counted) and not again.asked
    assert "0 %; verdicts for the answer that is shown first: 50 %" in judged.text(counted)
    # A further model writes another file, and the first one stays.
    by_judge(tmp_path, again, [one._replace(answers=one.answers | {"new": f"new {one.number}"}) for one in given])
    assert len(list(tmp_path.glob("judged-*.jsonl"))) == 2 and again.asked


def test_a_judge_that_says_nothing_or_always_a_gives_ties(tmp_path):
    given = answered(3, dpo="same", kto="same")
    verdicts, counted = by_judge(tmp_path, Stub(always_first), given)
    assert {verdict.winner for verdict in verdicts} == {TIE} and len(verdicts) == 8 and counted["flips"] == 1
    (tmp_path / "other").mkdir()

    class Silent(Stub):
        def __call__(self, asked, options):
            yield [(key, Reply(None, UNREADABLE, "?")) for key, _ in asked]

    verdicts, counted = by_judge(tmp_path / "other", Silent(None), given)
    assert {verdict.winner for verdict in verdicts} == {TIE}
    assert "14 questions have no verdict; their pairs are ties." in judged.text(counted)


def test_votes_become_preferences_that_dpo_reads(tmp_path):
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    turns += [{"role": "user", "content": "Why?"}]
    given = [
        Answered(0, {"prompt": "One?", "system": "Be brief.", "id": 7}, "One?", {"a": "yes", "b": "no"}),
        Answered(1, {"prompt": turns, "messages": turns}, "...", {"a": "because", "b": "no idea"}),
        *(
            Answered(n, {"prompt": f"{n}?"}, f"{n}?", {"a": f"a{n}", "b": f"b{n}" if n < 5 else " "})
            for n in range(2, 6)
        ),
    ]
    pair = {one.prompt: one for one in pairs(given)[0]}
    said = {0: "aab", 1: "b", 2: "ab", 3: "a" + "--", 4: "-", 5: "a"}  # the winners by rater; - is a tie
    verdicts = [
        Verdict(pair[n], winner.replace("-", TIE), f"rater {i}")
        for n, own in said.items()
        for i, winner in enumerate(own)
    ]
    path = tmp_path / "preferences.jsonl"
    counts = exported.export(path, given, verdicts)
    assert dict(counts) == {exported.WRITTEN: 2, exported.SPLIT: 1, exported.TIES: 2, exported.EMPTY: 1}
    assert "2 of 6 pairs -> " in exported.text(path, counts) and "1 pairs are left out: no maj" in exported.text(
        path, counts
    )
    random.Random(1).shuffle(verdicts)
    before = path.read_bytes()
    exported.export(path, given, verdicts)
    assert path.read_bytes() == before
    rows = [record for _, record in records.read_file(path, None)]
    assert rows[0] == {"prompt": "One?", "system": "Be brief.", "chosen": "yes", "rejected": "no"}
    for kind in ("preferences", "rankings"):
        first, second = (kinds.KINDS[kind].parse(row, kinds.checked({})[kind]) for row in rows)
        assert [m["content"] for m in first["messages"]] == ["Be brief.", "One?"]
        assert [m["content"] for m in second["messages"]] == ["Hi", "Hello", "Why?"]
        assert [m["content"] for m in second["answers"]] == ["no idea", "because"] and second["ranks"] == [0, 1]


@pytest.mark.parametrize(("votes", "winner"), [("aab", "a"), ("ab", None), ("a--", ""), ("-", ""), ("aabb-", None)])
def test_the_majority_of_raters(votes, winner):
    pair = Pair(0, "a", "b", "")
    verdicts = [Verdict(pair, vote.replace("-", TIE), str(i)) for i, vote in enumerate(votes)]
    assert exported.majority(verdicts) == {pair: winner}
