// The page to vote on: shows a pair, sends votes, and lets the server decide what comes next. All state is the server's,
// so a reload or another tab changes nothing. Texts are set with textContent, so an answer can't contain markup.
"use strict";

const one = (selector) => document.querySelector(selector);
const KEYS = {1: "left", ArrowLeft: "left", 2: "right", ArrowRight: "right", t: "tie", b: "bad"};
const PAUSE = 400;  // milliseconds: nobody reads a pair in less, but the second click of a double click comes within
let rater = "", pair = null, busy = false, since = 0;

function trouble(text) {
  one("#trouble").textContent = text;
  one("#trouble").hidden = !text;
}

function fill(place, text) {
  place.textContent = text.trim() ? text : "(no answer)";
  place.classList.toggle("none", !text.trim());
}

function show(state) {
  if (pair?.id !== state.pair?.id) since = performance.now();
  pair = state.pair;
  one("#who").hidden = true;
  one("#far").hidden = one(".keys").hidden = false;
  one("#work").hidden = !pair;
  one("#end").hidden = !!pair;
  one(".bar i").style.width = `${100 * state.done / Math.max(state.total, 1)}%`;
  one("#progress").textContent = `${state.done} of ${state.total} pairs`;
  one("#rater").textContent = rater;
  one("#undo").disabled = !state.done;
  document.querySelectorAll(".keys [data-verdict]").forEach((button) => button.hidden = !pair);
  document.querySelectorAll(".won").forEach((card) => card.classList.remove("won"));
  if (pair) {
    one("#question pre").textContent = pair.question;
    fill(one(".answer[data-verdict=left] pre"), pair.left);
    fill(one(".answer[data-verdict=right] pre"), pair.right);
    one("#question").scrollTop = 0;
    window.scrollTo(0, 0);
  }
}

// One request at a time.
async function ask(path, body) {
  if (busy) return;
  busy = true;
  try {
    const how = body && {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)};
    const response = await fetch(path, how || {});
    const found = await response.json();
    if (response.ok) show(found);
    trouble(response.ok ? "" : found.error);
  } catch {
    trouble("The program that serves this page has ended. Votes so far are kept: start it again and reload the page.");
  } finally {
    busy = false;
  }
}

function vote(verdict) {
  if (!pair || busy || performance.now() - since < PAUSE) return;
  const card = one(`.answer[data-verdict=${verdict}]`);
  if (card) card.classList.add("won");
  ask("/vote", {rater, pair: pair.id, verdict});
}

function undo() {
  if (!one("#undo").disabled) ask("/undo", {rater});
}

function begin(name) {
  rater = name;
  localStorage.setItem("rater", name);
  ask(`/state?rater=${encodeURIComponent(name)}`);
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || event.target.tagName === "INPUT") return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (!rater || !(key in KEYS || key === "u")) return;
  event.preventDefault();
  key === "u" ? undo() : vote(KEYS[key]);
});

document.querySelectorAll("[data-verdict]").forEach((place) => place.addEventListener("click", () => {
  if (place.tagName === "BUTTON" || getSelection().isCollapsed) vote(place.dataset.verdict);  // not while text is marked
}));
one("#undo").addEventListener("click", undo);
one("#show").addEventListener("click", () => location.assign(`/results?rater=${encodeURIComponent(rater)}`));
one("#other").addEventListener("click", () => {
  localStorage.removeItem("rater");
  location.reload();
});
one("#who").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = one("#name").value.trim();
  if (name) begin(name);
});

const known = localStorage.getItem("rater");
if (known) begin(known);
else {
  one("#who").hidden = false;
  one("#name").focus();
}
