"""What comes from elsewhere runs nothing, leads nowhere, and takes no more memory than it says."""

from __future__ import annotations

import ast
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from huggingface_hub import HfApi

from conftest import small_run, tiny_llama, trained_lora, unsealed
from hf_tasksel import GradientStore, SubsetEstimator
from hf_tasksel.app.explorer import Explorer
from hf_tasksel.app.space import push_space, store_name
from hf_tasksel.cli.main import main
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core import files
from hf_tasksel.core.checksums import differing, file_checksum, seal
from hf_tasksel.core.errors import ConfigError, ModelError, StoreError, TaskSelectionError, one_line
from hf_tasksel.core.files import read_json, write_json
from hf_tasksel.pipeline.context import Run
from hf_tasksel.pipeline.pieces import undo
from hf_tasksel.pipeline.resuming import lay_out
from hf_tasksel.records.files import read_run
from hf_tasksel.report.hub import push
from hf_tasksel.training.models import load_adapter

PACKAGE = Path(__file__).parents[2] / "hf_tasksel"
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__"}
UNSAFE_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "subprocess", "pty"}
UNSAFE_ATTRIBUTES = {("os", "system"), ("os", "popen"), ("torch", "load"), ("yaml", "unsafe_load")}
TOKEN = "hf_" + "abcdefghij" * 3


class Payload:
    """A pickle of it leaves a file when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_the_package_has_no_call_that_runs_what_it_is_given(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in UNSAFE_CALLS, node.lineno
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in UNSAFE_ATTRIBUTES, node.lineno
        if isinstance(node, ast.ImportFrom) and [alias.name for alias in node.names] == ["UnpicklingError"]:
            continue
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        assert not {name.split(".")[0] for name in names} & UNSAFE_MODULES, node.lineno


DOUBLING = "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n" for i in range(9))
YAML_BOMBS = {
    "aliases": f"a0: &a0 [x]\n{DOUBLING}",
    "endless": "tasks: &t {again: *t}",
    "deep": "tasks: " + "[" * 5000 + "]" * 5000,
    "python": "tasks: !!python/object/apply:os.system ['true']",
}


@pytest.mark.parametrize("kind", YAML_BOMBS)
def test_yaml_that_is_no_configuration_is_refused_at_once(kind, tmp_path):
    (tmp_path / "c.yaml").write_text(YAML_BOMBS[kind])
    with pytest.raises(ConfigError, match=r"not valid YAML|too deeply"):
        RunConfig.from_yaml(tmp_path / "c.yaml")


def test_aliases_that_people_use_are_read(run_values, tmp_path):
    text = yaml.safe_dump(run_values, sort_keys=False).replace("meta:", "meta: &m")
    text = text.replace("generation:", "fine_tuning: *m\ngeneration:")
    (tmp_path / "c.yaml").write_text(text)
    config = RunConfig.from_yaml(tmp_path / "c.yaml")
    assert config.fine_tuning == config.meta


def test_json_that_is_too_deep_or_too_large_is_refused(tmp_path, monkeypatch):
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(TaskSelectionError, match=r"deep\.json is not valid JSON"):
        read_json(tmp_path / "deep.json")
    monkeypatch.setattr(files, "MOST_BYTES", 100)
    (tmp_path / "large.json").write_text(json.dumps(["x"] * 100))
    with pytest.raises(TaskSelectionError, match=r"large\.json has 500 bytes of JSON, more than 100"):
        read_json(tmp_path / "large.json")


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_a_shard_that_would_grow_in_memory_is_not_read(codec, tmp_path):
    store = make_store(tmp_path / "store")
    (shard,) = store.path.glob("*.arrow")
    table = pa.table({name: pa.concat_arrays([column.combine_chunks()] * 100_000) for name, column in columns(shard)})
    table = table.cast(store.layout.schema(store.fingerprint))
    replace_shard(store, table, pa.ipc.IpcWriteOptions(compression=codec))
    before = pa.total_allocated_bytes()
    with pytest.raises(StoreError, match="is compressed, which no store is"):
        GradientStore(store.path)
    assert pa.total_allocated_bytes() - before < 1 << 20


def test_a_shard_of_another_type_is_not_read(tmp_path):
    store = make_store(tmp_path / "store")
    (shard,) = store.path.glob("*.arrow")
    table = pa.table({name: column.cast(pa.string()) if name == "loss" else column for name, column in columns(shard)})
    replace_shard(store, table.replace_schema_metadata(store.layout.schema(store.fingerprint).metadata))
    with pytest.raises(StoreError, match="is of another model, adapter, projection or data"):
        GradientStore(store.path)


@pytest.mark.parametrize("name", ["../outside.arrow", "/etc/passwd", "shard-0-../../x.arrow", "shard.arrow", ".."])
def test_a_manifest_leads_nowhere_else(name, tmp_path):
    store = make_store(tmp_path / "store")
    shards = [{**shard, "file": name} for shard in store.manifest["shards"]]
    write_json(store.path / "manifest.json", {**store.manifest, "shards": shards})
    with pytest.raises(StoreError, match="is not the name of a shard"):
        GradientStore(store.path)


@pytest.mark.parametrize("stores", [["../../outside"], ["/etc"], [], None, [3], ["gradients/checkpoint-1/../../.."]])
def test_a_pushed_run_leads_nowhere_else(stores, tmp_path):
    write_json(tmp_path / "stores.json", {"stores": stores})
    with pytest.raises(TaskSelectionError, match="does not name a gradient store"):
        store_name(tmp_path / "stores.json")


def test_an_adapter_that_is_a_pickle_is_not_loaded(tmp_path):
    trained_lora(tiny_llama()).save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    (tmp_path / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(ModelError, match="pickles are not read"):
        load_adapter(tiny_llama(), tmp_path / "adapter")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_runs_no_code_when_a_training_goes_on(name, finished_run, base_folder, task_folder, tmp_path):
    """Even where its seal is right: whoever could write it could write that, too."""
    out = tmp_path / "out"
    shutil.copytree(finished_run / "meta", out / "meta")
    (out / "meta" / "adapter_model.safetensors").unlink()
    for checkpoint in (out / "meta").glob("checkpoint-*"):
        torch.save(Payload(tmp_path / "ran"), checkpoint / name)
        (checkpoint / "checksums.json").unlink()
        seal(checkpoint)
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(small_run(base_folder, task_folder, out)))
    assert main(["meta-train", str(config), "--quiet"]) == 2
    assert not (tmp_path / "ran").exists()


CODE = """
import os
os.mkdir({mark!r})
from transformers import LlamaConfig
class Mine(LlamaConfig):
    model_type = "mine"
"""


def test_code_of_a_base_runs_only_when_that_is_asked_for(base_folder, run_values, tmp_path):
    folder = Path(shutil.copytree(base_folder, tmp_path / "base"))
    values = {**read_json(folder / "config.json"), "model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}}
    write_json(folder / "config.json", values)
    (folder / "mine.py").write_text(CODE.format(mark=str(tmp_path / "ran")))
    run_values["model_name_or_path"] = str(folder)
    with pytest.raises(ModelError, match="trust_remote_code"):
        Run(RunConfig.from_dict(run_values))
    assert not (tmp_path / "ran").exists()
    said: list[str] = []
    Run(RunConfig.from_dict({**run_values, "trust_remote_code": True}), said.append)
    assert (tmp_path / "ran").exists()
    assert "runs with your rights: trust_remote_code is set" in said[0]


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"meta": {"hub_token": "secret"}}, "meta.hub_token"),
        ({"fine_tuning": {"push_to_hub_token": "secret"}}, "fine_tuning.push_to_hub_token"),
        ({"task_notes": {"next": f"see {TOKEN}"}}, "task_notes.next"),
        ({"tasks": {"a": {"dataset": f"https://user:{TOKEN}@huggingface.co/x"}}}, "tasks.a.dataset"),
    ],
)
def test_a_token_in_a_configuration_is_refused_and_not_repeated(change, key, run_values):
    with pytest.raises(ConfigError, match=f"{key} holds a token") as refused:
        RunConfig.from_dict({**run_values, **change})
    assert "secret" not in str(refused.value)
    assert TOKEN not in str(refused.value)


def test_a_message_steers_no_terminal_and_stays_one_line():
    assert one_line("a\nb\x1b[31m\u202e\ud800\x00") == "a\\nb\\x1b[31m\\u202e\\ud800\\x00"
    assert str(TaskSelectionError("a\nb")) == "a\\nb"
    assert len(str(DataErrorLike("x" * 100_000))) < 2100


class DataErrorLike(TaskSelectionError):
    pass


def make_store(folder: Path) -> GradientStore:
    rng = np.random.default_rng(0)
    return GradientStore.from_arrays(
        folder,
        task=["a", "a", "b", "b"],
        split=["train", "train", "train", "dev"],
        loss=[1.0] * 4,
        value=[0.0] * 4,
        num_tokens=[1] * 4,
        loss_gradient=rng.normal(size=(4, 3)),
    )


def columns(shard: Path) -> list[tuple[str, Any]]:
    with pa.memory_map(str(shard)) as source:
        table = pa.ipc.open_stream(source).read_all()
    return [(name, table[name]) for name in table.column_names]


def replace_shard(store: GradientStore, table: pa.Table, options: Any = None) -> None:
    """Put another shard in place of the only one, with the right checksum in its name and in the manifest."""
    import hashlib

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=options) as stream:
        stream.write_table(table)
    content = sink.getvalue().to_pybytes()
    name = f"shard-000000000-{hashlib.sha256(content).hexdigest()[:16]}.arrow"
    for old in store.path.glob("*.arrow"):
        old.unlink()
    (store.path / name).write_bytes(content)
    shards = [{"file": name, "rows": len(table)}]
    write_json(store.path / "manifest.json", {**store.manifest, "shards": shards, "num_samples": len(table)})


def test_a_marker_of_an_unfinished_training_leads_nowhere_else(tmp_path):
    victim, meta = tmp_path / "victim", tmp_path / "out" / "meta"
    (victim / "checkpoint-2").mkdir(parents=True)
    (victim / "checkpoint-2" / "mine").write_text("mine")
    (meta / "checkpoint-2").mkdir(parents=True)
    (meta / "unfinished-x").mkdir()
    write_json(meta / "resume.json", "x/../../../victim")
    lay_out(meta, "abc")
    assert (victim / "checkpoint-2" / "mine").read_text() == "mine"


def test_a_record_undoes_nothing_elsewhere(run_values, tmp_path):
    (tmp_path / "victim").mkdir()
    run = Run(RunConfig.from_dict(run_values), lambda message: None)
    undo(run, ["gradients/../../victim", "gradients/x"], "meta")
    assert (tmp_path / "victim").is_dir()


@pytest.mark.parametrize(
    "shape",
    [
        {"stages": []},
        {"stages": {"meta": 3}},
        {"stages": {"meta": {"files": [1]}}},
        {"stages": {"meta": {"settings": "x"}}},
        {"files": []},
        {"config": []},
        {"data": 5},
    ],
)
def test_a_record_of_anything_is_one_sentence(shape, tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({"format_version": 1, **shape}))
    with pytest.raises(TaskSelectionError, match="does not hold what a run writes"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["../outside", "/proc/self/mem", "x" * 300, "a\0b", ""])
def test_checksums_lead_nowhere_else(name, tmp_path):
    (tmp_path / "outside").write_text("x")
    (tmp_path / "in").mkdir()
    assert differing(tmp_path / "in", {name: file_checksum(tmp_path / "outside")}) == [name]


def test_shards_with_offsets_that_lie_are_refused(tmp_path):
    store = make_store(tmp_path / "store")
    (shard,) = store.path.glob("*.arrow")
    text = pa.array(["a", "a", "b", "b"])
    offsets = np.frombuffer(text.buffers()[1], dtype=np.int32).copy()
    offsets[2] = 1 << 30
    forged = pa.Array.from_buffers(pa.string(), 4, [None, pa.py_buffer(offsets.tobytes()), text.buffers()[2]])
    table = pa.table({name: forged if name == "task" else part for name, part in columns(shard)})
    replace_shard(store, table.cast(store.layout.schema(store.fingerprint), safe=False))
    with pytest.raises(StoreError, match="is damaged"):
        GradientStore(store.path)


def test_json_of_too_many_parts_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_PARTS", 100)
    (tmp_path / "many.json").write_text(json.dumps({"a": [[]] * 60}))
    with pytest.raises(TaskSelectionError, match=r"many\.json has more than 100 parts of JSON"):
        read_json(tmp_path / "many.json")


@pytest.mark.parametrize("read", ["estimate", "app", "space"])
def test_a_run_of_somebody_else_imports_nothing(read, finished_run, tmp_path, monkeypatch):
    out = unsealed(Path(shutil.copytree(finished_run, tmp_path / "out")))
    run = read_json(out / "run.json")
    run["config"]["estimator"]["surrogate"] = "evil:X"
    write_json(out / "run.json", run)
    (out / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n")
    monkeypatch.chdir(out)
    if read == "estimate":
        assert main(["estimate", ".", "--subset", "next"]) == 2
    else:
        with pytest.raises(ConfigError, match="'evil:X', which is code"):
            Explorer(".") if read == "app" else push_space(".", "tester/page")
    assert not (tmp_path / "ran").exists()


def test_a_table_of_estimates_that_would_grow_in_memory_is_not_read(finished_run, tmp_path):
    out = unsealed(Path(shutil.copytree(finished_run, tmp_path / "out")))
    count = 2_000_000
    rows = {"kind": pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), ["path"]).cast(pa.string())}
    pq.write_table(pa.table(rows), out / "estimates.parquet", compression="zstd")
    with pytest.raises(TaskSelectionError, match="2,000,000 rows, too many"):
        read_run(out)


def test_a_link_to_a_file_elsewhere_is_not_pushed(finished_run, tmp_path, hub):
    final = Path(shutil.copytree(finished_run / "final", tmp_path / "final"))
    (tmp_path / "secret.txt").write_text("secret")
    (final / "notes.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(TaskSelectionError, match="is a link to a file elsewhere"):
        push(final, "tester/selected", api=HfApi(endpoint=hub.url, token=hub.token))


SPOILED_ROWS: dict[str, Any] = {
    "loss": (pa.array([1.0, None, 1.0, 1.0], pa.float32()), "cells without a value"),
    "value": (pa.array([1.0, np.nan, 1.0, 1.0], pa.float32()), "losses that are not finite"),
    "num_tokens": (pa.array([1, 0, 1, 1], pa.int32()), "rows without tokens"),
    "split": (pa.array(["train", "train", "evil", "dev"]), "rows of the split 'evil'"),
    "task": (pa.array(["a", "a", "c", "b"]), "training rows of 'c', which is no task"),
}


@pytest.mark.parametrize("column", SPOILED_ROWS)
def test_rows_that_no_writer_wrote_are_refused(column, tmp_path):
    store = make_store(tmp_path / "store")
    (shard,) = store.path.glob("*.arrow")
    spoiled, message = SPOILED_ROWS[column]
    table = pa.table({name: spoiled if name == column else part for name, part in columns(shard)})
    replace_shard(store, table.cast(store.layout.schema(store.fingerprint)))
    with pytest.raises(StoreError, match=message):
        GradientStore(store.path)


def test_a_sample_or_a_shard_twice_is_refused(tmp_path):
    store = make_store(tmp_path / "store")
    (shard,) = store.path.glob("*.arrow")
    shards = store.manifest["shards"] * 3
    write_json(store.path / "manifest.json", {**store.manifest, "shards": shards, "num_samples": 12})
    with pytest.raises(StoreError, match="names a shard twice"):
        GradientStore(store.path)
    same = pa.array([0, 1, 1, 2], pa.int64())
    table = pa.table({name: same if name == "sample_idx" else part for name, part in columns(shard)})
    replace_shard(store, table.cast(store.layout.schema(store.fingerprint)))
    with pytest.raises(StoreError, match="holds a sample twice"):
        GradientStore(store.path)


@pytest.mark.parametrize("place", [0, -1])
def test_gradients_in_a_store_that_are_not_finite_are_refused(place, tmp_path):
    store = make_store(tmp_path / "store")
    (shard,) = store.path.glob("*.arrow")
    g = store.gradients().copy()
    g[place, 0] = np.inf
    flat = pa.FixedSizeListArray.from_arrays(pa.array(g.ravel()), 3)
    table = pa.table({name: flat if name == "loss_gradient" else part for name, part in columns(shard)})
    replace_shard(store, table.cast(store.layout.schema(store.fingerprint)))
    with pytest.raises(StoreError, match="gradients that are not finite"):
        SubsetEstimator().fit(GradientStore(store.path), "b")


@pytest.mark.parametrize(
    "text", ["seed: 2026-99-99", "seed: " + "9" * 5000, "seed: !!int 'x'", "a: !!timestamp 'q'", "a: !!set [1]"]
)
def test_yaml_values_that_are_none_are_refused(text, tmp_path):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match="not valid YAML"):
        RunConfig.from_yaml(tmp_path / "c.yaml")


def test_json_numbers_of_thousands_of_digits_are_refused(tmp_path):
    (tmp_path / "x.json").write_text("9" * 5000)
    with pytest.raises(TaskSelectionError, match="not valid JSON"):
        read_json(tmp_path / "x.json")
