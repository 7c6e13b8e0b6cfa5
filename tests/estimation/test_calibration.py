"""Calibration with true fine-tunes: a Gaussian process checked against its definition, and honest intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from estimation.synthetic import random_store, random_subsets
from hf_tasksel import SubsetEstimator
from hf_tasksel.core.errors import DataError
from hf_tasksel.estimation import calibration
from hf_tasksel.estimation.calibration import Calibration

TASKS = 8


def simulated(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return estimates, indicators and losses that are an affine map of the estimates, task effects, and noise."""
    rng = np.random.default_rng(seed)
    z = random_subsets(TASKS, count, seed)
    effects = rng.normal(size=TASKS)
    estimates = z @ effects
    losses = 3 + 0.4 * estimates + 0.2 * z @ rng.normal(size=TASKS) + 0.1 * rng.normal(size=count)
    return estimates, z, losses


def slow_prior(c: Calibration, estimates: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return standardised estimates, indicators, and the prior covariance of shift, slope and size."""
    x = (estimates - c.centre) / c.spread
    size = (z.mean(1) - 0.5) / 0.25
    affine = calibration.SHIFT_STD**2 + calibration.SLOPE_STD**2 * np.outer(x, x)
    return x, (2 * z - 1) / np.sqrt(z.shape[1]), affine + calibration.SIZE_STD**2 * np.outer(size, size)


def slow_posterior(c: Calibration, runs: tuple, new: tuple, contrast: tuple = (1.0,)) -> tuple[float, float]:
    """Condition one joint Gaussian for every pair of scales on a grid, and mix by prior times marginal likelihood."""
    estimates, z, losses = runs
    k, m = len(losses), len(contrast)
    x, u, affine = slow_prior(c, np.append(estimates, new[0]), np.vstack([z, new[1]]))
    unit = losses.std(ddof=1) * np.sqrt((k + 1) / (k - 1)) / min(x[:k].std(ddof=1), 1.0)
    y = (losses - losses.mean()) / unit
    means, variances, weights = [], [], []
    grid = np.linspace(-5, 5, 41)
    for task, noise in ((t, n) for t in grid for n in grid):
        prior = calibration.SLOPE_MEAN * x
        scales = np.exp([np.log(0.5) + 0.8 * task, np.log(0.3) + 0.8 * noise]) ** 2
        cov = affine + scales[0] * u @ u.T + scales[1] * np.eye(k + m) * (np.arange(k + m) < k if m > 1 else 1)
        gain = cov[k:, :k] @ np.linalg.inv(cov[:k, :k])
        means.append(np.dot(contrast, prior[k:] + gain @ (y - prior[:k])))
        variances.append(np.dot(contrast, (cov[k:, k:] - gain @ cov[:k, k:]) @ contrast))
        weights.append(multivariate_normal(prior[:k], cov[:k, :k]).pdf(y) * norm.pdf(task) * norm.pdf(noise))
    weights = np.asarray(weights) / np.sum(weights)
    mean = weights @ means
    variance = weights @ (np.asarray(variances) + (np.asarray(means) - mean) ** 2)
    return (losses.mean() if m == 1 else 0.0) + unit * mean, unit * np.sqrt(variance)


@pytest.mark.parametrize("k", [4, 12])
def test_the_posterior_is_that_of_the_joint_gaussian(k):
    estimates, z, losses = simulated(0, k + 1)
    c = Calibration(estimates[:k], z[:k], losses[:k], centre=0.5, spread=1.3)
    mean, std = c.predict(estimates[k:], z[k:])
    slow_mean, slow_std = slow_posterior(c, (estimates[:k], z[:k], losses[:k]), (estimates[k], z[k]))
    assert mean[0] == pytest.approx(slow_mean, abs=0.02 * slow_std)
    assert std[0] == pytest.approx(slow_std, rel=0.02)


def test_calibrated_differences_are_those_of_the_joint_posterior():
    estimates, z, losses = simulated(1, 14)
    c = Calibration(estimates[:12], z[:12], losses[:12], centre=0.5, spread=1.3)
    mean, std = c.difference(estimates[12:13], z[12:13], estimates[13:], z[13:])
    means, _ = c.predict(estimates[12:], z[12:])
    assert mean[0] == pytest.approx(means[0] - means[1])
    runs = (estimates[:12], z[:12], losses[:12])
    slow_mean, slow_std = slow_posterior(c, runs, (estimates[12:], z[12:]), contrast=(1.0, -1.0))
    assert mean[0] == pytest.approx(slow_mean, abs=0.02 * slow_std)
    assert std[0] == pytest.approx(slow_std, rel=0.02)


def test_many_runs_with_little_noise_leave_many_draws():
    estimates, z, _ = simulated(0, 60)
    losses = 3 + 0.4 * estimates + 0.01 * np.random.default_rng(0).normal(size=60)
    c = Calibration(estimates, z, losses, estimates.mean(), estimates.std())
    assert 1 / np.sum(c.process.draw_weights**2) > 20
    _, std = c.predict(estimates, z)
    assert std.mean() < 0.02


@pytest.mark.parametrize("chosen", ["at random", "the best estimates", "three seeds"])
@pytest.mark.parametrize("runs", [5, 20])
def test_intervals_hold_the_truth_as_often_as_they_say(runs, chosen):
    inside = []
    for seed in range(30):
        estimates, z, losses = simulated(seed, 70)
        picked = np.argsort(estimates[:40])[:runs] if chosen == "the best estimates" else np.arange(runs)
        picked = np.arange(max(1, runs // 3)).repeat(3) if chosen == "three seeds" else picked
        c = Calibration(estimates[picked], z[picked], losses[picked], estimates.mean(), estimates.std())
        mean, std = c.predict(estimates[40:], z[40:])
        inside.append(np.abs(losses[40:] - mean) <= 1.645 * std)
    assert 0.84 <= np.mean(inside) <= (1.0 if chosen == "three seeds" else 0.99)


def test_a_few_runs_teach_what_the_size_of_a_subset_does():
    rng = np.random.default_rng(0)
    z = np.asarray([[1.0] * k + [0.0] * (TASKS - k) for k in (2, 4, 6) for _ in range(20)])
    z = rng.permuted(z, axis=1)
    losses = 3 - z.sum(1) / TASKS + 0.02 * rng.normal(size=len(z))
    runs = rng.permutation(len(z))
    few, fresh = runs[:6], runs[6:]
    c = Calibration(np.zeros(len(few)), z[few], losses[few], 0.0, 1.0)
    mean, _ = c.predict(np.zeros(len(fresh)), z[fresh])
    assert np.corrcoef(mean, losses[fresh])[0, 1] > 0.9


def test_more_runs_lower_the_error_and_the_uncertainty():
    errors, stds = [], []
    for runs in (3, 10, 40):
        found = []
        for seed in range(20):
            estimates, z, losses = simulated(seed, 80)
            c = Calibration(estimates[:runs], z[:runs], losses[:runs], estimates.mean(), estimates.std())
            mean, std = c.predict(estimates[40:], z[40:])
            found.append((np.abs(mean - losses[40:]).mean(), std.mean()))
        error, std = np.mean(found, axis=0)
        errors.append(error)
        stds.append(std)
    assert errors[0] > 1.3 * errors[1] > 1.69 * errors[2]
    assert stds[0] > stds[1] > stds[2]


def test_one_run_shifts_all_estimates():
    estimates, z, _ = simulated(0, 5)
    c = Calibration(estimates[:1], z[:1], np.asarray([10.0]), estimates.mean(), estimates.std())
    mean, std = c.predict(estimates, z)
    assert np.all(np.abs(mean - 10) < 5 * estimates.std())
    assert std[0] < std[1:].min()


def test_an_estimator_is_calibrated_and_uncalibrated(tmp_path):
    store = random_store(tmp_path / "s")
    estimator = SubsetEstimator().fit(store, "goal")
    subsets = random_subsets(5, 12)
    raw = estimator.predict(subsets)
    truth = 2 * raw + 1
    assert estimator.calibrate(subsets[:8], truth[:8]) is estimator
    mean, std = estimator.predict(subsets[8:], return_std=True)
    assert np.abs(mean - truth[8:]).mean() < 0.5 * np.abs(raw[8:] - truth[8:]).mean()
    assert (std > 0).all()
    np.testing.assert_allclose(estimator.calibrate([], []).predict(subsets), raw)


def test_an_uncalibrated_std_is_that_of_seeds_and_dev_samples(tmp_path):
    stores = [random_store(tmp_path / str(seed), seed=seed) for seed in range(2)]
    singles = [SubsetEstimator().fit(store, "goal") for store in stores]
    both = SubsetEstimator().fit(stores, "goal")
    means, stds = zip(*(e.predict([["t0"]], return_std=True) for e in singles), strict=True)
    _, std = both.predict([["t0"]], return_std=True)
    assert std[0] ** 2 == pytest.approx(np.var([m[0] for m in means], ddof=1) + np.mean([s[0] ** 2 for s in stds]))


def test_what_two_subsets_share_cancels_in_their_difference(tmp_path):
    stores = [random_store(tmp_path / str(seed), seed=seed) for seed in range(2)]
    estimator = SubsetEstimator().fit(stores, "goal")
    first, second = [["t0", "t1"], ["t2"]], [["t0", "t1", "t3"], ["t2"]]
    mean, std = estimator.predict_difference(first, second)
    np.testing.assert_allclose(mean, estimator.predict(first) - estimator.predict(second), atol=1e-12)
    assert std[1] == pytest.approx(0, abs=1e-12)
    assert 0 < std[0] < estimator.predict(first, return_std=True)[1][0]


def test_other_outputs_equal_their_definition(tmp_path):
    store = random_store(tmp_path / "s")
    estimator = SubsetEstimator().fit(store, "goal")
    w = estimator.displacements([["t0", "t1"]])[0][0].numpy()
    dev = np.flatnonzero(store.split == "dev")
    tokens = store.num_tokens[dev]
    odds = store.value[dev] + store.gradients("log_odds")[dev].astype(float) @ w
    assert estimator.predict_log_odds([["t0", "t1"]])[0] == pytest.approx(tokens @ odds / tokens.sum(), rel=1e-5)
    losses = np.maximum(store.loss[dev] + store.gradients("loss")[dev].astype(float) @ w, 0)
    share = np.exp(-losses * tokens).mean()
    assert estimator.predict_answer_share([["t0", "t1"]])[0] == pytest.approx(share, rel=1e-5)


@pytest.mark.parametrize(
    ("subsets", "losses", "message"),
    [([["t0"]], [1.0, 2.0], "one true loss per subset"), ([["t0"], ["t1"]], [1.0, np.nan], "number 1 is nan")],
)
def test_wrong_runs_are_one_sentence(tmp_path, subsets, losses, message):
    estimator = SubsetEstimator().fit(random_store(tmp_path / "s"), "goal")
    with pytest.raises(DataError, match=message):
        estimator.calibrate(subsets, losses)
