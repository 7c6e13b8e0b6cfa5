"""Every surrogate against a slow, obvious computation, and what holds for all of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from sklearn.linear_model import LogisticRegression

from estimation.synthetic import random_columns, random_store, random_subsets
from hf_tasksel.core.errors import ConfigError
from hf_tasksel.estimation import logistic
from hf_tasksel.estimation.estimator import SubsetEstimator
from hf_tasksel.estimation.exact import isometric_store
from hf_tasksel.estimation.surrogate import weighted_sum
from hf_tasksel.estimation.surrogates import SURROGATES, surrogate_class
from hf_tasksel.gradients.store.reader import GradientStore

TASKS = [f"t{i}" for i in range(5)]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return random_store(tmp_path_factory.mktemp("store") / "s")


def problem(store: GradientStore, subset: list[str], objective: str = "loss", by_tokens: bool = False):
    """Return gradients, shares and dev gradient of a subset, in float64."""
    rows = np.flatnonzero((store.split == "train") & np.isin(store.task, subset))
    share = store.num_tokens[rows].astype(float) if by_tokens else np.ones(len(rows))
    dev = np.flatnonzero(store.split == "dev")
    dev_share = store.num_tokens[dev] / store.num_tokens[dev].sum()
    loss = dev_share @ store.loss[dev].astype(float)
    slope = dev_share @ store.gradients("loss")[dev].astype(float)
    return store.gradients(objective)[rows].astype(float), share / share.sum(), loss, slope


def unit(store: GradientStore, by_tokens: bool = False) -> float:
    """The mean eigenvalue of the curvature over all tasks."""
    g, share, _, _ = problem(store, TASKS, by_tokens=by_tokens)
    return np.trace(g.T @ (share[:, None] * g)) / g.shape[1]


def slow_estimate(name: str, store: GradientStore, subset: list[str], regularization: float) -> float:
    """Estimate one subset by the definition of a closed-form surrogate."""
    by_tokens = name == "token_fisher"
    g, share, loss, slope = problem(store, subset, by_tokens=by_tokens)
    damping = regularization * unit(store, by_tokens)
    b, fisher = share @ g, g.T @ (share[:, None] * g)
    if name in ("empirical_fisher", "token_fisher"):
        w = -np.linalg.inv(fisher + damping * np.eye(len(b))) @ b
    elif name == "gradient_flow":
        w = -np.linalg.inv(fisher) @ (np.eye(len(b)) - expm(-fisher / damping)) @ b
    elif name == "inner_product":
        w = -b / damping
    elif name == "cosine":
        everything, all_share, _, _ = problem(store, TASKS)
        w = -np.linalg.norm(all_share @ everything) / damping * b / np.linalg.norm(b)
    else:
        w = np.zeros_like(b)
    return loss + slope @ w


@pytest.mark.parametrize("subset", [["t0"], ["t1", "t3"], TASKS])
@pytest.mark.parametrize("regularization", [0.05, 2.0])
@pytest.mark.parametrize(
    "name", ["empirical_fisher", "token_fisher", "gradient_flow", "inner_product", "cosine", "zero_order"]
)
def test_closed_forms_equal_their_definition(store, name, regularization, subset):
    found = SubsetEstimator(name, regularization).fit(store, "goal").predict([subset])[0]
    assert found == pytest.approx(slow_estimate(name, store, subset, regularization), rel=1e-7)


def test_gradient_flow_is_the_limit_of_many_small_steps(store):
    g, share, loss, slope = problem(store, ["t0", "t2"])
    b, fisher = share @ g, g.T @ (share[:, None] * g)
    time, steps = 1 / (0.2 * unit(store)), 20_000
    w = np.zeros_like(b)
    for _ in range(steps):
        w -= time / steps * (b + fisher @ w)
    found = SubsetEstimator("gradient_flow", 0.2).fit(store, "goal").predict([["t0", "t2"]])[0]
    assert found == pytest.approx(loss + slope @ w, rel=1e-3)


def test_logistic_regressions_that_do_not_converge_say_so(store, monkeypatch):
    monkeypatch.setattr(logistic, "MAX_ITERATIONS", 1)
    estimator = SubsetEstimator("offset_logistic", 1e-3).fit(store, "goal")
    with pytest.warns(UserWarning, match="3 of 3 logistic regressions did not converge in 1 steps"):
        estimator.predict(random_subsets(len(store.task_names), 3))


@pytest.mark.parametrize("rows", [1, 7, 10**6])
def test_logistic_solutions_do_not_depend_on_the_blocks_that_rows_are_read_in(store, rows, monkeypatch):
    subsets = random_subsets(len(store.task_names), 4)
    estimator = SubsetEstimator("offset_logistic").fit(store, "goal")
    expected = estimator.predict(subsets)
    monkeypatch.setattr(logistic, "ROWS_PER_BLOCK", rows)
    np.testing.assert_allclose(estimator.predict(subsets), expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["offset_logistic", "plain_logistic"])
def test_many_logistic_problems_at_once_equal_each_alone(store, name):
    estimator = SubsetEstimator(name, 0.3).fit(store, "goal")
    subsets = random_subsets(5, 12)
    together = estimator.predict(subsets)
    alone = [estimator.predict(row[None])[0] for row in subsets]
    np.testing.assert_allclose(together, alone, rtol=1e-5)


@pytest.mark.parametrize("regularization", [1e-3, 0.1, 10.0])
def test_logistic_minimisers_have_no_gradient_left(store, regularization):
    (surrogate,), _ = SubsetEstimator("offset_logistic", regularization).fit(store, "goal").expansions_[0]
    w = surrogate.displacement(torch.tensor([[1.0, 0, 1, 0, 1]], dtype=torch.float64))[0].numpy()
    rows = np.flatnonzero(np.isin(store.task, ["t0", "t2", "t4"]))
    g, f = store.gradients("log_odds")[rows].astype(float), store.value[rows].astype(float)

    def gradient(w: np.ndarray) -> np.ndarray:
        return -(g / (1 + np.exp(f + g @ w))[:, None]).mean(0) + 2 * surrogate.damping * w

    assert np.linalg.norm(gradient(w)) < 1e-5 * np.linalg.norm(gradient(np.zeros_like(w)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", SURROGATES)
def test_another_device_gives_the_same_estimates(store, name):
    weights = random_subsets(5, 6)
    cpu, gpu = (SubsetEstimator(name, device=d).fit(store, "goal").predict(weights) for d in ("cpu", "cuda"))
    np.testing.assert_allclose(gpu, cpu, rtol=1e-6)


@pytest.mark.parametrize("name", SURROGATES)
def test_order_of_rows_and_scale_of_weights_do_not_matter(store, name, tmp_path):
    columns = random_columns()
    order = np.random.default_rng(1).permutation(len(columns["task"]))
    shuffled = GradientStore.from_arrays(tmp_path / "s", **{k: v[order] for k, v in columns.items()})
    places = [shuffled.task_names.index(task) for task in store.task_names]  # tasks come in the order of their rows
    weights = random_subsets(5, 6)
    first = SubsetEstimator(name).fit(store, "goal").predict(weights)
    second = SubsetEstimator(name).fit(shuffled, "goal").predict(3 * weights[:, np.argsort(places)])
    np.testing.assert_allclose(first, second, rtol=1e-5)


@pytest.mark.parametrize("name", [n for n in SURROGATES if n not in ("cosine", "zero_order")])
def test_with_epochs_fixed_a_larger_subset_moves_farther(store, name):
    steps, epochs = (SubsetEstimator(name, 0.5, budget).fit(store, "goal") for budget in ("steps", "epochs"))
    everything = np.ones((1, 5))
    np.testing.assert_allclose(steps.predict(everything), epochs.predict(everything), rtol=1e-6)
    one = np.eye(5)[:1]  # a fifth of all samples, so a fifth of the steps: λ counts five times
    expected = SubsetEstimator(name, 2.5).fit(store, "goal").predict(one)
    np.testing.assert_allclose(epochs.predict(one), expected, rtol=1e-5)


@pytest.mark.parametrize("rows", ["halves", "one added", "one dropped"])
def test_sums_of_subsets_that_differ_in_one_task_equal_the_plain_product(rows):
    parts = torch.randn(30, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    flips = torch.eye(30, dtype=torch.float64)
    weights = {
        "halves": torch.from_numpy(random_subsets(30, 50)),
        "one added": (flips + torch.ones(30) * (torch.arange(30) < 7)).clamp(max=1).double(),
        "one dropped": 1 - flips,
    }[rows]
    torch.testing.assert_close(weighted_sum(weights, parts), torch.einsum("mn,nij->mij", weights, parts))


def test_an_average_of_surrogates_is_their_mean(store):
    weights = random_subsets(5, 4)
    both = SubsetEstimator(["empirical_fisher", "inner_product"], 0.5).fit(store, "goal").predict(weights)
    each = [SubsetEstimator(n, 0.5).fit(store, "goal").predict(weights) for n in ("empirical_fisher", "inner_product")]
    np.testing.assert_allclose(both, np.mean(each, axis=0))


def test_exact_gradients_in_a_basis_of_their_span_give_the_dual_solution(tmp_path):
    long = random_store(tmp_path / "long", per_task=6, dev=5, dim=300)
    short = isometric_store(long, tmp_path / "short")
    assert short.dim <= 2 * len(long) < long.dim
    regularization = 0.1 * long.dim / short.dim  # λ is relative to the mean eigenvalue, a trace ÷ length
    found = SubsetEstimator("empirical_fisher", 0.1).fit(short, "goal").predict([["t0", "t3"]])[0]
    assert found == pytest.approx(slow_estimate("empirical_fisher", long, ["t0", "t3"], regularization), rel=1e-4)
    for name in ("offset_logistic", "gradient_flow"):
        exact = SubsetEstimator(name, 0.1).fit(short, "goal").predict([["t0", "t3"], ["t1"]])
        same = SubsetEstimator(name, regularization).fit(long, "goal").predict([["t0", "t3"], ["t1"]])
        np.testing.assert_allclose(exact, same, rtol=1e-4)
    both = SubsetEstimator().fit(short, "goal").predict_log_odds([["t0"]])
    assert np.isfinite(both).all()


def test_mixtures_weigh_samples(store, tmp_path):
    columns = random_columns()
    twice = {k: np.concatenate([v, v[columns["task"] == "t1"]]) for k, v in columns.items()}
    doubled = GradientStore.from_arrays(tmp_path / "s", **twice)
    surrogates = ("empirical_fisher", "gradient_flow", "offset_logistic")
    for name in surrogates:
        (a,), _ = SubsetEstimator(name).fit(store, "goal").expansions_[0]
        (b,), _ = SubsetEstimator(name).fit(doubled, "goal").expansions_[0]
        b.damping = a.damping  # the unit of λ is that of all rows
        first = a.displacement(torch.tensor([[1.0, 2, 0, 0, 0]], dtype=torch.float64))
        second = b.displacement(torch.tensor([[1.0, 1, 0, 0, 0]], dtype=torch.float64))
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


def test_wrong_parameters_are_one_sentence(store):
    with pytest.raises(ConfigError, match="budget must be one of"):
        SubsetEstimator(budget="years").fit(store, "goal")
    with pytest.raises(ConfigError, match="too small: condition numbers up to"):
        SubsetEstimator("offset_logistic", 1e-18).fit(store, "goal")
    with pytest.raises(ConfigError, match="too small: condition numbers up to"):
        SubsetEstimator(regularization=1e-15).fit(store, "goal")
    with pytest.raises(ConfigError, match="did you mean 'gradient_flow'"):
        surrogate_class("gradient_flows")


# What the reference implementation gets wrong, one test each; greedy argmax is tested in tests/selection, stable
# log-odds in tests/gradients.


def test_random_labels_without_intercept_equal_all_positive_ones_and_with_one_do_not(store):
    rows = np.flatnonzero(np.isin(store.task, ["t0", "t1"]))
    g = store.gradients("log_odds")[rows].astype(float)
    (surrogate,), _ = SubsetEstimator("plain_logistic", 0.5).fit(store, "goal").expansions_[0]
    ours = surrogate.displacement(torch.tensor([[1.0, 1, 0, 0, 0]], dtype=torch.float64))[0].numpy()
    strength = 1 / (2 * surrogate.damping * len(rows))

    def reference(seed: int, intercept: bool) -> np.ndarray:
        labels = np.random.default_rng(seed).choice([-1, 1], len(rows))
        solver = LogisticRegression(C=strength, fit_intercept=intercept, tol=1e-10, max_iter=10_000)
        return solver.fit(labels[:, None] * g, labels).coef_[0]

    np.testing.assert_allclose(reference(0, False), ours, atol=1e-5)
    np.testing.assert_allclose(reference(1, False), ours, atol=1e-5)
    assert np.abs(reference(0, True) - reference(1, True)).max() > 1e-3


def test_the_values_of_samples_count(store, tmp_path):
    columns = random_columns()
    other = GradientStore.from_arrays(tmp_path / "s", **{**columns, "value": columns["value"] + 2})
    offset, plain = (
        [SubsetEstimator(n).fit(s, "goal").predict([["t0"]])[0] for s in (store, other)]
        for n in ("offset_logistic", "plain_logistic")
    )
    assert plain[0] == pytest.approx(plain[1])
    assert offset[0] != pytest.approx(offset[1], rel=1e-3)


@pytest.mark.parametrize("name", [n for n in SURROGATES if n != "zero_order"])
def test_the_solution_is_not_rescaled_so_that_regularization_means_something(store, name):
    lengths = [
        float(SubsetEstimator(name, r).fit(store, "goal").displacements([["t0", "t1"]])[0].norm())
        for r in (0.1, 1.0, 10.0)
    ]
    assert lengths[0] > 1.5 * lengths[1] > 2.25 * lengths[2]


def test_projected_estimates_are_not_inflated(tmp_path):
    columns = random_columns(per_task=60, dim=2000)
    rng = np.random.default_rng(0)
    projection = rng.choice([-1, 1], size=(2000, 400)) / np.sqrt(400)
    sketched = {k: (v @ projection).astype(np.float32) if k.endswith("gradient") else v for k, v in columns.items()}
    long = isometric_store(GradientStore.from_arrays(tmp_path / "long", **columns), tmp_path / "basis")
    short = GradientStore.from_arrays(tmp_path / "short", **sketched)
    weights = random_subsets(5, 20)
    loss = SubsetEstimator("zero_order").fit(long, "goal").predict(weights)
    # equal λ, not equal multiples of the mean eigenvalue
    exact = SubsetEstimator("empirical_fisher", 1.0).fit(long, "goal").predict(weights) - loss
    rough = SubsetEstimator("empirical_fisher", 400 / long.dim).fit(short, "goal").predict(weights) - loss
    assert 0.7 < np.linalg.norm(rough) / np.linalg.norm(exact) < 1.4
