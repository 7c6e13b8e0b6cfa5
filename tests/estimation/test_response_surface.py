"""The surface against a process conditioned by brute force, and against functions that are known."""

from __future__ import annotations

import numpy as np
import pytest

from hf_tasksel.core.errors import DataError
from hf_tasksel.estimation.response_surface import (
    CONSTANT,
    LENGTHS,
    NOISES,
    ResponseSurface,
    covariances,
    joint_covariances,
    left_out_error,
)

TASKS = 4


def loss(points):
    """A curved, positive loss, and its slopes."""
    curve = np.diag([1.0, 2.0, 0.5, 0.0]) + 0.3
    logs = 0.2 + points @ [0.5, -1.0, 0.2, 0.0] + 0.5 * np.einsum("mi,ij,mj->m", points, curve, points)
    losses = np.exp(logs)
    return losses, losses[:, None] * (np.array([0.5, -1.0, 0.2, 0.0]) + points @ curve)


def draw(count, seed=0):
    return np.random.default_rng(seed).normal(scale=0.3, size=(count, TASKS))


@pytest.mark.parametrize("length", [0.7, 2.0])
def test_covariances_with_slopes_are_derivatives_of_those_of_values(length):
    x, h = draw(3), 1e-5
    joint = joint_covariances(x, length, np.eye(TASKS))

    def k(a, b):
        return CONSTANT + np.exp(-np.sum((a - b) ** 2) / (2 * length**2))

    steps = h * np.eye(TASKS)
    for i in range(3):
        for j in range(3):
            assert joint[i, j] == pytest.approx(k(x[i], x[j]), rel=1e-12)
            for p in range(TASKS):
                value_slope = (k(x[i], x[j] + steps[p]) - k(x[i], x[j] - steps[p])) / (2 * h)
                assert joint[i, 3 + j * TASKS + p] == pytest.approx(value_slope, abs=1e-7)
                for q in range(TASKS):
                    corners = [a * b * k(x[i] + a * steps[p], x[j] + b * steps[q]) for a in (1, -1) for b in (1, -1)]
                    slope_slope = sum(corners) / (4 * h**2)
                    assert joint[3 + i * TASKS + p, 3 + j * TASKS + q] == pytest.approx(slope_slope, abs=1e-3)
    np.testing.assert_allclose(covariances(x, x, length, np.eye(TASKS)), joint[:3])
    assert np.linalg.eigvalsh(joint).min() > -1e-9


def predicted(surface, points):
    return np.exp(surface.log_losses(points))


def test_points_are_met_and_what_lies_between_is_predicted():
    points, fresh = draw(12), draw(50, seed=1)
    losses, slopes = loss(points)
    surface = ResponseSurface(points, losses, slopes)
    np.testing.assert_allclose(predicted(surface, points), losses, rtol=1e-3)
    truth = loss(fresh)[0]
    assert np.mean(np.abs(predicted(surface, fresh) - truth) / truth) < 0.01


def test_slopes_are_worth_many_points():
    points, fresh = draw(8), draw(50, seed=1)
    losses, slopes = loss(points)
    truth = loss(fresh)[0]
    with_slopes, without = (
        np.abs(predicted(ResponseSurface(points, losses, given), fresh) - truth).mean() for given in (slopes, None)
    )
    assert with_slopes < 0.2 * without


def test_more_tasks_than_points_are_conditioned_on_as_by_brute_force():
    """Slopes across the span of the points are processes of their own: the whole covariance matrix says the same."""
    rng = np.random.default_rng(0)
    points, losses, slopes = rng.normal(size=(5, 9)), rng.uniform(1, 2, 5), rng.normal(size=(5, 9))
    fresh = points[:3] + 0.5 * rng.normal(size=(3, 9))
    surface = ResponseSurface(points, losses, slopes)
    assert surface.basis.shape == (9, 4)
    every = np.eye(9)
    joint = joint_covariances(surface.x, surface.length, every) + surface.noise**2 * np.eye(50)
    logs = np.log(losses)
    observed = np.concatenate([logs - logs.mean(), (slopes / losses[:, None] * surface.unit).ravel()])
    solved = np.linalg.solve(joint, observed)
    cross = covariances((fresh - surface.centre) / surface.unit, surface.x, surface.length, every)
    np.testing.assert_allclose(surface.log_losses(fresh), logs.mean() + cross @ solved, rtol=1e-6)


def test_the_length_that_is_chosen_is_the_likeliest_of_all_observations():
    rng = np.random.default_rng(1)
    points, losses, slopes = rng.normal(size=(4, 7)), rng.uniform(1, 2, 4), rng.normal(size=(4, 7))
    surface = ResponseSurface(points, losses, slopes)
    logs = np.log(losses)
    observed = np.concatenate([logs - logs.mean(), (slopes / losses[:, None] * surface.unit).ravel()])

    def likelihood(length, noise):
        joint = joint_covariances(surface.x, length, np.eye(7)) + noise**2 * np.eye(32)
        variance = observed @ np.linalg.solve(joint, observed) / 32
        return -16 * np.log(variance) - np.linalg.slogdet(joint)[1] / 2

    pairs = [(length, noise) for length in LENGTHS for noise in NOISES]
    assert max(pairs, key=lambda pair: likelihood(*pair)) == (surface.length, surface.noise)


def test_order_and_units_do_not_change_what_is_predicted():
    points, fresh = draw(10), draw(5, seed=1)
    losses, slopes = loss(points)
    mean = predicted(ResponseSurface(points, losses, slopes), fresh)
    order = np.random.default_rng(2).permutation(len(points))
    swapped = predicted(ResponseSurface(points[order], losses[order], slopes[order]), fresh)
    scaled = predicted(ResponseSurface(7 * points + 1, losses, slopes / 7), 7 * fresh + 1)
    louder = predicted(ResponseSurface(points, 3 * losses, 3 * slopes), fresh) / 3
    for other in (swapped, scaled, louder):
        np.testing.assert_allclose(other, mean, rtol=1e-6)


def test_no_prediction_is_below_zero():
    points = np.array([[0.0], [1.0]])
    surface = ResponseSurface(points, np.array([1.0, 0.1]), np.array([[-1.0], [-0.5]]))
    assert predicted(surface, np.linspace(-5, 20, 40)[:, None]).min() > 0


def test_points_that_are_left_out_tell_the_error():
    points = draw(15)
    losses, slopes = loss(points)
    found = left_out_error(points, losses, slopes)
    assert found.relative_error < 0.1 * found.constant_error
    nonsense = left_out_error(points, losses, np.random.default_rng(3).normal(size=slopes.shape))
    assert nonsense.relative_error > found.relative_error


@pytest.mark.parametrize(
    ("points", "losses", "slopes", "message"),
    [
        (np.zeros((1, 2)), np.ones(1), None, "two points or more"),
        (np.zeros((3, 2)), np.ones(2), None, "two points or more"),
        (np.zeros((3, 2)), np.ones(3), np.zeros((3, 1)), "slopes of shape"),
        (np.zeros((3, 2)), np.array([1, 0.0, 1]), None, "number 1 is 0.0"),
    ],
)
def test_what_no_surface_goes_through_is_refused(points, losses, slopes, message):
    with pytest.raises(DataError, match=message):
        ResponseSurface(points, losses, slopes)
    if len(points) > 1:
        with pytest.raises(DataError, match=message):
            left_out_error(points, losses, slopes)
