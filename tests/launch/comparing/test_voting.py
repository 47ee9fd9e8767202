"""Votes of people: one each on a pair, undo, blind until the end; requests that other sites could send are refused."""

import json
import sqlite3
import threading
import urllib.error
import urllib.request

import pytest

from launch.comparing import server
from launch.comparing.pairs import TIE, pairs, question_of
from launch.comparing.votes import Votes
from launch.program.checking import ConfigError
from tests.launch.comparing.browser import OPEN
from tests.launch.comparing.made import answered, serving


def ask(url, body=None, **headers):
    """Returns (status, content, headers); a body is sent as the page does."""
    origin = url[: url.index("/", 8)]
    own = {"Origin": origin, "Content-Type": "application/json"} if body is not None else {}
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {name: value for name, value in (own | headers).items() if value is not None}
    try:
        with OPEN(urllib.request.Request(url, data, sent)) as reply:
            return reply.status, reply.read().decode(), reply.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


def state(reply):
    assert reply[0] == 200, reply
    return json.loads(reply[1])


def test_a_rater_votes_on_every_pair_and_then_sees_the_results(tmp_path):
    given = answered()
    with serving(tmp_path, given) as (url, _, votes):
        there = state(ask(f"{url}/state?rater=ann"))
        assert (there["done"], there["total"]) == (0, 18)
        for number in range(18):
            assert ask(f"{url}/results?rater=ann")[0] == 403
            shown = there["pair"]
            assert not {"dpo", "sft", "kto"} & {*json.dumps([shown["id"], shown["question"]]).split()}
            # Ann prefers dpo to kto to sft, wherever they stand.
            verdict = "left" if shown["left"] < shown["right"] else "right"
            there = state(ask(f"{url}/vote", {"rater": "ann", "pair": shown["id"], "verdict": verdict}))
            assert there["done"] == number + 1
        assert there["pair"] is None
        status, page, _ = ask(f"{url}/results?rater=ann")
        assert status == 200 and page.index("dpo") < page.index("kto") < page.index("sft")
        assert all(verdict.winner == verdict.pair.first for verdict in votes.verdicts())
        status, why, _ = ask(f"{url}/undo", {"rater": "ann"})
        assert status == 409 and "You have seen the results" in why and len(votes.of("ann")) == 18
    left = sqlite3.connect(tmp_path / "votes.sqlite").execute("SELECT on_left = first FROM votes").fetchall()
    assert 4 <= sum(first for (first,) in left) <= 14  # both orders, and they are recorded


def test_the_page_and_its_states_name_no_model(tmp_path):
    given = answered(2, ("secret_a", "secret_b"))
    for one in given:
        one.answers.update(secret_a="x", secret_b="y")
    with serving(tmp_path, given) as (url, _, _):
        texts = [ask(f"{url}{path}")[1] for path in ("/", "/voting.js", "/state?rater=a")]
    assert not any("secret" in text for text in texts)


def test_reloads_double_clicks_and_two_tabs_count_once(tmp_path):
    with serving(tmp_path, answered()) as (url, _, votes):
        first = state(ask(f"{url}/state?rater=ann"))["pair"]
        assert first == state(ask(f"{url}/state?rater=ann"))["pair"]  # also the same sides
        sent = [{"rater": "ann", "pair": first["id"], "verdict": "left"}] * 8
        threads = [threading.Thread(target=ask, args=(f"{url}/vote", body)) for body in sent]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        late = state(ask(f"{url}/vote", {"rater": "ann", "pair": first["id"], "verdict": "right"}))
        assert late["done"] == 1 == len(votes.verdicts())
        assert state(ask(f"{url}/state?rater=bob"))["pair"]["id"] == first["id"]  # the same order for all raters
        assert state(ask(f"{url}/vote", {"rater": " bob ", "pair": first["id"], "verdict": "tie"}))["done"] == 1
    assert Votes(tmp_path / "votes.sqlite").of("bob") == Votes(tmp_path / "votes.sqlite").of("ann")  # on disk


def test_undo_takes_back_the_last_vote_and_shows_it_again(tmp_path):
    with serving(tmp_path, answered()) as (url, _, votes):
        seen = []
        for verdict in ("left", "tie", "bad"):
            seen.append(state(ask(f"{url}/state?rater=ann"))["pair"])
            ask(f"{url}/vote", {"rater": "ann", "pair": seen[-1]["id"], "verdict": verdict})
        ask(f"{url}/vote", {"rater": "bob", "pair": seen[0]["id"], "verdict": "right"})
        assert [verdict.winner for verdict in votes.verdicts()][1:3] == [TIE, TIE]
        for done in (2, 1, 0):
            there = state(ask(f"{url}/undo", {"rater": "ann"}))
            assert there["pair"] == seen[done] and there["done"] == done
        assert state(ask(f"{url}/undo", {"rater": "ann"}))["done"] == 0
        assert [verdict.rater for verdict in votes.verdicts()] == ["bob"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": None}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),  # another program on this machine
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),  # a name that leads here
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Content-Type": "text/plain"}, 415),  # what a form of another site can send
    ],
)
def test_other_sites_can_not_vote(tmp_path, headers, status):
    with serving(tmp_path, answered()) as (url, _, votes):
        pair = state(ask(f"{url}/state?rater=ann"))["pair"]["id"]
        body = {"rater": "ann", "pair": pair, "verdict": "left"}
        assert ask(f"{url}/vote", body, **headers)[0] == status
        assert len(votes.verdicts()) == (status == 200)
        assert ask(f"{url}/state?rater=ann", Host="evil.example")[0] == 403


def test_requests_that_make_no_sense_are_refused_and_the_server_goes_on(tmp_path):
    with serving(tmp_path, answered()) as (url, _, votes):
        pair = state(ask(f"{url}/state?rater=ann"))["pair"]["id"]
        good = {"rater": "ann", "pair": pair, "verdict": "left"}
        for change, status in (
            ({"pair": "gone"}, 409), ({"pair": None}, 409), ({"verdict": "up"}, 400), ({"verdict": []}, 400),
            ({"rater": " "}, 400), ({"rater": 5}, 400), ({"rater": "a" * 61}, 400),
        ):  # fmt: skip
            assert ask(f"{url}/vote", good | change)[0] == status, change
        for body, status in ((b"{", 400), (b"[1]", 400), (b"\xff", 400), (b"1" * 20_000, 400)):
            assert ask(f"{url}/vote", body)[0] == status, body[:9]
        assert ask(f"{url}/elsewhere", good)[0] == ask(f"{url}/elsewhere")[0] == ask(f"{url}/../votes.sqlite")[0] == 404
        assert ask(f"{url}/state")[0] == ask(f"{url}/state?rater=")[0] == 400
        assert not votes.verdicts() and ask(f"{url}/vote", good)[0] == 200


def test_pages_may_load_nothing_from_elsewhere(tmp_path):
    with serving(tmp_path, answered()) as (url, _, _):
        _, page, headers = ask(f"{url}/")
    assert "default-src 'none'" in headers["Content-Security-Policy"] and headers["X-Content-Type-Options"] == "nosniff"
    assert "http" not in page and "//" not in page


def test_equal_answers_are_not_compared_and_changed_ones_are_judged_anew(tmp_path):
    given = answered(dpo="same", kto="same ")
    asked, equal = pairs(given)
    assert sorted(asked) != asked == pairs(given[::-1])[0]  # a random order, but always the same
    assert len(asked) == 17 and [(pair.prompt, *pair.names) for pair in equal] == [(0, "dpo", "kto")]
    votes = Votes(tmp_path / "votes.sqlite")
    assert votes.add("ann", asked[0], asked[0].first, TIE) and not votes.add("ann", asked[0], asked[0].first, TIE)
    other = answered(dpo="same", kto="same ")
    other[asked[0].prompt].answers[asked[0].first] = "new"
    again = [pair for pair in pairs(other)[0] if (pair.prompt, *pair.names) == (asked[0].prompt, *asked[0].names)]
    assert again != [asked[0]] and not votes.of("ann") & {*again} and votes.add("ann", again[0], again[0].first, TIE)


def test_a_port_in_use_and_a_file_of_something_else_are_named(tmp_path):
    with server.bound(0) as taken, pytest.raises(ConfigError, match=f"--port={taken.server_address[1]} can't be used"):
        server.bound(taken.server_address[1])
    with pytest.raises(ConfigError, match="--port=70000 can't be used"):
        server.bound(70000)
    (tmp_path / "votes.sqlite").write_text("something else\n" * 99)
    with pytest.raises(ConfigError, match=r"votes\.sqlite can't be used for votes \(file is not a database\)"):
        Votes(tmp_path / "votes.sqlite")


def test_questions_are_shown_as_texts():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    shown = {
        "def main(": "def main(",
        "\n\nHuman: hi\n\nAssistant:": "hi",
        "\n\nAssistant: hi": "\n\nAssistant: hi",  # no conversation that asks; a base model continues it
    }
    assert {text: question_of({"prompt": text}) for text in shown} == shown
    assert question_of({"prompt": turns, "system": "S"}) == "system: S\nuser: a\nassistant: b\nuser: c"
