"""How far to trust estimates: estimated against true losses, beside the constant predictor and the noise ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr

from ..errors import DataError


@dataclass(frozen=True)
class Fidelity:
    """Agreement of estimates with true fine-tunes over a set of subsets.

    Attributes:
        num_subsets: how many subsets were really fine-tuned.
        spearman, pearson: correlation of estimates with true losses.
        relative_error: mean of |estimate − truth| / truth; `relative_error_p90` its 90th percentile.
        constant_error: the same mean error for the constant predictor, the mean of the other true losses.
        regret: true loss of the subset with the lowest estimate, minus the lowest true loss, nats per token.
        ceiling_spearman, ceiling_pearson, ceiling_error: the same between two seeds of the true fine-tunes, when
            given.
        verdict: in words.
    """

    num_subsets: int
    spearman: float
    pearson: float
    relative_error: float
    relative_error_p90: float
    constant_error: float
    regret: float
    ceiling_spearman: float | None
    ceiling_pearson: float | None
    ceiling_error: float | None
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def measure_fidelity(
    estimates: Sequence[float] | np.ndarray,
    true_losses: Sequence[float] | np.ndarray,
    second_seed: Sequence[float] | np.ndarray | None = None,
) -> Fidelity:
    """Compare estimates with true losses of the same subsets.

    Args:
        estimates: (m,) estimated losses.
        true_losses: (m,) losses of true fine-tunes.
        second_seed: (m,) losses of the same fine-tunes with another seed, for the noise ceiling.

    Raises:
        DataError: for fewer than 3 subsets, different lengths, or numbers that are not finite.
    """
    e, t = np.asarray(estimates, dtype=float), np.asarray(true_losses, dtype=float)
    second = None if second_seed is None else np.asarray(second_seed, dtype=float)
    if len(e) < 3 or e.shape != t.shape or (second is not None and second.shape != t.shape):
        raise DataError(f"fidelity needs at least 3 subsets and equal lengths, not {e.shape} and {t.shape}")
    if not (np.isfinite(e).all() and np.isfinite(t).all() and (second is None or np.isfinite(second).all())):
        raise DataError("fidelity needs finite estimates and losses")
    errors = np.abs(e - t) / np.abs(t)
    others = (t.sum() - t) / (len(t) - 1)
    constant = float(np.mean(np.abs(others - t) / np.abs(t)))
    spearman = correlation(spearmanr, e, t)
    return Fidelity(
        num_subsets=len(t),
        spearman=spearman,
        pearson=correlation(pearsonr, e, t),
        relative_error=float(errors.mean()),
        relative_error_p90=float(np.quantile(errors, 0.9)),
        constant_error=constant,
        regret=float(t[np.argmin(e)] - t.min()),
        ceiling_spearman=None if second is None else correlation(spearmanr, t, second),
        ceiling_pearson=None if second is None else correlation(pearsonr, t, second),
        ceiling_error=None if second is None else float(np.mean(np.abs(second - t) / np.abs(t))),
        verdict=verdict(spearman, float(errors.mean()), constant, len(t)),
    )


def correlation(measure: Any, a: np.ndarray, b: np.ndarray) -> float:
    """Return a correlation coefficient, 0 where one side is constant."""
    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(measure(a, b).statistic)


def verdict(spearman: float, error: float, constant: float, num_subsets: int) -> str:
    """Say in words what the numbers allow; a rank correlation below twice its standard error counts for nothing."""
    if spearman < max(0.3, 2 / np.sqrt(num_subsets - 1)):
        return "do not trust: the ranking is not clearly better than chance"
    if error < constant:
        return "trust the ranking and the values"
    return "trust the ranking, not the values"
