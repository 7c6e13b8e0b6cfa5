"""report.html: right numbers for every state of a run, nothing loaded from elsewhere, names that stay text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import unsealed
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.errors import TaskSelectionError
from hf_tasksel.core.files import read_json, write_json
from hf_tasksel.estimation.comparison import Verification
from hf_tasksel.estimation.fidelity import measure_fidelity
from hf_tasksel.records.estimates_table import COLUMNS, ESTIMATES_FILE
from hf_tasksel.report import after_stage as report
from hf_tasksel.report.page.page import write_html_report
from hf_tasksel.report.plots import plot_fidelity

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = {
    "next": "</table><script>alert(1)</script>",
    "skip": "a|b & `c` <b>",
    "same": '"><img src=x onerror=alert(2)>',
    "goal": "<!-- {{ 7 * 7 }} {% raw %}",
}
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """A parsed page: tags with attributes, headings, paragraphs, and tables as rows of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.row: list[str] = []
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"
        if tag in ("td", "th"):
            self.row.append(self.texts[tag][-1])
        if tag == "tr":
            self.tables.setdefault(self.texts["caption"][-1], []).append(self.row)

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data

    def named(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]

    def table(self, start: str) -> list[list[str]]:
        (rows,) = (rows for caption, rows in self.tables.items() if caption.startswith(start))
        return rows


def page_of(folder: Path) -> Page:
    return Page(write_html_report(folder).read_text(encoding="utf-8"))


def add_verification(out: Path) -> None:
    """Leave what `verify` and `expansion` leave."""
    tasks = list(read_json(out / "selection.json")["effects"])
    rng = np.random.default_rng(0)
    truth = 1 + rng.random((8, 1)) + 0.01 * rng.random((8, 2))
    estimates, std = truth.mean(1) + 0.1 * rng.random(8), np.full(8, 0.05)
    found = Verification(
        target="goal",
        subsets=[tasks[: 1 + i % len(tasks)] for i in range(8)],
        true_losses=truth.tolist(),
        estimates=(estimates - 3).tolist(),
        calibrated=estimates.tolist(),
        calibrated_std=std.tolist(),
        first_order=measure_fidelity(estimates - 3, truth),
        after_calibration=measure_fidelity(estimates, truth, std),
    )
    write_json(out / "verification.json", found.to_dict())
    plot_fidelity(found.calibrated, found.true_losses, out / "plots" / "fidelity.png")
    error = {"direction": "surrogate", "distance": 0.05, "first_order": 1.3e-4, "zero_order": 3e-2, "num_samples": 10}
    write_json(out / "expansion.json", {"checkpoint": "checkpoint-2", "errors": [error]})


def only_selected(out: Path) -> None:
    """Take away what the fine-tune left."""
    shutil.rmtree(out / "final")
    shutil.rmtree(out / "compare")
    run = read_json(out / "run.json")
    stages = {name: stage for name, stage in run["stages"].items() if not name.startswith(("final", "fine_tune"))}
    write_json(out / "run.json", {**run, "stages": stages})


STATES: dict[str, Callable[[Path], None]] = {
    "select": only_selected,
    "fine-tune": lambda out: None,
    "verify": add_verification,
}
ALWAYS = ["tasks", "path", "trust", "losses", "affinity", "estimates", "data", "time", "configuration"]


@pytest.fixture
def run_folder(finished_run, tmp_path):
    """A copy of a finished run that may be changed; without models and stores, which a report must not need."""
    unneeded = shutil.ignore_patterns("*.safetensors", "*.bin", "*.pt*", "gradients", "checkpoint-*")
    out = unsealed(shutil.copytree(finished_run, tmp_path / "out", ignore=unneeded))
    # so short a training logs nothing
    tasks = [f"{name}_loss" for name in ("next", "skip", "same")]
    log = [{"loss": 3 - s / 10, "step": s, **dict.fromkeys(tasks, 4 - s / 5)} for s in range(1, 7)]
    write_json(out / "meta" / "meta.json", {**read_json(out / "meta" / "meta.json"), "log": log})
    for folder in ("final", "compare/all-tasks"):
        write_json(out / folder / "training_log.json", log[:4])
    return out


@pytest.fixture(params=STATES)
def state(request, run_folder):
    """The name of a stage, and the folder as it is after that."""
    STATES[request.param](run_folder)
    return request.param, run_folder


def rename(values: Any, names: dict[str, str]) -> Any:
    """Replace names everywhere in plain values."""
    if isinstance(values, dict):
        return {rename(key, names): rename(value, names) for key, value in values.items()}
    if isinstance(values, list):
        return [rename(value, names) for value in values]
    if not isinstance(values, str):
        return values
    return names.get(values) or next((f"{v}_loss" for k, v in names.items() if values == f"{k}_loss"), values)


def rename_run(out: Path, names: dict[str, str]) -> None:
    for path in [*out.glob("*.json"), *out.glob("*/*.json")]:
        write_json(path, rename(json.loads(path.read_text()), names))
    rows = rename(pq.read_table(out / ESTIMATES_FILE).to_pylist(), names)
    pq.write_table(pa.Table.from_pylist(rows, schema=COLUMNS), out / ESTIMATES_FILE)


def test_a_page_has_a_section_for_all_that_is_there_and_a_command_for_what_is_not(state):
    stage, folder = state
    page = page_of(folder)
    ids = [a["id"] for a in page.named("section")]
    more = {"select": ["missing"], "fine-tune": ["measured", "missing"], "verify": ["measured", "expansion"]}[stage]
    assert sorted(ids) == sorted([*ALWAYS, *more])
    commands = {"select": ["hf-tasksel fine-tune", "hf-tasksel expansion"], "fine-tune": ["hf-tasksel expansion"]}
    assert page.texts.get("code", []) == commands.get(stage, [])
    compared = [text for text in page.texts["p"] if "hf-tasksel verify" in text]
    assert len(compared) == (0 if stage == "verify" else 1)
    assert len(page.named("img")) == {"select": 5, "fine-tune": 6, "verify": 7}[stage]


def test_a_page_loads_nothing_and_runs_nothing(state):
    text = write_html_report(state[1]).read_text(encoding="utf-8")
    page = Page(text)
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster", "background"):
            assert (attributes.get(name) or "#").startswith(("data:", "#"))
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
    assert not page.named("script", "iframe", "object", "embed", "form", "base")
    (style,) = page.texts["style"]
    assert "url(" not in style
    assert "@import" not in style
    (policy,) = (a["content"] for a in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'")


def test_a_page_can_be_read_without_seeing_it(state):
    page = page_of(state[1])
    headings = [tag for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert headings == ["h1"] + ["h2"] * (len(headings) - 1)
    assert page.named("html")[0]["lang"] == "en"
    for picture in page.named("img"):
        assert re.search(r"^(Bar|Line|Scatter|Heat).{40,}", picture["alt"])
        assert base64.b64decode(picture["src"].partition(",")[2])[:4] == b"\x89PNG"
    assert {a["scope"] for a in page.named("th")} == {"row", "col"}
    targets = {a.get("id") for _, a in page.tags}
    assert all(a["href"][1:] in targets for a in page.named("a"))


def test_what_was_measured_is_what_is_on_record(run_folder):
    page = page_of(run_folder)
    rows = {row["model"]: row for row in json.loads((run_folder / "final" / "evaluation.json").read_text())}
    for cells in page.table("Target loss")[1:]:
        row = rows.pop("base" if "base" in cells[0] else cells[0])
        assert cells[1:3] == [str(row["num_tasks"] or ""), str(row["train_samples"] or "")]
        losses = [row["estimated_loss"], row["dev_loss"], row["test_loss"]]
        assert cells[3:6] == ["" if x is None else f"{x:.4f}" for x in losses]
        assert cells[6] == f"{row['answer_accuracy']:.1%}"
    assert rows == {}
    stages = read_json(run_folder / "run.json")["stages"]
    assert page.table("Seconds")[1:] == [[k, f"{v['seconds']:.1f}", v["finished"]] for k, v in stages.items()]


def test_tasks_are_listed_with_what_is_on_record(run_folder):
    selection, run = read_json(run_folder / "selection.json"), read_json(run_folder / "run.json")
    write_json(run_folder / "run.json", {**run, "config": {**run["config"], "task_notes": {"skip": "a remark"}}})
    page = page_of(run_folder)
    for caption, tasks in (("Selected", selection["selected"]), ("Dropped", selection["dropped"])):
        header, *rows = page.table(caption) if tasks else [["task", "rows", "score", "effect", "± std", "note"]]
        assert header == ["task", "rows", "score", "effect", "± std", "note"]
        assert [row[0] for row in rows] == sorted(tasks, key=lambda name: selection["scores"][name])
        for name, count, score, effect, std, note in rows:
            assert count == str(run["data"]["rows"][name])
            assert score == f"{selection['scores'][name]:+.4f}"
            assert effect == f"{selection['effects'][name]:+.4f}"
            assert std == f"{selection['effects_std'][name]:.4f}"
            assert note == ("a remark" if name == "skip" else "")


def test_the_best_estimates_come_first(run_folder):
    rows = pq.read_table(run_folder / ESTIMATES_FILE).to_pylist()
    expected = sorted({tuple(row["tasks"]): row["estimated_loss"] for row in rows}.items(), key=lambda item: item[1])
    header, *shown = page_of(run_folder).table("The ")
    assert header == ["tasks", "number", "estimate"]
    assert [row[2] for row in shown] == [f"{loss:.4f}" for _, loss in expected]
    assert {row[0] for row in shown} == {", ".join(tasks) for tasks, _ in expected}


def test_verified_estimates_stand_beside_the_constant_and_the_ceiling(run_folder):
    add_verification(run_folder)
    values = read_json(run_folder / "verification.json")
    raw, after = values["first_order"], values["after_calibration"]
    page = page_of(run_folder)
    table = {row[0]: row[1:] for row in page.table("8 subsets really fine-tuned, 16 fine-tunes")}
    errors = [raw["relative_error"], after["relative_error"], raw["constant_error"], raw["ceiling_error"]]
    assert table["relative error"] == [*(f"{error:.1%}" for error in errors), ""]
    ceilings = [raw["ceiling_spearman"], raw["attainable_spearman"]]
    assert table["Spearman"][2:] == ["0", *(f"{x:.2f}" for x in ceilings)]
    assert table["Spearman"][0].startswith(f"{raw['spearman']:.2f} (")
    said = " ".join(page.texts["p"])
    assert raw["verdict"] in said
    assert after["verdict"] in said
    assert "The selection is older than these fine-tunes" in said
    assert page.table("Mean squared relative error")[1] == ["surrogate", "5%", "1.3e-04", "3.0e-02"]


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        (
            (3.0, 2.0, 1.0),
            "1.0000 nats per token, better than 3.0000 without fine-tuning and 2.0000 fine-tuned on all",
        ),
        ((1.0, 2.0, 3.0), "beside 1.0000 without .* did no better on test than base and all tasks: its tasks do not"),
        ((3.0, 1.0, 2.0), "beside .* did no better on test than all tasks: its tasks do not help"),
    ],
)
def test_the_first_sentence_says_what_the_selection_was_worth(losses, words, run_folder):
    path = run_folder / "final" / "evaluation.json"
    row = json.loads(path.read_text())[0]
    tests = dict(zip(("base", "all tasks", "selection"), losses, strict=True))
    write_json(path, [{**row, "model": name, "test_loss": loss} for name, loss in tests.items()])
    assert re.search(words, " ".join(page_of(run_folder).texts["p"][:2]))


def test_a_measurement_of_an_earlier_selection_is_called_that(run_folder):
    run = read_json(run_folder / "run.json")
    run["stages"]["final"]["settings"]["selected"] = ["skip"]
    write_json(run_folder / "run.json", run)
    page = page_of(run_folder)
    assert page.texts["p"][0].endswith("what was measured below is of an earlier selection.")
    assert "The selection was made again since. hf-tasksel run fine-tunes on the new one." in page.texts["p"]


def test_rows_that_were_left_out_are_listed(run_folder):
    run = read_json(run_folder / "run.json")
    run["data"].update(empty_completions={"skip": 3}, truncated={"next": 2}, leaked={"gone": 7})
    write_json(run_folder / "run.json", run)
    rows = page_of(run_folder).table("Rows that were left out")
    assert rows[1:] == [
        ["next", "24", "0", "0", "0", "2"],
        ["skip", "24", "3", "0", "0", "0"],
        ["gone", "", "0", "7", "0", "0"],
    ]


def test_names_stay_text_whatever_is_in_them(run_folder):
    add_verification(run_folder)
    plain = page_of(run_folder)
    rename_run(run_folder, HOSTILE)
    page = page_of(run_folder)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags], "a name became markup"
    lists = [rows for caption, rows in page.tables.items() if caption.startswith(("Selected", "Dropped"))]
    tasks = [row[0] for rows in lists for row in rows]
    assert set(tasks) - {"task"} == {HOSTILE[name] for name in ("next", "skip", "same")}
    assert page.texts["h1"] == [f"Task selection for {HOSTILE['goal']}"]


def test_folders_of_this_machine_stay_here(run_folder, base_folder):
    text = write_html_report(run_folder).read_text(encoding="utf-8")
    assert read_json(run_folder / "run.json")["config"]["model_name_or_path"] == str(base_folder)
    assert str(base_folder.parent) not in unescape(text)
    assert f"model_name_or_path: {base_folder.name}" in unescape(text)


def test_a_report_that_fails_is_said_and_stops_nothing(run_folder):
    said: list[str] = []
    write_html_report(run_folder)
    (run_folder / "selection.json").write_text("{")
    report.keep_html_report(run_folder, said.append)
    assert "report.html could not be written, results are not affected: TaskSelectionError:" in said[0]
    assert not (run_folder / "report.html").exists(), "a page of an earlier state would mislead"


def test_only_the_first_rank_shows_a_stage(run_folder, monkeypatch):
    monkeypatch.setattr(report, "distributed_rank", lambda: (1, 2))
    monkeypatch.setattr(report, "write_html_report", lambda folder: pytest.fail("written"))
    config = RunConfig.from_dict(read_json(run_folder / "run.json")["config"])
    report.show_stage("select", config, run_folder, lambda message: pytest.fail("said"))


def test_a_log_of_one_line_is_no_curve(run_folder):
    write_json(run_folder / "meta" / "meta.json", {"checkpoints": {}, "log": [{"loss": 1.0, "step": 1}]})
    assert "Training losses (fewer than two of them were logged)" in page_of(run_folder).texts["li"]


def test_a_search_without_a_path_has_no_picture_of_it(run_folder):
    selection = read_json(run_folder / "selection.json")
    write_json(run_folder / "selection.json", {**selection, "path": [], "effects_std": None, "scores": None})
    page = page_of(run_folder)
    assert "Search path (random_ensemble has none)" in page.texts["li"]
    assert page.table("Selected")[0] == ["task", "rows", "effect"]


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(TaskSelectionError, match=r"not the output folder of a run: it has no run\.json"):
        write_html_report(tmp_path)


def grow(out: Path, count: int = 200) -> None:
    """Make of a small run one of many tasks with long names."""
    names = [f"collection/of_many/tasks_{i:03d}_" + "x" * 60 for i in range(count)]
    rng = np.random.default_rng(0)
    effects = dict(zip(names, (0.1 * rng.normal(size=count)).tolist(), strict=True))
    order = sorted(effects, key=lambda name: effects[name])
    steps = [
        {
            "change": f"+{order[k - 1]}",
            "tasks": order[:k],
            "estimate": 2 + (k - 60) ** 2 / 2e4,
            "std": abs(k - 60) / 1e3,
        }
        for k in range(9, count + 1)
    ]
    chosen = {"selected": order[:60], "dropped": order[60:], "path": steps}
    known = {"effects": effects, "scores": effects, "effects_std": dict.fromkeys(names, 0.02)}
    write_json(out / "selection.json", {**read_json(out / "selection.json"), **chosen, **known})
    run = read_json(out / "run.json")
    run["data"]["rows"] = dict.fromkeys(names, 100)
    write_json(out / "run.json", run)
    log = [
        {"step": s, "loss": 2.0, **{f"{n}_loss": rng.gamma(4) for n in names if rng.random() < 0.6}} for s in range(9)
    ]
    write_json(out / "meta" / "meta.json", {"checkpoints": {}, "log": log})
    rows = [{"kind": "path", "tasks": s["tasks"], "estimated_loss": s["estimate"]} for s in steps]
    table = [{name: row.get(name) for name in COLUMNS.names} for row in rows]
    pq.write_table(pa.Table.from_pylist(table, schema=COLUMNS), out / ESTIMATES_FILE)
    (out / "affinity.json").unlink()


def test_many_tasks_are_folded_and_drawn_in_seconds(run_folder):
    grow(run_folder)
    started = time.perf_counter()
    page = page_of(run_folder)
    assert time.perf_counter() - started < 20
    assert "Dropped tasks (140)" in page.texts["summary"]
    assert len(page.table("Dropped tasks")) == 141
    assert "Which tasks help each other (drawn for 3 to 60 tasks)" in page.texts["li"]
    assert len(page.table("The 20 lowest of 192 subsets")) == 21


PROBE = """
addEventListener("load", () => {
  const seen = performance.getEntriesByType("resource").map((entry) => entry.name);
  parent.postMessage(JSON.stringify({
    title: document.title,
    heading: document.querySelector("h1").textContent,
    widths: [...document.images].map((image) => image.naturalWidth),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    width: innerWidth,
    styled: getComputedStyle(document.querySelector("thead th")).fontWeight,
    loaded: seen.filter((name) => !name.startsWith("data:")),
  }), "*");
});
"""
# A browser's own window is never narrower than 500 pixels; a frame is.
PHONE = """<!DOCTYPE html><iframe src="probed.html" width="400" height="800" frameborder="0"></iframe><script>
addEventListener("message", (event) => document.documentElement.setAttribute("data-probe", event.data));
</script>"""


def in_chromium(page: Path, profile: Path) -> tuple[str, str]:
    """Open a page; returns the document and what the browser logged."""
    quiet = ("background-networking", "component-update", "sync", "gpu", "dev-shm-usage")
    options = [f"--disable-{name}" for name in quiet] + ["--no-first-run", "--no-sandbox", "--headless"]
    options += [f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    command = [str(CHROMIUM), *options, "--enable-logging=stderr", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome to look at a page")
@pytest.mark.parametrize("change", [add_verification, grow, lambda out: rename_run(out, HOSTILE)])
def test_a_browser_shows_the_page_on_a_phone_and_asks_for_nothing(change, run_folder, tmp_path):
    change(run_folder)
    path = write_html_report(run_folder)
    text = path.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(PROBE.encode()).digest()).decode()
    probed = text.replace("default-src 'none';", f"default-src 'none'; script-src 'sha256-{digest}';", 1)
    copy = tmp_path / "probed.html"
    copy.write_text(probed.replace("</head>", f"<script>{PROBE}</script></head>"), encoding="utf-8")
    (tmp_path / "phone.html").write_text(PHONE, encoding="utf-8")
    document, log = in_chromium(tmp_path / "phone.html", tmp_path / "profile")
    found = json.loads(unescape(re.search(r'data-probe="([^"]*)"', document)[1]))
    target = read_json(run_folder / "run.json")["config"]["target"]["task"]
    assert found["title"] == found["heading"] == f"Task selection for {target}"
    assert len(found["widths"]) == len(Page(text).named("img"))
    assert min(found["widths"]) > 300
    assert (found["overflow"], found["width"], found["styled"], found["loaded"]) == (0, 400, "600", [])
    assert not re.findall(r"CONSOLE.*|.*Content Security Policy.*", log)
