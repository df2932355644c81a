"""Small charts as text: SVG lines and bars, heat-maps as PNG in a data: address. Nothing is loaded from anywhere."""

import base64
import html
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a7a00", "#000000")  # Okabe & Ito
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 440, 210, 58, 10, 10, 26
Points = Sequence[tuple[float, float]]


def escaped(text: object) -> str:
    """Text for HTML, in elements and in quoted attributes; controls that no browser should see are dropped."""
    return html.escape("".join(c for c in str(text) if c >= " " or c in "\n\t"), quote=True)


def lines(title: str, series: Mapping[str, Points], *, log: bool = False, x_label: str = "epoch") -> str:
    """A figure with a curve a name; points that are not finite (or, on a log axis, not positive) are left out."""
    kept = {name: [(x, y) for x, y in points if sound(y, log=log)] for name, points in series.items()}
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return ""
    xs, ys = zip(*(p for points in kept.values() for p in points), strict=True)
    x_low, x_high = spread(min(xs), max(xs))
    y_low, y_high = spread(*(math.log10(y) if log else y for y in (min(ys), max(ys))))
    px = scale(x_low, x_high, LEFT, WIDTH - RIGHT)
    py = scale(y_low, y_high, HEIGHT - BOTTOM, TOP)
    parts = [grid(px, py, (x_low, x_high), (y_low, y_high), log=log)]
    for color, points in zip(colors(len(kept)), kept.values(), strict=True):
        at = [(px(x), py(math.log10(y) if log else y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>')
        dots = at if len(at) < 30 else at[-1:]
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.2" fill="{color}"/>' for x, y in dots]
    return figure(title, "".join(parts) + caption(x_label), legend(list(kept)))


def bars(title: str, values: Mapping[str, float], x_label: str) -> str:
    """A figure with a bar a name, from zero."""
    if not values:
        return ""
    top = max(*values.values(), 1e-12)
    py, room = scale(0, top, HEIGHT - BOTTOM, TOP), (WIDTH - LEFT - RIGHT) / len(values)
    parts = [grid(None, py, (0, 0), (0, top), log=False)]
    for i, (name, value) in enumerate(values.items()):
        x, y = LEFT + room * (i + 0.15), py(value)
        size = f'width="{room * 0.7:.1f}" height="{HEIGHT - BOTTOM - y:.1f}"'
        parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" {size} fill="{COLORS[0]}"><title>{value:g}</title></rect>')
        if len(values) <= 24:
            parts.append(label(x + room * 0.35, HEIGHT - BOTTOM + 12, name, "middle"))
    return figure(title, "".join(parts) + caption(x_label), "")


class Interval(NamedTuple):
    """A figure with half of its interval, and what it is the mean of."""

    mean: float
    half: float
    parts: Sequence[float]


def intervals(title: str, rows: Mapping[str, Interval]) -> str:
    """An SVG file of its own: a row a name, its mean with the interval, what it is the mean of in grey."""
    left, width, step = 230, 420, 24
    x = scale(0, max([row.mean + row.half for row in rows.values()], default=1.0) or 1.0, left, left + width)
    size = f'width="{left + width + 60}" height="{step * (len(rows) + 2)}"'
    drawn = [f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">']
    drawn.append(label(left, 16, title, "start"))
    for i, (name, row) in enumerate(rows.items(), 1):
        y, ends = step * (i + 0.5), [x(max(0.0, row.mean - row.half)), x(row.mean + row.half)]
        line = f'x1="{ends[0]:.1f}" x2="{ends[1]:.1f}" y1="{y}" y2="{y}" stroke="{COLORS[0]}" stroke-width="2"'
        drawn += [label(left - 8, y + 4, name, "end"), f"<line {line}/>"]
        drawn += [f'<circle cx="{x(part):.1f}" cy="{y}" r="2" fill="#888"/>' for part in row.parts]
        drawn.append(f'<circle cx="{x(row.mean):.1f}" cy="{y}" r="4" fill="{COLORS[0]}"/>')
        drawn.append(label(ends[1] + 8, y + 4, f"{row.mean:.4f}", "start"))
    return "\n".join([*drawn, "</svg>"]) + "\n"


def curves(series: Mapping[str, Points], *, x_label: str, y_label: str) -> str:
    """An SVG file of its own: a marked curve a name, the names beside them."""
    xs, ys = zip(*(p for points in series.values() for p in points), strict=True)
    x_ends, y_ends = spread(min(xs), max(xs)), spread(min(ys), max(ys))
    px, py = scale(*x_ends, LEFT, WIDTH - RIGHT), scale(*y_ends, HEIGHT - BOTTOM, TOP)
    style = f'width="{WIDTH + 180}" height="{HEIGHT + 20}" font-family="sans-serif" font-size="11" stroke="none"'
    drawn = [f'<svg xmlns="http://www.w3.org/2000/svg" {style}><rect width="100%" height="100%" fill="white"/>',
             "<style>.grid { stroke: #ddd }</style>", grid(px, py, x_ends, y_ends, log=False)]  # fmt: skip
    for i, (color, (name, points)) in enumerate(zip(colors(len(series)), series.items(), strict=True)):
        at = [(px(x), py(y)) for x, y in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.8"/>')
        drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in at]
        y = TOP + 10 + 16 * i
        drawn.append(f'<rect x="{WIDTH + 4}" y="{y - 8}" width="10" height="10" fill="{color}"/>')
        drawn.append(label(WIDTH + 20, y, name, "start"))
    drawn.append(label((LEFT + WIDTH) / 2, HEIGHT + 12, x_label, "middle"))
    middle = (HEIGHT - BOTTOM + TOP) / 2
    turned = f'transform="rotate(-90 12 {middle})" text-anchor="middle"'
    drawn.append(f'<text x="12" y="{middle}" {turned}>{escaped(y_label)}</text>')
    return "\n".join([*drawn, "</svg>"]) + "\n"


def heat(title: str, rows: np.ndarray, x_label: str, y_label: str) -> str:
    """A figure of numbers >= 0, [y, x], dark where they are large (on a log scale); zero is red."""
    peak = max(float(rows.max(initial=0)), 1.0)
    shade = np.log1p(rows) / math.log1p(peak)
    low, high = np.array([236, 244, 250]), np.array([4, 44, 84])
    pixel = (low + (high - low) * shade[..., None]).round().astype(np.uint8)
    pixel[rows == 0] = (213, 94, 0)
    picture = base64.b64encode(png(pixel)).decode()
    note = f"{y_label} downwards, {x_label} to the right; darker: more items (most: {peak:g}), orange: none"
    return (
        f'<figure><figcaption>{escaped(title)}</figcaption><img class="heat" alt="{escaped(title)}" '
        f'src="data:image/png;base64,{picture}"><p class="note">{escaped(note)}</p></figure>'
    )


def png(pixel_HW3: np.ndarray) -> bytes:
    """A true-colour PNG (RFC 2083) of uint8 [height, width, 3]."""
    height, width = pixel_HW3.shape[:2]
    raw = np.concatenate([np.zeros((height, 1), np.uint8), pixel_HW3.reshape(height, -1)], 1).tobytes()
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(raw)),
              (b"IEND", b"")]  # fmt: skip
    body = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


# ---------------------------------------------------------------- figures as files

PARTS = re.compile(r"<figure><figcaption>(.*?)</figcaption><svg (viewBox.*?)>(.*?)</svg>(?:<p|</figure>)", re.DOTALL)
ENTRY = re.compile(r'fill="(#\w+)"/></svg> (.*?)</span>')
PICTURE = re.compile(r"<figure><figcaption>(.*?)</figcaption>.*?base64,([\w+/=]+)", re.DOTALL)


def files(figures: Iterable[str]) -> dict[str, bytes]:
    """Figures of this module as files that need nothing else: name -> SVG, PNG for a heat-map."""
    found: dict[str, bytes] = {}
    for text in figures:
        if m := PARTS.match(text):
            found[f"{file_name(m[1])}.svg"] = alone(m[1], m[3], ENTRY.findall(text)).encode()
        elif m := PICTURE.match(text):
            found[f"{file_name(m[1])}.png"] = base64.b64decode(m[2])
    return found


def file_name(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", html.unescape(title).lower()).strip("-")


def alone(title: str, inside: str, entries: Sequence[tuple[str, str]]) -> str:
    """An SVG file of a figure's curves, its title above and its legend below; all texts are escaped already."""
    height = 22 + HEIGHT + 16 * ((len(entries) + 2) // 3)
    style = "text{font:10.5px sans-serif;fill:#444}.grid{stroke:#e3e3e3}.title{font:600 13px sans-serif;fill:#1b1b1b}"
    drawn = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 -22 {WIDTH} {height}" width="{WIDTH}" '
             f'height="{height}"><style>{style}</style><rect y="-22" width="{WIDTH}" height="{height}" fill="#fff"/>'
             f'<text class="title" y="-7">{title}</text>{inside}']  # fmt: skip
    for i, (color, name) in enumerate(entries):
        x, y = 8 + i % 3 * 144, HEIGHT + 12 + 16 * (i // 3)
        drawn.append(f'<rect x="{x}" y="{y - 9}" width="10" height="10" fill="{color}"/><text x="{x + 14}" y="{y}">'
                     f"{name}</text>")  # fmt: skip
    return "".join([*drawn, "</svg>\n"])


# ---------------------------------------------------------------- parts of a figure


def colors(n: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(n)]


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


def ticks(low: float, high: float, most: int = 5) -> list[float]:
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


def grid(
    px: Callable[[float], float] | None, py: Callable[[float], float], x: tuple[float, float], y: tuple[float, float],
    *, log: bool,
) -> str:  # fmt: skip
    parts = []
    for value in log_ticks(*y) if log else ticks(*y):
        at, shown = py(value), f"{10**value:.3g}" if log else f"{value:.6g}"
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}" class="grid"/>')
        parts.append(label(LEFT - 6, at + 4, shown, "end"))
    if px is not None:
        parts += [label(px(v), HEIGHT - BOTTOM + 14, f"{v:g}", "middle") for v in ticks(*x, most=8)]
    return "".join(parts)


def label(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escaped(text)}</text>'


def caption(text: str) -> str:
    return label(WIDTH - RIGHT, HEIGHT - 1, text, "end")


def legend(names: list[str]) -> str:
    if len(names) < 2:
        return ""
    entries = zip(names, colors(len(names)), strict=True)
    items = "".join(f'<span><svg width="12" height="12"><rect width="12" height="12" fill="{c}"/></svg> '
                    f"{escaped(n)}</span>" for n, c in entries)  # fmt: skip
    return f'<p class="legend">{items}</p>'


def figure(title: str, inside: str, below: str) -> str:
    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escaped(title)}"'
    return f"<figure><figcaption>{escaped(title)}</figcaption><svg {box}>{inside}</svg>{below}</figure>"
