"""Small charts: SVG lines and bars, heat-maps as PNG, on a page or as files. Nothing is loaded from anywhere."""

import base64
import html
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a7a00", "#000000")  # Okabe & Ito
DASHES = ("", "6 3", "2 2")  # of curves beyond the last colour
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 440, 210, 58, 10, 10, 26
Points = Sequence[tuple[float, float]]


def escaped(text: object) -> str:
    """Text for HTML, in elements and in quoted attributes; controls that no browser should see are dropped."""
    return html.escape("".join(c for c in str(text) if c >= " " or c in "\n\t"), quote=True)


# ---------------------------------------------------------------- figures of a page


@dataclass(frozen=True)
class Figure:
    """Curves or dots: SVG elements in a box of WIDTH x HEIGHT, and the colours of several names."""

    title: str
    inside: str
    legend: Mapping[str, str]

    def html(self) -> str:
        marks = "".join(f'<span><svg width="12" height="12"><rect width="12" height="12" fill="{color}"/></svg> '
                        f"{escaped(name)}</span>" for name, color in self.legend.items())  # fmt: skip
        below = f'<p class="legend">{marks}</p>' if marks else ""
        box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escaped(self.title)}"'
        return f"<figure><figcaption>{escaped(self.title)}</figcaption><svg {box}>{self.inside}</svg>{below}</figure>"

    def svg(self) -> str:
        """A file of its own: the title above, the names beside."""
        style = "text{font-size:10.5px;fill:#444}.grid{stroke:#e3e3e3}.title{font:600 13px sans-serif;fill:#1b1b1b}"
        drawn = [f'<style>{style}</style><text class="title" x="0" y="-7">{escaped(self.title)}</text>', self.inside]
        for i, (name, color) in enumerate(self.legend.items()):
            y = TOP + 6 + 16 * i
            drawn.append(f'<line x1="{WIDTH + 4}" x2="{WIDTH + 26}" y1="{y}" y2="{y}" {stroke(i, color)}/>')
            drawn.append(label(WIDTH + 32, y + 4, name, "start"))
        wide = WIDTH + (44 + round(6.2 * max(map(len, self.legend))) if self.legend else 0)
        return document(wide, 22 + max(HEIGHT, TOP + 16 * len(self.legend)), drawn, above=22)


@dataclass(frozen=True)
class Picture:
    """A picture as PNG, and a note on how to read it."""

    title: str
    png: bytes
    note: str

    def html(self) -> str:
        return (
            f'<figure><figcaption>{escaped(self.title)}</figcaption><img class="heat" alt="{escaped(self.title)}" '
            f'src="data:image/png;base64,{base64.b64encode(self.png).decode()}">'
            f'<p class="note">{escaped(self.note)}</p></figure>'
        )


def lines(title: str, series: Mapping[str, Points], *, log: bool = False, x_label: str = "epoch") -> Figure | None:
    """A figure with a curve a name; points that are not finite (or, on a log axis, not positive) are left out."""
    kept = {name: [(x, y) for x, y in points if sound(y, log=log)] for name, points in series.items()}
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return None
    of = named_colors(kept)
    below = caption(f"{x_label}; log scale" if log else x_label)
    return Figure(title, plot(kept, log=log) + below, of if len(of) > 1 else {})


def scatter(title: str, points: Mapping[str, tuple[float, float]], x_label: str) -> Figure:
    """A figure with a dot a name."""
    xs, ys = zip(*points.values(), strict=True)
    x_ends, y_ends = spread(min(xs), max(xs)), spread(min(ys), max(ys))
    px, py = scale(*x_ends, LEFT + 10, WIDTH - RIGHT - 10), scale(*y_ends, HEIGHT - BOTTOM - 10, TOP + 10)
    parts = [grid(px, py, x_ends, y_ends, log=False)]
    for name, (x, y) in points.items():
        parts.append(f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="4" fill="{COLORS[0]}"/>')
        side = -1 if px(x) > WIDTH / 2 else 1  # a long name must not leave the picture
        parts.append(label(px(x) + 6 * side, py(y) - 5, name, "start" if side > 0 else "end"))
    return Figure(title, "".join(parts) + caption(x_label), {})


def heat(title: str, rows: np.ndarray, x_label: str, y_label: str) -> Picture:
    """A picture of numbers >= 0, [y, x], dark where they are large (on a log scale); zero is orange."""
    peak = max(float(rows.max(initial=0)), 1.0)
    shade = np.log1p(rows) / math.log1p(peak)
    low, high = np.array([236, 244, 250]), np.array([4, 44, 84])
    pixel = (low + (high - low) * shade[..., None]).round().astype(np.uint8)
    pixel[rows == 0] = (213, 94, 0)
    note = f"{y_label} downwards, {x_label} to the right; darker: more items (most: {peak:g}), orange: none"
    return Picture(title, png(pixel), note)


def png(pixel_HW3: np.ndarray) -> bytes:
    """A true-colour PNG (RFC 2083) of uint8 [height, width, 3]."""
    height, width = pixel_HW3.shape[:2]
    raw = np.concatenate([np.zeros((height, 1), np.uint8), pixel_HW3.reshape(height, -1)], 1).tobytes()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(raw)),
              (b"IEND", b"")]  # fmt: skip
    body = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def files(figures: Iterable[Figure | Picture | None]) -> dict[str, bytes]:
    """Figures as files that need nothing else: name -> SVG, PNG for a picture."""
    there = [f for f in figures if f is not None]
    return {file_name(f): f.svg().encode() if isinstance(f, Figure) else f.png for f in there}


def file_name(figure: Figure | Picture) -> str:
    stem = re.sub(r"[^a-z0-9]+", "-", figure.title.lower()).strip("-")
    return f"{stem}.{'svg' if isinstance(figure, Figure) else 'png'}"


# ---------------------------------------------------------------- files of their own


class Interval(NamedTuple):
    """A figure with half of its interval, and what it is the mean of."""

    mean: float
    half: float
    parts: Sequence[float]


def intervals(title: str, rows: Mapping[str, Interval]) -> str:
    """A row a name, its mean with the interval, what it is the mean of in grey."""
    left, width, step = 24 + round(7.2 * max(map(len, rows), default=0)), 420, 24
    top, foot = max([row.mean + row.half for row in rows.values()], default=1.0) or 1.0, step * (len(rows) + 1) + 6
    x = scale(0, top, left, left + width)
    drawn = [label(8, 16, title, "start"), label(left, foot + 26, "bars: 95 % over users; grey: each seed", "start")]
    for value in ticks(0, top):
        drawn.append(f'<line x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{step}" y2="{foot - 6}" stroke="#ddd"/>')
        drawn.append(label(x(value), foot + 8, f"{value:g}", "middle"))
    for i, (name, row) in enumerate(rows.items(), 1):
        y, ends = step * (i + 0.5), [x(max(0.0, row.mean - row.half)), x(row.mean + row.half)]
        line = f'x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y}" y2="{y}" stroke="{COLORS[0]}" stroke-width="2"'
        drawn += [label(left - 8, y + 4, name, "end"), f"<line {line}/>"]
        drawn += [f'<circle cx="{x(part):.1f}" cy="{y}" r="2" fill="#888"/>' for part in row.parts]
        drawn.append(f'<circle cx="{x(row.mean):.1f}" cy="{y}" r="4" fill="{COLORS[0]}"/>')
        drawn.append(label(ends[1] + 8, y + 4, f"{row.mean:.4f}", "start"))
    return document(left + width + 60, foot + 36, drawn, size=13)


def document(width: int, height: int, drawn: Iterable[str], *, above: int = 0, size: int = 11) -> str:
    """An SVG file on white, so that it can be read in a dark page; above: of its height, what lies over the zero."""
    box = f'viewBox="0 {-above} {width} {height}" width="{width}" height="{height}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {box} font-family="sans-serif" font-size="{size}">'
    back = f'<rect y="{-above}" width="{width}" height="{height}" fill="white"/>'
    return "\n".join([head, back, *drawn, "</svg>"]) + "\n"


# ---------------------------------------------------------------- parts of a figure


def named_colors(names: Iterable[str]) -> dict[str, str]:
    return {name: COLORS[i % len(COLORS)] for i, name in enumerate(names)}


def stroke(index: int, color: str) -> str:
    """How a curve of this place among the others is drawn: those of one colour by unlike dashes."""
    dash = DASHES[index // len(COLORS) % len(DASHES)]
    return f'stroke="{color}" stroke-width="1.8"' + (f' stroke-dasharray="{dash}"' if dash else "")


def sound(y: float, *, log: bool) -> bool:
    return math.isfinite(y) and (y > 0 or not log)


def spread(low: float, high: float) -> tuple[float, float]:
    """A range with some width."""
    if high > low:
        return low, high
    return low - (abs(low) * 0.05 or 0.5), high + (abs(high) * 0.05 or 0.5)


def scale(low: float, high: float, first: float, last: float) -> Callable[[float], float]:
    """A straight map from [low, high] to pixels."""
    return lambda value: first + (value - low) * (last - first) / (high - low)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers within a range."""
    step = 10 ** math.floor(math.log10((high - low) / most))
    step *= next(m for m in (1, 2, 5, 10) if (high - low) / (step * m) <= most)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Exponents of 1, 2 and 5 times powers of ten within a range, or of these powers alone where it is wide."""
    steps = (1, 2, 5) if high - low < 2 else (1,)
    found = [k + math.log10(m) for k in range(math.floor(low), math.ceil(high) + 1) for m in steps]
    return [x for x in found if low <= x <= high] or ticks(low, high, 2)


def plot(series: Mapping[str, Points], *, log: bool = False) -> str:
    """Grid and curves; each point is marked, of a long curve the last alone."""
    xs, ys = zip(*(p for points in series.values() for p in points), strict=True)
    x_ends, y_ends = spread(min(xs), max(xs)), spread(*(math.log10(y) if log else y for y in (min(ys), max(ys))))
    px, py = scale(*x_ends, LEFT, WIDTH - RIGHT), scale(*y_ends, HEIGHT - BOTTOM, TOP)
    parts = [grid(px, py, x_ends, y_ends, log=log)]
    for i, (color, points) in enumerate(zip(named_colors(series).values(), series.values(), strict=True)):
        at = [(px(x), py(math.log10(y) if log else y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        parts.append(f'<polyline points="{path}" fill="none" {stroke(i, color)}/>')
        dots = at if len(at) < 30 else at[-1:]
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2" fill="{color}"/>' for x, y in dots]
    return "".join(parts)


def grid(
    px: Callable[[float], float], py: Callable[[float], float], x: tuple[float, float], y: tuple[float, float],
    *, log: bool,
) -> str:  # fmt: skip
    parts = []
    for value in log_ticks(*y) if log else ticks(*y):
        at, shown = py(value), f"{10**value:.3g}" if log else f"{value:.6g}"
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>')
        parts.append(label(LEFT - 6, at + 4, shown, "end"))
    parts += [label(px(v), HEIGHT - BOTTOM + 14, f"{v:g}", "middle") for v in ticks(*x, most=8)]
    return "".join(parts)


def label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escaped(text)}</text>'


def caption(text: str) -> str:
    return label(WIDTH - RIGHT, HEIGHT - 1, text, "end")
