"""The numbers that say how far estimates can be trusted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from hf_tasksel.core.errors import DataError
from hf_tasksel.estimation.fidelity import measure_fidelity, predictability

TRUE = np.asarray([1.0, 1.2, 0.9, 1.5, 1.1, 1.4, 0.8, 1.3])


def test_perfect_estimates_have_no_error_and_no_regret():
    found = measure_fidelity(TRUE, np.stack([TRUE, TRUE], axis=1))
    assert (found.spearman, found.relative_error, found.regret) == (pytest.approx(1.0), 0.0, 0.0)
    assert found.ceiling_spearman == pytest.approx(1.0)
    assert found.verdict == "trust the ranking and the values"


def test_a_shift_spoils_values_but_not_the_ranking():
    found = measure_fidelity(TRUE - 1.0, TRUE)
    assert found.spearman == pytest.approx(1.0)
    assert found.verdict == "trust the ranking, not the values"
    assert found.ceiling_spearman is None


def test_values_are_trusted_only_when_errors_are_clearly_below_those_of_a_constant():
    rng = np.random.default_rng(0)
    truth = 5 + 0.1 * rng.normal(size=30)
    near, far = truth + 0.01 * rng.normal(size=30), truth + 0.06 * rng.normal(size=30)
    found = measure_fidelity(far, truth)
    assert found.relative_error < found.constant_error
    assert found.verdict == "trust the ranking, not the values"
    assert measure_fidelity(near, truth).verdict == "trust the ranking and the values"


def test_numbers_are_those_of_their_definitions():
    estimates = TRUE + np.asarray([0.1, -0.1, 0.2, 0.0, 0.1, -0.3, 0.4, 0.1])
    found = measure_fidelity(estimates, TRUE)
    assert found.spearman == pytest.approx(spearmanr(estimates, TRUE).statistic)
    assert found.relative_error == pytest.approx(
        np.mean([abs(e - t) / t for e, t in zip(estimates, TRUE, strict=True)])
    )
    constant = [abs(np.delete(TRUE, i).mean() - t) / t for i, t in enumerate(TRUE)]
    assert found.constant_error == pytest.approx(np.mean(constant))
    assert found.regret == pytest.approx(TRUE[estimates.argmin()] - TRUE.min())


def test_ceilings_are_about_pairs_of_seeds_and_about_their_mean():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=4000)
    table = 9 + truth[:, None] + 0.7 * rng.normal(size=(4000, 3))
    found = measure_fidelity(9 + truth, table, std=np.full(4000, 0.7))
    assert found.pearson == pytest.approx(found.attainable_pearson, abs=0.01)
    assert found.spearman == pytest.approx(found.attainable_spearman, abs=0.01)
    assert found.ceiling_pearson == pytest.approx(1 / 1.49, abs=0.02)
    assert found.coverage == pytest.approx(0.9, abs=0.01)


@pytest.mark.parametrize(("noise", "said"), [(0.1, False), (1.0, True)])
def test_fine_tunes_that_chance_decides_are_called_unpredictable(noise, said):
    rng = np.random.default_rng(0)
    truth = rng.normal(10, 1, size=(4000, 1))
    figures = measure_fidelity(truth[:, 0], truth + noise * rng.normal(size=(4000, 2)))
    assert figures.seed_share == pytest.approx(noise**2 / (1 + noise**2), rel=0.1)
    advice = predictability(figures)
    assert bool(advice) == said
    if advice:
        assert f"a rank correlation of {figures.attainable_spearman:.2f} is the best" in advice
    assert predictability(measure_fidelity(truth[:9, 0], truth[:9])) is None
    assert measure_fidelity(truth[:9, 0], np.hstack([truth[:9], truth[:9]])).seed_share == 0.0


def test_a_few_subsets_allow_no_verdict():
    assert "too few to tell" in measure_fidelity(TRUE[:5], TRUE[:5]).verdict


def test_noise_is_not_trusted():
    rng = np.random.default_rng(0)
    assert measure_fidelity(rng.permutation(TRUE)[::-1], TRUE).verdict.startswith("do not trust")
    assert measure_fidelity(np.ones(8), TRUE).spearman == 0.0


@pytest.mark.parametrize(("estimates", "truths"), [([1, 2], [1, 2]), ([1, 2, 3], [1, 2]), ([1, 2, np.nan], [1, 2, 3])])
def test_too_little_or_broken_input_is_refused(estimates, truths):
    with pytest.raises(DataError, match="fidelity needs"):
        measure_fidelity(estimates, truths)
