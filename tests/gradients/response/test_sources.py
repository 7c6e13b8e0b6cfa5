"""Sources of displacements against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hf_tasksel.core.errors import DataError, ModelError
from hf_tasksel.gradients.response.displacements import LoadedDisplacements, StackedDisplacements
from hf_tasksel.gradients.response.merging import WEIGHTS_FILE
from hf_tasksel.gradients.response.sources import (
    adam_step,
    least_squares,
    mixed,
    move_to,
    probe_displacements,
    probe_rows,
    probes,
    read_factors,
)
from model_zoo import lora_model


def directions(seed: int, tasks: int = 3) -> StackedDisplacements:
    generator = torch.Generator().manual_seed(seed)
    parts = {n: torch.randn(tasks, *s, generator=generator).double() for n, s in (("a", (2, 3)), ("b", (4,)))}
    return StackedDisplacements(tuple(f"t{i}" for i in range(tasks)), parts)


def test_adams_step_along_a_gradient():
    mean = {name: part[1] for name, part in directions(0).parts.items()}
    v = {"a": torch.rand(2, 3).double(), "b": torch.rand(4).double()}
    torch.testing.assert_close(adam_step(mean, v)["a"], -mean["a"] / (v["a"].sqrt() + 1e-8))
    torch.testing.assert_close(adam_step(mean)["b"], -mean["b"])
    with pytest.raises(ModelError, match="'a' has none of shape"):
        adam_step(mean, {"b": v["b"]})


def test_displacements_that_are_loaded_are_those_in_memory():
    d, s = directions(0), torch.randn(5, 3, dtype=torch.float64)
    gradient = {name: part[0] for name, part in directions(1).parts.items()}
    loaded = LoadedDisplacements(d.task_names, lambda k: {name: part[k] for name, part in d.parts.items()})
    shares = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    for mine, other in ((loaded, d), (loaded.centred(shares).scaled(2.0), d.centred(shares).scaled(2.0))):
        assert mine.typical_length(s) == pytest.approx(other.typical_length(s))
        point = torch.randn(3).double()
        assert mine.task_names == other.task_names
        torch.testing.assert_close(mine.combine(point), other.combine(point))
        torch.testing.assert_close(mine.combine(0 * point), other.combine(0 * point))
        torch.testing.assert_close(mine.slopes(gradient), other.slopes(gradient))
        torch.testing.assert_close(mine.stacked().parts, other.parts)


def test_centred_displacements_have_a_weighted_mean_of_zero():
    shares = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    centred = directions(0).centred(shares)
    for part in centred.combine(shares).values():
        torch.testing.assert_close(part, torch.zeros_like(part), atol=1e-12, rtol=0)
    d = directions(1)
    flat = torch.cat([part.flatten(1) for part in d.parts.values()], dim=1)
    torch.testing.assert_close(d.gram(), flat @ flat.T)
    shift = {name: part[0] for name, part in directions(2).parts.items()}
    torch.testing.assert_close(d.shifted(shift).parts["a"][2], d.parts["a"][2] + shift["a"])


def test_displacements_come_back_from_disk(tmp_path):
    d = directions(0)
    d.save(tmp_path / "d.safetensors")
    found = StackedDisplacements.load(tmp_path / "d.safetensors")
    assert found.task_names == d.task_names
    torch.testing.assert_close(found.parts, d.parts)


def test_probes_of_a_linear_response_give_it_back():
    centre = {"a": torch.randn(2, 3).double(), "b": torch.randn(4).double()}
    samples = torch.tensor([10.0, 20.0, 70.0], dtype=torch.float64)
    d = directions(0).centred(samples)
    trained = {task: {n: centre[n] + 0.3 * d.parts[n][k] for n in centre} for k, task in enumerate(d.task_names)}
    found_centre, found = probe_displacements(trained, 0.3, samples)
    torch.testing.assert_close(found_centre, centre)
    torch.testing.assert_close(found.parts, d.parts)
    with pytest.raises(DataError, match="share"):
        probe_displacements(trained, 0.0)


def test_probes_differ_in_the_same_places_and_only_missing_ones_are_trained(tmp_path):
    tasks = np.asarray([0] * 10 + [1] * 90)
    first, second = (probe_rows(tasks, k, 0.3) for k in (0, 1))
    same = first == second
    assert 70 <= same.sum() < 80  # 30 places, in which a row may have been filled by itself
    assert (first[same] == np.arange(100)[same]).mean() > 0.9
    assert (tasks[first[~same]] == 0).all()
    assert (tasks[second[~same]] == 1).all()
    kept = np.flatnonzero(tasks[first] == 0)
    counts = np.bincount(first[kept], minlength=10)[:10]
    assert len(kept) >= 30
    assert counts.max() - counts.min() <= 2  # its 10 rows fill 30 places three times each, and some were there
    asked = []

    def train(rows, folder):
        asked.append(rows)
        folder.mkdir(parents=True)
        (folder / WEIGHTS_FILE).write_bytes(b"")

    found = probes(train, tasks, ["x", "y"], 0.3, tmp_path)
    assert probes(train, tasks, ["x", "y"], 0.3, tmp_path) == found
    np.testing.assert_array_equal(asked, [first, second])


def test_adapters_are_read_by_the_names_of_a_model_and_moved_to(tmp_path):
    model = lora_model("gpt2")
    model.save_pretrained(tmp_path)
    wanted = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    torch.testing.assert_close(read_factors(tmp_path), wanted)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(p.requires_grad)
    move_to(model, wanted)
    torch.testing.assert_close({n: p.detach() for n, p in model.named_parameters() if p.requires_grad}, wanted)
    with pytest.raises(ModelError, match="other parameters"):
        move_to(model, {})


def test_least_squares_give_back_a_linear_response():
    d, centre = directions(0).centred(), directions(5, 1)
    points = torch.rand(9, 3).double()
    points = points / points.sum(1, keepdim=True) - 1 / 3
    adapters = [{n: centre.parts[n][0] + part for n, part in d.combine(p).items()} for p in points]
    mixing, offset = least_squares(points, ridge=1e-9)
    assert float(offset.sum()) == pytest.approx(1)
    torch.testing.assert_close(mixing.sum(0), torch.zeros(3).double(), atol=1e-6, rtol=0)
    found = mixed(adapters, mixing, d.task_names)
    for point in points:
        torch.testing.assert_close(found.combine(point), d.combine(point), atol=1e-6, rtol=1e-6)
    at_zero = mixed(adapters, offset[:, None], ["centre"])
    torch.testing.assert_close(at_zero.parts["a"][0], centre.parts["a"][0], atol=1e-6, rtol=1e-6)
    with pytest.raises(DataError, match="two true runs"):
        least_squares(points[:1])


def test_lengths_are_those_of_what_is_displaced():
    d, s = directions(0), torch.randn(6, 3, generator=torch.Generator().manual_seed(1)).double()
    squares = [sum(float(part.square().sum()) for part in d.combine(row).values()) for row in s]
    assert d.typical_length(s) == pytest.approx((sum(squares) / 6) ** 0.5)
