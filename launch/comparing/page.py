"""The pages of a comparison: where people vote (with voting.js), and the results."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from launch.comparing import outcome
from train.report.web_page import page

_STYLE = """<style>
main { max-width: 1240px; padding: 18px 20px 120px; } h1 { font-size: 18px; } footer { display: none; }
[hidden] { display: none !important; }
.bar { height: 6px; border-radius: 3px; background: var(--line); overflow: hidden; margin: 12px 0 6px; }
.bar i { display: block; height: 100%; width: 0; background: var(--accent); transition: width .15s; }
.line { display: flex; justify-content: space-between; gap: 12px; font-size: 13px; color: var(--muted);
  margin-bottom: 14px; }
.card pre { font: inherit; white-space: pre-wrap; overflow-wrap: anywhere; }
#question { max-height: 34vh; overflow-y: auto; margin-bottom: 14px; }
#question small { display: block; margin-bottom: 4px; }
.answer { cursor: pointer; } .answer:hover { border-color: var(--accent); }
.answer.won { border-color: var(--accent); box-shadow: 0 0 0 1px var(--accent); }
.answer b { display: block; font-size: 13px; color: var(--accent); margin-bottom: 6px; }
.none { color: var(--muted); font-style: italic; }
.keys { position: fixed; left: 0; right: 0; bottom: 0; background: var(--card); border-top: 1px solid var(--line);
  padding: 10px 12px calc(10px + env(safe-area-inset-bottom)); display: flex; justify-content: center; gap: 8px; }
button { font: inherit; color: var(--text); background: var(--page); border: 1px solid var(--line); cursor: pointer;
  border-radius: 8px; padding: 9px 16px; min-height: 44px; }
button.main { border-color: var(--accent); color: var(--accent); font-weight: 600; }
button:hover:enabled { border-color: var(--accent); } button:disabled { opacity: .45; cursor: default; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
kbd { font: 12px ui-monospace, Menlo, Consolas, monospace; border: 1px solid var(--line); border-radius: 4px;
  padding: 1px 5px; margin-left: 6px; color: var(--muted); }
input { font: inherit; color: var(--text); background: var(--page); border: 1px solid var(--line); border-radius: 8px;
  padding: 9px 12px; min-height: 44px; width: 100%; max-width: 320px; }
.sides .card { margin: 0; } #who { max-width: 560px; margin: 24px auto; } #who div { display: flex; gap: 8px; }
#who label { display: block; margin: 16px 0 6px; } #who kbd { margin: 0; }
.link { border: 0; background: none; color: var(--accent); padding: 0; min-height: 0; font-size: 13px; }
#trouble { color: var(--second); font-size: 14px; margin: 0 0 12px; } a { color: var(--accent); }
#end { text-align: center; padding: 40px 18px; }
@media (max-width: 720px) { main { padding: 14px 12px 140px; } 
  .keys kbd { display: none; } .keys { flex-wrap: wrap; }
  .keys button { flex: 1 1 28%; padding: 8px 6px; } .keys .main { flex-basis: 40%; } .keys .second { order: 1; }
  #question { max-height: 26vh; } }
</style>
"""
_VOTING = """
<form id="who" class="card" hidden>
  <p>You will see a question with two answers; choose the better one.</p>
  <p class="wide">On a keyboard: <kbd>1</kbd> <kbd>2</kbd> or <kbd>←</kbd> <kbd>→</kbd>, <kbd>T</kbd> for a tie,
  <kbd>B</kbd> if both are bad, <kbd>U</kbd> to undo.</p>
  <p>Which model wrote which answer stays hidden, and the results are shown after the last pair.</p>
  <label for="name">Your name, to keep your votes apart from those of others</label>
  <div><input id="name" maxlength="60" autocomplete="name" required><button class="main">Begin</button></div>
</form>
<p id="trouble" role="alert" hidden></p>
<div id="far" hidden>
  <div class="bar"><i></i></div>
  <div class="line"><span id="progress" aria-live="polite"></span><span><span id="rater"></span>
    <button id="other" class="link">not you?</button></span></div>
</div>
<section id="work" hidden>
  <div id="question" class="card" tabindex="0"><small>Question</small><pre></pre></div>
  <div class="sides">
    <div class="card answer" data-verdict="left"><b>Answer 1</b><pre></pre></div>
    <div class="card answer" data-verdict="right"><b>Answer 2</b><pre></pre></div>
  </div>
</section>
<section id="end" class="card" hidden><p>You have judged every pair. Thank you!</p>
  <p><button id="show" class="main">Show the results</button></p>
  <p><small>Until you see them, you can take back votes with Undo.</small></p></section>
<nav class="keys" hidden>
  <button class="main" data-verdict="left">1 is better<kbd>1</kbd></button>
  <button class="second" data-verdict="tie">Tie<kbd>T</kbd></button>
  <button class="second" data-verdict="bad">Both bad<kbd>B</kbd></button>
  <button class="main" data-verdict="right">2 is better<kbd>2</kbd></button>
  <button class="second" id="undo">Undo<kbd>U</kbd></button>
</nav>
<noscript><p>Voting needs JavaScript.</p></noscript>
<script src="/voting.js"></script>
"""


def voting() -> str:
    """Returns the page to vote on; it names no model."""
    return page("Which answer is better?", (), _STYLE + _VOTING, ())


def results(found: Mapping[str, Any]) -> str:
    """Returns the page of the results (outcome.outcome)."""
    notes = outcome.notes(found)
    sections = ""
    if found.get("models"):
        sections = _table("Ratings", [list(outcome.HEADS), *outcome.rows(found)])
        sections += _table("Wins of the row over the column; a tie is half a win for both", outcome.matrix(found))
    return page("Results", notes, sections, ("The same figures are in results.json, in the folder of the comparison.",))


def _table(title: str, cells: Sequence[Sequence[str]]) -> str:
    head, *rows = ("".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) for tag, row in _tagged(cells))
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    table = f"<table><tr>{head}</tr>{body}</table>"
    return f'<section><h2>{escape(title)}</h2><div class="card scroll">{table}</div></section>'


def _tagged(cells: Sequence[Sequence[str]]):
    return (("td" if i else "th", row) for i, row in enumerate(cells))
