"""How far to trust estimates: estimated against true losses, beside the constant predictor and the noise ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from scipy.stats import rankdata

from ..core.errors import DataError

RESAMPLES = 1000
UNPREDICTABLE = 0.1  # share of the variance that is between seeds
LEVEL = 0.9
FEWEST = 8  # subsets that a verdict needs


@dataclass(frozen=True)
class Fidelity:
    """Agreement of estimates with true fine-tunes over a set of subsets.

    Attributes:
        num_subsets: how many subsets were really fine-tuned.
        spearman, pearson: correlation of estimates with true losses.
        relative_error: mean of |estimate − truth| ÷ |truth|; `relative_error_p90` its 90th percentile.
        r2: share of the variance of true losses that estimates explain; negative when their mean explains more.
        constant_error: the mean relative error of the constant predictor, the mean of the other true losses.
        regret: true loss of the subset with the lowest estimate, minus the lowest true loss, nats per token.
        coverage: share of single fine-tunes inside the 90 % intervals, where estimates came with standard deviations.
        ceiling_spearman, ceiling_pearson, ceiling_error: agreement of one seed of the true fine-tunes with another.
        attainable_spearman, attainable_pearson: what an estimator that is right about every mean over all seeds would
            reach here: its correlation with the mean of s seeds that correlate by r is √(s r ÷ (1 + (s − 1) r))
            (Spearman–Brown).
        seed_share: share of the variance of single fine-tunes' losses that is between seeds of one subset; above a
            tenth, where seeds spread a third as much as subsets, the fine-tunes themselves are hard to predict.
        intervals: 90 % bootstrap intervals over subsets, by the name of the figure.
        verdict: in words.
    """

    num_subsets: int
    spearman: float
    pearson: float
    relative_error: float
    relative_error_p90: float
    r2: float
    constant_error: float
    regret: float
    coverage: float | None
    ceiling_spearman: float | None
    ceiling_pearson: float | None
    ceiling_error: float | None
    attainable_spearman: float | None
    attainable_pearson: float | None
    seed_share: float | None = None
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    verdict: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def measure_fidelity(
    estimates: Sequence[float] | np.ndarray,
    true_losses: Sequence[Any] | np.ndarray,
    std: Sequence[float] | np.ndarray | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Fidelity:
    """Compare estimates with true losses of the same subsets.

    Args:
        estimates: (m,) estimated losses.
        true_losses: (m,) losses of true fine-tunes, or (m, s) with one column per seed, whose mean is the truth.
        std: (m,) standard deviations of the estimates, for the coverage of their 90 % intervals.
        seed: of the bootstrap.
        resamples: of the bootstrap, for `intervals`.

    Raises:
        DataError: for fewer than 3 subsets, different lengths, or numbers that are not finite.
    """
    e, table = np.asarray(estimates, dtype=float), np.asarray(true_losses, dtype=float)
    table = table[:, None] if table.ndim == 1 else table
    spread = None if std is None else np.asarray(std, dtype=float)
    if e.ndim != 1 or len(e) < 3 or len(table) != len(e) or (spread is not None and spread.shape != e.shape):
        raise DataError(f"fidelity needs at least 3 subsets and equal lengths, not {e.shape} and {table.shape}")
    if not all(np.isfinite(x).all() for x in (e, table, *([] if spread is None else [spread]))):
        raise DataError("fidelity needs finite estimates and losses")
    t = table.mean(1)
    figures = agreement(e, t)
    constant_error = float(np.mean(np.abs(leave_one_out_means(t) - t) / np.abs(t)))
    rng = np.random.default_rng(seed)
    draws = [agreement(e[i], t[i]) for i in rng.integers(len(e), size=(resamples, len(e)))]
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    intervals = {k: np.quantile([draw[k] for draw in draws], tails).tolist() for k in figures}
    inside = None if spread is None else np.abs(table - e[:, None]) <= 1.645 * spread[:, None]
    return Fidelity(
        num_subsets=len(t),
        **figures,
        constant_error=constant_error,
        coverage=None if inside is None else float(inside.mean()),
        **noise_ceiling(table),
        intervals={k: (low, high) for k, (low, high) in intervals.items()},
        verdict=verdict(figures["spearman"], len(t), values_hold(e, t, seed)),
    )


def calibrated_with(true_runs: int) -> str:
    """Say what estimates are calibrated with, and when that is too little to rely on."""
    few = f", too few to tell whether that helps: verify {FEWEST} subsets or more" if true_runs < FEWEST else ""
    return f"calibrated with {true_runs} true fine-tunes{few}"


def noise_ceiling(table: np.ndarray) -> dict[str, Any]:
    """Return the ceilings of `Fidelity` for losses (m, s), means over pairs of seeds; None for a single seed."""
    seeds = table.shape[1]
    pairs = [agreement(table[:, i], table[:, j]) for i in range(seeds) for j in range(i)]
    if not pairs:
        names = [f"ceiling_{name}" for name in ("spearman", "pearson", "error")]
        return dict.fromkeys([*names, "attainable_spearman", "attainable_pearson", "seed_share"])
    mean = {name: float(np.mean([pair[name] for pair in pairs])) for name in pairs[0]}
    attainable = {
        f"attainable_{name}": float(np.sqrt(seeds * r / (1 + (seeds - 1) * r)))
        for name in ("spearman", "pearson")
        for r in [max(mean[name], 0.0)]
    }
    ceilings = {f"ceiling_{name}": mean[name] for name in ("spearman", "pearson")}
    return {**ceilings, "ceiling_error": mean["relative_error"], **attainable, "seed_share": seed_share(table)}


def seed_share(table: np.ndarray) -> float:
    """Return the share of `Fidelity` for losses (m, s) of two seeds or more."""
    within = float(table.var(1, ddof=1).mean())
    between = max(float(table.mean(1).var(ddof=1)) - within / table.shape[1], 0.0)
    return within / (within + between) if within else 0.0


def predictability(figures: Fidelity) -> str | None:
    """Say that fine-tunes of the same subset differ too much for any estimate, and what to change; None if not."""
    if figures.seed_share is None or figures.seed_share <= UNPREDICTABLE:
        return None
    return (
        f"{figures.seed_share:.0%} of what single fine-tunes differ by is chance, the same subset with another seed: "
        f"whatever estimates them, a rank correlation of {figures.attainable_spearman:.2f} is the best to be had. "
        "Larger batches, a lower learning rate with warm-up, or more steps make them repeatable"
    )


def agreement(e: np.ndarray, t: np.ndarray) -> dict[str, float]:
    """Return the figures of `Fidelity` that two rows of numbers give."""
    errors = np.abs(e - t) / np.abs(t)
    spread = float(np.sum((t - t.mean()) ** 2))
    return {
        "spearman": correlation(rankdata(e), rankdata(t)),
        "pearson": correlation(e, t),
        "relative_error": float(errors.mean()),
        "relative_error_p90": float(np.quantile(errors, 0.9)),
        "r2": 1 - float(np.sum((e - t) ** 2)) / spread if spread > 0 else 0.0,
        "regret": float(t[np.argmin(e)] - t.min()),
    }


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Return Pearson's correlation coefficient, 0 where one side is constant."""
    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(np.corrcoef(a, b)[0, 1])


def leave_one_out_means(t: np.ndarray) -> np.ndarray:
    """Return, for each entry, the mean of the others: what one predicts without an estimator."""
    return (t.sum() - t) / (len(t) - 1)


def values_hold(e: np.ndarray, t: np.ndarray, seed: int) -> bool:
    """Say whether errors are at most half of the constant predictor's, and surely smaller (95 %, paired bootstrap)."""
    errors, constant = np.abs(e - t) / np.abs(t), np.abs(leave_one_out_means(t) - t) / np.abs(t)
    draws = np.random.default_rng(seed).integers(len(e), size=(RESAMPLES, len(e)))
    worst = np.quantile((errors - constant)[draws].mean(1), 0.95)
    return bool(worst < 0 and errors.mean() <= constant.mean() / 2)


def verdict(spearman: float, num_subsets: int, values: bool) -> str:
    """Say in words what the numbers allow; a rank correlation below twice its standard error counts for nothing."""
    if num_subsets < FEWEST:
        return f"{num_subsets} subsets are too few to tell: verify {FEWEST} or more"
    if spearman < max(0.3, 2 / np.sqrt(num_subsets - 1)):
        return "do not trust: the ranking is not clearly better than chance"
    if values:
        return "trust the ranking and the values"
    return "trust the ranking, not the values"
