"""Input that nobody should give: made from a number, so that every case can be made again.

`KINDS` maps a kind of input to a function that takes a random generator and a `World`, and uses the package as a
user would. What it may raise is `TaskSelectionError`, in one line; anything else is a defect.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import io
import json
import math
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import ClassLabel, Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from conftest import unsealed
from hf_tasksel import GradientStore, SelectionResult, SubsetEstimator, forward_selection
from hf_tasksel.app.explorer import Explorer
from hf_tasksel.cli.main import main
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.errors import TaskSelectionError
from hf_tasksel.data.formatting import format_rows, tokenize_rows
from hf_tasksel.data.tasks import load_tasks
from hf_tasksel.estimation.response import ResponseEstimate
from hf_tasksel.pipeline.arguments import fine_tuning_arguments, meta_arguments
from hf_tasksel.pipeline.checks import check_config
from hf_tasksel.records.estimator import fit_run_estimator
from hf_tasksel.records.files import read_run
from hf_tasksel.records.known_loss import KnownLoss
from hf_tasksel.records.record import RunRecord
from hf_tasksel.records.true_runs import true_losses
from hf_tasksel.report.page.page import write_html_report
from hf_tasksel.training.models import load_adapter, lora_config

LONGEST = 3000  # characters of a sentence that people can still read

TEXTS = (
    "",
    " ",
    "a",
    "a" * 300,
    "..",
    "../../etc/passwd",
    "/",
    "a/b\\c",
    "CON",
    "a\x00b",
    "\x1b[31mred\x07",
    "\ud800",
    "\u202eright to left",
    "ünï 日本 💡",
    "{prompt}",
    "{0.__class__}",
    "{{ 7 * 7 }}",
    "{% for",
    "<script>",
    "a,b",
    "true",
    "1e5",
    "-1",
    "nan",
    "line\nbreak",
    "%s%n",
    "x" * 100_000,
)
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2**31,
    2**63,
    10**400,
    0.0,
    -0.5,
    1e-320,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
    [],
    {},
    [[]],
    [None],
    {"": 1},
    {None: 1},
    {1: 2},
    {"a": {"b": {"c": []}}},
    ["a", "a"],
    [1, "a", None],
    datetime.date(2026, 1, 1),
    b"bytes",
    (1, 2),
    {"__class__": "x"},
)


@dataclass(frozen=True)
class World:
    """What inputs are made from: a base, task files, a finished run, and a folder to write into."""

    base: Path
    tasks: Path
    finished: Path
    scratch: Path
    values: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase

    @classmethod
    def of(cls, base: Path, tasks: Path, finished: Path, scratch: Path, values: dict[str, Any]) -> World:
        """Make a world."""
        return cls(base, tasks, finished, scratch, values, AutoTokenizer.from_pretrained(base))


def anything(rng: random.Random, depth: int = 0) -> Any:
    """Return some value, nested at times."""
    pick = rng.random()
    if depth < 3 and pick < 0.1:
        return [anything(rng, depth + 1) for _ in range(rng.randint(0, 4))]
    if depth < 3 and pick < 0.2:
        return {rng.choice(TEXTS): anything(rng, depth + 1) for _ in range(rng.randint(0, 4))}
    return rng.choice(TEXTS) if pick < 0.6 else rng.choice(VALUES)


def paths_in(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the place of every value inside nested ones."""
    found = [path] if path else []
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        found += paths_in(value, (*path, key))
    return found


def spoiled(rng: random.Random, values: Any, times: int = 2) -> Any:
    """Return nested values in which some were replaced, removed or added."""
    result = copy.deepcopy(values)
    if rng.random() < 0.03:
        return anything(rng)
    for _ in range(rng.randint(1, times)):
        places = paths_in(result)
        if not places:
            return anything(rng)
        *above, last = rng.choice(places)
        holder = result
        for key in above:
            holder = holder[key]
        what = rng.random()
        if what < 0.6:
            holder[last] = anything(rng)
        elif what < 0.8:
            del holder[last]
        elif isinstance(holder, dict):
            holder[rng.choice(TEXTS)] = anything(rng)
        else:
            holder.append(anything(rng))
    return result


FULL: dict[str, Any] = {
    "dtype": "float32",
    "seed": 0,
    "max_length": 64,
    "chat": False,
    "loss": "auto",
    "truncation": "auto",
    "trust_remote_code": False,
    "quantization": {"load_in_4bit": True},
    "estimator": {"surrogate": "default", "regularization": 1.0, "checkpoint": None, "budget_multiple": 1.0},
    "selection": {"method": "forward", "min_tasks": 1, "max_tasks": 3},
    "fine_tuning": {"learning_rate": 1e-3, "compare_with": ["all"]},
    "hub": {"repo_id": "a/b", "push": False},
    "task_notes": {"next": "a note"},
}


def use_config(config: RunConfig) -> None:
    """Do with a configuration what a command does before any work."""
    check_config(config)
    lora_config(config, False)
    meta_arguments(config, "out", False)
    fine_tuning_arguments(config, "out", False)


def configuration(rng: random.Random, world: World) -> None:
    """Values of a configuration."""
    use_config(RunConfig.from_dict(spoiled(rng, {**world.values, **FULL}, 3)))


def yaml_text(rng: random.Random, world: World) -> None:
    """The text of a configuration file, and overrides."""
    text = list(yaml.safe_dump({**world.values, **FULL}))
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(len(text))
        text[place : place + rng.randint(0, 3)] = rng.choice(
            [*TEXTS[:-1], ":", "- ", "&a ", "*a", "!!python/name:os ", "\t"]
        )
    path = world.scratch / "config.yaml"
    path.write_bytes("".join(text).encode("utf-8", rng.choice(["surrogatepass", "replace"])))
    keys = ["seed", "meta.max_steps", "tasks.next.dataset", "", ".", "a.b.c", "gradients", "target.task.x"]
    overrides = [part for _ in range(rng.randint(0, 2)) for part in (f"--{rng.choice(keys)}", rng.choice(TEXTS[:-1]))]
    use_config(RunConfig.from_yaml(path, overrides))


COLUMNS = ("question", "rationale", "answer", "prompt", "completion", "messages", "text", "label", "instruction")
COLUMNS = (*COLUMNS, "input", "output", "chosen", "rejected", "conversations", "task", "sample_idx", "input_ids")
MESSAGES: tuple[Any, ...] = (
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    [{"role": "assistant", "content": "b"}],
    [{"role": "user", "content": None}],
    [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
    [{"role": "x", "content": "\ud800"}],
    [],
)


def cell(rng: random.Random) -> Any:
    """Return one cell of a row."""
    return rng.choice((rng.choice(TEXTS), rng.choice(TEXTS), rng.choice(VALUES[:17]), rng.choice(MESSAGES)))


def rows(rng: random.Random, world: World) -> None:
    """Rows in memory, formatted and tokenized."""
    columns = rng.sample(COLUMNS, rng.randint(1, 4))
    kinds = {name: rng.choice(("text", "any", "messages")) for name in columns}
    choose = {"text": lambda: rng.choice(TEXTS), "any": lambda: cell(rng), "messages": lambda: rng.choice(MESSAGES)}
    table = [{name: choose[kinds[name]]() for name in columns} for _ in range(rng.randint(0, 4))]
    try:
        dataset = Dataset.from_list(table)
    except Exception:  # what pyarrow does not take never reaches the package
        return
    formatted = format_rows(
        dataset,
        rng.choice(["auto", "auto", "prompt_completion", "messages", "chain_of_thought", "text", *TEXTS[:4]]),
        rng.choice(TEXTS),
        {rng.choice(COLUMNS): rng.choice(COLUMNS)} if rng.random() < 0.3 else None,
        rng.choice([None, None, None, *TEXTS[:-1]]),
        chat=rng.random() < 0.3,
        loss=rng.choice(["auto", "assistant", "last", "all"]),
    )
    tokenize_rows(formatted, world.tokenizer, rng.choice([None, 1, 2, 16, 64]), rng.random() < 0.2)


def labels(rng: random.Random, world: World) -> None:
    """Rows of classes: names of all kinds, and numbers that are none of them."""
    names = rng.sample(TEXTS[:-1], rng.randint(1, 4))
    numbers = [rng.choice([None, -1, 0, 0, 1, 2, 99, 2**31]) for _ in range(rng.randint(1, 4))]
    other = [rng.choice([*TEXTS, *VALUES[:14]]) for _ in numbers]
    columns = {"text": [rng.choice(TEXTS) for _ in numbers], "label": numbers if rng.random() < 0.6 else other}
    try:
        dataset = Dataset.from_dict(columns)
        if rng.random() < 0.7:
            dataset = dataset.cast_column("label", ClassLabel(names=names))
    except Exception:  # what datasets does not take never reaches the package
        return
    mapping = rng.choice([None, {"question": "text", "answer": "label"}, {"prompt": "label", "completion": "text"}])
    tokenize_rows(format_rows(dataset, "auto", "classes", mapping), world.tokenizer, rng.choice([None, 8]))


def files(rng: random.Random, world: World) -> None:
    """Files of rows, as `tasks` and `target` name them."""
    folder = world.scratch / "files"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    path = folder / rng.choice(["a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet", "a.jsonl.gz", "ünï 💡.jsonl"])
    lines = [json.dumps({"question": rng.choice(TEXTS), "answer": cell(rng)}, default=str) for _ in range(3)]
    content = "\n".join(lines).encode("utf-8", "surrogatepass")
    damage = rng.random()
    if damage < 0.5:
        place = rng.randrange(len(content))
        content = content[:place] + rng.randbytes(rng.randint(0, 4)) + content[place + rng.randint(0, 9) :]
    elif damage < 0.6:
        content = rng.choice([b"", b"\n", b"[]", b"{}", b"null", b"\xff\xfe", b"PAR1"])
    path.write_bytes(content)
    values = {
        **world.values,
        "tasks": {rng.choice(TEXTS): {"dataset": str(path)}, "next": str(world.tasks / "next.jsonl")},
    }
    load_tasks(RunConfig.from_dict(values))


def arrays(rng: random.Random, world: World) -> None:
    """Arrays that are to become a store, and what is asked of it."""
    count, dim = rng.randint(0, 6), rng.randint(0, 4)
    gradients = np.asarray(
        [
            [
                rng.choice([0.0, 1.0, 1e30, -1e-30, math.nan]) if rng.random() < 0.1 else rng.gauss(0, 1)
                for _ in range(dim)
            ]
            for _ in range(count)
        ]
    ).reshape(count, dim)
    if rng.random() < 0.1:
        gradients = rng.choice([gradients.astype(complex), gradients.astype(str), gradients[..., None], None])
    names = rng.sample(TEXTS[:-1], 3)
    columns: dict[str, Any] = {
        "task": [rng.choice(names) for _ in range(count)],
        "split": [rng.choice(["train", "train", "dev"]) for _ in range(count)],
        "loss": [rng.choice([0.0, 1.0, 2.5]) for _ in range(count)],
        "value": [rng.gauss(0, 1) for _ in range(count)],
        "num_tokens": [rng.randint(1, 5) for _ in range(count)],
    }
    if rng.random() < 0.3:
        name = rng.choice([*columns])
        columns[name] = anything(rng)
    folder = world.scratch / "arrays"
    shutil.rmtree(folder, ignore_errors=True)
    store = GradientStore.from_arrays(folder, loss_gradient=gradients, **columns)
    options = {"regularization": rng.choice([None, 1.0, 0.0, -1.0, 1e300, math.nan])} if rng.random() < 0.5 else {}
    estimator = SubsetEstimator(**options).fit(store, rng.choice([*names, names[0], {names[0]: rng.choice(VALUES)}]))
    estimator.predict(rng.choice([[names], [names[:1]], [[]], [], [["unknown"]], np.ones((1, 2)), anything(rng)]))
    forward_selection(estimator)


def store_files(rng: random.Random, world: World) -> None:
    """The files of a store, damaged."""
    folder = world.scratch / "store"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(next((world.finished / "gradients").iterdir()), folder)
    path = rng.choice([folder / "manifest.json", folder / "manifest.json", *folder.glob("*.arrow")])
    if path.suffix == ".json" and rng.random() < 0.7:
        path.write_text(json.dumps(spoiled(rng, json.loads(path.read_text())), default=str, skipkeys=True))
    else:
        damage_bytes(rng, path)
    store = GradientStore(folder)
    store.gradients()
    SubsetEstimator().fit(store, "goal").predict([store.task_names])


def damage_bytes(rng: random.Random, path: Path) -> None:
    """Truncate a file, or change some of its bytes."""
    content = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        content = content[: rng.randrange(len(content))]
    else:
        for _ in range(rng.randint(1, 5)):
            content[rng.randrange(len(content))] = rng.randrange(256)
    path.write_bytes(bytes(content))


RECORDS = ("run.json", "selection.json", "known_loss.json", "response.json", "meta/meta.json", "affinity.json")
RECORDS = (*RECORDS, "final/evaluation.json", "estimates.parquet", "truth/a.json")


def records(rng: random.Random, world: World) -> None:
    """The files of a finished run, damaged or of another kind, without checksums that would tell."""
    folder = world.scratch / "run"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(world.finished, folder, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "plots", "*.html"))
    unsealed(folder)
    path = folder / rng.choice(RECORDS)
    if path.suffix == ".json" and path.is_file() and rng.random() < 0.7:
        path.write_text(json.dumps(spoiled(rng, json.loads(path.read_text())), default=str, skipkeys=True))
    elif path.is_file():
        damage_bytes(rng, path)
    else:
        path.parent.mkdir(exist_ok=True)
        some = {"tasks": ["next"], "seed": 1, "dev_loss": 1.0, "key": "x", "points": [[1.0]], "losses": [1.0]}
        path.write_text(json.dumps(spoiled(rng, some), default=str, skipkeys=True))
    look = rng.randrange(7)
    if look == 0:
        read_run(folder)
    elif look == 1:
        SelectionResult.load(folder)
        KnownLoss.load(folder)
    elif look == 2:
        RunRecord(folder).settings("meta")
    elif look == 3:
        config = RunConfig.from_dict(world.values)
        fit_run_estimator(folder, config).predict([["next"]])
        true_losses(folder, config)
    elif look == 4:
        write_html_report(folder)
    elif look == 5:
        explorer = Explorer(folder)
        explorer.answer({"next": 1.0})
        explorer.facts()
    elif (folder / "response.json").is_file():
        ResponseEstimate.load(folder / "response.json")


TEMPLATES = (
    "{{ messages }}",
    "{% for m in messages %}{{ m.content }}{% endfor %}",
    "{{ messages[0].role }}: {{ messages[-1].content }}",
    "{% generation %}{{ messages[0].content }}{% endgeneration %}",
    "{{ ''.__class__.__mro__ }}",
    "{{ raise_exception('no') }}",
    "{% for i in range(1000000) %}a{% endfor %}",
    "{{ 1 / 0 }}",
    "{% include '/etc/passwd' %}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ undefined.thing }}",
    *TEXTS[:-1],
)


def chat_templates(rng: random.Random, world: World) -> None:
    """Chat templates of a base."""
    tokenizer = copy.copy(world.tokenizer)
    tokenizer.chat_template = rng.choice(TEMPLATES) + (rng.choice(TEMPLATES) if rng.random() < 0.3 else "")
    table = Dataset.from_list([{"messages": MESSAGES[0]}, {"messages": MESSAGES[0]}])
    loss = rng.choice(["auto", "assistant", "last", "all"])
    tokenize_rows(format_rows(table, "messages", "chat", loss=loss), tokenizer, rng.choice([None, 8]))


def adapters(rng: random.Random, world: World) -> None:
    """The files of an adapter."""
    folder = world.scratch / "adapter"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(world.finished / "final" / name, folder / name)
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    what = rng.random()
    if what < 0.6:
        config.write_text(json.dumps(spoiled(rng, json.loads(config.read_text())), default=str, skipkeys=True))
    elif what < 0.9:
        damage_bytes(rng, rng.choice([config, weights]))
    else:
        rng.choice([config, weights]).unlink()
    load_adapter(AutoModelForCausalLM.from_pretrained(world.base), folder)


def command_lines(rng: random.Random, world: World) -> None:
    """A configuration as a file and what is typed with it: exit code 0, or 2 and a sentence."""
    path = world.scratch / "typed.yaml"
    path.write_text(yaml.dump(spoiled(rng, {**world.values, **FULL}, 2), allow_unicode=True), "utf-8", "replace")
    keys = ["--seed", "--meta.max_steps", "--tasks.next.dataset", "--show", "--gpus", "--json", "--quiet", "-h", ""]
    typed = [part for _ in range(rng.randint(0, 2)) for part in (rng.choice(keys), rng.choice(TEXTS[:-1]))]
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            code = main([rng.choice(["plan", "data", "estimate", "app", "nonsense"]), str(path), *typed])
        except SystemExit as left:  # by argparse
            code = int(left.code or 0)
    assert code in (0, 2), f"exit code {code}"
    if code == 2:
        raise TaskSelectionError(said.getvalue().strip().splitlines()[-1])


KINDS: dict[str, Callable[[random.Random, World], None]] = {
    "configuration": configuration,
    "yaml": yaml_text,
    "rows": rows,
    "labels": labels,
    "files": files,
    "arrays": arrays,
    "store files": store_files,
    "records": records,
    "chat templates": chat_templates,
    "adapters": adapters,
    "command lines": command_lines,
}


def try_case(kind: str, number: int, world: World) -> bool:
    """Try one case; says whether it was refused.

    Raises:
        AssertionError: for a refusal that is no sentence; whatever else is raised passes through.
    """
    try:
        KINDS[kind](random.Random(f"{kind} {number}"), world)
    except TaskSelectionError as error:
        message = str(error)
        assert message.strip(), "a refusal without a word"
        assert "\n" not in message, f"more than one line: {message[:500]!r}"
        assert len(message) <= LONGEST, f"{len(message)} characters: {message[:200]!r}"
        return True
    return False
