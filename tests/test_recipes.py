"""Every recipe: known keys only, and columns that its datasets really have (stand-ins with the same columns)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from datasets import ClassLabel, Dataset

from hf_tasksel.cli import main as cli
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.errors import ConfigError
from hf_tasksel.data import sources as task_sources
from hf_tasksel.data import tasks
from hf_tasksel.data.sources import used_datasets
from hf_tasksel.pipeline import plan as planning
from hf_tasksel.pipeline.arguments import fine_tuning_arguments, meta_arguments
from hf_tasksel.training.models import lora_config, quantization_config
from model_zoo import base_model

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted(p for p in ROOT.glob("recipes/**/*.yaml") if p.parent.name != "accelerate_configs")
HUB_RECIPES = sorted(ROOT.glob("recipes/*/*/config_*.yaml"))
LAPTOP = ROOT / "recipes" / "smollm2-135m" / "laptop.yaml"
QUANTIZED = [p for p in HUB_RECIPES if p.stem == "config_qlora"]
CONFIGS = sorted((ROOT / "recipes" / "accelerate_configs").glob("*.yaml"))
SHARED = ROOT.parent / "shared" / "data"
MODELS = ("flan-t5-base", "llama-3.1-8b", "qwen3-0.6b", "smollm2-135m", "tinyllama-1.1b")
ROWS_PER_SPLIT = 60
FEWER_ROWS = ["--target.dev_samples", "20", "--target.test_samples", "20"]  # the stand-ins have few rows

# What the recipes' datasets look like on the Hub: id and configuration -> splits, and the row of a tag and a number.
HUB: dict[tuple[str, str | None], tuple[tuple[str, ...], Callable[[str, int], dict[str, Any]]]] = {
    ("openai/gsm8k", "main"): (
        ("train", "test"),
        lambda tag, i: {
            "question": f"What is 3 + {tag}?",
            "answer": f"3 + {i} = <<3+{i}={3 + i}>>{3 + i}\n#### {3 + i}",
        },
    ),
    ("deepmind/aqua_rat", "raw"): (
        ("train", "validation", "test"),
        lambda tag, i: {
            "question": f"How much is {tag}?",
            "options": [f"{letter}){i}" for letter in "ABCDE"],
            "rationale": "It is as in the question.\nAnswer: B",
            "correct": "B",
        },
    ),
    ("ChilleD/SVAMP", None): (
        ("train", "test"),
        lambda tag, i: {
            "ID": f"chal-{i}",
            "Body": f"There are {tag} apples.",
            "Question": "How many?",
            "Equation": f"( {i}.0 - 3.0 )",
            "Answer": f"{i - 3}.0",
            "Type": "Subtraction",
            "question_concat": f"There are {tag} apples. How many?",
        },
    ),
    ("ChilleD/MultiArith", None): (
        ("train", "test"),
        lambda tag, i: {"question": f" How many are {tag}?", "final_ans": str(i)},
    ),
    ("ChilleD/LastLetterConcat", None): (
        ("train", "test"),
        lambda tag, i: {"question": f"Take the last letters of {tag}.", "answer": "ab"},
    ),
    ("ChilleD/StrategyQA", None): (
        ("train", "test"),
        lambda tag, i: {
            "qid": tag,
            "term": "a word",
            "description": "what it means",
            "question": f"Is {tag} a word?",
            "answer": i % 2 == 0,
            "facts": "A fact. Another.",
        },
    ),
    ("tau/commonsense_qa", None): (
        ("train", "validation", "test"),
        lambda tag, i: {
            "id": tag,
            "question": f"Where is {tag}?",
            "question_concept": "place",
            "choices": {"label": list("ABCDE"), "text": [f"place {n}" for n in range(5)]},
            "answerKey": "" if tag.startswith("test") else "C",
        },
    ),
    ("allenai/openbookqa", "additional"): (
        ("train", "validation", "test"),
        lambda tag, i: {
            "id": tag,
            "question_stem": f"The sun gives {tag}",
            "choices": {"text": ["heat", "ice", "rain", "sand"], "label": list("ABCD")},
            "answerKey": "A",
            "fact1": "the sun is hot",
            "humanScore": 1.0,
            "clarity": 2.0,
            "turkIdAnonymized": "b356d338b7",
        },
    ),
    ("truthfulqa/truthful_qa", "generation"): (
        ("validation",),
        lambda tag, i: {
            "type": "Adversarial",
            "category": "Misconceptions",
            "question": f"What happens to {tag}?",
            "best_answer": "Nothing happens",
            "correct_answers": ["Nothing happens", "Nothing"],
            "incorrect_answers": ["It grows"],
            "source": "a page",
        },
    ),
    ("tatsu-lab/alpaca", None): (
        ("train",),
        lambda tag, i: {"instruction": f"Do {tag}.", "input": "", "output": "Done.", "text": "all of it"},
    ),
    ("databricks/databricks-dolly-15k", None): (
        ("train",),
        lambda tag, i: {
            "instruction": f"Do {tag}.",
            "context": "" if i % 3 else "A text.",
            "response": "Done.",
            "category": ("brainstorming", "closed_qa", "summarization")[i % 3],
        },
    ),
    ("Muennighoff/natural-instructions", None): (
        ("train", "validation", "test"),
        lambda tag, i: {
            "task_name": ("task001_quoref_question_generation", "task002_quoref_answer_generation")[i % 2],
            "id": f"task-{tag}",
            "definition": "Read the passage.",
            "inputs": f"Passage: {tag}",
            "targets": "What is it?",
        },
    ),
    ("knkarthick/dialogsum", None): (
        ("train", "validation", "test"),
        lambda tag, i: {"id": tag, "dialogue": f"#Person1#: Hi {tag}", "summary": "They meet.", "topic": "meeting"},
    ),
    ("knkarthick/samsum", None): (
        ("train", "validation", "test"),
        lambda tag, i: {"id": tag, "dialogue": f"Amanda: Hi {tag}", "summary": "Amanda says hi."},
    ),
    ("fancyzhx/ag_news", None): (("train", "test"), lambda tag, i: {"text": f"News of {tag}", "label": i % 4}),
    ("stanfordnlp/sst2", None): (
        ("train", "validation", "test"),
        lambda tag, i: {"idx": i, "sentence": f"a film of {tag} ", "label": -1 if tag.startswith("test") else i % 2},
    ),
}
LABELS = {
    ("fancyzhx/ag_news", None): ["World", "Sports", "Business", "Sci/Tech"],
    ("stanfordnlp/sst2", None): ["negative", "positive"],
    ("cardiffnlp/tweet_eval", "hate"): ["non-hate", "hate"],
    ("cardiffnlp/tweet_eval", "offensive"): ["non-offensive", "offensive"],
    ("cardiffnlp/tweet_eval", "irony"): ["non_irony", "irony"],
    ("cardiffnlp/tweet_eval", "sentiment"): ["negative", "neutral", "positive"],
    ("cardiffnlp/tweet_eval", "emotion"): ["anger", "joy", "optimism", "sadness"],
}
for source in LABELS:
    tweets = (("train", "validation", "test"), lambda tag, i: {"text": f"a tweet of {tag}", "label": i % 2})
    HUB.setdefault(source, tweets)


def relative(path: Path) -> str:
    """Name a recipe in the output of pytest."""
    return str(path.relative_to(ROOT / "recipes"))


@cache
def stand_in(path: str, name: str | None = None, split: str = "train", revision: str | None = None) -> Dataset:
    """Rows with the columns of a Hub dataset; every split has its own, and those that the Hub lacks are errors."""
    splits, row = HUB[path, name]
    assert split.partition("[")[0] in splits, f"{path} has no split {split}"
    dataset = Dataset.from_list([row(f"{split.partition('[')[0]} {path} {i}", i) for i in range(ROWS_PER_SPLIT)])
    if labels := LABELS.get((path, name)):
        dataset = dataset.cast_column("label", ClassLabel(names=labels))
    return dataset


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A folder with a tiny encoder-decoder and the tiny tokenizer."""
    folder = tmp_path_factory.mktemp("t5")
    base_model("flan_t5", torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_model(request: pytest.FixtureRequest, base_folder: Path, t5_folder: Path) -> Callable[[Path], str]:
    """The tiny stand-in for a recipe's model."""
    return lambda recipe: str(t5_folder if "t5" in relative(recipe) else base_folder)


LOADED: dict[str, tasks.TaskSplits] = {}


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Callable[[RunConfig], tasks.TaskSplits]:
    """Load a recipe's tasks from the stand-ins; recipes with the same data share them."""
    monkeypatch.setattr(task_sources, "load_dataset", stand_in)

    def load(config: RunConfig) -> tasks.TaskSplits:
        key = json.dumps([config.to_dict()[part] for part in ("tasks", "target", "seed")])
        if key not in LOADED:
            LOADED[key] = tasks.load_tasks(config)
        return LOADED[key]

    monkeypatch.setattr(planning, "load_tasks", load)
    return load


def check_keys(config: RunConfig, folder: Path, is_encoder_decoder: bool) -> None:
    """Build everything that a recipe holds arguments of."""
    meta_arguments(config, str(folder), is_encoder_decoder)
    fine_tuning_arguments(config, str(folder), is_encoder_decoder)
    lora_config(config, is_encoder_decoder)
    if config.quantization is not None:
        quantization_config(config.quantization)
    if "from" not in config.tasks:
        for name, entry in config.tasks.items():
            tasks.load_entry(name, entry, config.seed)


@pytest.mark.parametrize("recipe", RECIPES, ids=relative)
def test_every_key_is_known(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "load_entry", lambda name, entry, seed: {})
    check_keys(RunConfig.from_yaml(recipe), tmp_path, "t5" in relative(recipe))


def test_every_model_has_both_stages_with_both_adapters():
    expected = {
        f"{m}/{kind}/config_{a}.yaml" for m in MODELS for kind in ("instruct", "cot") for a in ("lora", "qlora")
    }
    assert {relative(p) for p in HUB_RECIPES} == expected


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("max_lenght", "max_length"),
        ("target.dev_sample", "dev_samples"),
        ("meta.learning_rat", "learning_rate"),
        ("lora.lora_alph", "lora_alpha"),
        ("gradients.checkpoint", "checkpoints"),
        ("quantization.bnb_4bit_quant_typ", "bnb_4bit_quant_type"),
        ("fine_tuning.num_train_epoch", "num_train_epochs"),
    ],
)
def test_an_unknown_key_in_any_recipe_fails_with_the_near_name(key, near, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "load_entry", lambda name, entry, seed: {})
    for recipe in HUB_RECIPES:
        with pytest.raises(ConfigError, match=rf"unknown key {re.escape(key)}.*{near}"):
            check_keys(RunConfig.from_yaml(recipe, [f"--{key}", "1"]), tmp_path, "t5" in relative(recipe))


def test_an_unknown_key_of_a_task_fails_with_the_near_name():
    for recipe in HUB_RECIPES:
        for name, entry in RunConfig.from_yaml(recipe).tasks.items():
            with pytest.raises(ConfigError, match=rf"unknown key tasks\.{name}\.max_sample.*max_samples"):
                tasks.load_entry(name, {**entry, "max_sample": 1}, 0)


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


@pytest.mark.parametrize("recipe", [*HUB_RECIPES, LAPTOP], ids=relative)
def test_hub_recipes_fit_the_columns_of_their_datasets_and_plan(recipe, loaded, tiny_model, capsys):
    assert cli.main(["plan", str(recipe), "--json", "--model_name_or_path", tiny_model(recipe), *FEWER_ROWS]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["samples"]["dev"] == plan["samples"]["test"] == 20
    assert len(plan["tasks"]) >= 2
    assert all(count > 0 for count in plan["tasks"].values())
    harmless = ("says how many", "the base has a chat template")  # of fewer rows here, and of the tiny model
    assert [note for note in plan["notes"] if not any(words in note for words in harmless)] == []
    assert plan["parameters"]["trainable"] > 0
    assert all(count > 0 for count in plan["multiply_accumulates"].values())


@pytest.mark.parametrize("recipe", HUB_RECIPES, ids=relative)
def test_prompts_of_hub_recipes_are_filled_and_readable(recipe, loaded):
    splits = loaded(RunConfig.from_yaml(recipe, FEWER_ROWS))
    first = {row["task"]: row for row in reversed(list(splits.train))}
    assert set(first) == set(range(len(splits.task_names)))
    for row in [*first.values(), splits.dev[0], splits.test[0]]:
        assert not re.search(r"[{}\[\]]|None", row["prompt"]), row["prompt"]
        assert re.search(r"(train|validation|test) \S+/\S+ \d+", row["prompt"]), row["prompt"]
        assert row["completion"].strip()
        assert not re.search(r"[{}\[\]]|None", row["completion"]), row["completion"]


def test_options_of_choice_questions_are_in_their_prompts(loaded):
    recipe = ROOT / "recipes" / "llama-3.1-8b" / "cot" / "config_lora.yaml"
    splits = loaded(RunConfig.from_yaml(recipe, FEWER_ROWS))
    names = splits.train.features["task"].names
    first = {names[row["task"]]: row["prompt"] for row in reversed(list(splits.train))}
    assert "?\nA)0\nB)0\nC)0\nD)0\nE)0\nAnswer:" in first["aqua"]
    assert first["commonsense_qa"].endswith("\n(C) place 2\n(D) place 3\n(E) place 4\nAnswer:")
    assert first["openbookqa"].endswith("\n(A) heat\n(B) ice\n(C) rain\n(D) sand\nAnswer:")


def test_the_plan_of_a_recipe_prints_its_cost(loaded, tiny_model, capsys):
    recipe = ROOT / "recipes" / "flan-t5-base" / "cot" / "config_qlora.yaml"
    assert cli.main(["plan", str(recipe), "--model_name_or_path", tiny_model(recipe), *FEWER_ROWS]) == 0
    printed = capsys.readouterr().out
    assert "multiply-accumulates" in printed
    assert "meta training" in printed
    assert "left out" not in printed


@pytest.mark.parametrize("recipe", QUANTIZED, ids=relative)
def test_quantized_recipes_ask_for_nf4_and_are_otherwise_those_without(recipe):
    config, plain = RunConfig.from_yaml(recipe), RunConfig.from_yaml(recipe.with_stem("config_lora"))
    built = quantization_config(config.quantization)
    assert built.load_in_4bit
    assert built.bnb_4bit_quant_type == "nf4"
    assert built.bnb_4bit_compute_dtype is torch.bfloat16
    assert built.bnb_4bit_use_double_quant
    own = {"dtype", "quantization", "output_dir"}
    differing = {key for key, value in config.to_dict().items() if value != plain.to_dict()[key]}
    assert differing <= own
    assert plain.quantization is None


def test_a_value_that_the_quantization_refuses_is_one_sentence():
    with pytest.raises(ConfigError, match="quantization: "):
        quantization_config({"load_in_4bit": True, "bnb_4bit_compute_dtype": "bfloat17"})


@pytest.mark.parametrize("recipe", HUB_RECIPES, ids=relative)
def test_a_recipe_says_how_it_is_launched_and_writes_to_a_folder_of_its_own(recipe):
    text = recipe.read_text()
    assert text.startswith("# ")
    assert f"-m hf_tasksel.cli run \\\n#         recipes/{relative(recipe)}\n" in text
    folders = [RunConfig.from_yaml(p).output_dir for p in RECIPES]
    assert len(set(folders)) == len(folders)


def test_the_table_of_the_docs_lists_every_recipe_as_it_is():
    text = (ROOT / "docs" / "recipes.md").read_text()
    rows = re.findall(r"^\| `(\S+\.yaml)` \| (.+) \| (.+) \| (.+) \| (.+) \|$", text, re.MULTILINE)
    assert sorted(row[0] for row in rows) == [relative(p) for p in RECIPES]
    for name, model, sources, target, adapter in rows:
        recipe = ROOT / "recipes" / name
        config = RunConfig.from_yaml(recipe)
        assert (target, adapter) == (config.target.task, "QLoRA" if config.quantization else "LoRA"), name
        if recipe in HUB_RECIPES:
            assert (model, sources) == (config.model_name_or_path, ", ".join(config.tasks)), name


def test_the_docs_name_the_licence_of_every_model_and_dataset():
    licences = (ROOT / "docs" / "recipes.md").read_text().partition("## Licences")[2]
    configs = [RunConfig.from_yaml(p) for p in HUB_RECIPES]
    names = {c.model_name_or_path for c in configs} | {d for c in configs for d in used_datasets(c, list(c.tasks))}
    assert {name for name in names if name not in licences} == set()


def test_the_recipe_of_the_docs_is_short_and_valid(tmp_path, monkeypatch):
    example = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "recipes.md").read_text(), re.DOTALL)[0]
    assert len(example.splitlines()) < 12
    monkeypatch.setattr(task_sources, "load_dataset", stand_in)
    (tmp_path / "mine.yaml").write_text(example)
    check_keys(RunConfig.from_yaml(tmp_path / "mine.yaml"), tmp_path, False)


@pytest.mark.parametrize("kind", ["instruct", "cot"])
def test_local_recipes_read_the_shared_data(kind, monkeypatch):
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not there: the local recipes read real data from it")
    monkeypatch.chdir(ROOT)
    splits = tasks.load_tasks(RunConfig.from_yaml(ROOT / "recipes" / "local" / f"{kind}.yaml"))
    assert len(splits.task_names) >= 9
    assert splits.report.leaked.keys() <= set(splits.task_names)


def test_the_colab_notebook_is_the_laptop_recipe_and_runs(loaded, base_folder, tmp_path, monkeypatch):
    """Every cell but the installation, on stand-ins for model and data, with fewer steps."""
    names: dict[str, Any] = {}
    monkeypatch.chdir(tmp_path)
    for cell in json.loads((ROOT / "examples" / "colab.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or cell["id"] == "install":
            continue
        exec(compile(source, cell["id"], "exec"), names)
        if cell["id"] == "configuration":
            recipe = yaml.safe_load(LAPTOP.read_text())
            assert names["values"] == {**recipe, "output_dir": "out/colab"}
            small = {
                "model_name_or_path": str(base_folder),
                "meta": {"max_steps": 4},
                "generation": {"max_new_tokens": 2},
            }
            few = {**recipe["target"], "dev_samples": 12, "test_samples": 8}
            names["config"] = RunConfig.from_dict({**names["values"], **small, "target": few})
    assert next(row.model for row in names["table"]) == "base"
    assert names["losses"].shape == (len(names["estimator"].task_names_),)
