"""The command line as users meet it: one sentence and exit code 2 for a mistake, JSON for programs."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from conftest import small_run, unsealed, word_rows, write_jsonl
from hf_tasksel import SelectionResult
from hf_tasksel.cli import main as cli
from hf_tasksel.core import hub as hub_upload


@pytest.fixture
def config_file(run_values, tmp_path):
    """Write a configuration with some changes and return its path."""

    def write(**changes: Any) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({**run_values, **changes}, allow_unicode=True), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(scope="module")
def finished(tmp_path_factory, base_folder, task_folder) -> Path:
    """The output folder of a run up to its gradients."""
    folder = tmp_path_factory.mktemp("cli")
    values = small_run(base_folder, task_folder, folder / "out")
    values["target"] = {"task": "next", "dev_samples": 6, "test_samples": 6}
    (folder / "c.yaml").write_text(yaml.safe_dump(values))
    assert cli.main(["collect", str(folder / "c.yaml"), "--quiet"]) == 0
    return folder / "out"


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must fail as a user's mistake; return its one sentence."""
    assert cli.main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("hf-tasksel: error: ")
    assert "Traceback" not in captured.err
    lines = [line for line in captured.err.splitlines() if line.startswith("hf-tasksel")]
    assert captured.err.strip().splitlines()[-1:] == lines[-1:]
    return lines[-1].removeprefix("hf-tasksel: error: ")


@pytest.mark.parametrize("missing", [False, True])
def test_a_damaged_shard_is_said_and_repaired_when_asked(missing, finished, capsys):
    config = str(finished.parent / "c.yaml")
    estimate = ["estimate", str(finished), "--subset", "next", "--json"]
    assert cli.main(estimate) == 0
    before = capsys.readouterr().out
    shard = next((finished / "gradients" / "checkpoint-2").glob("*.arrow"))
    shard.unlink() if missing else shard.write_bytes(shard.read_bytes()[:-9])
    for command in (estimate, ["collect", config, "--quiet"]):
        assert "run `hf-tasksel collect CONFIG --repair`" in fails(capsys, *command)
    assert cli.main(["collect", config, "--repair", "--quiet"]) == 0
    capsys.readouterr()
    assert cli.main(estimate) == 0
    assert capsys.readouterr().out == before


def test_expansion_prints_errors_and_leaves_a_plot(finished, capsys):
    config = str(finished.parent / "c.yaml")
    assert cli.main(["expansion", config, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {row["direction"] for row in printed["errors"]} == {"surrogate", "random"}
    assert [row["distance"] for row in printed["errors"][:5]] == [0.02, 0.04, 0.06, 0.08, 0.1]
    assert all(row["first_order"] > 0 for row in printed["errors"])
    assert json.loads((finished / "expansion.json").read_text())["checkpoint"] == "checkpoint-2"
    assert (finished / "plots" / "expansion.png").stat().st_size > 10_000
    assert cli.main(["expansion", config]) == 0
    assert "zero order" in capsys.readouterr().out


def test_estimate_prints_json_and_needs_no_transformers(finished):
    script = (
        "import sys, time; from hf_tasksel.cli import main as cli; started = time.perf_counter();"
        f"code = cli.main(['estimate', {str(finished)!r}, '--subset', 'next,same', '--subset', 'skip', '--json']);"
        "print(time.perf_counter() - started, file=sys.stderr);"
        "bad = [m for m in ('transformers', 'peft', 'trl', 'accelerate', 'datasets') if m in sys.modules];"
        "print(bad, file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert [e["tasks"] for e in answer["estimates"]] == [["next", "same"], ["skip"]]
    assert all(0 < e["estimated_loss"] < 50 for e in answer["estimates"])
    assert done.stderr.splitlines()[-1] == "[]"


def test_importing_the_package_imports_no_library():
    script = "import sys, hf_tasksel; print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--subset", "next,sam"], "unknown task 'sam' (did you mean 'same'?)"),
        (["--subset", ","], "subset 0 is empty"),
        (["--subset", "next", "--checkpoint", "third"], "checkpoint 'third' is not one of the kept ones"),
        (["--subset", "next", "--surrogate", "empirical_fischer"], "did you mean 'empirical_fisher'?"),
        (["--subset", "next", "stray"], "unexpected argument 'stray'"),
    ],
)
def test_bad_estimates_are_one_sentence(arguments, message, finished, capsys):
    assert message in fails(capsys, "estimate", str(finished), *arguments)


def test_estimate_of_no_run_is_one_sentence(tmp_path, capsys):
    assert "is not the output folder of a run" in fails(capsys, "estimate", str(tmp_path), "--subset", "a")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": {"task": "gaol"}}, "target 'gaol' is not one of the tasks"),
        ({"target": {"task": "nexd"}}, "did you mean 'next'?"),
        ({"target": {"task": "next", "dev_samples": 0, "test_samples": 3}}, "target.dev_samples must be at least 1"),
        ({"metta": {}}, "unknown key metta (did you mean 'meta'?)"),
        ({"meta": {"learning_rate": "abc"}}, "meta.learning_rate must be a number, not 'abc'"),
        ({"fine_tuning": {"max_length": "long"}}, "fine_tuning.max_length must be a number, not 'long'"),
        ({"max_steps": 3}, "unknown key max_steps (did you mean 'meta.max_steps'?)"),
        ({"dim": 3}, "unknown key dim (did you mean 'gradients.dim'?)"),
        ({"tasks": {"from": "x", "next": {"max_samples": 3}}}, "tasks.next: beside `from`, keys are options of every"),
        ({"meta": {"learning_rat": 1.0}}, "unknown key meta.learning_rat (did you mean 'learning_rate'?)"),
        ({"fine_tuning": {"packing_": True}}, "unknown key fine_tuning.packing_"),
        ({"lora": {"rr": 3}}, "unknown key lora.rr"),
        ({"lora": {"target_modules": ["nothing"]}}, "LoRA could not be added"),
        ({"quantization": {"load_in_4bits": True}}, "did you mean 'load_in_4bit'?"),
        ({"selection": {"method": "forwards"}}, "did you mean 'forward'?"),
        ({"gradients": {"projection": "sketch"}}, "projection"),
        ({"model_name_or_path": "./nowhere"}, "there is no model folder './nowhere'"),
        ({"estimator": {"checkpoint": "third"}}, "third"),
    ],
)
def test_bad_configurations_are_one_sentence_before_any_training(changes, message, config_file, capsys):
    assert message in fails(capsys, "run", config_file(**changes))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "task 'bad': "),
        ([{"question": "?", "answer": ""}], "task 'bad' is empty: none of its 1 rows has a completion"),
        ([{"question": "?", "respons": "x"}], "task 'bad': no format fits its columns ['question', 'respons']"),
        (word_rows("goal", 40, 1), "rows that are also dev or test rows of the target 'goal'"),
    ],
)
def test_bad_tasks_are_one_sentence(rows, message, config_file, tmp_path, capsys):
    path = write_jsonl(tmp_path / "bad.jsonl", rows)
    assert message in fails(capsys, "run", config_file(tasks={"bad": str(path)}))


def test_a_missing_column_is_named(config_file, task_folder, capsys):
    tasks = {"next": {"dataset": str(task_folder / "next.jsonl"), "columns": {"answer": "anser"}}}
    assert "maps 'answer' to column 'anser', which is not there (did you mean 'answer'?)" in fails(
        capsys, "run", config_file(tasks=tasks)
    )


def test_an_unwritable_output_is_one_sentence(config_file, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert "cannot write" in fails(capsys, "run", config_file(output_dir=str(tmp_path / "file" / "out")))


def test_no_lora_parameters_is_one_sentence(config_file, capsys):
    assert fails(capsys, "run", config_file(lora={"target_modules": []}))


def test_a_fresh_adapter_is_one_sentence(config_file, capsys, run_values):
    values = {**run_values["meta"], "learning_rate": 0.0}
    assert "the adapter is fresh" in fails(capsys, "run", config_file(meta=values))


def test_a_store_of_another_model_is_one_sentence(config_file, run_values, capsys):
    path = config_file()
    assert cli.main(["collect", path, "--quiet"]) == 0
    record = unsealed(Path(run_values["output_dir"])) / "run.json"
    values = json.loads(record.read_text())
    values["stages"] = {"meta": values["stages"]["meta"]}
    record.write_text(json.dumps(values))
    adapter = Path(run_values["output_dir"], "meta", "checkpoint-2", "adapter_model.safetensors")
    other = Path(run_values["output_dir"], "meta", "checkpoint-3", "adapter_model.safetensors")
    adapter.write_bytes(other.read_bytes())
    assert "is of another adapter" in fails(capsys, "collect", path)


def test_a_loss_that_is_not_finite_names_the_sample(config_file, monkeypatch, capsys):
    from hf_tasksel.pipeline import materials

    path = config_file()
    assert cli.main(["meta-train", path, "--quiet"]) == 0
    load = materials.load_base

    def poisoned(config):
        model = load(config)
        with torch.no_grad():
            model.get_input_embeddings().weight[5:].fill_(torch.nan)
        return model

    monkeypatch.setattr(materials, "load_base", poisoned)
    message = fails(capsys, "collect", path)
    assert "the loss of sample " in message
    assert "is not finite" in message


def test_json_output_holds_selection_and_evaluation(config_file, capsys, run_values):
    assert cli.main(["run", config_file(), "--json"]) == 0
    out = capsys.readouterr().out
    answer = json.loads(out)
    assert answer["selection"]["target"] == "goal"
    assert [row["model"] for row in answer["evaluation"]][-1] == "selection"
    assert SelectionResult.load(run_values["output_dir"]).selected == answer["selection"]["selected"]
    assert cli.main(["run", config_file()]) == 0
    text = capsys.readouterr().out
    assert "target loss, nats per token" in text
    assert "everything is in" in text


def test_plan_trains_nothing(config_file, capsys, run_values):
    assert cli.main(["plan", config_file(), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["samples"] == {"train": 72, "dev": 10, "test": 10}
    assert not os.path.exists(run_values["output_dir"])
    assert cli.main(["plan", config_file()]) == 0
    printed = capsys.readouterr().out
    assert "multiply-accumulates" in printed
    assert "here at least" in printed
    assert plan["steps"] == {"meta training": 6, "one fine-tune on all tasks": 6}
    assert cli.main(["plan", config_file(meta={"num_train_epochs": 3}), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["steps"]["meta training"] == math.ceil(72 / 16) * 3  # batches are counted per epoch, as Trainer does
    assert all(0 < seconds < 60 for seconds in plan["seconds_at_least"].values())


def test_plan_refuses_a_quantization_and_counts_what_is_cut_off(config_file, capsys):
    assert "load_in_4bit" in fails(capsys, "plan", config_file(quantization={"load_in_4bits": True}))
    assert cli.main(["plan", config_file(max_length=12), "--json"]) == 0
    assert "24 rows of 'next' are longer than max_length" in " ".join(json.loads(capsys.readouterr().out)["notes"])


def test_estimates_are_a_table_for_people(finished, capsys):
    assert cli.main(["estimate", str(finished), "--subset", "next,same"]) == 0
    printed = capsys.readouterr().out
    assert "next, same" in printed
    assert "not calibrated with true fine-tunes" in " ".join(printed.split())


def test_env_tells_versions_and_no_token(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert cli.main(["env"]) == 0
    printed = capsys.readouterr().out
    assert f"- torch: {metadata.version('torch')}" in printed
    assert "- Hub token: set" in printed
    assert "hf_secret" not in printed
    assert cli.main(["env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["CPU cores"] == os.cpu_count()


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash to complete in")
def test_completion_completes_commands_options_and_keys(tmp_path, capsys):
    assert cli.main(["completion", "bash"]) == 0
    script = tmp_path / "complete.sh"
    script.write_text(capsys.readouterr().out)
    ask = (
        f'source {script}; complete_it() {{ COMP_WORDS=(hf-tasksel "$@"); COMP_CWORD=$#; '
        '$(complete -p hf-tasksel | sed -E "s/.*-F ([^ ]+).*/\\1/") hf-tasksel; echo "${COMPREPLY[@]}"; }; '
    )
    for words, expected in (
        ("est", "estimate"),
        ("run c.yaml --gradients.d", "--gradients.dim"),
        ("verify c.yaml --su", "--subsets"),
    ):
        done = subprocess.run(["bash", "-c", f"{ask} complete_it {words}"], capture_output=True, text=True)
        assert expected in done.stdout.split(), done.stderr


def test_a_folder_for_a_configuration_is_one_sentence(tmp_path, capsys):
    assert "is a folder: name the YAML file" in fails(capsys, "verify", str(tmp_path))
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    assert "could not be read" in fails(capsys, "plan", str(tmp_path / "c.yaml"))


def test_a_push_without_a_token_is_refused_before_any_work(config_file, run_values, monkeypatch, capsys):
    monkeypatch.setattr(hub_upload, "get_token", lambda: None)
    for command, hub in (("push", {}), ("run", {"push": True})):
        assert "there is no Hub token" in fails(capsys, command, config_file(hub=hub))
    assert not (Path(run_values["output_dir"]) / "meta").exists()


def test_help_is_for_people(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    assert "estimate" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("dim", 0, r"gradients\.dim must be at least 1, not 0"),
        ("objectives", ["los"], r"gradients\.objectives \['los'\] must be a choice"),
        ("seeds", [], r"gradients\.seeds must be one or several different integers"),
        ("dtype", "bfloat16", r"gradients\.dtype must be float16 or float32"),
        ("projection", "cout_sketch", "did you mean 'count_sketch'"),
        ("shard_size", -1, r"gradients\.shard_size must be at least 1"),
    ],
)
def test_senseless_gradient_settings_are_refused_before_anything_is_trained(
    key, value, message, config_file, run_values, capsys
):
    config = config_file(gradients={**run_values["gradients"], key: value})
    assert re.search(message, fails(capsys, "collect", config))
    assert not (Path(run_values["output_dir"]) / "meta").exists()


def test_report_writes_the_page_of_a_run_that_is_there(finished, tmp_path, capsys):
    assert cli.main(["report", str(finished)]) == 0
    assert "report.html" in capsys.readouterr().out
    assert "<h1" in (finished / "report.html").read_text()
    assert "is not the output folder of a run" in fails(capsys, "report", str(tmp_path))


@pytest.mark.parametrize(
    "command", ["plan", "collect", "select", "export", "estimate", "report", "env", "init", "expansion"]
)
def test_quiet_is_silent_and_json_is_all_that_is_printed(command, finished, task_folder, tmp_path):
    """In a process of its own: libraries write to the streams that they found when they were imported."""
    arguments = {
        "estimate": [str(finished), "--subset", "next"],
        "report": [str(finished)],
        "env": [],
        "init": [str(task_folder), "--output", str(tmp_path / "c.yaml")],
    }.get(command, [str(finished.parent / "c.yaml")])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    for flag in ("--quiet", "--json"):
        (tmp_path / "c.yaml").unlink(missing_ok=True)
        call = [sys.executable, "-m", "hf_tasksel.cli", command, *arguments, flag]
        done = subprocess.run(call, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) if flag == "--json" else done.stdout == ""


def test_threads_sleep_soon_unless_the_user_says_how_they_wait(monkeypatch):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    cli.share_cores()
    assert os.environ["GOMP_SPINCOUNT"] == cli.SPINS
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    cli.share_cores()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    cli.share_cores()
    assert "GOMP_SPINCOUNT" not in os.environ


def test_a_command_sets_it_before_torch_is_loaded():
    code = (
        "import sys, os; from hf_tasksel.cli import main as m; "
        "m.dispatch = lambda *a: print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT']); m.main(['env'])"
    )
    clean = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], env=clean, capture_output=True, text=True)
    assert done.stdout.strip() == f"False {cli.SPINS}", done.stderr[-2000:]
