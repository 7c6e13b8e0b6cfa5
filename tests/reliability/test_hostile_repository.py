"""Repositories that somebody made to do harm: refused in one sentence, with little memory, and nothing is written."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
from huggingface_hub import HfApi

from hf_tasksel import GradientStore
from hf_tasksel.core.files import MOST_BYTES
from hub_repository import Blob

MEGABYTES = 300  # more than a reader that refuses takes
CLIENT = """
import json, resource, sys
from hf_tasksel import GradientStore, SelectionResult
from hf_tasksel.app.explorer import Explorer
from hf_tasksel.app.space import fetch_run
from hf_tasksel.core.errors import TaskSelectionError

def used():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

before, found = used(), {}
for kind in json.loads(sys.argv[1]):
    try:
        if kind.startswith(("space", "model")):
            Explorer(fetch_run("tester/" + kind))
        elif kind.startswith("selection"):
            SelectionResult.from_pretrained("tester/" + kind)
        else:
            GradientStore.from_hub("tester/" + kind)
        found[kind] = "read"
    except TaskSelectionError as error:
        found[kind] = str(error)
print(json.dumps({"found": found, "megabytes": used() - before}))
"""
REFUSED = {
    "store-huge": "of JSON, more than",
    "store-deep": "is not valid JSON",
    "store-climbs": "cannot fetch the gradient store",
    "store-names": "is not the name of a shard",
    "store-bomb": "is compressed, which no store is",
    "store-strings": "is of another model, adapter, projection or data",
    "space-huge": "of JSON, more than",
    "space-climbs": "cannot fetch the Space",
    "space-code": "which is code",
    "space-parts": "parts of JSON",
    "space-shape": "does not hold what a run writes",
    "model-shape": "does not hold what is written there",
    "selection-huge": "of JSON, more than",
    "selection-list": "",
}


def shard(table: pa.Table, codec: str | None = None) -> tuple[str, bytes]:
    """Return a shard's name, with the right checksum, and its bytes."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as stream:
        stream.write_table(table)
    content = sink.getvalue().to_pybytes()
    return f"shard-000000000-{hashlib.sha256(content).hexdigest()[:16]}.arrow", content


def spoiled_store(finished: Path, kind: str) -> dict[str, bytes]:
    """Return the files of a store with a shard that would grow in memory, is of text, or lies elsewhere."""
    store = GradientStore(next((finished / "gradients").iterdir()))
    manifest, (first, *_) = store.manifest, sorted(store.path.glob("*.arrow"))
    with pa.memory_map(str(first)) as source:
        table = pa.ipc.open_stream(source).read_all()
    if kind == "store-bomb":
        name, content = shard(pa.concat_tables([table] * 5000).combine_chunks(), "zstd")
    elif kind == "store-strings":
        at = table.column_names.index("loss")
        name, content = shard(table.set_column(at, "loss", table["loss"].cast(pa.string())))
    else:
        name, content = "../../../../evil.arrow", first.read_bytes()
    manifest = {**manifest, "shards": [{"file": name, "rows": len(table)}], "num_samples": len(table)}
    return {"manifest.json": json.dumps(manifest).encode(), name.split("/")[-1]: content}


def hostile_files(finished: Path, kind: str) -> dict[str, bytes]:
    """Return the files of a repository of some kind."""
    huge = b"[" + b" " * MOST_BYTES + b"]"
    run = {k: v for k, v in json.loads((finished / "run.json").read_text()).items() if k != "checksum"}
    run["config"]["estimator"]["surrogate"] = "page:X"
    return {
        "store-huge": lambda: {"manifest.json": huge},
        "store-deep": lambda: {"manifest.json": b"[" * 1_000_000},
        "store-climbs": lambda: {"manifest.json": b"{}", "shard-../../../../evil.arrow": b"evil"},
        "space-huge": lambda: {"run/run.json": huge},
        "space-climbs": lambda: {"run/run.json": b"{}", "run/../../../../evil.json": b"evil"},
        "space-code": lambda: {"run/run.json": json.dumps(run).encode(), "run/page.py": b"raise SystemExit('ran')"},
        "space-parts": lambda: {"run/run.json": b'{"a": [' + b"[]," * 12_000_000 + b"[]]}"},
        "space-shape": lambda: {"run/run.json": b'{"stages": {"meta": 3}}'},
        "model-shape": lambda: {"run.json": b'{"config": {"hub": null}}'},
        "selection-huge": lambda: {"selection.json": huge},
        "selection-list": lambda: {"selection.json": b"[1, [2]]"},
    }.get(kind, lambda: spoiled_store(finished, kind))()


def test_hostile_repositories_are_refused(finished_run, hub, tmp_path):
    api = HfApi(endpoint=hub.url, token=hub.token)
    for kind in REFUSED:
        repo_type = {"store": "dataset", "space": "space", "selection": "model", "model": "model"}[kind.split("-")[0]]
        api.create_repo(f"tester/{kind}", repo_type=repo_type, space_sdk="gradio" if repo_type == "space" else None)
        blobs = {name: Blob(content, large=True) for name, content in hostile_files(finished_run, kind).items()}
        hub._storage.update({blob.sha256: blob.content for blob in blobs.values()})
        hub._repos[repo_type, f"tester/{kind}"].commit("refs/heads/main", None, blobs, "hostile")
    environment = {**os.environ, **hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CLIENT, json.dumps([*REFUSED])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    for kind, words in REFUSED.items():
        assert answer["found"][kind] != "read", kind
        assert words in answer["found"][kind], (kind, answer["found"][kind])
    assert answer["megabytes"] < MEGABYTES
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert not [*tmp_path.rglob("evil*")], "nothing outside of its folder"
