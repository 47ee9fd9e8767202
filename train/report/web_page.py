"""An HTML page in one file, with its style inside, so that a browser loads nothing else."""

from collections.abc import Iterable
from html import escape

_CSS = """
:root { color-scheme: light dark; --page: #f7f7f5; --card: #fff; --text: #1f2328; --muted: #666d75; --line: #e3e3df;
  --accent: #2c6aa0; --second: #c2570c; --third: #2f855a; --fourth: #8e4aa8; --fifth: #a37c00; --sixth: #b83a5e;
  --bar: #c9ced3; }
@media (prefers-color-scheme: dark) { :root { --page: #131518; --card: #1b1e22; --text: #e4e6e8; --muted: #9aa2aa;
  --line: #30353b; --accent: #7db4e6; --second: #f0a05a; --third: #7cc79b; --fourth: #cf9be3; --fifth: #dcc05a;
  --sixth: #f08fa8; --bar: #4a5159; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); line-height: 1.5; font-size: 15px;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif;
  font-variant-numeric: tabular-nums; -webkit-text-size-adjust: 100%; }
main { max-width: 1040px; margin: 0 auto; padding: 40px 20px 64px; }
h1 { font-size: 26px; font-weight: 600; margin: 0; letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 17px; font-weight: 600; margin: 44px 0 12px; }
h3 { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 14px; font-size: 13px; font-weight: 600;
  margin: 0 0 6px; }
p, small, dt, th, summary { color: var(--muted); }
p { margin: 4px 0; } small, dt { font-size: 13px; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 16px 18px; min-width: 0; }
.head, .plots { display: grid; gap: 16px; grid-template-columns: 2fr 3fr; margin-top: 24px; }
.plots { grid-template-columns: 1fr 1fr; margin: 0; } .plots > :first-child { grid-column: 1 / -1; }
dl { display: grid; grid-template-columns: repeat(3, 1fr); gap: 16px 20px; margin: 0; }
dd { margin: 0; font-size: 20px; font-weight: 600; line-height: 1.25; }
dd small { display: block; font-weight: 400; }
.figure { font-size: 44px; font-weight: 600; line-height: 1.15; letter-spacing: -.02em; color: var(--text); }
.bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: 6px 12px; align-items: center;
  margin: 14px 0 8px; font-size: 14px; }
.bars i { display: block; height: 14px; border-radius: 2px; background: var(--bar); min-width: 2px; }
.bars .own { background: var(--accent); }
figure { margin: 0; display: flex; flex-direction: column; } figure p { font-size: 13px; margin: 0 0 8px; }
svg { display: block; width: 100%; height: auto; margin-top: auto; } svg text { font-family: inherit !important; }
.key { font-weight: 400; color: var(--muted); } .key span { display: inline-block; margin-right: 14px; }
.key span:last-child { margin-right: 0; } .key i { display: inline-block; width: 14px; height: 3px;
  margin: 0 5px 3px 0; background: var(--accent); } .key .thin { opacity: .4; }
.key .level { height: 0; background: none; border-top: 2px dashed var(--muted); }
.key .dash { mask: linear-gradient(90deg, #000 60%, transparent 60%) 0 / 5px; }
.key .block { height: 10px; margin-bottom: 0; background: var(--bar); }
.key .dot { width: 7px; height: 7px; border-radius: 50%; margin-bottom: 1px; background: var(--second); }
.key .dot.own { background: var(--accent); } .key .dot.ink { background: var(--muted); }
.key .dot.ring { background: none; box-shadow: inset 0 0 0 1px var(--accent); }
.narrow { display: none; }
pre, code { font: 13px/1.55 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; } .card + .card { margin-top: 12px; }
.plots .card + .card, .head .card + .card, .pair .card + .card { margin-top: 0; }
.pair, .sides { display: grid; gap: 16px; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); }
.prompt { margin-bottom: 12px; padding-bottom: 12px; border-bottom: 1px solid var(--line); }
.prompt, .prompt summary span { color: var(--muted); }
.sides small { display: flex; justify-content: space-between; gap: 8px; margin-bottom: 4px; }
.sides b { color: var(--text); font-weight: 600; } .sides p { font-size: 13px; }
summary em { display: block; font-style: normal; font-size: 13px; color: var(--accent); }
details[open] > summary span { display: none; } summary span { white-space: pre-wrap; overflow-wrap: anywhere;
  font: 13px/1.55 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; color: var(--text); }
.pair { margin-top: 12px; } mark { background: none; color: var(--accent); font-weight: 600; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: right; font-weight: 400; font-size: 13px; } td { text-align: right; }
th, td { padding: 5px 0 5px 20px; border-bottom: 1px solid var(--line); white-space: nowrap; }
.answers th, .answers td { text-align: left; vertical-align: top; white-space: pre-wrap; overflow-wrap: anywhere; }
.figures td { vertical-align: top; } .figures td:first-child { white-space: normal; min-width: 110px; }
.figures small { margin-left: 10px; } .figures th { white-space: normal; vertical-align: bottom; }
tr:last-child td { border-bottom: 0; } th:first-child, td:first-child { text-align: left; padding-left: 0; }
summary { cursor: pointer; } .config { columns: 2; column-gap: 40px; margin-top: 12px; }
.config div { display: flex; justify-content: space-between; gap: 16px; break-inside: avoid; }
.config code { text-align: right; overflow-wrap: anywhere; } .config code:first-child { flex: none; text-align: left;
  color: var(--muted); max-width: 70%; }
footer { margin-top: 44px; padding-top: 14px; border-top: 1px solid var(--line); font-size: 13px; }
@media (max-width: 720px) { main { padding: 24px 14px 48px; }
  .head, .plots, .pair, .sides { grid-template-columns: minmax(0, 1fr); } dl { grid-template-columns: 1fr 1fr; }
  .config { columns: 1; }
  .figures small { display: block; margin: 0; }
  .figures :is(th, td) { padding-left: 10px; } .figures :first-child { padding-left: 0; }
  .wide { display: none; } .narrow { display: block; } }
"""


def page(title: str, above: Iterable[str], sections: str, below: Iterable[str]) -> str:
    """Returns a whole page: lines of text `above` and `below` the `sections`, which are HTML."""
    above, below = ("\n".join(f"<p>{escape(line)}</p>" for line in lines if line) for lines in (above, below))
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title><style>{_CSS}</style></head><body><main>
<header><h1>{escape(title)}</h1>{above}</header>
{sections}
<footer>{below}</footer>
</main></body></html>
"""


def figure(title: str, key: str, words: str, svg: str) -> str:
    """Returns a plot below its title, its legend `key` (HTML; may be '') and an explanation (may be '')."""
    key = f'<span class="key">{key}</span>' if key else ""
    words = f"<p>{escape(words)}</p>" if words else ""
    return f'<figure class="card"><h3>{escape(title)}{key}</h3>{words}{svg}</figure>'
