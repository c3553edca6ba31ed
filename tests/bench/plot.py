"""Figures as SVG, for the docs: lines over sizes, and bars.

Written here, because two kinds of plots with a handful of points take a hundred lines, and matplotlib brings eight
packages of 60 MB. Colours follow the reader's light or dark mode, which no library's do.
"""

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

_WIDTH, _HEIGHT = 760, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 240, 44, 46
_BAR = 22
_COLOURS = (("#2c5c8f", "#86b6e6"), ("#2b7350", "#7cc9a3"), ("#9a4a1c", "#f0a878"), ("#6b4a94", "#c3a6ea"))
"""For light and dark pages."""
_STYLE = (
    ".page{fill:#f7f9fb;stroke:#c6d0da}text{fill:#1c2733}.grid{stroke:#d5dde5}.bound{stroke:#a33;stroke-dasharray:5 4}"
    + "".join(f".c{number}{{stroke:{light};fill:{light}}}" for number, (light, _) in enumerate(_COLOURS))
    + "@media (prefers-color-scheme: dark){.page{fill:#161c23;stroke:#3b4856}text{fill:#e8eef4}"
    ".grid{stroke:#323d49}.bound{stroke:#f08080}"
    + "".join(f".c{number}{{stroke:{dark};fill:{dark}}}" for number, (_, dark) in enumerate(_COLOURS))
    + "}.line{fill:none;stroke-width:2}.label{stroke:none}"
)

Points = Sequence[tuple[float, float]]


def lines(file: Path, title: str, across: str, unit: str, series: Mapping[str, Points], bound: float = 0.0) -> None:
    """Writes a plot of points (x, y), x on a logarithmic scale and y from 0, with a line at `bound` unless that is 0.
    Each series is named beside its last point. What was not measured is left out: a series without points, and a plot
    without series."""
    series = {name: points for name, points in series.items() if points}
    if not series:
        return
    marks = sorted({x for points in series.values() for x, _ in points})
    top = _nice(max([bound, *(y for points in series.values() for _, y in points)]))
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    low, high = math.log(marks[0]), math.log(marks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        share = (math.log(x) - low) / (high - low) if high > low else 0.5
        return _LEFT + share * width, _TOP + height - y / top * height

    parts = []
    for step in range(5):
        y = top * step / 4
        _, at = place(marks[0], y)
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}h{width}"/>')
        parts.append(_text(_LEFT - 8, at + 4, f"{y:g}", "end"))
    parts += [_text(place(x, 0)[0], _TOP + height + 18, f"{x:,.0f}", "middle") for x in marks]
    parts.append(_text(_LEFT + width / 2, _HEIGHT - 10, across, "middle"))
    if bound:
        _, at = place(marks[0], bound)
        parts.append(f'<path class="bound" d="M{_LEFT} {at:.1f}h{width}"/>')
        parts.append(_text(_LEFT + 6, at - 6, f"bound: {bound:g} {unit}", "start"))
    beside: list[float] = []
    for number, (name, points) in enumerate(sorted(series.items(), key=lambda each: each[1][-1][1])):
        colour = f"c{number % len(_COLOURS)}"
        placed = [place(x, y) for x, y in points]
        path = " L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
        parts.append(f'<path class="line {colour}" d="M{path}"/>')
        parts += [f'<circle class="{colour}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in placed]
        at = min([placed[-1][1] + 4, *(taken - 16 for taken in beside)])
        beside.append(at)
        parts.append(
            _text(_LEFT + width + 12, at, f"{name}: {_short(points[-1][1])} {unit}", "start", f"{colour} label")
        )
    _write(file, f"{title}, {unit}", _HEIGHT, parts)


def bars(file: Path, title: str, unit: str, values: Mapping[str, float]) -> None:
    """Writes a bar for each value, on a logarithmic scale, with its name and figure."""
    assert values, "there is nothing to plot"
    left, width = 430, _WIDTH - 430 - 90
    low = math.log(min(values.values()) / 2)
    high = math.log(max(values.values()))
    parts = []
    for number, (name, value) in enumerate(values.items()):
        y = _TOP + number * _BAR
        length = (math.log(value) - low) / (high - low) * width
        parts.append(_text(left - 10, y + 14, name, "end"))
        parts.append(f'<rect class="c0" x="{left}" y="{y + 4}" width="{length:.1f}" height="{_BAR - 9}"/>')
        parts.append(_text(left + length + 8, y + 14, f"{_short(value)} {unit}", "start"))
    _write(file, title, _TOP + len(values) * _BAR + 14, parts)


def _nice(value: float) -> float:
    """The top of a scale that has `value`: 1, 2, 4, 5 or 8 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 4, 5, 8, 10) if step * power >= value)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _text(x: float, y: float, words: str, anchor: str, style: str = "") -> str:
    named = f' class="{style}"' if style else ""
    return f'<text{named} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _write(file: Path, title: str, height: int, parts: Sequence[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="system-ui, sans-serif" '
        'font-size="12" role="img" aria-labelledby="t">'
    )
    page = f'<rect class="page" x="1" y="1" width="{_WIDTH - 2}" height="{height - 2}" rx="10"/>'
    heading = f'<text x="20" y="26" font-size="14" font-weight="600">{escape(title)}</text>'
    named = f'<title id="t">{escape(title)}</title>\n<style>{_STYLE}</style>'
    file.write_text("\n".join([head, named, page, heading, *parts, "</svg>\n"]))
