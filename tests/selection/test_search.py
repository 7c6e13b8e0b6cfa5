"""Searches against exhaustive or step-by-step reference searches on estimators made of plain functions."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.errors import ConfigError
from hf_tasksel.pipeline.stages.selection import search as configured_search
from hf_tasksel.selection.ensemble import random_ensemble, random_subsets, surrogate_search
from hf_tasksel.selection.exhaustive import exhaustive_search
from hf_tasksel.selection.greedy import backward_elimination, forward_selection, greedy_additions, swap_selection
from hf_tasksel.selection.result import SelectionResult
from hf_tasksel.selection.search import SEARCHES, search_method

NAMES = list("abcde")


def subset_losses(estimator) -> dict[tuple[str, ...], float]:
    """Every subset's loss, one by one."""
    names = estimator.task_names_
    subsets = [s for k in range(1, len(names) + 1) for s in combinations(names, k)]
    return {s: estimator.loss(np.asarray([float(name in s) for name in names])) for s in subsets}


def coverage(seed: int, n: int):
    """A loss that falls with the weight of what the tasks cover, minus a price per task: gains only shrink."""
    rng = np.random.default_rng(seed)
    covers, weights, prices = rng.random((n, 60)) < 0.15, rng.random(60), rng.random(n)
    return lambda row: 20.0 - weights[covers[row > 0].any(0)].sum() + row @ prices


@pytest.mark.parametrize("method", [n for n in SEARCHES if n != "given"])
def test_additive_effects_are_recovered(method, additive):
    found = SEARCHES[method](additive)
    assert found.method == method
    assert found.selected == ["a", "c", "e"]
    assert found.dropped == ["b", "d"]
    assert found.estimate == pytest.approx(0.55)
    assert found.estimate_all == pytest.approx(1.15)
    assert found.effects == pytest.approx(dict(zip(NAMES, [-0.3, 0.2, -0.1, 0.4, -0.05], strict=True)))


@pytest.mark.parametrize("lazy", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_forward_is_greedy_argmin_at_every_step(seed, lazy, function_estimator):
    rng = np.random.default_rng(seed)
    table = {s: rng.normal() for k in range(1, 6) for s in combinations(range(5), k)}
    estimator = function_estimator(lambda row: table[tuple(np.flatnonzero(row))])
    chosen: tuple[int, ...] = ()
    while len(chosen) < 5:
        options = {i: table[tuple(sorted((*chosen, i)))] for i in range(5) if i not in chosen}
        best = min(options, key=options.get)
        if chosen and options[best] >= table[chosen]:
            break
        chosen = tuple(sorted((*chosen, best)))
    assert forward_selection(estimator, lazy=lazy).selected == [NAMES[i] for i in chosen]


@pytest.mark.parametrize("seed", range(5))
def test_lazy_forward_takes_the_same_steps_on_a_submodular_function_with_fewer_estimates(seed, function_estimator):
    lazy, eager = (function_estimator(coverage(seed, 120), 120, np.ones(120)) for _ in range(2))
    found, expected = forward_selection(lazy), forward_selection(eager, lazy=False)
    assert [step.change for step in found.path] == [step.change for step in expected.path]
    assert len(found.path) > 4
    assert lazy.rows < 0.7 * eager.rows


@pytest.mark.parametrize("seed", range(5))
def test_lazy_forward_stops_only_where_no_addition_helps(seed, quadratic):
    estimator = quadratic(seed, n=60)
    found = forward_selection(estimator)
    assert min(found.effects[task] for task in found.dropped) >= 0


def test_an_order_of_additions_goes_through_all_tasks():
    order = greedy_additions(lambda rows: rows @ np.asarray([3.0, -1.0, 2.0]), 3, lazy=True, low=3)
    assert list(order) == [(1, -1.0), (2, 1.0), (0, 4.0)]


@pytest.mark.parametrize("seed", range(10))
def test_after_swaps_no_single_change_helps(seed, quadratic):
    estimator = quadratic(seed)
    found, losses = swap_selection(estimator), subset_losses(estimator)
    chosen = set(found.selected)
    changes = [{x} for x in estimator.task_names_] + [
        {i, o} for i in chosen for o in set(estimator.task_names_) - chosen
    ]
    near = [tuple(name for name in estimator.task_names_ if name in chosen ^ change) for change in changes]
    assert found.estimate <= min(losses[s] for s in near if s)
    assert found.estimate <= forward_selection(estimator).estimate


def test_swaps_leave_a_trap_of_forward_selection(function_estimator):
    losses = {(0,): 1.0, (1,): 2.0, (2,): 2.0, (0, 1): 1.1, (0, 2): 1.1, (1, 2): 0.2, (0, 1, 2): 1.2}
    estimator = function_estimator(lambda row: losses[tuple(np.flatnonzero(row))], 3)
    assert forward_selection(estimator).selected == ["a"]
    found = swap_selection(estimator, min_tasks=2)
    assert found.selected == ["b", "c"]
    assert found.path[-1].change == "+c -a"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("bounds", [(1, None), (3, 5)])
def test_exhaustive_search_is_brute_force(seed, bounds, quadratic):
    estimator, (low, high) = quadratic(seed), bounds
    losses = {s: loss for s, loss in subset_losses(estimator).items() if low <= len(s) <= (high or 8)}
    best = min(losses, key=losses.get)
    found = exhaustive_search(estimator, max_tasks=high, min_tasks=low)
    assert (tuple(found.selected), found.estimate) == (best, pytest.approx(losses[best]))
    for step in found.path:
        assert step.estimate == pytest.approx(min(x for s, x in losses.items() if len(s) == len(step.tasks)))


def test_exhaustive_search_reaches_subsets_beyond_its_first_call(function_estimator):
    effects = np.asarray([(-1) ** i * (1 + i) for i in range(13)]) / 100
    found = exhaustive_search(function_estimator(lambda row: 1.0 + row @ effects, 13))
    assert found.selected == list("bdfhjl")


def test_exhaustive_search_is_for_few_tasks(function_estimator):
    with pytest.raises(ConfigError, match="at most 15 tasks, not 16: use forward_backward"):
        exhaustive_search(function_estimator(sum, 16))


@pytest.mark.parametrize("method", ["kernel_ridge", "ridge"])
def test_fitted_effects_of_tasks_are_the_true_ones_where_they_add_up(method, additive):
    scores = surrogate_search(additive, method, num_subsets=400, regularization=1e-6).scores
    assert scores == pytest.approx(dict(zip(NAMES, [-0.3, 0.2, -0.1, 0.4, -0.05], strict=True)), abs=0.01)


def test_kernel_ridge_sees_that_tasks_clash(function_estimator):
    """Either of two tasks is worth having, both together are not: means over subsets can't tell."""

    def loss(row):
        return 2.0 - row[:2].sum() + 3 * row[0] * row[1] - 0.4 * row[2] + 0.1 * row[3:].sum()

    estimator = function_estimator(loss, 8, np.ones(8))
    assert random_ensemble(estimator, num_subsets=400).estimate > 0.6 + 1e-6
    assert surrogate_search(estimator, num_subsets=400).estimate == pytest.approx(0.6)
    assert exhaustive_search(estimator).estimate == pytest.approx(0.6)


@pytest.mark.parametrize("method", [n for n in SEARCHES if n != "given"])
def test_bounds_on_the_number_of_tasks_are_kept(method, additive):
    assert len(SEARCHES[method](additive, max_tasks=1).selected) == 1
    assert len(SEARCHES[method](additive, max_tasks=2).selected) == 2
    assert len(SEARCHES[method](additive, min_tasks=4).selected) == 4
    with pytest.raises(ConfigError, match="min_tasks is 9, but there are 5 tasks"):
        SEARCHES[method](additive, min_tasks=9)
    with pytest.raises(ConfigError, match="max_tasks is 2, but must be"):
        SEARCHES[method](additive, max_tasks=2, min_tasks=3)


@pytest.mark.parametrize("method", [n for n in SEARCHES if n != "given"])
def test_tasks_that_are_not_worth_their_tokens_are_left_out(method, additive):
    """Tasks a … e have 1 … 5 million tokens: at 0.02 nats a million, e costs 0.1 and gains 0.05, c 0.06 and 0.1."""
    options = {"num_subsets": 500} if method == "random_ensemble" else {}
    found = SEARCHES[method](additive, cost_per_token=0.02, **options)
    assert found.selected == ["a", "c"]
    assert found.estimate == pytest.approx(0.6), "the estimate is reported without the cost"
    for step in found.path:
        row = np.asarray([float(name in step.tasks) for name in NAMES])
        assert step.estimate == pytest.approx(additive.loss(row))
    assert found.effects["e"] == pytest.approx(-0.05)
    assert found.cost_per_token == 0.02


@pytest.mark.parametrize("seed", range(5))
def test_the_best_subset_at_a_cost_is_that_of_brute_force(seed, quadratic):
    estimator = quadratic(seed)
    tokens = dict(zip(estimator.task_names_, estimator.task_tokens_, strict=True))
    costs = {s: loss + 2.0 * sum(tokens[x] for x in s) / 1e6 for s, loss in subset_losses(estimator).items()}
    assert tuple(exhaustive_search(estimator, cost_per_token=2.0).selected) == min(costs, key=costs.get)


@pytest.mark.parametrize(
    ("method", "tolerance", "expected"), [("forward", 2, "ac"), ("backward", 8, "abce"), ("forward_backward", 2, "ac")]
)
def test_gains_within_the_uncertainty_of_the_estimate_do_not_count(method, tolerance, expected, unsure, additive):
    """Adding e to a and c gains 0.05 at a std of 0.03; dropping b from a, b, c and e gains 0.2 at a std of 0.03."""
    assert SEARCHES[method](unsure, tolerance_std=1.0).selected == ["a", "c", "e"]
    assert SEARCHES[method](unsure, tolerance_std=tolerance).selected == list(expected)
    with pytest.raises(ConfigError, match="tolerance_std needs an estimator that gives standard deviations"):
        SEARCHES[method](additive, tolerance_std=1.0)


@pytest.mark.parametrize("option", ["tolerance_std", "cost_per_token"])
def test_negative_options_are_refused(option, unsure, run_values):
    with pytest.raises(ConfigError, match=f"selection.{option} must be 0 or more, not -1"):
        forward_selection(unsure, **{option: -1})
    with pytest.raises(ConfigError, match=f"selection: {option} must be 0 or more, not -1"):
        RunConfig.from_dict({**run_values, "selection": {option: -1.0}})


@pytest.mark.parametrize("method", ["random_ensemble", "kernel_ridge", "ridge"])
def test_searches_with_random_subsets_depend_on_their_seed_alone(method, additive):
    first, again = (SEARCHES[method](additive, num_subsets=8, seed=1) for _ in range(2))
    assert first == again
    assert SEARCHES[method](additive, num_subsets=8, seed=2).scores != first.scores


def test_the_ensemble_scores_tasks_by_the_mean_of_their_subsets(additive):
    subsets = random_subsets(5, 50, 2, seed=0)
    losses = [additive.loss(row) for row in subsets]
    scores = random_ensemble(additive, subset_fraction=0.4).scores
    for i, name in enumerate(NAMES):
        assert scores[name] == pytest.approx(np.mean([x for x, row in zip(losses, subsets, strict=True) if row[i]]))
    with pytest.raises(ConfigError, match="subset_fraction"):
        random_ensemble(additive, subset_fraction=0.0)


def test_random_subsets_have_the_sizes_asked_for():
    assert set(random_subsets(9, 20, 4, seed=0).sum(1)) == {4}
    assert np.bincount(random_subsets(9, 30, (2, 4), seed=0).sum(1).astype(int)).tolist() == [0, 0, 10, 10, 10]


def test_unknown_names_are_refused_with_the_nearest_one(additive):
    assert search_method("kernel_ridge") is SEARCHES["kernel_ridge"]
    with pytest.raises(ConfigError, match=r"selection.method 'forwards' .* \(did you mean 'forward'\?\)"):
        search_method("forwards")
    with pytest.raises(ConfigError, match=r"surrogate 'rigde' .* \(did you mean 'ridge'\?\)"):
        surrogate_search(additive, "rigde")
    with pytest.raises(ConfigError, match="regularization must be positive"):
        surrogate_search(additive, regularization=0.0)


@pytest.mark.parametrize("method", [n for n in SEARCHES if n != "given"])
def test_a_run_configuration_reaches_every_search(method, unsure, run_values):
    options = {"method": method, "max_tasks": 2, "cost_per_token": 0.02, "seed": 3, "num_subsets": 60}
    found = configured_search(unsure, RunConfig.from_dict({**run_values, "selection": options}))
    assert (found.method, found.selected, found.cost_per_token) == (method, ["a", "c"], 0.02)
    if method in ("random_ensemble", "kernel_ridge", "ridge"):
        arguments = {"max_tasks": 2, "cost_per_token": 0.02, "min_tasks": 2}
        assert found.scores == SEARCHES[method](unsure, seed=3, num_subsets=60, **arguments).scores


def test_steps_know_how_sure_their_distance_to_the_selected_subset_is(unsure, additive):
    found = backward_elimination(unsure, max_tasks=2)
    assert len(found.path) > 2
    for step in found.path:
        same = set(step.tasks) == set(found.selected)
        assert step.std == pytest.approx(0.0 if same else 0.01 * len(found.selected))
    assert [step.std for step in forward_selection(additive).path] == [None] * 3
    assert SelectionResult.from_dict(found.to_dict()).path == found.path


@pytest.mark.parametrize("search", [random_ensemble, surrogate_search])
@pytest.mark.parametrize("count", [0, -5])
def test_a_number_of_random_subsets_below_one_is_refused(search, count, additive):
    with pytest.raises(ConfigError, match=f"num_subsets must be at least 1, not {count}"):
        search(additive, num_subsets=count)
