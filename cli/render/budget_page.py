"""The page of ``quantize --report``: one HTML file with inline SVG, nothing loaded from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from .text import size

if TYPE_CHECKING:
    from ...formats.ggml_types import GgmlType
    from ...runtime.budget_plan import BudgetPlan, Point

WIDTH, HEIGHT, MARGIN = 760, 420, 60
SMALLEST = 1e-4  # divergence that is drawn
SLANT = math.radians(50)  # of mixtures' names
NAME_GAP = 12  # pixels between names that stand beside each other
N_LOSS = 15  # matrices whose losses are listed
STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1c2733; --dim: #5b6875; --line: #dde3ea; --curve: #1f6374;
        --mixture: #b33951; --mark: #b57f00; --chosen: #fff4d6; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14191f; --ink: #e3e9ef; --dim: #9aa7b4; --line: #313b46; --curve: #6cc0d3; --mixture: #f08a9b;
          --mark: #ffc94d; --chosen: #3b3113; } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 56rem; padding: 0 1rem;
       color: var(--ink); background: var(--paper); }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2rem; }
svg { max-width: 100%; height: auto; } svg text { font: 12px system-ui, sans-serif; fill: var(--ink); }
svg text.cell { font-size: 10px; } svg text.name { font-size: 11px; }
svg text.bold { font-weight: 600; }
svg text.dim { fill: var(--dim); }
.grid { stroke: var(--line); } .curve { fill: none; stroke: var(--curve); stroke-width: 2; }
.point { fill: var(--curve); } .mixture { fill: var(--mixture); }
.ring { fill: none; stroke: var(--mark); stroke-width: 3; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; } td, th { padding: .15rem .7rem; text-align: right; vertical-align: top;
    border-bottom: 1px solid var(--line); white-space: nowrap; }
td:first-child, th:first-child, td.left, th.left { text-align: left; } td.left { white-space: normal; }
.chosen { font-weight: 600; background: var(--chosen); }
p.small, td.left { color: var(--dim); font-size: .9rem; }
"""
COLOURS = ("#7a2048", "#b33951", "#d9695f", "#eb9b72", "#f2c894", "#d8dbc0", "#a9cbb7", "#6fae9f", "#3f8c8c", "#1f6374")


def budget_page(budget: BudgetPlan) -> str:
    """Return the page."""
    name = escape(budget.plan.checkpoint.path.name)
    chosen = budget.chosen
    parts = [
        f"<h1>{name}: what a budget buys</h1>",
        f"<p>Target: {escape(budget.target.label)}. Chosen: {size(chosen.n_bytes)}, {chosen.bits:.2f} bits a weight,"
        f" estimated divergence {chosen.divergence:.4f}, about {chosen.tokens_s:.0f} tokens a second here.</p>",
        "<h2>Size and divergence</h2>",
        _curve(budget),
        '<p class="small">Mean Kullback-Leibler divergence of the next token from the source, estimated from matrices'
        " tried one by one on a calibration text. Squares: the mixtures of llama-quantize, by the same estimate. In the"
        " table, rows without a name are the best choice of types at that size.</p>",
        _table(budget),
        "<h2>Types that were chosen</h2>",
        _types(budget),
        "<h2>What hurts most</h2>",
        _losses(budget),
    ]
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{name}: what a budget buys</title>'
        f"<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


class _Axes:
    """Pixels of sizes and divergences."""

    def __init__(self, points: Sequence[Point]) -> None:
        sizes, losses = [p.n_bytes for p in points], [max(p.divergence, 1e-9) for p in points]
        self.x_low, self.x_high = 0.97 * min(sizes), 1.03 * max(sizes)
        self.y_low, self.y_high = math.floor(math.log10(min(losses))), math.ceil(math.log10(2 * max(losses)))

    def x(self, n_bytes: float) -> float:
        return MARGIN + (WIDTH - 1.5 * MARGIN) * (n_bytes - self.x_low) / (self.x_high - self.x_low)

    def y(self, loss: float) -> float:
        part = (math.log10(max(loss, 1e-9)) - self.y_low) / max(self.y_high - self.y_low, 1)
        return HEIGHT - MARGIN - (HEIGHT - 1.5 * MARGIN) * part

    def lines(self) -> list[str]:
        """Return grid lines and their labels."""
        result = []
        for power in range(self.y_low, self.y_high + 1):
            y = self.y(10.0**power)
            result.append(f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN / 2}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>')
            result.append(f'<text x="{MARGIN - 8}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
        for n_bytes in round_steps(self.x_low, self.x_high):
            x, y = self.x(n_bytes), HEIGHT - MARGIN
            result.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y}" y2="{y + 5}" class="grid"/>')
            result.append(f'<text x="{x:.1f}" y="{y + 19}" text-anchor="middle">{size(n_bytes)}</text>')
        x, y = (MARGIN + WIDTH - MARGIN / 2) / 2, MARGIN / 2 + (HEIGHT - 1.5 * MARGIN) / 2
        result.append(f'<text x="{x:.1f}" y="{HEIGHT - 14}" text-anchor="middle" class="dim">size of the file</text>')
        turn = f'transform="rotate(-90 12 {y:.1f})"'
        result.append(f'<text x="12" y="{y:.1f}" {turn} text-anchor="middle" class="dim">divergence (nats)</text>')
        return result


def round_steps(low: float, high: float) -> list[float]:
    """Return at most seven multiples of 1, 2 or 5 times a power of ten from ``low`` to ``high``."""
    least = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * k for k in (1, 2, 5, 10) if power * k >= least)
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _curve(budget: BudgetPlan) -> str:
    curve = [p for p in budget.curve if p.divergence >= SMALLEST] or budget.curve
    axes = _Axes([*curve, *budget.mixtures, budget.chosen])
    path = " ".join(f"{axes.x(p.n_bytes):.1f},{axes.y(p.divergence):.1f}" for p in curve)
    parts = [
        *axes.lines(),
        f'<polyline points="{path}" class="curve"/>',
        *(
            f'<circle cx="{axes.x(p.n_bytes):.1f}" cy="{axes.y(p.divergence):.1f}" r="3" class="point">'
            f"<title>{size(p.n_bytes)}, {p.divergence:.5f}</title></circle>"
            for p in curve
        ),
    ]
    last = (-math.inf, 0.0)
    for p in sorted(budget.mixtures, key=lambda p: p.n_bytes):
        x, y = axes.x(p.n_bytes), axes.y(p.divergence)
        parts.append(f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" class="mixture"/>')
        beside = abs((x - last[0]) * math.sin(SLANT) + (y - last[1]) * math.cos(SLANT))  # of the two slanting lines
        if beside < NAME_GAP:  # its neighbour's name would be covered
            parts.append(f'<text x="{x + 8:.1f}" y="{y + 4:.1f}" class="name">{escape(p.name)}</text>')
            continue
        last = (x, y)
        turn = f'transform="rotate(-{math.degrees(SLANT):.0f} {x + 5:.1f} {y - 7:.1f})"'
        parts.append(f'<text x="{x + 5:.1f}" y="{y - 7:.1f}" {turn} class="name">{escape(p.name)}</text>')
    x, y = axes.x(budget.chosen.n_bytes), axes.y(budget.chosen.divergence)
    parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="7" class="ring"/>')
    parts.append(f'<text x="{x - 10:.1f}" y="{y + 18:.1f}" text-anchor="end" class="bold">chosen</text>')
    return _svg(WIDTH, HEIGHT, parts, "Divergence against size")


def _svg(width: float, height: float, parts: Sequence[str], title: str) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}"'
        f' role="img" aria-label="{escape(title)}">\n{body}\n</svg>'
    )


def _table(budget: BudgetPlan) -> str:
    points = [*((p, p.name, "") for p in (*budget.curve, *budget.mixtures)), (budget.chosen, "chosen", "chosen")]
    rows = [
        f'<tr class="{style}"><td>{escape(name)}</td><td>{size(p.n_bytes)}</td><td>{p.bits:.2f}</td>'
        f"<td>{p.divergence:.5f}</td><td>{p.tokens_s:.0f}</td></tr>"
        for p, name, style in sorted(points, key=lambda item: item[0].n_bytes)
    ]
    head = "<tr><th></th><th>size</th><th>bits a weight</th><th>divergence</th><th>tokens/s here</th></tr>"
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'


def _types(budget: BudgetPlan) -> str:
    """Return a map: a row for each layer, a column for each matrix of it, coloured by bits."""
    from ...formats.ggml_types import BLOCK
    from ...quant.file_types import layer_of

    cells: dict[int, dict[str, GgmlType]] = {}
    others: list[tuple[str, GgmlType]] = []
    for tensor in budget.plan.tensors:
        if tensor.source.name not in budget.sensitivities.options:
            continue
        layer, part = layer_of(tensor.source.name), tensor.source.name.split(".")[-2]
        if layer >= 0:
            cells.setdefault(layer, {})[part] = tensor.ggml_type
        else:
            others.append((tensor.source.name, tensor.ggml_type))
    columns = list(dict.fromkeys(part for row in cells.values() for part in row))
    width, height, left, top = 92, 18, 60, 26
    parts = [
        f'<text x="{left + i * width + width / 2}" y="16" text-anchor="middle">{escape(c)}</text>'
        for i, c in enumerate(columns)
    ]
    for j, (layer, row) in enumerate(sorted(cells.items())):
        y = top + j * height
        parts.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{layer}</text>')
        for part, kind in row.items():
            n_weight, n_byte = BLOCK[kind]
            shade = min(len(COLOURS) - 1, max(0, int(1.6 * (8 * n_byte / n_weight - 2.5))))
            colour, ink = COLOURS[shade], "#fff" if shade < 2 or shade > 7 else "#1c2733"
            x = left + columns.index(part) * width
            parts.append(f'<rect x="{x}" y="{y}" width="{width - 2}" height="{height - 2}" fill="{colour}"/>')
            middle = f'x="{x + width / 2 - 1}" y="{y + 12}" text-anchor="middle" class="cell" style="fill:{ink}"'
            parts.append(f"<text {middle}>{kind.name}</text>")
    drawing = _svg(left + width * len(columns), top + height * len(cells) + 4, parts, "Type of every matrix")
    beside = ", ".join(f"{escape(name)}: {kind.name}" for name, kind in others)
    return f"<p>{beside}</p>{drawing}"


def _loss(loss: float) -> str:
    return f"{loss:.2g}" if loss > 1e-9 else "0"


def _losses(budget: BudgetPlan) -> str:
    """Return the matrices that lose most with their types, and what other types would lose."""
    types = {t.source.name: t.ggml_type for t in budget.plan.tensors}
    found = []
    for name, options in budget.sensitivities.options.items():
        loss = next((o.loss for o in options if o.ggml_type is types[name]), 0.0)
        others = ", ".join(f"{o.ggml_type.name} {_loss(o.loss)}" for o in sorted(options, key=lambda o: o.n_bytes))
        found.append((loss, name, types[name].name, others))
    rows = [
        f'<tr><td>{escape(name)}</td><td>{kind}</td><td>{_loss(loss)}</td><td class="left">{others}</td></tr>'
        for loss, name, kind, others in sorted(found, reverse=True)[:N_LOSS]
    ]
    head = "<tr><th>matrix</th><th>type</th><th>divergence</th>"
    head += '<th class="left">with other types</th></tr>'
    return f'<div class="scroll"><table>{head}{"".join(rows)}</table></div>'
