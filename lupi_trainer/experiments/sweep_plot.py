"""A sweep as a picture: what each run reached, began at, and was expected to reach, on a logarithmic axis."""

import math
from html import escape
from typing import Any


WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 110, 260, 56, 40, 60


def parse_expected(text: str | None) -> tuple[float | None, float] | None:
    """`"15-16"` to (15, 16), `"< 19.0"` to (None, 19), nothing to `None`.

    Raises:
        ValueError: neither.
    """
    if not text:
        return None
    try:
        if text.strip().startswith("<"):
            return None, float(text.strip()[1:])
        low, high = map(float, text.split("-"))
        return low, high
    except ValueError as error:
        raise ValueError(f"expected_perplexity must be like '15-16' or '< 19.0', got {text!r}") from error


def _ticks(low: float, high: float) -> list[float]:
    steps = [m * 10**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)]
    return [t for t in steps if low <= t <= high]


def plot(results: dict[str, dict[str, Any]]) -> str:
    """An SVG picture.

    Args:
        results: by run, with `perplexity`, `perplexity_before` and `expected_perplexity`.
    """
    expected = {name: parse_expected(result.get("expected_perplexity")) for name, result in results.items()}
    values = [r[key] for r in results.values() for key in ("perplexity", "perplexity_before")]
    values += [v for band in expected.values() if band for v in band if v]
    low, high = min(values) / 1.15, max(values) * 1.15

    def y(value: float) -> float:
        return TOP + HEIGHT * (1 - math.log(value / low) / math.log(high / low))

    width, bottom = LEFT + WIDTH * len(results) + 20, TOP + HEIGHT
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{bottom + BOTTOM}" '
        'font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="20">evaluation perplexity: after (full), before (hollow), expected at full size '
        "(band)</text>",
    ]
    for tick in _ticks(low, high):
        out.append(f'<line x1="{LEFT}" x2="{width - 10}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for number, (name, result) in enumerate(results.items()):
        x = LEFT + WIDTH * (number + 0.5)
        band = expected[name]
        if band:
            top, base = y(band[1]), y(band[0] or low)
            out.append(
                f'<rect x="{x - 30}" y="{top:.1f}" width="60" height="{base - top:.1f}" fill="#cfe3f7" '
                f'class="expected"/>'
            )
        out.append(
            f'<circle cx="{x}" cy="{y(result["perplexity_before"]):.1f}" r="4" fill="none" stroke="#555" '
            'class="before"/>'
        )
        out.append(f'<circle cx="{x}" cy="{y(result["perplexity"]):.1f}" r="5" fill="#c0392b" class="after"/>')
        out.append(f'<text x="{x + 9}" y="{y(result["perplexity"]) + 4:.1f}">{result["perplexity"]:.4g}</text>')
        out.append(f'<text x="{x}" y="{bottom + 20}" text-anchor="middle">{escape(name)}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"
