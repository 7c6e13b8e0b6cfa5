"""How far to trust estimates: estimated against true losses, beside the constant predictor and the noise ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from ..errors import DataError

RESAMPLES = 1000
LEVEL = 0.9


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
        coverage: share of true losses inside the 90 % intervals, where estimates came with standard deviations.
        ceiling_spearman, ceiling_pearson, ceiling_error: the same between two seeds of the true fine-tunes, when
            given. What no estimator can beat by much.
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
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    verdict: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def measure_fidelity(
    estimates: Sequence[float] | np.ndarray,
    true_losses: Sequence[float] | np.ndarray,
    second_seed: Sequence[float] | np.ndarray | None = None,
    std: Sequence[float] | np.ndarray | None = None,
    seed: int = 0,
) -> Fidelity:
    """Compare estimates with true losses of the same subsets.

    Args:
        estimates: (m,) estimated losses.
        true_losses: (m,) losses of true fine-tunes; the mean over two seeds when `second_seed` is given.
        second_seed: (m,) losses of the same fine-tunes with another seed, for the noise ceiling.
        std: (m,) standard deviations of the estimates, for the coverage of their 90 % intervals.
        seed: of the bootstrap.

    Raises:
        DataError: for fewer than 3 subsets, different lengths, or numbers that are not finite.
    """
    e, first = np.asarray(estimates, dtype=float), np.asarray(true_losses, dtype=float)
    others = [np.asarray(x, dtype=float) for x in (second_seed, std) if x is not None]
    if len(e) < 3 or e.shape != first.shape or any(x.shape != e.shape for x in others):
        raise DataError(f"fidelity needs at least 3 subsets and equal lengths, not {e.shape} and {first.shape}")
    if not all(np.isfinite(x).all() for x in (e, first, *others)):
        raise DataError("fidelity needs finite estimates and losses")
    second = None if second_seed is None else np.asarray(second_seed, dtype=float)
    t = first if second is None else (first + second) / 2
    figures = agreement(e, t)
    constant = leave_one_out_means(t)
    ceiling = dict.fromkeys(("spearman", "pearson", "relative_error")) if second is None else agreement(second, first)
    rng = np.random.default_rng(seed)
    draws = [agreement(e[i], t[i]) for i in rng.integers(len(e), size=(RESAMPLES, len(e)))]
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    intervals = {k: np.quantile([draw[k] for draw in draws], tails).tolist() for k in figures}
    constant_error = float(np.mean(np.abs(constant - t) / np.abs(t)))
    inside = None if std is None else np.abs(e - t) <= 1.645 * np.asarray(std, dtype=float)
    return Fidelity(
        num_subsets=len(t),
        **figures,
        constant_error=constant_error,
        coverage=None if inside is None else float(inside.mean()),
        ceiling_spearman=ceiling["spearman"],
        ceiling_pearson=ceiling["pearson"],
        ceiling_error=ceiling["relative_error"],
        intervals={k: (low, high) for k, (low, high) in intervals.items()},
        verdict=verdict(figures["spearman"], figures["relative_error"], constant_error, len(t)),
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


def verdict(spearman: float, error: float, constant: float, num_subsets: int) -> str:
    """Say in words what the numbers allow; a rank correlation below twice its standard error counts for nothing."""
    if spearman < max(0.3, 2 / np.sqrt(num_subsets - 1)):
        return "do not trust: the ranking is not clearly better than chance"
    if error < constant:
        return "trust the ranking and the values"
    return "trust the ranking, not the values"


def plot_fidelity(
    estimates: Sequence[float] | np.ndarray,
    true_losses: Sequence[float] | np.ndarray,
    path: str | Path,
    second_seed: Sequence[float] | np.ndarray | None = None,
) -> None:
    """Draw estimated over true losses into a PNG file, with the difference of two seeds as a band."""
    from ..plots import plot_estimated_against_true

    t = np.asarray(true_losses, dtype=float)
    ceiling = None
    if second_seed is not None:
        second = np.asarray(second_seed, dtype=float)
        ceiling, t = float(np.abs(second - t).mean()), (t + second) / 2
    plot_estimated_against_true(np.asarray(estimates).tolist(), t.tolist(), path, ceiling)
