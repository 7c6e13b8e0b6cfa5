"""`hf-tasksel verify`: true fine-tunes of a few subsets against their estimates, and what trust they deserve."""

from __future__ import annotations

import numpy as np

from ..core.errors import ConfigError
from ..core.files import write_json
from ..estimation.comparison import Verification, compare
from ..estimation.estimator import SubsetEstimator
from ..estimation.subsets import num_subsets, random_halves, random_subsets
from ..records.estimates_table import ESTIMATES_FILE, write_verified
from ..records.estimator import calibrate_from_folder, fit_run_estimator
from ..records.files import VERIFICATION_FILE
from ..records.true_runs import true_losses
from ..selection.result import SelectionResult
from .context import Run
from .pipeline import select
from .showing import show
from .true_runs import FIRST_SEED, true_runs

CHOICES = ("random", "unsure")
DEFAULT_COUNT = 20


def verify(
    run: Run, count: int | None = None, *, seeds: int = 1, processes: int | None = None, choose: str = "random"
) -> Verification:
    """Really fine-tune some subsets, and compare.

    What was trained before is used again: more subsets or seeds only add fine-tunes. The estimates of the run are
    calibrated with all of them from then on (`records.estimator.calibrate_from_folder`); the figures are about the
    subsets of this call.

    Args:
        run: a run; stages that are missing are done first.
        count: how many subsets, at least 3; None: 20, or all where there are not so many.
        seeds: fine-tunes of each; two or more also measure the noise ceiling.
        processes: fine-tunes at the same time; see `true_runs`.
        choose: `random` subsets of a quarter, a half and three quarters of the tasks, which is what fidelity should be
            measured on, or `unsure`: the selection and its nearest rivals, which is what the decision hangs on.

    Raises:
        ConfigError: for fewer than 3 subsets or more than there are, no seed, or an unknown choice.
    """
    names = run.materials.splits.task_names
    count = min(DEFAULT_COUNT, num_subsets(names)) if count is None else count
    if count < 3 or seeds < 1 or choose not in CHOICES:
        raise ConfigError(f"verify needs at least 3 subsets, 1 seed, and a choice of {list(CHOICES)}")
    drawn = random_subsets(names, count) if choose == "random" else []  # refused before any work
    selection = select(run)
    estimator = fit_run_estimator(run.output_dir, run.config)
    calibrate_from_folder(estimator, run.output_dir, run.config)
    chosen = drawn or rivals(estimator, selection, count)
    runs = true_runs(run, chosen, range(FIRST_SEED, FIRST_SEED + seeds), processes=processes)
    subsets = [same[0].tasks for same in runs]
    earlier = zip(*true_losses(run.output_dir, run.config), strict=True)
    others = [(tasks, losses) for tasks, losses in earlier if tasks not in subsets]
    result = compare(
        estimator,
        subsets,
        [[r.dev_loss for r in same] for same in runs],
        ([tasks for tasks, _ in others], [losses for _, losses in others]),
    )
    write_json(run.output_dir / VERIFICATION_FILE, result.to_dict())
    write_verified(run.output_dir, result)
    run.record.keep(run.output_dir / VERIFICATION_FILE, run.output_dir / ESTIMATES_FILE)
    show(run, "verify")
    return result


def rivals(estimator: SubsetEstimator, selection: SelectionResult, count: int) -> list[list[str]]:
    """Return the subsets where the selection's decision is least sure, the selection itself first.

    Candidates differ from the selection in one task, or are on its search path, or are random halves; the least sure
    are those whose estimates lie nearest to the selection's, measured in standard deviations.
    """
    names = estimator.task_names_
    flips = [set(selection.selected) ^ {name} for name in names]
    halves = [{names[i] for i in np.flatnonzero(row)} for row in random_halves(len(names))]
    candidates = [*flips, *(set(step.tasks) for step in selection.path), *halves]
    unique = list(dict.fromkeys(tuple(n for n in names if n in c) for c in candidates if c))
    unique = [u for u in unique if set(u) != set(selection.selected)]
    mean, std = estimator.predict_difference(unique, [selection.selected] * len(unique))
    doubt = np.abs(mean) / (std + 1e-12)
    order = np.argsort(doubt, kind="stable")[: count - 1]
    return [selection.selected, *(list(unique[i]) for i in order)]
