"""Samples by what is learned of them, in the terminal and as a small page."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rich.text import Text

from lab.samples.preflight import Findings, Piece

Shown = Sequence[tuple[str, Sequence[Piece]]]

# kind -> what it is called, its look in the terminal, its look on the page
_LOOKS = {
    "said": ("learned", "bold green", "background:#d9efe4;color:#00513a"),
    "given": ("given", "dim", "color:#66707a"),
    "read": ("image read", "blue", "background:#dce8f5;color:#004a78"),
    "drawn": ("image to draw", "bold magenta", "background:#f3dff0;color:#7a1f6b"),
}


def summary(findings: Findings) -> str:
    """One line on a scan."""
    return f"{findings.scanned:,} samples looked at: {findings.message() or 'no faults'}"


def coloured(samples: Shown) -> list[Text]:
    """The samples for the terminal, after a line that says what colours mean."""
    legend = Text("  ").join(Text(name, style=style) for name, style, _ in _LOOKS.values())
    lines = [legend]
    for name, pieces in samples:
        line = Text(f"\n{name}\n", style="bold")
        for piece in pieces:
            line.append(piece.text, style=_LOOKS[piece.kind][1]).append(" ")
        lines.append(line)
    return lines


def page(label: str, findings: Findings, samples: Shown) -> str:
    """The same as a page that loads nothing from elsewhere."""
    legend = " ".join(_marked(kind, name) for kind, (name, *_) in _LOOKS.items())
    parts = [
        f"<h2>{escape(name)}</h2><p>{' '.join(_marked(piece.kind, piece.text) for piece in pieces)}</p>"
        for name, pieces in samples
    ]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(label)}</title>'
        "<style>body{font:15px/1.8 system-ui,sans-serif;max-width:90ch;margin:32px auto;padding:0 16px}"
        "h2{font-size:15px}span{padding:2px 5px;border-radius:4px;white-space:pre-wrap}</style>"
        f"<h1>{escape(label)}</h1><p>{escape(summary(findings))}</p><p>{legend}</p>{''.join(parts)}</html>\n"
    )


def _marked(kind: str, text: str) -> str:
    return f'<span style="{_LOOKS[kind][2]}">{escape(text)}</span>'
