"""Affinities against a loop over subsets, and groups that were planted."""

from __future__ import annotations

import numpy as np
import pytest

from estimation.synthetic import random_columns
from hf_tasksel import GradientStore, SubsetEstimator
from hf_tasksel.core.errors import ConfigError, DataError, TaskSelectionError
from hf_tasksel.selection.analysis.grouping import (
    TaskAffinity,
    affinity_subsets,
    group_tasks,
    task_affinity,
    training_affinity,
    within_group_affinity,
)

NAMES = ["m", "c", "x", "a", "q", "b", "z", "k"]
BLOCKS = [["m", "x", "q"], ["c", "b"], ["a", "z", "k"]]


class FakeEstimator:
    """A target's loss falls by 0.3 for each task of its own block and rises by 0.1 for each other one."""

    def __init__(self, target: str, names: list[str], interaction: float = 0.0) -> None:
        self.target_, self.task_names_, self.interaction = target, names, interaction
        self.asked: list[list[str]] = []

    def loss(self, subset: list[str]) -> float:
        block = next(block for block in BLOCKS if self.target_ in block)
        friends = len(set(subset) & set(block))
        letters = sum(map(ord, subset)) * ord(self.target_) % 7
        return 2.0 - 0.3 * friends + 0.1 * (len(subset) - friends) + self.interaction * letters

    def predict(self, subsets):
        chosen = [[self.task_names_[i] for i in np.flatnonzero(row)] for row in np.asarray(subsets)]
        self.asked += chosen
        return np.asarray([self.loss(subset) for subset in chosen])


def fakes(names: list[str] = NAMES, interaction: float = 0.0) -> dict[str, FakeEstimator]:
    return {name: FakeEstimator(name, names, interaction) for name in names}


def partition(groups: list[list[str]]) -> set[frozenset[str]]:
    return {frozenset(group) for group in groups}


def planted(within: float = 1.0, between: float = -1.0, noise: float = 0.1) -> TaskAffinity:
    same = np.asarray([[any({a, b} <= set(block) for block in BLOCKS) for b in NAMES] for a in NAMES])
    matrix = np.where(same, within, between) + noise * np.random.default_rng(0).normal(size=same.shape)
    np.fill_diagonal(matrix, 0.0)
    return TaskAffinity(NAMES, matrix, np.full(same.shape, 9))


def test_affinity_is_the_mean_loss_with_the_task_minus_the_mean_with_both():
    estimators = fakes(interaction=0.05)
    found = task_affinity(estimators, num_subsets=60, seed=3)
    for i, target in enumerate(NAMES):
        with_i = estimators[target].asked
        assert with_i
        assert all(target in subset and len(subset) == 4 for subset in with_i)
        for j, other in enumerate(NAMES):
            with_both = [subset for subset in with_i if other in subset]
            relative = np.mean(list(map(estimators[target].loss, with_both))) - np.mean(
                list(map(estimators[target].loss, with_i))
            )
            assert found.matrix[i, j] == pytest.approx(-relative, abs=1e-12)
            assert found.counts[i, j] == len(with_both)
    assert (np.diag(found.matrix) == 0).all()


def test_helpful_tasks_have_positive_affinity_and_blocks_are_found():
    affinity = task_affinity(fakes(), num_subsets=400)
    same = planted(1.0, -1.0).matrix > 0
    others = ~np.eye(len(NAMES), dtype=bool)
    assert (affinity.matrix[same] > 0).all()
    assert (affinity.matrix[~same & others] < 0).all()
    assert partition(group_tasks(affinity, 3)) == partition(BLOCKS)


@pytest.mark.parametrize("method", ["spectral", "agglomerative"])
def test_planted_blocks_are_recovered_and_their_number_too(method):
    for affinity in (planted(), planted(within=-0.5, between=-1.5)):
        assert partition(group_tasks(affinity, 3, method)) == partition(BLOCKS)
    assert partition(group_tasks(planted(), range(1, 9), method)) == partition(BLOCKS)
    assert group_tasks(planted(), 3, method) == [["m", "x", "q"], ["c", "b"], ["a", "z", "k"]], "order of the tasks"


@pytest.mark.parametrize("method", ["spectral", "agglomerative"])
def test_the_order_of_the_tasks_only_permutes_the_result(method):
    order = np.random.default_rng(1).permutation(len(NAMES))
    permuted = [NAMES[i] for i in order]
    first = task_affinity(fakes(interaction=0.05), seed=5)
    second = task_affinity(fakes(permuted, interaction=0.05), seed=5)
    assert second.tasks == permuted
    np.testing.assert_allclose(second.matrix, first.matrix[np.ix_(order, order)], atol=1e-12)
    np.testing.assert_array_equal(second.counts, first.counts[np.ix_(order, order)])
    noise = np.random.default_rng(2).normal(size=(8, 8))
    for matrix in (noise, np.zeros((8, 8))):  # no clear groups, and none at all: any change of order would show
        groups = [
            partition(group_tasks(TaskAffinity(names, matrix[np.ix_(rows, rows)], np.ones((8, 8))), number, method))
            for names, rows in ((NAMES, np.arange(8)), (permuted, order))
            for number in (2, 3, 5)
        ]
        assert groups[:3] == groups[3:]


def test_tasks_without_an_estimator_stay_out_of_the_subsets():
    estimators = {name: FakeEstimator(name, NAMES) for name in BLOCKS[0] + BLOCKS[1]}
    found = task_affinity(estimators)
    assert found.tasks == ["m", "c", "x", "q", "b"]
    assert not {"a", "z", "k"} & {name for e in estimators.values() for subset in e.asked for name in subset}


def test_the_best_number_of_groups_weighs_a_task_alone_as_neutral():
    affinity = TaskAffinity(["a", "b", "c"], np.asarray([[0, 2, -1], [4, 0, -1], [-1, -1, 0.0]]), np.ones((3, 3)))
    assert within_group_affinity(affinity, [["a", "b"], ["c"]]) == pytest.approx((2 + 4) / 2 / 3)
    assert within_group_affinity(affinity, [["a", "b", "c"]]) == pytest.approx((2 + 4 - 4) / 3 / 3)
    assert group_tasks(affinity, [1, 2, 3]) == [["a", "b"], ["c"]]
    flat = TaskAffinity(["a", "b", "c"], np.zeros((3, 3)), np.ones((3, 3)))
    assert group_tasks(flat, [3, 1]) == [["a", "b", "c"]], "the smallest number of equals"


@pytest.mark.filterwarnings("error")
def test_blocks_with_nothing_between_them_are_no_obstacle():
    assert partition(group_tasks(planted(noise=0.0), 3)) == partition(BLOCKS)
    assert len(group_tasks(planted(noise=0.0), 2)) == 2


@pytest.mark.filterwarnings("error")
def test_a_flat_affinity_is_still_grouped():
    flat = TaskAffinity(NAMES, np.zeros((8, 8)), np.ones((8, 8)))
    assert sorted(name for group in group_tasks(flat, 3) for name in group) == sorted(NAMES)


def test_an_affinity_comes_back_from_plain_values():
    affinity = task_affinity(fakes())
    again = TaskAffinity.from_dict(affinity.to_dict())
    assert again.to_dict() == affinity.to_dict()
    np.testing.assert_array_equal(again.symmetric(), (affinity.matrix + affinity.matrix.T) / 2)
    with pytest.raises(TaskSelectionError, match="not a task affinity: KeyError"):
        TaskAffinity.from_dict({"tasks": ["a"], "matrix": [[0]]})
    with pytest.raises(TaskSelectionError, match="2 tasks, but matrices of"):
        TaskAffinity.from_dict({"tasks": ["a", "b"], "matrix": [[0]], "counts": [[1]]})


def test_what_has_no_affinity_is_refused_with_a_reason():
    with pytest.raises(DataError, match="at least 3 tasks"):
        task_affinity({name: FakeEstimator(name, NAMES) for name in "ab"})
    with pytest.raises(DataError, match="given for 'a' is fitted to the target 'b'"):
        task_affinity({**fakes(), "a": FakeEstimator("b", NAMES)})
    with pytest.raises(DataError, match="'a' is fitted to other tasks"):
        task_affinity({**fakes(), "a": FakeEstimator("a", NAMES[::-1])})
    with pytest.raises(DataError, match="needs 'goal' as a training task"):
        task_affinity({**fakes(), "goal": FakeEstimator("goal", NAMES)})
    with pytest.raises(ConfigError, match="no random subset holds both"):
        task_affinity(fakes(), num_subsets=2)
    with pytest.raises(ConfigError, match="subset_fraction must be between 0 and 1, not 1"):
        task_affinity(fakes(), subset_fraction=1)


def test_groups_that_cannot_be_made_are_refused():
    with pytest.raises(ConfigError, match=r"'spectra' is not one of .* \(did you mean 'spectral'\?\)"):
        group_tasks(planted(), 2, "spectra")
    for number in (0, 9, [], [2, 9]):
        with pytest.raises(ConfigError, match=r"num_groups must be in 1 … 8"):
            group_tasks(planted(), number)


@pytest.mark.parametrize("names", [["a", "b", "c"], ["$x_", "日本 💡", "a" * 200], [f"task {i}" for i in range(60)]])
def test_affinities_of_any_names_and_size_are_drawn(names, tmp_path):
    matrix = np.random.default_rng(0).normal(size=(len(names), len(names)))
    affinity = TaskAffinity(names, matrix, np.ones_like(matrix))
    affinity.plot(tmp_path / "a.png")
    affinity.plot(tmp_path / "g.png", [names[1:], names[:1]])
    TaskAffinity(names, 0 * matrix, np.ones_like(matrix)).plot(tmp_path / "flat.png")
    written = {name: (tmp_path / f"{name}.png").read_bytes() for name in ("a", "g", "flat")}
    assert all(content[:4] == b"\x89PNG" for content in written.values())
    assert written["a"] != written["g"], "groups order the tasks"


def test_affinity_from_training_rows_is_the_mean_change_of_a_tasks_own_loss(tmp_path):
    store = GradientStore.from_arrays(tmp_path / "store", **random_columns(tasks=4, per_task=12))
    estimator = SubsetEstimator().fit(store, "goal")
    found = training_affinity(estimator, num_subsets=40, seed=1)
    gradients, tokens = store.gradients().astype(float), store.num_tokens.astype(float)
    subsets = [
        [name for name, used in zip(found.tasks, row, strict=True) if used]
        for row in affinity_subsets(found.tasks, 40, 0.5, 1)
    ]
    for i, target in enumerate(found.tasks):
        mine = (store.split == "train") & (store.task == target)
        gradient = tokens[mine] @ gradients[mine] / tokens[mine].sum()
        changes = {k: float(estimator.displacements([s])[0][0].numpy() @ gradient) for k, s in enumerate(subsets)}
        with_i = [k for k, s in enumerate(subsets) if target in s]
        for j, other in enumerate(found.tasks):
            both = [k for k in with_i if other in subsets[k]]
            expected = np.mean([changes[k] for k in with_i]) - np.mean([changes[k] for k in both])
            assert found.matrix[i, j] == pytest.approx(0.0 if i == j else expected, abs=1e-9)
            assert found.counts[i, j] == len(both)


def test_affinity_needs_three_tasks(tmp_path):
    store = GradientStore.from_arrays(tmp_path / "store", **random_columns(tasks=2, per_task=6))
    with pytest.raises(DataError, match="at least 3 tasks; there are 2"):
        training_affinity(SubsetEstimator().fit(store, "goal"))
