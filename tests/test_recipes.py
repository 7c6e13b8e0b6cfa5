"""Every recipe: known keys only, and columns that its datasets really have (stand-ins with the same columns)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from datasets import ClassLabel, Dataset

from hf_tasksel import cli, task_sources, tasks
from hf_tasksel.arguments import fine_tuning_arguments, meta_arguments
from hf_tasksel.config import RunConfig

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted(p for p in ROOT.glob("recipes/**/*.yaml") if p.parent.name != "accelerate_configs")
CONFIGS = sorted((ROOT / "recipes" / "accelerate_configs").glob("*.yaml"))
SHARED = ROOT.parent / "shared" / "data"
# What the datasets of the recipes look like on the Hub, one column per key.
ROWS = {
    "openai/gsm8k": {"question": "q {}", "answer": "3 + 4 = 7\n#### 7"},
    "ChilleD/SVAMP": {"question_concat": "q {}", "Equation": "( 3 + 4 )", "Answer": "7", "ID": "x", "Type": "Sum"},
    "ChilleD/MultiArith": {"question": "q {}", "final_ans": "7"},
    "ChilleD/LastLetterConcat": {"question": "q {}", "answer": "ab"},
    "ChilleD/StrategyQA": {"qid": "x", "question": "q {}", "answer": True, "facts": "a fact."},
    "tatsu-lab/alpaca": {"instruction": "do {}", "input": "", "output": "done", "text": "all"},
    "databricks/databricks-dolly-15k": {"instruction": "do {}", "context": "", "response": "done", "category": "c"},
    "EdinburghNLP/xsum": {"document": "text {}", "summary": "short", "id": "1"},
    "knkarthick/samsum": {"id": "1", "dialogue": "talk {}", "summary": "short"},
    "fancyzhx/ag_news": {"text": "news {}", "label": 1},
    "stanfordnlp/sst2": {"sentence": "film {}", "label": 1, "idx": 1},
}


def stand_in(path: str, *args: object, split: str = "train", **options: object) -> Dataset:
    """Rows with the columns of a Hub dataset; every split has its own."""
    rows = [
        {k: v.format(f"{split}{i}") if isinstance(v, str) else v for k, v in ROWS[path].items()} for i in range(700)
    ]
    dataset = Dataset.from_list(rows)
    if "label" in dataset.column_names:
        dataset = dataset.cast_column("label", ClassLabel(names=["bad", "good", "other"]))
    return dataset


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_key_is_known(recipe, tmp_path):
    config = RunConfig.from_yaml(recipe)
    meta_arguments(config, str(tmp_path), False)
    fine_tuning_arguments(config, str(tmp_path), False)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_accelerate_reads_every_configuration(config, monkeypatch):
    """Unknown keys are an error of Accelerate, and every value must reach its launcher."""
    values = yaml.safe_load(config.read_text())
    loaded = load_config_from_file(str(config))
    assert loaded.distributed_type.value == values["distributed_type"]
    arguments = launch_command_parser().parse_args(["--config_file", str(config), "script.py"])
    parsed, defaults, _ = _validate_launch_command(arguments)
    assert parsed.num_processes == values["num_processes"]
    assert parsed.mixed_precision == values["mixed_precision"]
    assert parsed.use_fsdp == (config.stem == "fsdp")
    assert parsed.use_deepspeed == (config.stem == "zero3")
    assert parsed.multi_gpu == (config.stem in ("cpu", "ddp", "multi_node"))
    for section, flags in (("fsdp_config", "fsdp_"), ("deepspeed_config", "")):
        for key, value in values.get(section, {}).items():
            name = key if key.startswith(flags) else flags + key
            assert getattr(parsed, name) == value, key
            assert getattr(defaults, section)[key] == value


def test_the_shipped_configurations_are_those_that_the_docs_list():
    text = (ROOT / "docs" / "trainer.md").read_text()
    assert {p.name for p in CONFIGS} == set(re.findall(r"\| `(\w+\.yaml)` \|", text))


@pytest.mark.parametrize("kind", ["instruct", "cot"])
def test_hub_recipes_fit_the_columns_of_their_datasets_and_plan(kind, monkeypatch, base_folder, capsys):
    recipe = ROOT / "recipes" / "smollm2-135m" / kind / "config_lora.yaml"
    monkeypatch.setattr(task_sources, "load_dataset", stand_in)
    assert cli.main(["plan", str(recipe), "--model_name_or_path", str(base_folder), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["samples"]["dev"] == 300
    assert all(count > 0 for count in plan["tasks"].values())
    assert plan["notes"] == []


@pytest.mark.parametrize("kind", ["instruct", "cot"])
def test_local_recipes_read_the_shared_data(kind, monkeypatch):
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there: the local recipes read real data from it")
    monkeypatch.chdir(ROOT)
    splits = tasks.load_tasks(RunConfig.from_yaml(ROOT / "recipes" / "local" / f"{kind}.yaml"))
    assert len(splits.task_names) >= 9
    assert splits.report.leaked.keys() <= set(splits.task_names)
