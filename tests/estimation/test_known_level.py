"""Losses around a known one: against the joint Gaussian, and honest before and after true fine-tunes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from hf_tasksel.core.errors import DataError
from hf_tasksel.estimation import known_level, process
from hf_tasksel.estimation.coefficients import coefficients, divergence
from hf_tasksel.estimation.known_level import KnownLevel

SAMPLES = np.array([10.0, 20.0, 30.0, 15.0, 25.0, 10.0])
LEVEL, SPREAD = 2.0, 0.05


def subsets(count, seed=0):
    rng = np.random.default_rng(seed)
    rows = (rng.random((count, len(SAMPLES))) < 0.5).astype(float)
    rows[rows.sum(1) == 0, 0] = 1
    return rows


def world(seed, count, budget="steps"):
    """Changes that estimates say, weights, and losses that are drawn from the prior."""
    rng, weights = np.random.default_rng(seed), subsets(count, seed)
    s, far = coefficients(weights, SAMPLES), divergence(weights, SAMPLES)
    changes = s @ rng.normal(size=len(SAMPLES))
    changes *= SPREAD / changes.std()
    growth = rng.normal(0.015, 0.03) if budget == "epochs" else rng.normal(0, 0.25 * SPREAD)
    effects = SPREAD * 0.2 * np.sqrt(len(SAMPLES)) * rng.normal(size=len(SAMPLES))
    noise = 0.8 * SPREAD * np.exp(0.8 * rng.normal()) * np.sqrt(0.2 + far) * rng.normal(size=count)
    logs = 0.3 * SPREAD * rng.normal() + rng.normal(1, 0.5) * changes + growth * far + s @ effects + noise
    return changes, weights, LEVEL * np.exp(logs)


@pytest.mark.parametrize("budget", ["steps", "epochs"])
@pytest.mark.parametrize("k", [0, 3, 10])
def test_the_posterior_is_that_of_the_joint_gaussian(budget, k):
    changes, weights, losses = world(1, k + 2, budget)
    known = KnownLevel(LEVEL, SPREAD, SAMPLES, budget).given(changes[:k], weights[:k], losses[:k])
    mean, std = known.predict(changes[k:], weights[k:])
    gap, gap_std = known.difference(changes[k : k + 1], weights[k : k + 1], changes[k + 1 :], weights[k + 1 :])
    s, far = np.sqrt(len(SAMPLES)) * coefficients(weights, SAMPLES) * SPREAD, divergence(weights, SAMPLES)
    slow, growth_std = (0.015, 0.03) if budget == "epochs" else (0.0, 0.25 * SPREAD)
    prior = changes + slow * far
    fixed = (0.3 * SPREAD) ** 2 + 0.25 * np.outer(changes, changes) + growth_std**2 * np.outer(far, far)
    found, weight = [], []
    for task, noise in ((t, e) for t in np.linspace(-4, 4, 33) for e in np.linspace(-4, 4, 33)):
        scales = np.exp([np.log(0.2) + 0.8 * task, np.log(0.8) + 0.8 * noise]) ** 2
        cov = fixed + scales[0] * s @ s.T
        seen = cov[:k, :k] + scales[1] * SPREAD**2 * np.diag(0.2 + far[:k])
        gain = cov[k:, :k] @ np.linalg.inv(seen)
        y = np.log(losses[:k] / LEVEL) - prior[:k]
        found.append((prior[k:] + gain @ y, cov[k:, k:] - gain @ cov[:k, k:], scales[1] * SPREAD**2 * (0.2 + far[k:])))
        likely = multivariate_normal(np.zeros(k), seen).pdf(y) if k else 1.0
        weight.append(likely * norm.pdf(task) * norm.pdf(noise))
    weight = np.array(weight) / np.sum(weight)
    means, covs, noises = (np.array(part) for part in zip(*found, strict=True))
    slow_mean = weight @ means
    slow_std = np.sqrt(weight @ (np.diagonal(covs, axis1=1, axis2=2) + noises + (means - slow_mean) ** 2))
    np.testing.assert_allclose(np.log(mean / LEVEL), slow_mean, atol=0.03 * slow_std.max())
    np.testing.assert_allclose(std / mean, slow_std, rtol=0.05)
    assert gap[0] == pytest.approx(mean[0] - mean[1])
    apart = np.array([1.0, -1.0])
    differences = means @ apart
    variance = np.einsum("i,kij,j->k", apart, covs, apart) + (differences - weight @ differences) ** 2
    assert gap_std[0] == pytest.approx(np.sqrt(mean.prod() * (weight @ variance)), rel=0.03)


def test_without_true_fine_tunes_losses_are_as_estimated():
    changes, weights, _ = world(0, 20, "epochs")
    known = KnownLevel(LEVEL, SPREAD, SAMPLES, "epochs")
    expected = LEVEL * np.exp(changes + 0.015 * divergence(weights, SAMPLES))
    np.testing.assert_allclose(known.losses(changes, weights), expected)
    np.testing.assert_allclose(known.predict(changes, weights)[0], expected)


@pytest.mark.parametrize("budget", ["steps", "epochs"])
@pytest.mark.parametrize("runs", [0, 3, 12])
def test_intervals_hold_the_truth_as_often_as_they_say(runs, budget):
    inside = []
    for seed in range(40):
        changes, weights, losses = world(seed, 60, budget)
        known = KnownLevel(LEVEL, SPREAD, SAMPLES, budget).given(changes[:runs], weights[:runs], losses[:runs])
        mean, std = known.predict(changes[runs:], weights[runs:])
        inside.append(np.abs(np.log(losses[runs:] / mean)) <= 1.645 * std / mean)
    assert 0.82 <= np.mean(inside) <= 0.97


def test_one_quarter_tells_what_fewer_steps_come_to():
    rng, weights = np.random.default_rng(0), subsets(40)
    changes = 0.01 * rng.normal(size=40)
    losses = LEVEL * np.exp(changes + 0.06 * divergence(weights, SAMPLES))
    quarter = np.argsort(weights @ SAMPLES)[:1]
    known = KnownLevel(LEVEL, 0.01, SAMPLES, "epochs")
    given = known.given(changes[quarter], weights[quarter], losses[quarter])
    error, before = (np.abs(k.predict(changes, weights)[0] / losses - 1).mean() for k in (given, known))
    assert error < 0.25 * before


def test_estimates_that_say_nothing_are_no_division_by_zero():
    weights = subsets(5)
    known = KnownLevel(LEVEL, 0.0, SAMPLES, "steps")
    mean, std = known.given(np.zeros(5), weights, np.full(5, 3.0)).predict(np.zeros(5), weights)
    assert np.isfinite(mean).all()
    assert (std > 0).all()


@pytest.mark.parametrize(
    ("losses", "message"), [([1.0], "one true loss per subset"), ([1.0, 0.0], "above zero; number 1 is 0.0")]
)
def test_wrong_runs_are_one_sentence(losses, message):
    with pytest.raises(DataError, match=message):
        KnownLevel(LEVEL, SPREAD, SAMPLES, "steps").given(np.zeros(2), subsets(2), np.array(losses))


def test_the_tests_know_the_priors():
    assert (known_level.LEVEL_STD, known_level.SLOPE_STD, known_level.MIXTURE_STD) == (0.3, 0.5, 0.25)
    assert (known_level.FEWER_STEPS, known_level.FEWER_STEPS_STD) == (0.015, 0.03)
    assert (known_level.TASK_SCALE, known_level.NOISE_SCALE, process.LOG_SPREAD) == (0.2, 0.8, 0.8)
