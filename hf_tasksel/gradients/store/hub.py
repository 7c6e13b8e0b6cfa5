"""A gradient store as a dataset repository on the Hub, which `datasets.load_dataset` opens as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData, HfApi

from ...core.errors import StoreError
from ...core.files import atomic_path
from ...core.hub import one_sentence, upload, with_retries
from .format import MANIFEST_FILE, SHARDS, StoreLayout

UPLOADED = [SHARDS, MANIFEST_FILE, "README.md"]
CARD = """
# Projected per-sample gradients

{rows} samples of {tasks} tasks: mean loss and log-odds of each sample's answer tokens (nats), and {columns} of length
{dim}, the projected gradients of the LoRA parameters at one point of a multitask training. From them `hf_tasksel`
estimates the target loss of fine-tuning on any subset of the tasks, without a model:

```python
from hf_tasksel import GradientStore, SubsetEstimator

store = GradientStore.from_hub("THIS_REPO")
SubsetEstimator().fit(store, target="A_TASK_WITH_DEV_ROWS").predict([store.task_names])
```

Rows hold numbers about samples, not their text; still, gradients say something about the data they were computed on.
"""


def push_store(path: Path, layout: StoreLayout, num_samples: int, num_tasks: int, repo_id: str, **options: Any) -> str:
    """Upload a store as a dataset repository, private unless said otherwise; returns the commit's address.

    Shards of a store that was pushed there before are deleted in the same commit.

    Args:
        path, layout, num_samples, num_tasks: of a finished store.
        repo_id, options: as in `core.hub.upload` (private, revision, create_pr, commit_message, api).

    Raises:
        TaskSelectionError: as `core.hub.upload`.
    """
    data = DatasetCardData(
        tags=["hf_tasksel", "gradients"], configs=[{"config_name": "default", "data_files": SHARDS}]
    )
    text = CARD.format(
        rows=num_samples,
        tasks=num_tasks,
        columns=", ".join(f"`{name}`" for name in layout.gradient_columns().values()),
        dim=layout.dim,
    )
    with atomic_path(path / "README.md") as temporary:
        temporary.write_text(str(DatasetCard(f"---\n{data.to_yaml()}\n---\n{text}")), encoding="utf-8")
    options = {"commit_message": "Gradient store", **options}
    return upload(path, repo_id, patterns=UPLOADED, replaced=[SHARDS], repo_type="dataset", **options)


def fetch_store(
    repo_id: str, *, revision: str | None = None, local_dir: str | Path | None = None, api: HfApi | None = None
) -> Path:
    """Download a pushed store into the Hub cache (or `local_dir`); returns its folder.

    Raises:
        TaskSelectionError: when the repository cannot be read. StoreError: when it holds no store.
    """
    api = api or HfApi()
    with one_sentence(f"fetch the gradient store {repo_id!r}"):
        folder = with_retries(
            lambda: api.snapshot_download(
                repo_id, repo_type="dataset", revision=revision, local_dir=local_dir, allow_patterns=UPLOADED
            )
        )
    if not (Path(folder) / MANIFEST_FILE).is_file():
        raise StoreError(f"the dataset repository {repo_id!r} holds no gradient store (no {MANIFEST_FILE})")
    return Path(folder)
