"""A judge behind a server: tries again, gives up, several questions at a time, and mistakes named before anything."""

import collections
import time

import pytest

from launch.judging import server as module
from launch.judging.questions import VERDICTS
from launch.judging.replies import FAILED, UNREADABLE
from launch.judging.server import ServerJudge
from launch.program.checking import ConfigError
from tests.launch.judging.openai_server import PROBE, serving

ASKED = [((i,), f"question {i}") for i in range(40)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(module, "_PAUSES", (0.01,) * 5)
    monkeypatch.setattr(module, "_TIMEOUT", 5.0)
    monkeypatch.delenv(module.KEY, raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def even(text):
    return "A" if int(text.split()[-1]) % 2 == 0 else "B"


def replies(judge, asked=ASKED):
    return {key: reply for batch in judge(asked, VERDICTS) for key, reply in batch}


def expected(count=40):
    return {(i,): (1.0, 0.0) if i % 2 == 0 else (0.0, 1.0) for i in range(count)}


def test_several_questions_at_a_time():
    def slow(text):
        time.sleep(0.02)
        return even(text)

    with serving(slow) as there:
        found = replies(ServerJudge(there.url, "m", parallel=4))
    assert {key: reply.weights for key, reply in found.items()} == expected()
    assert 2 <= there.most <= 4 and sorted(there.asked) == sorted(text for _, text in ASKED)


@pytest.mark.parametrize("status", [429, 500, 503, 0], ids=str)
def test_busy_servers_and_lost_connections_are_tried_again(status):
    """The first try of every third question fails."""
    tries = collections.Counter()

    def failing(number, body):
        tries[body["messages"][0]["content"]] += 1
        first = tries[body["messages"][0]["content"]] == 1
        return (status, {"error": "busy"}) if first and len(tries) % 3 == 0 else None

    with serving(even, failing) as there:
        found = replies(ServerJudge(there.url, "m", max_failures=0))
    assert {key: reply.weights for key, reply in found.items()} == expected()
    assert there.requests > 50 and len(there.asked) == 40


def test_questions_that_fail_for_good_are_counted_up_to_a_limit():
    failing = lambda number, body: (400, {"error": "too long"}) if "7" in body["messages"][0]["content"] else None
    with serving(even, failing) as there:
        found = replies(ServerJudge(there.url, "m", max_failures=4))
        failed = {key for key, reply in found.items() if reply.why == FAILED}
        assert failed == {(7,), (17,), (27,), (37,)} and "HTTP 400" in found[(7,)].text
        assert found[(7,)].text.endswith('{"error": "too long"}') and there.requests == 41  # a 400 gets one try
        with pytest.raises(
            ConfigError, match=r"4 questions failed; the last one: HTTP 400 .*The verdicts so far are kept"
        ):
            replies(ServerJudge(there.url, "m", max_failures=3))


def test_replies_without_a_verdict():
    with serving(lambda text: "😀 Both are fine.") as there:
        found = replies(ServerJudge(there.url, "m"), ASKED[:3])
    assert [(reply.weights, reply.why, reply.text) for reply in found.values()] == [
        (None, UNREADABLE, "😀 Both are fine.")
    ] * 3


def test_the_key_goes_to_this_server_alone(monkeypatch):
    monkeypatch.setenv(module.KEY, "secret")
    with serving(even) as there:
        replies(ServerJudge(there.url + "/chat/completions/", "m"), ASKED[:1])
        assert there.headers["Authorization"] == "Bearer secret"
    with serving(even, lambda number, body: (302, {})) as there:
        with pytest.raises(ConfigError, match="HTTP 302"):
            ServerJudge(there.url, "m")
        assert there.requests == 1  # the redirect was not followed


def test_a_model_that_refuses_the_usual_fields():
    bodies = []

    def failing(number, body):
        bodies.append(body)
        return (400, {"error": "use max_completion_tokens"}) if "max_tokens" in body else None

    with serving(even, failing) as there:
        assert replies(ServerJudge(there.url, "m", max_tokens=9), ASKED[:1])[(0,)].weights == (1, 0)
    assert bodies[0]["temperature"] == 0 and bodies[0]["max_tokens"] == 9 and bodies[0]["model"] == "m"
    assert [body.get("max_completion_tokens") for body in bodies] == [None, 9, 9] and "temperature" not in bodies[-1]


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ((401, {"error": "no key"}), r"HTTP 401 .*no key.*; set the environment variable OPENAI_API_KEY"),
        ((404, {"error": "model m not found"}), r"HTTP 404 .*not found.*; --judge must end before /chat/completions"),
        ((200, b"<html>hello"), r"not a reply of the chat protocol: '<html>hello'"),
        ((200, {"choices": []}), r"not a reply of the chat protocol"),
        ((0, {}), r"gives no reply: .*; is the server up"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else "",
)
def test_a_server_that_gives_no_first_reply_is_named(failure, message):
    with serving(even, lambda number, body: failure) as there, pytest.raises(ConfigError, match=message):
        ServerJudge(there.url, "m")
    assert there.requests == 1


def test_a_server_that_is_not_there():
    began = time.monotonic()
    with pytest.raises(ConfigError, match=r"http://127.0.0.1:9/v1/chat/completions gives no reply: .*refused"):
        ServerJudge("http://127.0.0.1:9/v1", "m")
    with pytest.raises(ConfigError, match=r"gives no reply: .*; is the server up"):
        ServerJudge("http://no.such.host.invalid/v1", "m")
    assert time.monotonic() - began < 20


def test_a_null_reply_is_unreadable():
    choice = {"choices": [{"message": {"content": None}}]}
    failing = lambda number, body: None if body["messages"][0]["content"] == PROBE else (200, choice)
    with serving(even, failing) as there:
        assert replies(ServerJudge(there.url, "m"), ASKED[:1])[(0,)].why == UNREADABLE
