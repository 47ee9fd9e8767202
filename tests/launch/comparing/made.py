"""A comparison made by hand: answers of three models, and a server with its page."""

import contextlib
import threading

from launch.comparing import outcome, server
from launch.comparing.pairs import Answered, pairs
from launch.comparing.votes import Votes

ATTACK = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title='owned'\">"


def answered(prompts=6, models=("dpo", "kto", "sft"), **changed):
    """Returns prompts with answers; `changed` replaces those to prompt 0 by the names of the models."""
    answers = lambda n: {name: f"{name} says {n}: {'because ' * (3 + (n + 1) * i)}" for i, name in enumerate(models)}
    given = [Answered(n, {"prompt": f"{n}?"}, f"{n}?", answers(n)) for n in range(prompts)]
    given[0].answers.update(changed)
    return given


@contextlib.contextmanager
def serving(folder, given):
    """Yields (URL, Voting, Votes) of a server that runs."""
    (asked, _), votes = pairs(given), Votes(folder / "votes.sqlite")
    voting = server.Voting(given, asked, votes, lambda: outcome.outcome(given, votes.verdicts()))
    served = server.bound(0)
    served.RequestHandlerClass = server.handler(voting)
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{served.server_address[1]}", voting, votes
    finally:
        served.shutdown()
        served.server_close()
        votes.close()
