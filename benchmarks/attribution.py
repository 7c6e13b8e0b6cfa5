"""Do attribution scores of single rows, added up, rank subsets of tasks? bergson, TRAK and dattri's DataInf.

    pip install bergson==2.5.1 traker==0.3.2 dattri==0.3.0
    python benchmarks/attribution.py quickstart     # minutes; a study of defaults.py, whose folder it reads
    python benchmarks/attribution.py cot --tools bergson TRAK     # DataInf keeps all gradients: over 19 GB there

At the adapter half way through a run's meta training, each tool scores 100 rows of each task for the target's dev
rows: bergson collects projected gradients, whose cosines with the dev rows' are LESS' scores; TRAK and DataInf score
by themselves. A subset's score is the mean over its rows where steps are fixed, and the sum where epochs are. Rank
correlation with the true losses of the study's random subsets, beside that of a run by default. Written to
benchmarks/results/attribution.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import BATCH_SIZE, Workload, attribution_task, bergson_index, pad, tracer
from datasets import Dataset
from fidelity import make_run
from fidelity_evaluation import Truth
from paths import RESULTS, ROOT
from scipy.stats import spearmanr
from torch.utils.data import DataLoader, TensorDataset

from hf_tasksel.core.files import write_json
from hf_tasksel.core.version import versions
from hf_tasksel.estimation.subsets import subset_weights
from hf_tasksel.gradients.checkpoints import checkpoint_step

ROWS = 100
Scores = Callable[
    [Any, Dataset, Dataset], np.ndarray
]  # model, training rows, dev rows -> a score for each training row


def main() -> int:
    """Score, add up, compare, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("studies", nargs="+")
    parser.add_argument("--tools", nargs="+", choices=list(TOOLS), default=list(TOOLS))
    parser.add_argument("--folders", default="out/study-{}", help="where their runs are")
    options = parser.parse_args()
    path = RESULTS / "attribution.json"
    known = json.loads(path.read_text())["studies"] if path.is_file() else {}
    for study in options.studies:
        known[study] = measure(study, options.folders.format(study), options.tools)
        tools = {name: version(name) for name in ("bergson", "traker", "dattri")}
        command = f"python benchmarks/attribution.py {' '.join(known)}"
        write_json(path, {"command": command, "versions": {**versions(), **tools}, "studies": known})
    print(f"written to {path.relative_to(ROOT)}")
    return 0


def measure(study: str, folder: str, tools: list[str]) -> dict[str, Any]:
    """Score the rows of one study by some tools."""
    run = make_run(study, folder)
    kept = json.loads((RESULTS / f"defaults_{study}.json").read_text())
    truth = Truth.read(study, len(kept["estimates"]))
    total = json.loads((run.output_dir / "meta" / "meta.json").read_text())["log"][-1]["step"]
    adapter = run.output_dir / "meta" / f"checkpoint-{checkpoint_step('half', total)}"
    names, rows = run.materials.splits.task_names, run.materials.tokenized
    task = np.asarray(rows["train"]["task"])
    some = np.concatenate([np.flatnonzero(task == i)[:ROWS] for i in range(len(names))])
    some = np.random.default_rng(0).permutation(some)  # the first quarter is what DataInf's curvature is from
    train, dev, task = rows["train"].select(some), rows["dev"], task[some]
    sizes = np.bincount(rows["train"]["task"], minlength=len(names))
    weights = subset_weights(names, truth.subsets) * sizes
    if run.config.budget != "epochs":
        weights = weights / weights.sum(1, keepdims=True)
    found = {}
    for name in tools:
        started = time.perf_counter()
        scores = TOOLS[name](run.materials.measurable(adapter, is_trainable=True), train, dev)
        means = np.asarray([scores[task == i].mean() for i in range(len(names))])
        rank = float(spearmanr(-(weights @ means), np.mean(truth.losses, 1)).statistic)
        found[name] = {"spearman": round(rank, 4), "seconds": round(time.perf_counter() - started, 1)}
        print(study, name, found[name], dict(zip(names, means.round(6), strict=True)), flush=True)
    return {"rows": len(train), "dev_rows": len(dev), "tools": found, "a run by default": kept["default"]["spearman"]}


def tensors(rows: Dataset) -> TensorDataset:
    """Return all rows padded to the longest: input ids and labels."""
    batch = pad([{key: row[key] for key in ("input_ids", "labels")} for row in rows])
    return TensorDataset(batch["input_ids"], batch["labels"])


def bergson_cosines(model: Any, train: Dataset, dev: Dataset) -> np.ndarray:
    """Return the mean cosine of bergson's projected gradients with those of the dev rows."""
    gradients = [unit(bergson_gradients(model, rows)) for rows in (train, dev)]
    return gradients[0] @ gradients[1].mean(0)


def bergson_gradients(model: Any, rows: Dataset) -> np.ndarray:
    """Return bergson's projected gradients, (rows, d)."""
    from bergson import load_gradients

    collect = bergson_index(Workload(model, rows.select_columns(["input_ids", "labels"]), [], ""))
    with tempfile.TemporaryDirectory() as folder:
        collect(folder)
        found = load_gradients(next(path.parent for path in Path(folder).rglob("gradients.bin")))
        return np.array(found, dtype=np.float32)


def unit(gradients: np.ndarray) -> np.ndarray:
    """Bring every row to length one."""
    return np.asarray(gradients / np.linalg.norm(gradients, axis=1, keepdims=True))


def trak_scores(model: Any, train: Dataset, dev: Dataset) -> np.ndarray:
    """Return TRAK's scores for the dev rows' losses, means over dev rows."""
    with tempfile.TemporaryDirectory() as folder:
        tracing = tracer(model, len(train), folder)
        for batch in DataLoader(tensors(train), BATCH_SIZE):
            tracing.featurize(batch=batch, num_samples=len(batch[0]))
        tracing.finalize_features()
        tracing.start_scoring_checkpoint("dev", model.state_dict(), model_id=0, num_targets=len(dev))
        for batch in DataLoader(tensors(dev), BATCH_SIZE):
            tracing.score(batch=batch, num_samples=len(batch[0]))
        return np.array(tracing.finalize_scores("dev"), dtype=np.float32).mean(1)


def datainf_scores(model: Any, train: Dataset, dev: Dataset) -> np.ndarray:
    """Return DataInf's influences on the dev rows' losses, as dattri has them, means over dev rows."""
    from dattri.algorithm import IFAttributorDataInf

    names = [name for name, p in model.named_parameters() if p.requires_grad]
    attributor = IFAttributorDataInf(attribution_task(model), names, regularization=1e-3, fim_estimate_data_ratio=0.25)
    attributor.cache(DataLoader(tensors(train), BATCH_SIZE))
    # Dev rows are transformed anew for every batch of training rows: few and large ones.
    loaders = DataLoader(tensors(train), 16 * BATCH_SIZE), DataLoader(tensors(dev), BATCH_SIZE)
    with torch.no_grad():
        return np.array(attributor.attribute(*loaders), dtype=np.float32).mean(1)


TOOLS: dict[str, Scores] = {
    "bergson": bergson_cosines,
    "TRAK": trak_scores,
    "DataInf": datainf_scores,
}

if __name__ == "__main__":
    sys.exit(main())
