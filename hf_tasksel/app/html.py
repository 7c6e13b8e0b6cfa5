"""The pieces of the page as HTML; everything that comes from data is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from .explorer import Answer, Move

STYLE = """
.ts-loss {font-size: 2.6rem; font-weight: 600; line-height: 1.1}
.ts-quiet {opacity: .75}
table.ts-table {width: 100%; border: none !important; border-collapse: collapse; font-size: .95rem; margin: 0}
table.ts-table th {text-align: left; font-size: .85rem; font-weight: 600; opacity: .75; font-family: inherit}
table.ts-table td, table.ts-table th {padding: .25rem .4rem !important; vertical-align: top; border: none !important}
table.ts-table tr {border-bottom: 1px solid rgba(128, 128, 128, .2) !important}
table.ts-table td.number {text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums}
table.ts-table td.name {overflow-wrap: anywhere}
#ts-ticks {max-height: 40rem; overflow-y: auto}
@media (max-width: 600px) {.ts-wide {display: none} #ts-ticks {max-height: 22rem}}
.ts-bar {position: relative; height: .8rem; min-width: 5rem; background: rgba(128, 128, 128, .15)}
.ts-bar span {position: absolute; top: 0; bottom: 0}
.ts-helps {background: #2f7d4f}
.ts-hurts {background: #c2571a}
.ts-scroll {max-height: 32rem; overflow-y: auto}
"""


def answer_html(answer: Answer, target: str, loss_on_all: float | None, selected: float | None) -> str:
    """The estimate, its interval, and how it lies to all tasks and to the selection."""
    if answer.loss is None:
        return '<p class="ts-quiet">Tick a task to see what training on it would give.</p>'
    lines = [
        f'<div class="ts-quiet">estimated loss of {escape(target)}, nats per token</div>',
        f'<div class="ts-loss" id="ts-loss">{answer.loss:.4f}</div>',
    ]
    if answer.low is not None:
        lines.append(f"<div>90 % of fine-tunes between {answer.low:.4f} and {answer.high:.4f}</div>")
    else:
        lines.append("<div>how sure it is, is not known: no true fine-tune, one dev row</div>")
    beside = [("all tasks", loss_on_all), ("the selection", selected)]
    words = [f"{name} {loss:.4f} ({answer.loss - loss:+.4f})" for name, loss in beside if loss is not None]
    lines.append(f'<div class="ts-quiet">beside {escape(", ".join(words))}</div>' if words else "")
    lines.append(f'<div class="ts-quiet">{answer.rows:,} rows, {answer.tokens:,} answer tokens an epoch</div>')
    return "\n".join(lines)


def moves_html(moves: Sequence[Move], notes: dict[str, str]) -> str:
    """One line per task: what it adds to the loss, or takes from it, beside the ticked ones."""
    if not moves:
        return ""
    largest = max(abs(move.difference) for move in moves) or 1.0
    rows = []
    for move in moves:
        share = 50 * abs(move.difference) / largest
        side = f"right: 50%; width: {share:.1f}%" if move.difference < 0 else f"left: 50%; width: {share:.1f}%"
        kind = "ts-helps" if move.difference < 0 else "ts-hurts"
        std = "" if move.std is None else f" ± {move.std:.4f}"
        note = f' <span class="ts-quiet">{escape(notes[move.task])}</span>' if notes.get(move.task) else ""
        rows.append(
            f'<tr><td>{"✓" if move.ticked else ""}</td><td class="name">{escape(move.task)}{note}</td>'
            f'<td class="number">{move.difference:+.4f}{std}</td>'
            f'<td class="ts-wide"><div class="ts-bar"><span class="{kind}" style="{side}"></span></div></td></tr>'
        )
    head = "<tr><th></th><th>task</th><th>with it minus without it</th><th class='ts-wide'>helps · hurts</th></tr>"
    return f'<div class="ts-scroll"><table class="ts-table">{head}{"".join(rows)}</table></div>'


def nearest_html(runs: Sequence[tuple[list[str], float, int]]) -> str:
    """The true fine-tunes that are nearest to what is ticked."""
    if not runs:
        return '<p class="ts-quiet">No subset was really fine-tuned yet: <code>hf-tasksel verify</code> does.</p>'
    rows = "".join(
        f'<tr><td class="number">{loss:.4f}</td><td class="number">{differ}</td>'
        f'<td class="name">{escape(", ".join(tasks))}</td></tr>'
        for tasks, loss, differ in runs
    )
    head = "<tr><th>measured loss</th><th>tasks that differ</th><th>fine-tuned on</th></tr>"
    return f'<div class="ts-scroll"><table class="ts-table">{head}{rows}</table></div>'


def rows_html(rows: Sequence[tuple[str, str]]) -> str:
    """Prompts and answers of a task."""
    parts = [
        f"<tr><td class='name'><pre style='white-space: pre-wrap'>{escape(prompt)}</pre></td>"
        f"<td class='name'><pre style='white-space: pre-wrap'>{escape(completion)}</pre></td></tr>"
        for prompt, completion in rows
    ]
    return f'<table class="ts-table"><tr><th>prompt</th><th>what is learned</th></tr>{"".join(parts)}</table>'
