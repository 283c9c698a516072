"""What tests of pages share: reading their tables, and what holds for every page."""

import json
import re

from reports import SCRIPT, Elements


def read(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def page_of(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def words_of(page):
    return " ".join(Elements(page).text.split())


def rows_of(page):
    """Every row of every table as the texts of its cells."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]
    return [[" ".join(Elements(cell).text.split()) for cell in row] for row in cells if row]


def shown(value, decimals=3):
    """A number as pages show a change."""
    return f"{value:+.{decimals}f}".replace("-", "−")


def interval(effect, decimals=3):
    if effect["low"] is None:
        return "–" if effect["mean"] is None else shown(effect["mean"], decimals)
    mean, low, high = (shown(effect[key], decimals) for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def check_page(page):
    """What holds for every page: it nests, asks for nothing, leads nowhere else, runs no script of others."""
    parsed = Elements(page)
    assert parsed.opened == []
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in parsed.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert not {"src", "srcset", "action", "data", "poster"} & set(attributes), tag
        if (link := attributes.get("href", "data:,")) != "data:,":
            assert link[0] == "#"
            assert link[1:] in ids
        if "data-figure" in attributes:
            assert f"figure-{attributes['data-figure']}" in ids
            assert attributes["aria-label"]
    assert not re.search(r"@import|url\(|https?://", page)
    assert "img" not in {tag for tag, _ in parsed.elements}
    assert re.search(r"Content-Security-Policy\" content=\"default-src 'none'", page)
    assert not re.search(r"\b(nan|inf|None)\b|tensor\(", parsed.text)
    return parsed


def check_hostile(page):
    """No token of `HOSTILE` is markup, and each can be read."""
    parsed = check_page(page)
    for token in (SCRIPT, "<!--", "\u2028", "\u202e", "<b>bold"):
        assert token not in page
    text = " ".join(parsed.text.split())
    for token in (SCRIPT, "<!--", "{{7*7}}", "a⟨U+2028⟩b", "<b>bold</b>", "⟨U+202E⟩reversed"):
        assert token in text
