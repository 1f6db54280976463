"""A picture of the main cases, as SVG written by hand: bars of CPU time and messages a second, relative to the fair HAProxy.

Owns how it looks. By hand, since a plotting library is a large dependency for two rows of bars.
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from bench.cases import FAIR, HAPROXY, RELAY, SMTPLB
from bench.report import Results

CASES = ("new", "kept", "pipelining", "100 KB", "1 MB", "25 MB")
COLOURS = {HAPROXY: "#94a3b8", FAIR: "#64748b", RELAY: "#d6a84b", SMTPLB: "#2f7d6b"}
PANELS = (
    ("messages_per_s", "messages a second, times those of HAProxy (fair); more is better"),
    ("cpu_us", "CPU time a message, times that of HAProxy (fair); less is better"),
)
WIDTH, PANEL_HEIGHT, LEFT, TOP, BAR, GAP = 900, 250, 60, 64, 26, 34
PLOT_HEIGHT = PANEL_HEIGHT - 70


def draw(results: Results, path: Path) -> None:
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {TOP + PANEL_HEIGHT * len(PANELS)}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#1f2933">',
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        *_legend(),
    ]
    for number, (of, title) in enumerate(PANELS):
        parts += _panel(results, of, title, TOP + number * PANEL_HEIGHT)
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


def _legend() -> list[str]:
    parts = []
    for number, (name, colour) in enumerate(COLOURS.items()):
        x = LEFT + number * 150
        parts.append(f'<rect x="{x}" y="20" width="14" height="14" rx="2" fill="{colour}"/>')
        parts.append(f'<text x="{x + 20}" y="32">{escape(name)}</text>')
    return parts


def _panel(results: Results, of: str, title: str, top: int) -> list[str]:
    found = {
        case: {name: value for name in COLOURS if (value := results.ratio(case, name, FAIR, of)) is not None}
        for case in CASES
    }
    most = max([1.0, *(value for row in found.values() for value in row.values())]) * 1.12
    base = top + 24 + PLOT_HEIGHT

    def y(value: float) -> float:
        return base - PLOT_HEIGHT * value / most

    parts = [f'<text x="{LEFT}" y="{top + 10}" font-size="14" font-weight="600">{escape(title)}</text>']
    for value, dash in ((0.0, ""), (1.0, ' stroke-dasharray="4 3"')):
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - 20}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#9aa5b1"{dash}/>'
        )
        parts.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.0f}</text>')
    for number, (case, row) in enumerate(found.items()):
        x = LEFT + 12 + number * (len(COLOURS) * BAR + GAP)
        for index, (name, colour) in enumerate(COLOURS.items()):
            if name not in row:
                continue
            left, height = x + index * BAR, base - y(row[name])
            parts.append(
                f'<rect x="{left}" y="{y(row[name]):.1f}" width="{BAR - 3}" height="{height:.1f}" fill="{colour}"/>'
            )
            parts.append(
                f'<text x="{left + (BAR - 3) / 2}" y="{y(row[name]) - 4:.1f}" font-size="10" text-anchor="middle">'
                f"{row[name]:.2f}</text>"
            )
        parts.append(f'<text x="{x + 2 * BAR}" y="{base + 18}" text-anchor="middle">{escape(case)}</text>')
    return parts
