"""What a run has before it, said at its start, and how long that takes, once meta training was timed."""

from __future__ import annotations

from ..gradients.row_sampling import most_rows, rows_in_words
from .context import Run
from .displacing import row_counts
from .plan import readable_seconds
from .probe_plan import run_plan
from .training_steps import samples_per_step, training_steps


def work_ahead(run: Run) -> dict[str, tuple[str, float]]:
    """Return of each stage, in their order, what it does, in words, and about what it costs, in meta trainings.

    A row costs the same in every stage; the search costs nothing. Of what estimates may ask, the most is counted.
    """
    config, materials = run.config, run.materials
    rows = materials.tokenized
    whole = training_steps(materials.meta_args, len(rows["train"]))
    seen = whole * samples_per_step(materials.meta_args)
    passes, limit = len(set(map(str, config.gradients.checkpoints))), config.gradients.max_rows_per_task
    counts, dev = row_counts(run), len(rows["dev"])
    final = training_steps(materials.final_args, len(rows["train"])) * samples_per_step(materials.final_args) / seen
    probes = run_plan(config, materials.final_args, counts, dev)
    compared = "all" in config.compare_with
    alone = "target" in config.compare_with
    others = [name for name, wanted in (("all tasks", compared), ("the target alone", alone)) if wanted]
    also = f" and, to compare, on {' and on '.join(others)}" if others else ""
    names, target = materials.splits.task_names, config.target.task
    own = counts[names.index(target)] / counts.sum() if target in names and config.budget == "epochs" else 1.0
    on_all = probes is not None and probes.trains_all
    return {
        "meta-train": (f"meta training ({whole:,} steps on all tasks)", 1.0),
        "collect": (
            f"{passes} gradient {'pass' if passes == 1 else 'passes'} ({rows_in_words(counts, limit, dev)})",
            passes * (most_rows(counts, limit) + dev) / seen,
        ),
        "probe": ("what estimates ask", final * (probes.training_cost + probes.asking_cost) if probes else 0.0),
        "select": ("the search", 0.0),
        "fine-tune": (f"fine-tuning on the selection{also}", final * (1 + (compared and not on_all) + alone * own)),
    }


def up_to(run: Run, last: str) -> list[tuple[str, float]]:
    """Return what `work_ahead` says of the stages up to one, that one included."""
    ahead = work_ahead(run)
    return list(ahead.values())[: list(ahead).index(last) + 1]


def outlook(run: Run, last: str) -> str:
    """Say what a run does up to a stage, and what it costs beside meta training."""
    work, costs = zip(*up_to(run, last), strict=True)
    return f"ahead: {', '.join(work)}; about {sum(costs):.1f} x the time of meta training"


def time_left(run: Run, last: str, seconds: float) -> str:
    """Say how long the stages after meta training take up to one, when that took so many seconds."""
    rest = seconds * sum(cost for _, cost in up_to(run, last)[1:])
    return f"meta training took {readable_seconds(seconds)}; the rest takes about {readable_seconds(rest)}"
