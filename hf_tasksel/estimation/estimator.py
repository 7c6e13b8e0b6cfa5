"""SubsetEstimator: the target loss after fine-tuning on any subset, in CPU seconds per thousand subsets."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from ..errors import ConfigError, DataError, did_you_mean
from ..gradients.store import GradientStore
from .statistics import DevStatistics, dev_statistics
from .surrogates import Surrogate, surrogate_class


class SubsetEstimator(BaseEstimator):
    """Estimates the target loss of any subset of tasks from one or several gradient stores (scikit-learn conventions).

    Args:
        surrogate: registered name of a surrogate, or `default`.
        regularization: λ of the surrogate; its own default if None.

    Attributes:
        task_names_: the n tasks that subsets are made of.
        target_: the target.
        num_dev_samples_: dev samples behind every estimate.

    Example:
        >>> estimator = SubsetEstimator().fit(store, target="strategyqa")  # doctest: +SKIP
        >>> estimator.predict([["gsm8k", "aqua"], ["gsm8k"]])              # doctest: +SKIP
        array([1.042, 1.131])
    """

    def __init__(self, surrogate: str = "default", regularization: float | None = None) -> None:
        self.surrogate = surrogate
        self.regularization = regularization

    def fit(self, store: GradientStore | Sequence[GradientStore], target: str) -> SubsetEstimator:
        """Prepare estimates for one target.

        Args:
            store: a gradient store, or several of the same tasks (meta checkpoints) to average over. Estimates are
                also averaged over the projection seeds of a store.
            target: name of the task whose dev samples are in the store.

        Raises:
            DataError: when the target has no dev samples, or the stores' tasks differ.
            StoreError: when a store lacks the gradients that the surrogate needs.
        """
        stores = [store] if isinstance(store, GradientStore) else list(store)
        if not stores:
            raise DataError("fit needs at least one gradient store")
        self.task_names_ = stores[0].task_names
        for other in stores[1:]:
            if other.task_names != self.task_names_:
                raise DataError(f"{other.path} has other tasks than {stores[0].path}: average stores of one run only")
        cls = surrogate_class(self.surrogate)
        self.expansions_: list[tuple[Surrogate, DevStatistics]] = [
            (cls(self.regularization).fit(s, seed), dev_statistics(s, target, seed))
            for s in stores
            for seed in s.seeds
        ]
        self.target_ = target
        self.num_dev_samples_ = self.expansions_[0][1].num_samples
        return self

    def predict(self, subsets: Sequence[Sequence[str]] | np.ndarray) -> np.ndarray:
        """Estimate target losses.

        Args:
            subsets: m subsets as lists of task names, or an (m, n) array of non-negative task weights (0/1 for
                subsets).

        Returns:
            (m,) estimated dev losses in nats per token.

        Raises:
            ConfigError: for an unknown task name.
            DataError: for an empty subset, or weights that are negative or of the wrong shape.
        """
        check_is_fitted(self)
        weights = torch.from_numpy(self.task_weights(subsets))
        estimates = [dev.loss + surrogate.displacement(weights) @ dev.gradient for surrogate, dev in self.expansions_]
        return torch.stack(estimates).mean(0).numpy()

    def task_weights(self, subsets: Sequence[Sequence[str]] | np.ndarray) -> np.ndarray:
        """Return the (m, n) float64 weight matrix of subsets, checked; see `predict`."""
        if isinstance(subsets, np.ndarray) and subsets.dtype.kind in "biuf":
            weights = subsets.astype(np.float64)
        else:
            index = {name: i for i, name in enumerate(self.task_names_)}
            weights = np.zeros((len(subsets), len(index)))
            for row, subset in zip(weights, subsets, strict=True):
                for name in subset:
                    if name not in index:
                        raise ConfigError(
                            f"unknown task {name!r}{did_you_mean(str(name), index)}; the tasks are {self.task_names_}"
                        )
                    row[index[name]] = 1.0
        if weights.ndim != 2 or weights.shape[1] != len(self.task_names_):
            raise DataError(f"task weights must have shape (m, {len(self.task_names_)}), not {weights.shape}")
        if not np.isfinite(weights).all() or (weights < 0).any():
            raise DataError("task weights must be finite and not negative")
        empty = np.flatnonzero(weights.sum(1) == 0)
        if len(empty):
            raise DataError(f"subset {int(empty[0])} is empty: name at least one task")
        return weights
