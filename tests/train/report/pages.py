"""Reads a report as a tree of elements, so that tests can ask what stands where."""

import dataclasses
import re
from html.parser import HTMLParser

from train.report import run_report

VOID = {"meta", "br", "hr", "img", "link", "input"}


@dataclasses.dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    inside: list  # elements and texts

    @property
    def text(self) -> str:
        return "".join(one if isinstance(one, str) else one.text for one in self.inside)

    def all(self, tag: str, name: str = "") -> list["Element"]:
        """Returns the elements below with this tag and, if given, this class."""
        found = []
        for one in (one for one in self.inside if not isinstance(one, str)):
            wanted = one.tag == tag and (not name or name in one.attributes.get("class", "").split())
            found += [one] * wanted + one.all(tag, name)
        return found


class _Builder(HTMLParser):
    def __init__(self):
        super().__init__()
        self.root = Element("", {}, [])
        self.open = [self.root]

    def handle_starttag(self, tag, attributes):
        new = Element(tag, {name: value or "" for name, value in attributes}, [])
        self.open[-1].inside.append(new)
        if tag not in VOID:
            self.open.append(new)

    def handle_startendtag(self, tag, attributes):
        self.open[-1].inside.append(Element(tag, {name: value or "" for name, value in attributes}, []))

    def handle_endtag(self, tag):
        assert self.open.pop().tag == tag

    def handle_data(self, data):
        self.open[-1].inside.append(data)


def tree(html: str) -> Element:
    builder = _Builder()
    builder.feed(html)
    builder.close()
    return builder.root


def report(workdir) -> Element:
    return tree(run_report.write_report(workdir).read_text(encoding="utf-8"))


def sections(page: Element) -> dict[str, Element]:
    """Returns the sections of a page by their headings."""
    return {one.all("h2")[0].text: one for one in page.all("section") if one.all("h2")}


def figures(page: Element) -> dict[str, Element]:
    """Returns the plots of a page by their titles."""
    return {one.all("h3")[0].inside[0]: one for one in page.all("figure") if one.all("h3")}


def key(figure: Element) -> list[str]:
    """Returns the entries of a plot's legend."""
    return [one.text for one in figure.all("span", "key")[0].all("span")] if figure.all("span", "key") else []


def lines(svg: Element, color: str, dashed: bool | None = None) -> list[list[tuple[float, float]]]:
    """Returns the lines of a plot in a colour, such as 'accent', as points in the plot's units, downwards."""
    found = []
    for path in svg.all("path"):
        look = path.attributes.get("style", "")
        right = f"stroke: var(--{color})" in look and "fill: none" in look
        if right and (dashed is None or ("stroke-dasharray" in look) == dashed):
            numbers = [float(number) for number in re.findall(r"-?[\d.]+", path.attributes["d"])]
            found.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
    return found


def dots(svg: Element, color: str) -> list[tuple[float, float]]:
    """Returns the places of the dots in a colour."""
    uses = [one.attributes for one in svg.all("use") if f"var(--{color})" in one.attributes.get("style", "")]
    return [(float(one["x"]), float(one["y"])) for one in uses if "x" in one]
