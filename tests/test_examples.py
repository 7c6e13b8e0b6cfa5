"""Every example runs as its docstring says."""

from __future__ import annotations

import ast
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, T5Config, T5ForConditionalGeneration

from conftest import word_rows, write_jsonl
from hf_tasksel import GradientStore, SelectionResult, SubsetEstimator

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NOTEBOOK = EXAMPLES / "quickstart.ipynb"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py"))


def example(name: str | Path, *arguments: object) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def example_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs an example in this process; returns its variables and what it printed."""

    def run(name: str, *arguments: object) -> tuple[dict[str, Any], str]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capsys.readouterr()
        return runpy.run_path(str(EXAMPLES / name), run_name="__main__"), capsys.readouterr().out

    return run


def swapped_back(name: str, folder: Path) -> Path:
    """Return a copy of an example that uses the class of transformers."""
    lines = (EXAMPLES / name).read_text().splitlines()
    (place,) = (i for i, line in enumerate(lines) if "hf_tasksel" in line)  # the import is the only difference
    lines[place] = f"from transformers import {lines[place].rpartition(' ')[2]}"
    path = folder / f"plain_{name}"
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_is_short_and_says_how_to_run_it(name):
    text = (EXAMPLES / name).read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    usage = [line.strip() for line in (ast.get_docstring(ast.parse(text)) or "").splitlines()]
    assert sum(line.startswith(f"python examples/{name} ") for line in usage) == 1


def test_the_table_of_examples_lists_exactly_the_files():
    rows = re.findall(r"^\| \[(.+?)\]\((.+?)\) \|", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.M)
    assert all(name == link for name, link in rows)
    assert sorted(name for name, _ in rows) == sorted([*SCRIPTS, *(path.name for path in NOTEBOOKS)])


@pytest.mark.parametrize("kind", ["trainer", "classifier", "seq2seq"])
def test_a_drop_in_trains_to_the_weights_of_the_original_script(kind, base_folder, tokenizer, tmp_path):
    words = word_rows("x", 40, 1)
    rows = {
        "trainer": [{"text": f"{r['question']} {r['answer']}"} for r in words],
        "classifier": [{"text": r["question"], "label": r["answer"][0]} for r in words],
        "seq2seq": [{"document": r["question"], "summary": r["answer"]} for r in words],
    }[kind]
    data, name, model = write_jsonl(tmp_path / "d.jsonl", rows), f"drop_in_{kind}.py", base_folder
    if kind == "seq2seq":
        torch.manual_seed(0)
        sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
        model = tmp_path / "t5"
        special = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2}
        T5ForConditionalGeneration(T5Config(vocab_size=320, **sizes, **special)).save_pretrained(model)
        tokenizer.save_pretrained(model)
    said = [
        example(script, model, data, tmp_path / f"out-{i}")
        for i, script in enumerate((name, swapped_back(name, tmp_path)))
    ]
    assert all("'eval_loss'" in text for text in said)
    ours, theirs = (load_file(tmp_path / f"out-{i}" / "model.safetensors") for i in (0, 1))
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=0)


def test_sft_mixin(base_folder, tmp_path):
    files = [
        write_jsonl(
            tmp_path / f"{name}.jsonl",
            [{"prompt": r["question"], "completion": f" {r['answer']}"} for r in word_rows(name, 40, shift)],
        )
        for shift, name in enumerate(["same", "next", "goal"])
    ]
    lines = [s for s in example("sft_mixin.py", base_folder, *files, tmp_path / "out").splitlines() if "after" in s]
    assert [line.rpartition(" ")[2] for line in lines] == ["same", "next"]


def test_dpo_objective(base_folder, tmp_path):
    rows = [
        {"task": name, "prompt": r["question"], "chosen": f" {r['answer']}", "rejected": " no" if flip else " yes"}
        for shift, name, flip in ((1, "next", False), (2, "skip", True), (1, "goal", False))
        for r in word_rows(name, 30, shift)
    ]
    pairs = write_jsonl(tmp_path / "pairs.jsonl", rows)
    said = example("dpo_objective.py", base_folder, pairs, tmp_path / "out", "goal")
    assert "train on [" in said
    store = GradientStore(tmp_path / "out" / "gradients" / "checkpoint-10")
    assert set(store.num_tokens) == {1}
    assert 0.5 < store.loss[store.split == "dev"].mean() < 0.8  # log 2 where the reference is matched


def test_heads_per_task(tokenizer, tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    BertForSequenceClassification(BertConfig(vocab_size=320, **sizes)).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    rows = [
        {"task": name, "text": r["question"], "label": r["answer"]}
        for shift, name in enumerate(["same", "next", "goal"])
        for r in word_rows(name, 30, shift)
    ]
    data = write_jsonl(tmp_path / "d.jsonl", rows)
    said = example("heads_per_task.py", tmp_path / "bert", data, tmp_path / "out", "goal")
    assert "train on [" in said
    store = GradientStore(tmp_path / "out" / "gradients" / "checkpoint-10")
    assert store.task_names == ["next", "same", "goal"]


def test_python_api_and_estimate_any_subset(tmp_path):
    said = example("python_api.py", tmp_path / "out")
    assert "fine-tuned on" in said
    selection = SelectionResult.load(tmp_path / "out" / "selection.json")
    assert len(selection.effects) == 13
    (tmp_path / "out" / "meta" / "meta.json").write_text('{"checkpoints": {"half": 15}}')
    (tmp_path / "out" / "gradients").symlink_to(tmp_path / "out" / "meta" / "gradients")
    lines = example("estimate_any_subset.py", tmp_path / "out", "word_problems").splitlines()
    assert len(lines) == 13 * 12 // 2
    losses = [float(line.split()[0]) for line in lines]
    assert losses == sorted(losses)


def test_grouping(tmp_path):
    lines = [line for line in example("grouping.py", tmp_path / "out").splitlines() if "/group-" in line]
    tasks = [name for line in lines for name in line.partition(": ")[2].split(", ")]
    assert len(tasks) == len(set(tasks)) == 13
    assert len(lines) == len(list((tmp_path / "out").glob("group-*/adapter_model.safetensors")))
    assert (tmp_path / "out" / "affinity.png").is_file()


def test_sample_clustering(tmp_path):
    said = example("sample_clustering.py", tmp_path / "out")
    lines = [line for line in said.splitlines() if "pool/cluster-" in line]
    assert 1 <= len(lines) <= 10
    assert all("'Question:" in line for line in lines)
    assert GradientStore(tmp_path / "out" / "clustered").task_names[0] == "pool/cluster-00"


def test_own_gradients_are_autograds_and_its_estimates_the_closed_form(example_here, tmp_path):
    found, said = example_here("own_gradients.py", tmp_path / "store")
    store = GradientStore(tmp_path / "store")
    assert store.task_names == ["as_they_are", "mirrored", "off_by_one", "random_labels"]
    assert set(store.task[store.split == "dev"]) == {"digits"}
    net = found["net"]
    net.load_state_dict(found["weights"])
    images, labels = found["batch"]
    for row, task in ((0, "as_they_are"), (700, "off_by_one"), (1500, "digits")):
        assert store.task[row] == task
        net.zero_grad()
        logits = net(images[row])
        torch.nn.functional.cross_entropy(logits, labels[row]).backward()
        alone = torch.cat([parameter.grad.flatten() for parameter in net.parameters()])
        torch.testing.assert_close(found["gradients"][row], alone, rtol=1e-4, atol=1e-6)
        right = logits.softmax(0)[labels[row]].item()
        assert store.loss[row] == pytest.approx(-np.log(right), rel=1e-3)
        assert store.value[row] == pytest.approx(np.log(right / (1 - right)), rel=1e-3, abs=1e-3)

    g, dev = store.gradients().astype(np.float64), store.split == "dev"
    lengths = (g**2).sum(1) / (found["gradients"].numpy() ** 2).sum(1)
    assert lengths.mean() == pytest.approx(1, abs=0.1)  # the projection keeps them on average
    damping = (g[~dev] ** 2).sum(1).mean() / store.dim
    for name in store.task_names:
        mine = g[(store.task == name) & ~dev]
        step = -np.linalg.solve(mine.T @ mine / len(mine) + damping * np.eye(store.dim), mine.mean(0))
        estimate = store.loss[dev].mean() + g[dev].mean(0) @ step
        (line,) = (line for line in said.splitlines() if line.endswith(f"  {name}"))
        assert float(line.split()[0]) == pytest.approx(estimate, abs=6e-4)
    assert "selected: ['as_they_are'" in said


def test_several_targets_are_estimated_as_each_alone(example_here, tmp_path):
    found, said = example_here("several_targets.py", tmp_path / "out")
    store, targets = GradientStore(tmp_path / "out/meta/gradients/checkpoint-15"), list(found["dev"])
    for name in targets[1:]:  # which are tasks too: no dev row is trained on
        assert not set(found["tasks"][name]["prompt"]) & set(found["dev"][name]["prompt"])
    table = {}
    for line in said.splitlines():
        if line.startswith("for "):
            numbers, _, tasks = line.removeprefix("for ").partition("   ")[2].strip().rpartition("   ")
            table[line.split()[1]] = [float(x) for x in numbers.split()], tasks.split(", ")
    assert list(table) == [*targets, "all"]
    for numbers, tasks in table.values():
        known = [found["known"][name] for name in targets]
        alone = [
            SubsetEstimator().fit(store, *given).predict([tasks])[0] for given in zip(targets, known, strict=True)
        ]
        mean = np.average(known, weights=[found["wish"][name] for name in targets])
        together = SubsetEstimator().fit(store, found["wish"], mean).predict([tasks])[0]
        np.testing.assert_allclose(numbers, [*alone, together], atol=6e-5)
    assert "reversed_words" in table["reversed_words"][1]
    assert table["reversed_words"][0][1] < table["word_problems"][0][1]  # they want different things
    assert table["word_problems"][0][0] < table["reversed_words"][0][0]


def random_store(folder: Path) -> GradientStore:
    """A store of random gradients: four tasks and a target."""
    rng = np.random.default_rng(0)
    task = [name for name in ("a", "b", "c", "d", "goal") for _ in range(20)]
    drift = {name: rng.normal(size=8) for name in set(task)}
    rows = [drift[name] + rng.normal(size=8) for name in task]
    split = ["dev" if name == "goal" else "train" for name in task]
    loss, tokens = rng.uniform(1, 2, 100), rng.integers(1, 5, 100)
    return GradientStore.from_arrays(
        folder, task=task, split=split, value=-loss, loss=loss, num_tokens=tokens, loss_gradient=rows
    )


def calibration_table(said: str) -> dict[str, tuple[list[float], bool]]:
    """Name of the subset -> numbers of its line, and whether it moved."""
    lines = [re.fullmatch(r"((?: +-?\d+\.\d{4})+)  (.+?)(  moved)?", line) for line in said.splitlines()]
    return {m[2]: ([float(x) for x in m[1].split()], bool(m[3])) for m in lines if m}


def test_calibrating_with_runs_moves_estimates_to_what_was_measured(example_here, tmp_path):
    store = random_store(tmp_path / "store")
    subsets = [["a"], ["b", "a"], ["c", "d"], ["a", "c", "d"], ["b", "d"], ["a", "b", "c"], ["b"], ["d"], ["c", "b"]]
    raw = SubsetEstimator().fit(store, "goal").predict(subsets)
    runs = [{"tasks": s, "loss": 3 + 0.5 * x + e} for s, x in zip(subsets, raw, strict=True) for e in (-0.01, 0.01)]
    file = tmp_path / "runs.json"
    file.write_text(json.dumps(runs))
    said = example_here("calibrate_with_runs.py", tmp_path / "store", "goal", file)[1]
    table = calibration_table(said)
    calibrated = SubsetEstimator().fit(store, "goal").calibrate([r["tasks"] for r in runs], [r["loss"] for r in runs])
    for subset, estimate in zip(subsets, raw, strict=True):
        (measured, before, _, after, std), moved = table[" + ".join(sorted(subset))]
        assert measured == pytest.approx(3 + 0.5 * estimate, abs=6e-5)
        assert before == pytest.approx(estimate, abs=6e-5)
        assert [after, std] == pytest.approx([x[0] for x in calibrated.predict([subset], True)], abs=6e-5)
        assert abs(after - measured) < abs(before - measured)
        assert moved
    assert len(table["all but a"][0]) == 4  # nothing was measured
    assert "Verdict: trust the ranking" in said

    file.write_text(json.dumps(runs[:4]))  # both seeds of two subsets
    said = example_here("calibrate_with_runs.py", tmp_path / "store", "goal", file)[1]
    assert "2 different subsets are too few" in said
    assert calibration_table(said)["all tasks"][0][-1] > table["all tasks"][0][-1]  # std with fewer runs


def notebook_cells() -> list[dict[str, Any]]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_clean(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(ids) == len(set(ids))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert not re.search(r"/(home|Users|tmp|root|work)/", path.read_text(encoding="utf-8"))


def test_the_notebook_runs_cell_by_cell(tmp_path, monkeypatch, capsys):
    try:
        import IPython.display  # noqa: F401
    except ImportError:  # it is only used to show a picture
        display = ModuleType("IPython.display")
        display.Image = lambda path: Path(path).read_bytes()
        monkeypatch.setitem(sys.modules, "IPython.display", display)
    small = {"STEPS": 4, "ROWS": 16, "TARGET_ROWS": 12, "OUTPUT_DIR": str(tmp_path)}
    names: dict[str, Any] = {}
    for cell in notebook_cells():
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
        if cell["id"] == "parameters":
            assert set(small) == {name for name in names if name.isupper()}
            names.update(small)
    assert (tmp_path / "selection.png").read_bytes().startswith(b"\x89PNG")
    assert SelectionResult.load(tmp_path / "tuned-0").selected == names["selection"].selected
    table = {
        m[1]: [float(x) for x in m[2].split()]
        for m in re.finditer(r"^(.{16}) +((?:-?\d+\.\d{3} *){2,3})$", capsys.readouterr().out, re.M)
    }
    table = {name.strip(): numbers for name, numbers in table.items()}
    assert list(table) == ["base", *names["subsets"]]
    store = GradientStore(tmp_path / "meta/gradients/checkpoint-2")
    estimator = SubsetEstimator().fit(store, "word_problems", names["estimator"].loss_on_all_)
    for number, (name, subset) in enumerate(names["subsets"].items()):
        estimate, _, test_loss = table[name]
        assert estimate == pytest.approx(estimator.predict([subset])[0], abs=6e-4)
        assert names["measured"][name] != names["measured"]["base"]
        assert test_loss == pytest.approx(loss_on_test(names, tmp_path / f"tuned-{number}"), abs=6e-4)


def loss_on_test(names: dict[str, Any], adapter: Path) -> float:
    """Mean loss per answer token on the notebook's test rows, one row after another."""
    model = names["PeftModel"].from_pretrained(
        names["AutoModelForCausalLM"].from_pretrained(names["base"]), str(adapter)
    )
    total, count = 0.0, 0
    for row in names["tokenize_rows"](names["test"], names["tokenizer"]):
        ids, labels = (torch.tensor([row[key]]) for key in ("input_ids", "labels"))
        answers = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += model.eval()(input_ids=ids, labels=labels).loss.item() * answers
        count += answers
    return total / count


@pytest.mark.slow
def test_the_notebook_runs_as_written(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="the notebook runs as written only where nbclient is installed")
    pytest.importorskip("ipykernel", reason="the notebook runs as written only where ipykernel is installed")
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    said = "".join(output.get("text", "") for output in outputs)
    assert re.search(r"lowest estimate: selection; lowest measured loss: selection", said)
