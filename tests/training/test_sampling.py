"""Multitask samplers: deterministic, of the right frequencies, without replacement inside a task."""

from __future__ import annotations

import numpy as np
import pytest
from accelerate.data_loader import prepare_data_loader
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from hf_tasksel.training.sampling import SAMPLERS, MultitaskSampler

SIZES = [5, 20, 75]
TASKS = np.repeat([0, 1, 2], SIZES)


@pytest.mark.parametrize("strategy", SAMPLERS)
def test_the_order_depends_on_seed_and_epoch_alone(strategy):
    first, second = (MultitaskSampler(TASKS, strategy, seed=3) for _ in range(2))
    assert list(first) == list(second)
    second.set_epoch(1)
    assert list(first) != list(second)
    assert list(first) != list(MultitaskSampler(TASKS, strategy, seed=4))
    assert len(list(first)) == len(first) == len(TASKS)


def shares(strategy: str, **options) -> np.ndarray:
    counts = np.zeros(3)
    for epoch in range(50):
        sampler = MultitaskSampler(TASKS, strategy, **options)
        sampler.set_epoch(epoch)
        counts += np.bincount(TASKS[list(sampler)], minlength=3)
    return counts / counts.sum()


def test_tasks_appear_with_the_frequencies_of_the_strategy():
    np.testing.assert_allclose(shares("proportional"), [0.05, 0.2, 0.75])
    np.testing.assert_allclose(shares("round_robin"), [1 / 3] * 3, atol=0.01)
    np.testing.assert_allclose(shares("balanced"), [1 / 3] * 3, atol=0.03)
    roots = np.sqrt(SIZES)
    np.testing.assert_allclose(shares("temperature", temperature=2.0), roots / roots.sum(), atol=0.03)
    np.testing.assert_allclose(shares("temperature", temperature=1.0), [0.05, 0.2, 0.75], atol=0.03)


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5), strategy=st.sampled_from(SAMPLERS))
def test_no_sample_repeats_before_its_task_is_used_up(sizes, strategy):
    tasks = np.repeat(np.arange(len(sizes)), sizes)
    order = np.asarray(list(MultitaskSampler(tasks, strategy)))
    for task, size in enumerate(sizes):
        draws = order[tasks[order] == task]
        for start in range(0, len(draws), size):
            block = draws[start : start + size]
            assert len(set(block)) == len(block)


@pytest.mark.parametrize("strategy", ["proportional", "epoch_exact"])
def test_an_epoch_has_every_sample_once(strategy):
    for epoch in range(3):
        sampler = MultitaskSampler(TASKS, strategy)
        sampler.set_epoch(epoch)
        assert sorted(sampler) == list(range(100))


def test_an_exact_epoch_has_every_task_in_every_part_of_it():
    order = TASKS[list(MultitaskSampler(TASKS, "epoch_exact"))]
    for part in np.split(order, 5):
        np.testing.assert_array_equal(np.bincount(part, minlength=3), [1, 4, 15])


@pytest.mark.parametrize("strategy", SAMPLERS)
def test_ranks_share_out_the_order_of_one_process(strategy):
    def loader(ranks: int, rank: int) -> list[list[int]]:
        sampler = MultitaskSampler(TASKS, strategy, seed=1)
        whole = DataLoader(range(100), batch_size=5, sampler=sampler)
        shared = prepare_data_loader(whole, num_processes=ranks, process_index=rank, put_on_device=False)
        shared.set_epoch(2)
        return [batch.tolist() for batch in shared]

    ranks = [loader(2, rank) for rank in (0, 1)]
    assert [batch for pair in zip(*ranks, strict=True) for batch in pair] == loader(1, 0)


def test_an_unknown_strategy_is_refused():
    with pytest.raises(ValueError, match="round_robin"):
        MultitaskSampler([0], "sometimes")
