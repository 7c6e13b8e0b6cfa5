"""SubsetEstimator: the target loss after fine-tuning on any subset, in CPU seconds per thousand subsets."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal, overload

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from ..core.errors import ConfigError, DataError, did_you_mean
from ..gradients.store.reader import GradientStore
from .calibration import Calibration
from .known_level import KnownLevel
from .response import ResponseEstimate
from .row_sampling import RowSamplingError
from .statistics import DevStatistics, dev_statistics, row_weights, task_codes
from .subsets import are_name_lists, random_halves
from .surrogate import Surrogate
from .surrogates import surrogate_classes

Subsets = Sequence[Sequence[str]] | np.ndarray


class SubsetEstimator(BaseEstimator):
    """Estimates the target loss of any subset of tasks from one or several gradient stores (scikit-learn conventions).

    Args:
        surrogate: registered name of a surrogate, `default`, or several names whose estimates are averaged.
        regularization: λ of the surrogate; its own default if None.
        budget: what the estimated fine-tunes hold fixed: `steps`, or `epochs`, where larger subsets train longer.
        relative_steps: steps of the estimated fine-tunes (on all tasks) ÷ steps of the meta training that gave the
            gradients: twice the steps move twice as far, to first order.
        device: where sums are kept and solved, e.g. `cuda`.

    Attributes:
        task_names_: the n tasks that subsets are made of.
        task_samples_: (n,) training samples of each task.
        task_tokens_: (n,) their answer tokens.
        target_: the target, or several joined by ` + `.
        loss_on_all_: the known loss that estimates keep to; None for those of the surrogate alone.
        spread_: with a known loss, standard deviation of log estimates over random halves of the tasks.
        response_: the response estimate that changes are read from; None for those of the surrogate.
        num_dev_samples_: dev samples behind every estimate.
        calibration_: the posterior, after `calibrate`; None before.
        num_true_runs_: true fine-tunes that it was calibrated with.

    Example:
        >>> estimator = SubsetEstimator().fit(store, target="strategyqa")  # doctest: +SKIP
        >>> estimator.predict([["gsm8k", "aqua"], ["gsm8k"]])              # doctest: +SKIP
        array([1.042, 1.131])
    """

    def __init__(
        self,
        surrogate: str | Sequence[str] = "default",
        regularization: float | None = None,
        budget: str = "steps",
        relative_steps: float = 1.0,
        device: str = "cpu",
    ) -> None:
        self.surrogate = surrogate
        self.regularization = regularization
        self.budget = budget
        self.relative_steps = relative_steps
        self.device = device

    def fit(
        self,
        store: GradientStore | Sequence[GradientStore],
        target: str | Mapping[str, float],
        loss_on_all: float | None = None,
        response: ResponseEstimate | None = None,
    ) -> SubsetEstimator:
        """Prepare estimates for one target, or for a weighted mean of several.

        Args:
            store: a gradient store, or several of the same tasks (meta checkpoints) to average over. Estimates are
                also averaged over the projection seeds of a store.
            target: name of the task whose dev samples are in the store, or names with weights.
            loss_on_all: the target's dev loss after training on all tasks, as meta training ends with. Estimates then
                keep to it: the surrogate only says by what share the choice of tasks changes it, none of them is below
                zero, and all have standard deviations that hold what they are likely to err by; see `KnownLevel`.
            response: where the real model was asked about displaced adapters (`hf-tasksel probe`): by what share tasks
                change the loss is then read from its surface, and not from the surrogate. Needs `loss_on_all`.

        Raises:
            DataError: when the target has no dev samples, a store no training samples, the stores' (or the response
                estimate's) tasks differ, or `loss_on_all` is no positive number.
            StoreError: when a store lacks the gradients that the surrogate needs.
        """
        self.__dict__.pop("calibration_", None)  # the mark of a finished fit
        self.stores_ = [store] if isinstance(store, GradientStore) else list(store)
        if not self.stores_:
            raise DataError("fit needs at least one gradient store")
        first = self.stores_[0]
        if not first.task_names:
            raise DataError(f"{first.path} has no training rows, so that there is no task to make subsets of")
        for other in self.stores_[1:]:
            if other.task_names != first.task_names:
                raise DataError(f"{other.path} has other tasks than {first.path}: average stores of one run only")
        self.targets_ = {target: 1.0} if isinstance(target, str) else dict(target)
        self.target_ = " + ".join(self.targets_)
        classes = surrogate_classes(self.surrogate)
        if loss_on_all is not None and not (np.isfinite(loss_on_all) and loss_on_all > 0):
            raise DataError(f"loss_on_all must be a positive number, not {loss_on_all}")
        if response is not None and loss_on_all is None:
            raise DataError("a response estimate says by what share losses change: give fit the loss_on_all too")
        self.loss_on_all_ = loss_on_all
        budget = self.budget if loss_on_all is None else "steps"  # what fewer steps do is not left to the surrogate
        self.sketches_ = [(s, seed) for s in self.stores_ for seed in s.seeds]
        self.expansions_: list[tuple[list[Surrogate], DevStatistics]] = [
            (
                [cls(self.regularization, budget, self.relative_steps, self.device).fit(s, seed) for cls in classes],
                dev_statistics(s, self.targets_, seed).to(self.device),
            )
            for s, seed in self.sketches_
        ]
        if response is not None and response.task_names != first.task_names:
            raise DataError(
                f"the response estimate is of the tasks {response.task_names}, the store of {first.task_names}: take "
                "both from one run"
            )
        self.response_ = response
        self.task_names_ = first.task_names
        self.num_dev_samples_ = len(self.expansions_[0][1].share)
        self._count_tasks(first)
        self._prior: KnownLevel | None = None
        if loss_on_all is not None:
            if not all(float(dev.value @ dev.share) > 0 for _, dev in self.expansions_):
                raise DataError(f"the dev rows of {self.target_} have no loss already: there is nothing to lower")
            self.spread_ = float(self._log_changes(random_halves(len(self.task_names_))).std())
            self._prior = KnownLevel(loss_on_all, self.spread_, self.task_samples_, self.budget)
        self._sampling = self._sampling_error()
        self.calibration_: Calibration | KnownLevel | None = None
        self.num_true_runs_ = 0
        self._yardstick: tuple[float, float] | None = None
        if not self.gives_std:
            warnings.warn(
                "a target with one dev row: how unsure estimates are is unknown until calibrated", stacklevel=2
            )
        return self

    @property
    def gives_std(self) -> bool:
        """Whether standard deviations are known: one dev row of a target says nothing of the spread over its rows."""
        known = self.calibration_ is not None or self._prior is not None
        return known or bool((self.expansions_[0][1].target.bincount() > 1).all())

    @property
    def source(self) -> str:
        """Where estimates come from, apart from true fine-tunes, in words."""
        if self.response_ is not None:
            return f"the real model, displaced by {self.response_.source}"
        names = [self.surrogate] if isinstance(self.surrogate, str) else self.surrogate
        return f"first-order, by the surrogate {' and '.join(names)}"

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "calibration_")

    def _count_tasks(self, store: GradientStore) -> None:
        codes = task_codes(store)
        train, n = codes >= 0, len(self.task_names_)
        self.task_samples_ = np.asarray(list(store.population.values()))
        self.task_tokens_ = np.bincount(codes[train], store.num_tokens[train].astype(np.float64), minlength=n)
        self.task_tokens_ *= row_weights(store)

    def _sampling_error(self) -> RowSamplingError:
        """Return what estimates err by because the gradient pass looked at some of the rows."""
        if self.response_ is not None or not any(store.is_sampled for store in self.stores_):
            return RowSamplingError(np.zeros(len(self.task_names_)), self.task_samples_)
        if self.loss_on_all_ is not None:
            spread = self.spread_ * self.loss_on_all_
        else:
            spread = float(self._first_order(random_halves(len(self.task_names_)))[0].std())
        return RowSamplingError.of(self.stores_, self.targets_, self.expansions_[0][0][0], spread)

    @overload
    def predict(self, subsets: Subsets, return_std: Literal[False] = False) -> np.ndarray: ...

    @overload
    def predict(self, subsets: Subsets, return_std: Literal[True]) -> tuple[np.ndarray, np.ndarray]: ...

    def predict(self, subsets: Subsets, return_std: bool = False) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Estimate target losses; after `calibrate`, their posterior mean.

        Args:
            subsets: m subsets as lists of task names, or an (m, n) array of non-negative task weights (0/1 for
                subsets).
            return_std: also return standard deviations, about a new fine-tune's loss. Without `loss_on_all`, and
                before `calibrate`, they only hold what the projection, the choice of checkpoint and the dev samples
                contribute, not the error of the linearisation, and are NaN where a target has one dev sample.

        Returns:
            (m,) estimated dev losses in nats per token, and with `return_std` (m,) standard deviations.

        Raises:
            ConfigError: for an unknown task name.
            DataError: for an empty subset, or weights that are negative or of the wrong shape.
        """
        check_is_fitted(self)
        weights = self.task_weights(subsets)
        if not return_std and self.calibration_ is None:
            return self._estimates(weights)
        if known := self._known_level:
            mean, std = known.predict(self._log_changes(weights), weights)
        else:
            mean, std = self._first_order(weights)
            if isinstance(self.calibration_, Calibration):
                mean, std = self.calibration_.predict(mean, weights)
        return (mean, self._sampling.added_to(std, weights)) if return_std else mean

    def first_order(self, subsets: Subsets) -> np.ndarray:
        """Estimate target losses as `predict` does, but as they are without any calibration: (m,) nats per token."""
        check_is_fitted(self)
        return self._estimates(self.task_weights(subsets))

    def predict_difference(self, subsets: Subsets, others: Subsets) -> tuple[np.ndarray, np.ndarray]:
        """Estimate by how much the loss of each subset is above that of another, with a standard deviation.

        What two subsets share (dev samples, sketches, the level of the loss) cancels, so that the deviation is smaller
        than those of the two estimates suggest.

        Args:
            subsets: m subsets, as in `predict`.
            others: m subsets to compare them with, one by one.

        Returns:
            (m,) differences in nats per token and (m,) standard deviations; NaN where two subsets differ and the
            surrogate sees no difference on any dev row, which tells nothing about how far it is off.
        """
        check_is_fitted(self)
        first, second = self.task_weights(subsets), self.task_weights(others)
        if known := self._known_level:
            difference, std = known.difference(self._log_changes(first), first, self._log_changes(second), second)
        elif isinstance(self.calibration_, Calibration):
            estimates = [self._first_order(weights)[0] for weights in (first, second)]
            difference, std = self.calibration_.difference(estimates[0], first, estimates[1], second)
        else:
            difference, std = self._first_order_difference(first, second)
        return difference, self._sampling.added_to(std, first, second)

    def _first_order_difference(self, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        difference, std = over_expansions(
            [
                (self._rows(surrogates, dev, first) - self._rows(surrogates, dev, second), dev)
                for surrogates, dev in self.expansions_
            ]
        )
        return difference, np.where((std == 0) & (first != second).any(1), np.nan, std)

    @property
    def _known_level(self) -> KnownLevel | None:
        """Losses around the known one: given true fine-tunes, or before any."""
        return self.calibration_ if isinstance(self.calibration_, KnownLevel) else self._prior

    def _estimates(self, weights: np.ndarray) -> np.ndarray:
        """Return uncalibrated estimates."""
        if self._prior is not None:
            return self._prior.losses(self._log_changes(weights), weights)
        return self._first_order(weights)[0]

    def _first_order(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the surrogate's own losses and standard deviations, over expansions and samples."""
        return over_expansions([(self._rows(surrogates, dev, weights), dev) for surrogates, dev in self.expansions_])

    def typical_change(self) -> float:
        """Return by what share random halves of the tasks change the loss, by the surrogate: a root mean square.

        Beyond about a half it is no small change, and a linearisation is out of its depth.
        """
        check_is_fitted(self)
        return float(np.sqrt(np.square(self._changes(random_halves(len(self.task_names_)))).mean()))

    def _changes(self, weights: np.ndarray) -> np.ndarray:
        """Return (m,) by what share of the loss subsets change it, by the surrogate."""
        everything, found = np.ones((1, len(self.task_names_))), []
        for surrogates, dev in self.expansions_:
            rows = self._rows(surrogates, dev, weights) - self._rows(surrogates, dev, everything)
            found.append(rows @ dev.share / float(dev.value @ dev.share))
        return torch.stack(found).mean(0).cpu().numpy()

    def _log_changes(self, weights: np.ndarray) -> np.ndarray:
        """Return (m,) what subsets add to the logarithm of the loss of training on all tasks.

        A change x of the loss by a share multiplies it by exp(x) where it is lower and by 1 + x where it is higher.
        """
        if self.response_ is not None:
            return self.response_.log_changes(weights)
        change = self._changes(weights)
        return np.where(change < 0, change, np.log1p(np.maximum(change, 0)))

    def _rows(self, surrogates: list[Surrogate], dev: DevStatistics, weights: np.ndarray) -> Tensor:
        """Return (m, k) estimates of every dev sample."""
        return dev.value + mean_displacement(surrogates, weights) @ dev.gradient.T

    def displacements(self, subsets: Subsets) -> list[Tensor]:
        """Return where fine-tuning moves the projected parameters: (m, d) for each store and projection seed."""
        check_is_fitted(self)
        weights = self.task_weights(subsets)
        return [mean_displacement(surrogates, weights).cpu() for surrogates, _ in self.expansions_]

    def predict_log_odds(self, subsets: Subsets) -> np.ndarray:
        """Estimate the target's mean log-odds per token, (m,); arguments and errors as `predict`, uncalibrated.

        Raises:
            StoreError: when the store holds no log-odds gradients.
        """
        check_is_fitted(self)
        weights = self.task_weights(subsets)
        found = []
        for (store, seed), (surrogates, _) in zip(self.sketches_, self.expansions_, strict=True):
            dev = dev_statistics(store, self.targets_, seed, "log_odds").to(self.device)
            found.append(self._rows(surrogates, dev, weights) @ dev.share)
        return torch.stack(found).mean(0).cpu().numpy()

    def predict_answer_share(self, subsets: Subsets) -> np.ndarray:
        """Estimate the share of dev samples that the model would answer word for word when it samples, (m,).

        The mean over samples of exp(−loss · tokens). For chain of thought this bounds the share of right final answers
        from below, since other words can lead to them; it is for comparing subsets. Uncalibrated.
        """
        check_is_fitted(self)
        weights = self.task_weights(subsets)
        found = []
        for surrogates, dev in self.expansions_:
            losses = self._rows(surrogates, dev, weights).clamp(min=0)
            found.append((-losses * dev.num_tokens).exp() @ dev.sample_share)
        return torch.stack(found).mean(0).cpu().numpy()

    def calibrate(self, subsets: Subsets, true_losses: Sequence[float] | np.ndarray) -> SubsetEstimator:
        """Learn from true fine-tunes how estimates relate to measured losses; see `KnownLevel` and `Calibration`.

        Args:
            subsets: k subsets that were really fine-tuned, as in `predict`; a subset may occur once per seed.
            true_losses: (k,) their measured losses in nats per token. None (k = 0) undoes the calibration.

        Raises:
            DataError: for unequal lengths or losses that are not finite; the estimator stays as it was.
        """
        check_is_fitted(self)
        calibration: Calibration | KnownLevel | None = None
        if len(subsets) or len(true_losses):
            weights, losses = self.task_weights(subsets), np.asarray(true_losses)
            if self._prior is not None:
                calibration = self._prior.given(self._log_changes(weights), weights, losses)
            else:
                if self._yardstick is None:  # the same for every calibration
                    reference = self._first_order(random_halves(len(self.task_names_)))[0]
                    self._yardstick = float(reference.mean()), float(reference.std())
                calibration = Calibration(self._first_order(weights)[0], weights, losses, *self._yardstick)
        self.calibration_, self.num_true_runs_ = calibration, len(true_losses)
        return self

    def task_weights(self, subsets: Subsets) -> np.ndarray:
        """Return the (m, n) float64 weight matrix of subsets, checked; see `predict`."""
        if isinstance(subsets, np.ndarray) and subsets.dtype.kind in "biuf":
            weights = subsets.astype(np.float64)
        else:
            index = {name: i for i, name in enumerate(self.task_names_)}
            if not are_name_lists(subsets):
                raise DataError(f"subsets must be a list of lists of task names, such as [{self.task_names_[:2]}]")
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


def over_expansions(rows: Sequence[tuple[Tensor, DevStatistics]]) -> tuple[np.ndarray, np.ndarray]:
    """Return means (m,) and standard deviations (m,) over dev samples (within each target) and expansions.

    Args:
        rows: for each expansion, numbers (m, k) about the k dev samples.
    """
    means = torch.stack([r @ dev.share for r, dev in rows])
    sampling = torch.stack([(r - target_means(r, dev)).square() @ dev.share.square() for r, dev in rows]).mean(0)
    if (rows[0][1].target.bincount() == 1).any():  # no spread can be known from one row
        sampling = torch.full_like(sampling, torch.nan)
    between = means.var(0) if len(rows) > 1 else torch.zeros_like(sampling)
    return means.mean(0).cpu().numpy(), (sampling + between).sqrt().cpu().numpy()


def target_means(rows: Tensor, dev: DevStatistics) -> Tensor:
    """Return (m, k) for numbers (m, k) about dev samples the mean over the target of each sample."""
    member = torch.nn.functional.one_hot(dev.target).to(rows.dtype)  # (k, targets)
    shares = dev.share[:, None] * member
    return (rows @ shares) / shares.sum(0) @ member.T


def mean_displacement(surrogates: Sequence[Surrogate], weights: np.ndarray) -> Tensor:
    """Return the mean over surrogates of the displacements (m, d) of subsets."""
    if not len(weights):  # of no subsets: what one has, without its row
        return mean_displacement(surrogates, np.ones((1, weights.shape[1])))[:0]
    w = torch.from_numpy(weights).to(surrogates[0].device)
    return torch.stack([surrogate.displacement(w) for surrogate in surrogates]).mean(0)
