"""A gradient store goes to the Hub and comes back, byte for byte."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from huggingface_hub import HfApi

import gradient_worker
from hf_tasksel import GradientStore
from hf_tasksel.core.errors import StoreError, TaskSelectionError
from hf_tasksel.estimation.statistics import loss_statistics


@pytest.fixture
def api(hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> GradientStore:
    return gradient_worker.collect(tmp_path_factory.mktemp("store"))


def test_a_store_is_pushed_and_fetched(store, hub, api, tmp_path):
    address = store.push_to_hub("tester/gradients", api=api)
    assert address.startswith(hub.url)
    files = hub.files("tester/gradients", "dataset")
    shards = {shard["file"] for shard in store.manifest["shards"]}
    assert set(files) - {".gitattributes"} == {*shards, "manifest.json", "README.md"}
    assert "60 samples of 2 tasks" in files["README.md"].decode()
    assert not any(hub.token.encode() in content for content in files.values())
    again = GradientStore.from_hub("tester/gradients", api=api, local_dir=tmp_path / "fetched")
    for shard in shards:
        assert (tmp_path / "fetched" / shard).read_bytes() == (store.path / shard).read_bytes()
    np.testing.assert_array_equal(again.gradients(), store.gradients())
    assert again.fingerprint == store.fingerprint


def own_store(folder: Path, count: int) -> GradientStore:
    """Return a store of `count` rows whose gradients are all `count`."""
    numbers = {name: np.ones(count) for name in ("value", "loss", "num_tokens")}
    names = {"task": ["a"] * count, "split": ["train"] * count}
    return GradientStore.from_arrays(folder, **names, **numbers, loss_gradient=np.full((count, 4), count))


def test_a_second_push_replaces_the_first_in_one_commit(hub, api, tmp_path):
    own_store(tmp_path / "old", 5).push_to_hub("tester/gradients", api=api)
    api.upload_file(path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id="tester/gradients", repo_type="dataset")
    new = own_store(tmp_path / "new", 3)
    for _ in range(2):  # pushed again without a change, it keeps its shards
        new.push_to_hub("tester/gradients", api=api)
        files = hub.files("tester/gradients", "dataset")
        assert {name for name in files if name.endswith(".arrow")} == {s["file"] for s in new.manifest["shards"]}
        assert files["notes.txt"] == b"mine"
    api.snapshot_download("tester/gradients", repo_type="dataset", local_dir=tmp_path / "fetched")
    rows = load_dataset(str(tmp_path / "fetched"), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows["loss_gradient"][:] == [[3.0] * 4] * 3


def test_sums_that_are_kept_beside_the_shards_stay_at_home(hub, api, tmp_path):
    store = own_store(tmp_path / "s", 3)
    loss_statistics(store)
    assert list((tmp_path / "s" / "statistics").iterdir())
    store.push_to_hub("tester/gradients", api=api)
    assert not [name for name in hub.files("tester/gradients", "dataset") if "statistics" in name]
    assert len(GradientStore(tmp_path / "s")) == 3


def test_datasets_opens_a_fetched_store_by_its_card(store, hub, api, tmp_path):
    store.push_to_hub("tester/gradients", api=api)
    GradientStore.from_hub("tester/gradients", api=api, local_dir=tmp_path / "fetched")
    rows = load_dataset(str(tmp_path / "fetched"), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(rows["sample_idx"]) == list(range(60))
    assert len(rows[0]["loss_gradient"]) == store.dim


def test_refusals_are_one_sentence(store, hub, api, tmp_path):
    with pytest.raises(TaskSelectionError, match="cannot fetch the gradient store 'tester/none'"):
        GradientStore.from_hub("tester/none", api=api, local_dir=tmp_path)
    with pytest.raises(TaskSelectionError, match="cannot push to 'somebody/else': the token has no right"):
        store.push_to_hub("somebody/else", api=api)
    api.create_repo("tester/empty", repo_type="dataset")
    with pytest.raises(StoreError, match="holds no gradient store"):
        GradientStore.from_hub("tester/empty", api=api, local_dir=tmp_path)
