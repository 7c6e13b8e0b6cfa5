"""The page itself, in Gradio: ticks and weights on one side, what the run's estimates say of them on the other."""

from __future__ import annotations

import tempfile
from html import escape
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError, TaskSelectionError
from ..report.plots import plot_affinity, plot_path
from .explorer import Explorer
from .html import STYLE, answer_html, moves_html, nearest_html, rows_html

SHOWN_CONFIGURATION = 120  # lines, before it scrolls
USE = """Save this as `chosen.yaml`. Then `hf-tasksel fine-tune chosen.yaml` trains on these tasks and measures what
came of it, and `hf-tasksel export chosen.yaml` writes their rows and a mixture for `trl sft`. Weights are left out."""


def import_gradio() -> Any:
    """Import Gradio.

    Raises:
        ConfigError: saying how to install it.
    """
    try:
        import gradio
    except ImportError:
        raise ConfigError("the page needs Gradio: pip install hf_tasksel[app]") from None
    return gradio


def make_page(explorer: Explorer) -> Any:
    """Return the page of a run as `gradio.Blocks`."""
    gr = import_gradio()
    facts, names = explorer.facts(), explorer.names
    start = facts["selected"] or names
    labels = [(f"{name} · {explorer.notes[name]}" if explorer.notes.get(name) else name, name) for name in names]
    with gr.Blocks(title=f"What helps {explorer.target}?", analytics_enabled=False) as page:
        gr.HTML(f"<style>{STYLE}</style>")
        gr.Markdown(heading(facts))
        answer = gr.HTML(elem_id="ts-answer")
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                with gr.Row():
                    everything = gr.Button("All", size="sm", min_width=60)
                    selection = gr.Button("Selection", size="sm", min_width=60, interactive=bool(facts["selected"]))
                    nothing = gr.Button("None", size="sm", min_width=60)
                ticks = gr.CheckboxGroup(labels, value=start, label="train on", elem_id="ts-ticks")
                with gr.Accordion("Weights", open=False):
                    gr.Markdown("1 is every row once. Only ticked tasks count.")
                    weights = gr.Dataframe(
                        [[name, 1.0] for name in names],
                        headers=["task", "weight"],
                        datatype=["str", "number"],
                        interactive=True,
                        static_columns=[0],
                        show_label=False,
                        elem_id="ts-weights",
                    )
            with gr.Column(scale=3, min_width=300), gr.Tabs():
                with gr.Tab("What each task does"):
                    moves = gr.HTML()
                with gr.Tab("Nearest true fine-tunes"):
                    nearest = gr.HTML()
                with gr.Tab("Use it"):
                    gr.Markdown(USE)
                    configuration = gr.Code(language="yaml", show_label=False, max_lines=SHOWN_CONFIGURATION)
                with gr.Tab("Rows"):
                    task = gr.Dropdown(names, value=names[0], label="task")
                    rows = gr.HTML()
                    gr.Button("Show", size="sm").click(lambda name: examples(explorer, name), task, rows)
                for title, picture in pictures(explorer):
                    with gr.Tab(title):
                        gr.Image(str(picture), show_label=False, interactive=False)
        shown = [answer, moves, nearest, configuration]
        for event in (ticks.change, weights.change, page.load):
            event(lambda *inputs: react(explorer, facts, *inputs), [ticks, weights], shown, show_progress="hidden")
        everything.click(lambda: names, None, ticks)
        selection.click(lambda: facts["selected"], None, ticks)
        nothing.click(list, None, ticks)
    return page


def heading(facts: dict[str, Any]) -> str:
    """Say what the page is about and how far to trust it."""
    runs = facts["true_runs"]
    known = f"calibrated with {runs} true fine-tunes" if runs else "not calibrated with true fine-tunes yet"
    return (
        f"## Which of {facts['tasks']} tasks help {facts['target']}?\n"
        f"Estimates of the loss after fine-tuning {facts['base']} on what is ticked: {known}; their source: "
        f"{facts['source']}. No model is loaded."
    )


def react(explorer: Explorer, facts: dict[str, Any], ticks: list[str], table: Any) -> tuple[str, str, str, str]:
    """Return everything that changes with a tick or a weight, as HTML and YAML."""
    given = dict(zip(table["task"], table["weight"], strict=True))
    try:
        chosen = {name: float(given.get(name, 1.0)) for name in ticks}
        answer = explorer.answer(chosen)
        text = explorer.configuration(chosen) if answer.loss is not None else ""
    except (TaskSelectionError, ValueError) as error:
        return f"<p>{escape(str(error))}</p>", "", "", ""
    return (
        answer_html(answer, explorer.target, facts["loss_on_all"], facts["loss_selected"]),
        moves_html(explorer.moves(chosen), explorer.notes),
        nearest_html(explorer.nearest(chosen)),
        text,
    )


def examples(explorer: Explorer, task: str) -> str:
    """Return some rows of a task as HTML, or why there are none."""
    try:
        return rows_html(explorer.rows(task))
    except (TaskSelectionError, OSError) as error:
        return f"<p>The rows are not in reach: {escape(str(error))}</p>"


def pictures(explorer: Explorer) -> list[tuple[str, Path]]:
    """Draw what does not change: the affinity of the tasks, and the path of the search."""
    folder, found = Path(tempfile.mkdtemp(prefix="hf-tasksel-app-")), []
    if explorer.files.affinity is not None:
        plot_affinity(explorer.files.affinity, folder / "affinity.png")
        found.append(("Affinity", folder / "affinity.png"))
    selection = explorer.files.selection
    if selection is not None and len(selection.path) > 1:
        plot_path(selection, folder / "path.png")
        found.append(("Search path", folder / "path.png"))
    return found


def launch(folder: str | Path, host: str = "127.0.0.1", port: int | None = None) -> None:
    """Serve the page of a run's folder until it is interrupted; on this machine alone unless a host is given.

    Raises:
        TaskSelectionError: when the folder is not that of a run, or Gradio is not installed.
    """
    page = make_page(Explorer(folder))
    page.launch(server_name=host, server_port=port, share=False, quiet=False)
