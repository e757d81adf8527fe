"""Pictures of README.md and the pages, as SVG text for light and dark pages; written by `python docs/figures.py`."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any


HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">
<style>
:root {{ --text: #1f2328; --line: #656d76; --box: #f6f8fa; --green: #1a7f37; --red: #cf222e; --blue: #0969da }}
@media (prefers-color-scheme: dark) {{
:root {{ --text: #e6edf3; --line: #9198a1; --box: #161b22; --green: #56d364; --red: #ff7b72; --blue: #79c0ff }}
}}
text {{ font: 15px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: var(--text) }}
.small {{ font-size: 13px; fill: var(--line) }}
.bold {{ font-weight: 600 }}
.box {{ fill: var(--box); stroke: var(--line) }}
.arrow, .axis {{ fill: none; stroke: var(--line); stroke-width: 1.5 }}
.green {{ stroke: var(--green) }} .red {{ stroke: var(--red) }} .blue {{ stroke: var(--blue) }}
text.green {{ fill: var(--green); stroke: none }} text.red {{ fill: var(--red); stroke: none }}
text.blue {{ fill: var(--blue); stroke: none }}
.head {{ fill: var(--line) }}
.curve {{ fill: none; stroke-width: 2.5 }}
</style>
<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">
<path class="head" d="M0 0 10 5 0 10z"/></marker></defs>
"""
COLORS = ("green", "blue", "red")  # of curves; from the fourth on they are dashed


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def box(x: float, y: float, width: float, height: float, *lines: str, color: str = "") -> str:
    """A box with centered lines, of which the first is bold."""
    first = y + height / 2 + 5 - 9 * (len(lines) - 1)
    written = [
        text(x + width / 2, first + 18 * n, words, "small" if n else f"bold {color}", "middle")
        for n, words in enumerate(lines)
    ]
    shape = f'<rect class="box {color}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="8"/>'
    return "\n".join([shape, *written])


def arrow(*points: tuple[float, float]) -> str:
    path = " ".join(f"{x:g} {y:g}" for x, y in points)
    return f'<path class="arrow" d="M{path}" marker-end="url(#head)"/>'


def svg(width: int, height: int, title: str, parts: Sequence[str]) -> str:
    return "\n".join([HEAD.format(width=width, height=height, title=escape(title)) + parts[0], *parts[1:], "</svg>\n"])


def reads_and_writes() -> str:
    """Who reads what and who writes what."""
    tokens = (
        '<text x="790" y="176" text-anchor="middle"><tspan class="bold" fill="var(--green)">The capital is </tspan>'
        '<tspan class="bold" fill="var(--red)">Ku</tspan><tspan class="bold" fill="var(--green)">zu.</tspan></text>'
    )
    parts = [
        box(20, 20, 200, 70, "knowledge", "persona, worked examples"),
        box(20, 240, 200, 60, "question"),
        box(330, 20, 180, 70, "teacher", "large", color="red"),
        box(330, 235, 180, 70, "student", "small, trained", color="green"),
        box(640, 125, 300, 70, "", ""),
        text(790, 152, "training text", "small", "middle"),
        tokens,
        arrow((220, 55), (330, 55)),
        text(275, 47, "reads", "small", "middle"),
        arrow((220, 270), (330, 270)),
        text(275, 262, "reads", "small", "middle"),
        arrow((180, 240), (345, 92)),
        text(222, 160, "reads", "small"),
        arrow((420, 235), (420, 90)),
        text(430, 168, "drafts a block of tokens", "small"),
        arrow((510, 55), (790, 55), (790, 125)),
        text(524, 30, "accepts the likely prefix and", "small"),
        text(524, 47, "resamples the first rejected token", "small"),
        arrow((790, 195), (790, 270), (510, 270)),
        text(524, 290, "learns the teacher's distribution", "small"),
        text(524, 307, "at every token of the text", "small"),
        '<path class="axis" stroke-dasharray="3 5" d="M20 335 940 335"/>',
        text(20, 384, "afterwards", "bold"),
        box(120, 353, 100, 52, "question"),
        arrow((220, 379), (330, 379)),
        box(330, 353, 180, 52, "student", color="green"),
        arrow((510, 379), (640, 379)),
        box(640, 353, 300, 52, "answer", "without the knowledge"),
    ]
    return svg(960, 420, "Who reads what and who writes what", parts)


def curves(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Marks after so many steps, a line an arm: the mean of its runs, and a dot a run.

    Args:
        arms: of each arm its runs, whose `curve` has points with `step`, `new` and `general`, marks as fractions of 1.
    """
    panels = {"new": "new facts answered, closed-book", "general": "general questions, not to be forgotten"}
    last = max(point["step"] for runs in arms.values() for run in runs for point in run["curve"])
    width, height, parts = 370, 210, []
    for number, (score, title) in enumerate(panels.items()):
        left, top = 60 + number * 470, 44
        parts.append(text(left, 24, title, "bold"))
        for share in (0, 0.25, 0.5, 0.75, 1):
            y = top + height * (1 - share)
            parts.append(f'<path class="axis" opacity="{0.25 if share else 1}" d="M{left} {y:g}h{width}"/>')
            parts.append(text(left - 8, y + 5, f"{share:.0%}", "small", "end"))
        for step in sorted({p["step"] for runs in arms.values() for p in runs[0]["curve"]} - {last}) + [last]:
            if step == last or last - step >= last / 8:
                x = left + width * step / last
                parts.append(text(x, top + height + 20, str(step), "small", "middle"))
        parts.append(text(left + width / 2, top + height + 38, "steps", "small", "middle"))
        for place, runs in enumerate(arms.values()):
            color, dashed = COLORS[place % len(COLORS)], ' stroke-dasharray="6 4"' * (place >= len(COLORS))
            places = [
                [(left + width * p["step"] / last, top + height * (1 - p[score])) for p in run["curve"]]
                for run in runs
            ]
            mean = [(at[0][0], sum(y for _, y in at) / len(at)) for at in zip(*places)]
            path = " ".join(f"{x:.1f} {y:.1f}" for x, y in mean)
            parts.append(f'<path class="curve {color}"{dashed} d="M{path}"/>')
            parts += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="var(--{color})"/>'
                for line in places
                for x, y in line
            ]
    x = 60.0
    for place, name in enumerate(arms):
        color, dashed = COLORS[place % len(COLORS)], ' stroke-dasharray="6 4"' * (place >= len(COLORS))
        parts.append(f'<path class="curve {color}"{dashed} d="M{x:g} 318h28"/>')
        parts.append(text(x + 36, 323, name))
        x += 70 + 8 * len(name)
    return svg(920, 340, "What a real model learns and keeps, by steps", parts)
