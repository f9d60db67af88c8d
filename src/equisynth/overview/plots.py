"""Plots as inline SVG: no library, no colours of their own (classes ``s0``, ``s1``, ... of the page's style)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from equisynth.compare import number

WIDTH, HEIGHT = 360.0, 200.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 10.0, 12.0, 24.0
COLOURS = 8
"""Number of series classes in the style; later series repeat them with dashes."""
MAX_CASES = 200
"""So many cases at most are drawn; means are over all."""
LOG_RATIO = 60.0
"""Positive values that span more than this are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Line:
    """A series of a curve plot.

    Attributes:
        name: for the hover text.
        colour: number of its class.
        points: (x, y), finite.
        is_faint: drawn dashed and thin (training beside validation).
        mark: x of the point that gets a ring.
    """

    name: str
    colour: int
    points: Sequence[tuple[float, float]]
    is_faint: bool = False
    mark: float | None = None


@dataclass(frozen=True)
class _Axis:
    """Values -> pixels."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self._of(self.low), self._of(self.high)
        share = (self._of(value) - low) / (high - low)
        return self.start + share * (self.end - self.start)

    def _of(self, value: float) -> float:
        return math.log10(value) if self.is_log else value


def curves(title: str, lines: Sequence[Line]) -> str:
    """Values by epoch. The page's script shows all values of the epoch under the pointer."""
    points = [point for line in lines for point in line.points]
    if not points:
        return ""
    x_axis = _axis([x for x, _ in points], LEFT, WIDTH - RIGHT, whole=True)
    y_axis = _axis([y for _, y in points], HEIGHT - BOTTOM, TOP, allow_log=True)
    parts = [*_grid(y_axis), *_epochs(x_axis)]
    for line in lines:
        path = " ".join(
            f"{'M' if n == 0 else 'L'}{_n(x_axis(x))} {_n(y_axis(y))}" for n, (x, y) in enumerate(line.points)
        )
        classes = f"line {series(line.colour)}" + (" faint" if line.is_faint else "")
        parts.append(f'<path class="{classes}" d="{path}"/>')
        if len(line.points) == 1:
            x, y = line.points[0]
            parts.append(f'<circle class="dot {series(line.colour)}" cx="{_n(x_axis(x))}" cy="{_n(y_axis(y))}" r="3"/>')
        best = next((y for x, y in line.points if x == line.mark), None)
        if best is not None and line.mark is not None:
            label = f"best epoch of {line.name}: {line.mark:.0f}, {number(best)}"
            place = f'cx="{_n(x_axis(line.mark))}" cy="{_n(y_axis(best))}"'
            parts.append(
                f'<circle class="best {series(line.colour)}" {place} r="4.5"><title>{escape(label)}</title></circle>'
            )
    parts.append(f'<line class="cursor" x1="0" x2="0" y1="{_n(TOP)}" y2="{_n(HEIGHT - BOTTOM)}"/>')
    hover = [{"name": line.name, "text": {f"{x:g}": number(y) for x, y in line.points}} for line in lines]
    places = {f"{x:g}": round(x_axis(x), 1) for x in sorted({x for x, _ in points})}
    data = escape(json.dumps({"places": places, "lines": hover}, separators=(",", ":")), quote=True)
    summary = "; ".join(f"{line.name}: last {number(line.points[-1][1])}" for line in lines if line.points)
    return _svg("curves", f"{title} by epoch. {summary}", parts, f' tabindex="0" data-curves="{data}"')


def cases(title: str, letters: Mapping[str, str], values: Mapping[str, Mapping[str, float]]) -> str:
    """Each case's value by model, the values of a case joined; a bar at each model's mean over cases.

    Args:
        letters: experiment -> what stands for it, in the order of the columns.
        values: experiment -> case -> value.
    """
    columns = [name for name in letters if values.get(name)]
    if not columns:
        return ""
    axis = _axis([value for name in columns for value in values[name].values()], HEIGHT - BOTTOM, TOP)
    step = (WIDTH - LEFT - RIGHT) / len(columns)
    place = {name: LEFT + step * (number_ + 0.5) for number_, name in enumerate(columns)}
    parts = _grid(axis)
    for case in _thinned(list(dict.fromkeys(case for name in columns for case in values[name]))):
        points = [(place[name], axis(values[name][case]), name) for name in columns if case in values[name]]
        text = "\n".join([case, *(f"{letters[name]} {number(values[name][case])}" for _, _, name in points)])
        line = "L".join(f"{_n(x)} {_n(y)}" for x, y, _ in points)
        dots = "".join(f"M{_n(x)} {_n(y)}h0" for x, y, _ in points)
        parts.append(
            f'<g class="case" data-case="{escape(case, quote=True)}"><title>{escape(text)}</title>'
            f'<path class="join" d="M{line}"/><path class="dots" d="{dots}"/></g>'
        )
    half = min(step * 0.28, 22)
    order = list(letters)
    for name in columns:
        found = list(values[name].values())
        mean = sum(found) / len(found)
        y, x = axis(mean), place[name]
        label = f"{letters[name]}: mean of {len(found)} {'case' if len(found) == 1 else 'cases'} {number(mean)}"
        kind = series(order.index(name))
        parts.append(
            f'<path class="mean {kind}" d="M{_n(x - half)} {_n(y)}H{_n(x + half)}">'
            f"<title>{escape(label)}</title></path>"
        )
        parts.append(
            f'<text class="tick {kind} letter" x="{_n(x)}" y="{_n(HEIGHT - 7)}" text-anchor="middle">'
            f"{letters[name]}</text>"
        )
    return _svg("cases", f"{title} of each case, by model", parts)


def series(position: int) -> str:
    """Classes of a series: one of the style's colours; those that come round again are dashed."""
    return f"s{position % COLOURS}" + (" again" if position >= COLOURS else "")


def _thinned(found: list[str]) -> list[str]:
    """At most `MAX_CASES`, evenly spaced."""
    count = min(len(found), MAX_CASES)
    return [found[position * len(found) // count] for position in range(count)]


# --- axes


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers from low to high, about so many."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * factor for factor in (1, 2, 2.5, 5, 10) if base * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _axis(values: Iterable[float], start: float, end: float, whole: bool = False, allow_log: bool = False) -> _Axis:
    found = list(values)
    low, high = min(found), max(found)
    if whole:
        return _Axis(low, high, start, end) if high > low else _Axis(low - 0.5, high + 0.5, start, end)
    if allow_log and low > 0 and high / low > LOG_RATIO:
        return _Axis(low / 1.15, high * 1.15, start, end, is_log=True)
    room = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
    return _Axis(low - room, high + room, start, end)


def _grid(axis: _Axis) -> list[str]:
    found = ticks(axis.low, axis.high)
    if axis.is_log:
        first, last = math.ceil(math.log10(axis.low)), math.floor(math.log10(axis.high))
        found = [10.0**n for n in range(first, last + 1, 1 + (last - first) // 5)]
    lines = []
    for value in found:
        y = axis(value)
        lines.append(f'<line class="grid" x1="{_n(LEFT)}" x2="{_n(WIDTH - RIGHT)}" y1="{_n(y)}" y2="{_n(y)}"/>')
        lines.append(
            f'<text class="tick" x="{_n(LEFT - 6)}" y="{_n(y + 3.5)}" text-anchor="end">{_short(value)}</text>'
        )
    return lines


def _epochs(axis: _Axis) -> list[str]:
    found = [value for value in ticks(axis.low, axis.high, 5) if value == int(value)]
    step = found[1] - found[0] if len(found) > 1 else 1.0
    first = math.ceil(axis.low)
    if found and found[0] - first >= 0.5 * step:
        found.insert(0, float(first))
    return [
        f'<text class="tick" x="{_n(axis(value))}" y="{_n(HEIGHT - 7)}" text-anchor="middle">{value:.0f}</text>'
        for value in found
    ]


def _short(value: float) -> str:
    return f"{value:g}" if 1e-4 <= abs(value) < 1e5 or value == 0 else f"{value:.0e}"


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _svg(kind: str, label: str, parts: Iterable[str], attributes: str = "") -> str:
    return (
        f'<svg class="plot {kind}" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" '
        f'aria-label="{escape(label, quote=True)}"{attributes}>{"".join(parts)}</svg>'
    )
