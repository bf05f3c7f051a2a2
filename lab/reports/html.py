"""What pages are made of: one look, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Iterable
from html import escape

import numpy as np
from PIL import Image

from lab.reports.look import Plot
from lab.reports.samples import Samples

_SAID = 70  # characters of an answer that are shown

_STYLE = """
:root { color-scheme: light; --ink: #1d2328; --quiet: #66707a; --line: #e3e6e9; --mark: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0; background: #f6f7f8; color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 40px 24px 80px; }
h1 { font-size: 28px; line-height: 1.2; margin: 0 0 6px; }
h2 { font-size: 19px; margin: 44px 0 10px; }
p, li { max-width: 78ch; }
.lead { color: var(--quiet); margin: 0 0 24px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(210px, 1fr)); gap: 14px; }
.card, figure, .wide { background: white; border: 1px solid var(--line); border-radius: 10px;
                       padding: 16px 18px; }
.card b { display: block; font-size: 25px; line-height: 1.25; }
.card span { color: var(--quiet); font-size: 14px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { padding: 7px 8px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, .words td, .words th { text-align: left; }
.words td { white-space: normal; } .words td:nth-child(2) { min-width: 210px; }
thead th { font-weight: 600; vertical-align: bottom; }
thead tr:first-child th { border-bottom: 0; padding-bottom: 0; color: var(--quiet); font-weight: 500;
                          text-align: left; }
tbody tr:last-child td { border-bottom: 0; }
td small { color: var(--quiet); margin-left: 4px; font-weight: 400; }
td.best { font-weight: 700; color: var(--mark); }
.edge { border-left: 1px solid var(--line); }
.tag { font-size: 12px; color: var(--mark); border: 1px solid currentColor; border-radius: 99px;
       padding: 0 7px; margin-left: 8px; }
.right { color: #00704f; } .wrong { color: #b3460a; } .open { color: #8a6500; }
.verdict p { margin: 8px 0 0; }
.verdict p b { font-size: inherit; color: #b3460a; } .verdict { margin-bottom: 14px; }
h3 { font-size: 15px; margin: 18px 0 8px; }
details { margin: 14px 0; } summary { cursor: pointer; font-weight: 600; }
td.left, th.left { text-align: left; }
figure { margin: 0; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { color: var(--quiet); font-size: 14px; margin-top: 10px; }
img.pixels { width: 56px; height: 56px; image-rendering: pixelated; display: block; border-radius: 4px; }
code, pre { font: 13.5px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
pre { background: white; border: 1px solid var(--line); border-radius: 10px; padding: 14px 18px;
      overflow-x: auto; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 18px; margin: 0; }
dt { color: var(--quiet); } dd { margin: 0; }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """A whole page.

    Args:
        title: In the browser's tab.
        parts: HTML of its body, from top to bottom.
    """
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f"<title>{escape(title)}</title>",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{_STYLE}</style>\n</head>\n<body>\n<main>",
            *parts,
            "</main>\n</body>\n</html>\n",
        ]
    )


def figure(plot: Plot) -> str:
    """A picture, inside the page, with its title and caption."""
    content = plot.path.read_bytes()
    with Image.open(io.BytesIO(content)) as image:
        width = round(image.width * 0.8)  # one size of letters in all pictures; sharp on dense screens
    data = base64.b64encode(content).decode()
    return (
        f"<h2>{escape(plot.title)}</h2>"
        f'<figure><img alt="{escape(plot.title)}" width="{width}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(plot.caption)}</figcaption></figure>"
    )


def answers(samples: Samples | None) -> str:
    """What every arm answered about the first samples, image by image."""
    if samples is None or not any(text.get("question") for text in samples.texts):
        return ""
    names = list(samples.predicted)
    heads = "".join(f"<th>{escape(name).replace('-', '<br>', 1)}</th>" for name in names)
    rows = []
    for index, text in enumerate(samples.texts[:10]):
        said = "".join(_answer(samples.predicted[name][index], str(text["answer"])) for name in names)
        rows.append(
            f"<tr><td>{_pixels(samples.real[index])}</td><td>{escape(str(text['question']))}</td>"
            f"<td><b>{escape(str(text['answer']))}</b></td>{said}</tr>"
        )
    return (
        "<h2>Answers</h2><p>The same held-out images, a question each.</p>"
        '<div class="wide words"><table><thead><tr></tr><tr><th>image</th><th>question</th><th>answer</th>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _answer(said: str, right: str) -> str:
    mark, word = ("✓", "right") if said == right else ("✗", "wrong")  # not by colour alone
    return f'<td class="{word}">{escape(textwrap.shorten(said, _SAID, placeholder=" ..."))}&nbsp;{mark}</td>'


def _pixels(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img class="pixels" alt="" src="data:image/png;base64,{data}">'
