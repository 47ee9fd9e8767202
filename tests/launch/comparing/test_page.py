"""The page in Chromium: keys, double presses, reloads, two tabs, undo, markup in answers, narrow windows, results."""

import pytest

from tests.launch.comparing.browser import browsing
from tests.launch.comparing.made import ATTACK, answered, serving

pytestmark = pytest.mark.needs("chromium")
RESTED = "performance.now() - since > PAUSE && !busy"  # time enough to read, as the page sees it
# A key, and once more as soon as the next pair is there, before anybody can have read it.
AGAIN = """
const press = () => document.dispatchEvent(new KeyboardEvent("keydown", {key: "1"})), first = pair.id;
press();
return new Promise((done) => {
  const timer = setInterval(() => {
    if (pair.id === first || busy) return;
    clearInterval(timer);
    press();
    setTimeout(() => { const check = () => busy ? setTimeout(check, 5) : done(); check(); }, 20);
  }, 1);
});"""


@pytest.fixture(scope="module")
def window():
    with browsing(1280, 800) as there:
        yield there


def begin(window, url, name):
    window.open(url)
    window.script("localStorage.clear()")
    window.open(url)
    window.script(f"document.querySelector('#name').value = '{name}'; document.querySelector('#who button').click()")
    window.wait("pair")


def press(window, key, done):
    """Presses a key after some time, and waits until so many pairs are done."""
    window.wait(RESTED)
    window.key(key)
    window.wait(f"document.querySelector('#progress').textContent.startsWith('{done} of')")


def test_keys_vote_undo_and_lead_to_the_results(window, tmp_path):
    with serving(tmp_path, answered(2)) as (url, _, votes):
        begin(window, url, "ann")
        for done, key in enumerate(("1", "2", "left", "right", "t"), 1):
            press(window, key, done)
        press(window, "u", 4)
        press(window, "B", 5)
        window.wait("pair")
        assert window.script("return document.querySelector('#end').hidden")
        press(window, "1", 6)
        window.wait("!document.querySelector('#end').hidden")
        press(window, "u", 5)
        press(window, "2", 6)
        assert "dpo" not in window.script("return document.querySelector('h1').textContent + document.title")
        window.script("document.querySelector('#show').click()")
        window.wait("document.title === 'Results' && document.querySelectorAll('table').length === 2")
        rows = votes._file.execute("SELECT on_left, first, second, verdict FROM votes ORDER BY id").fetchall()
    left = [on_left for on_left, *_ in rows]
    right = [second if on_left == first else first for on_left, first, second, _ in rows]
    assert [verdict for *_, verdict in rows] == [left[0], right[1], left[2], right[3], "both bad", right[5]]
    assert not window.errors()


def test_a_reload_a_double_press_and_a_second_tab_count_once(window, tmp_path):
    with serving(tmp_path, answered()) as (url, _, votes):
        begin(window, url, "bob")
        window.wait(RESTED)
        window.script(AGAIN)
        assert window.script("return document.querySelector('#progress').textContent.slice(0, 4)") == "1 of"
        shown = window.script("return pair.id")
        window.call("POST", "refresh", {})
        window.wait("pair")
        assert window.script("return [pair.id, rater]") == [shown, "bob"]
        old, new = window.tab()
        window.open(url)
        window.wait("pair")
        assert window.script("return pair.id") == shown
        press(window, "1", 2)
        window.switch(old)
        press(window, "2", 2)  # the same pair again: the first vote stays, and the page goes on
        assert window.script("return pair.id") != shown
        assert len(votes.verdicts()) == 2
        window.call("DELETE", "window")
        window.switch(new)


def test_markup_in_answers_is_shown_as_text_and_nothing_is_loaded_from_elsewhere(window, tmp_path):
    with serving(tmp_path, answered(1, ("a", "b"), a=ATTACK, b="")) as (url, _, votes):
        begin(window, url, "eve")
        texts = window.script("return [...document.querySelectorAll('.answer pre')].map(place => place.textContent)")
        assert sorted(texts) == ["(no answer)", ATTACK]
        assert window.script("return document.querySelectorAll('.answer img, .answer script').length") == 0
        assert window.script("return document.title") == "Which answer is better?"
        loaded = window.script("return performance.getEntriesByType('resource').map(one => one.name)")
        assert loaded and all(name.startswith(f"{url}/") for name in loaded)
        window.wait(RESTED)
        votes.close()
        window.key("1")
        window.wait("document.querySelector('#trouble').textContent.includes('The votes can')")
        window.script("fetch = async () => { throw new TypeError() }")  # as without a server
        window.key("1")
        window.wait("document.querySelector('#trouble').textContent.includes('start it again')")


def test_a_narrow_window_has_large_buttons_and_no_sideways_scrolling(tmp_path):
    given = answered(1, ("a", "b"), a="x" * 500, b="word " * 300)
    with serving(tmp_path, given) as (url, _, _), browsing(390, 844) as window:
        begin(window, url, "ann")
        assert window.script("return document.documentElement.scrollWidth") <= 390
        boxes = window.script(
            "return [...document.querySelectorAll('.keys button')].map(b => b.getBoundingClientRect())"
            ".map(box => [box.width, box.height, box.left, box.right, box.bottom])"
        )
        assert len(boxes) == 5
        assert all(
            w >= 80 and h >= 44 and left >= 0 and right <= 390 and low <= 844 for w, h, left, right, low in boxes
        )
        window.wait(RESTED)
        window.script("document.querySelector('.keys .main').click()")
        window.wait("!document.querySelector('#end').hidden")
