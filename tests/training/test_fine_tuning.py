"""The final fine-tune: the base, once, on the union of the chosen tasks."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
from trl import SFTConfig

from hf_tasksel import MixtureResult, SelectionResult, fine_tune
from hf_tasksel.core.errors import ConfigError, DataError
from hf_tasksel.data.formatting import tokenize_rows
from hf_tasksel.data.tasks import combine_tasks
from hf_tasksel.training.evaluation import mean_loss
from hf_tasksel.training.fine_tuning import drawn_rows, row_counts, union_rows
from hf_tasksel.training.models import load_adapter


@pytest.fixture
def args(tmp_path):
    return SFTConfig(
        str(tmp_path / "out"),
        max_steps=8,
        learning_rate=1e-2,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )


def test_no_file_of_a_fine_tune_holds_the_hub_token(args, text_tasks, base_folder):
    args = replace(args, hub_token="hf_secret_token", save_strategy="steps", save_steps=2, max_steps=4)
    folder = fine_tune(str(base_folder), text_tasks, ["next"], args).output_dir
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in files)
    assert not any(b"hf_secret_token" in path.read_bytes() for path in files)
    assert args.hub_token == "hf_secret_token"


def test_the_union_holds_the_rows_of_the_chosen_tasks_in_order(text_tasks):
    rows = union_rows(combine_tasks(text_tasks), ["same", "next"])
    assert rows["sample_idx"][:] == [*range(12), *range(24, 36)]
    with pytest.raises(ConfigError, match=r"unknown task 'nxt' \(did you mean 'next'\?\)"):
        union_rows(combine_tasks(text_tasks), ["nxt"])
    with pytest.raises(DataError, match="no task is selected"):
        union_rows(combine_tasks(text_tasks), [])


def mixture_of(num_samples: int, **shares: float) -> MixtureResult:
    return MixtureResult("goal", shares, shares, num_samples, 1.0, 1.1, 1.05, ["next"])


def test_rows_are_drawn_by_the_shares_of_a_mixture_or_by_number(text_tasks):
    rows = combine_tasks(text_tasks)
    counts = row_counts(mixture_of(36, next=0.75, same=0.25, skip=0.0))
    assert counts == {"next": 27, "same": 9}
    assert row_counts({"next": 27, "skip": 0, "same": 9}) == counts
    assert row_counts(["next"]) is None
    found = drawn_rows(rows, counts, seed=0)
    names = rows.features["task"]
    assert Counter(found["task"]) == {names.str2int("next"): 27, names.str2int("same"): 9}
    times = Counter(found["sample_idx"])
    repeats = [
        times[i] for i, task in zip(rows["sample_idx"], rows["task"], strict=True) if task == names.str2int("next")
    ]
    assert sorted(set(repeats)) == [2, 3]  # 12 rows twice, and 3 of them once more
    assert drawn_rows(rows, counts, seed=0)["sample_idx"][:] == found["sample_idx"][:]


def test_a_fine_tune_on_a_budget_of_rows_and_on_an_empty_one(args, text_tasks, base_folder):
    tuned = fine_tune(str(base_folder), text_tasks, {"next": 5, "skip": 0, "same": 7}, args)
    assert (tuned.tasks, tuned.train_samples) == (["next", "same"], 12)
    with pytest.raises(DataError, match="no task is selected"):
        fine_tune(str(base_folder), text_tasks, {"next": 0}, args)


def test_a_fine_tune_on_a_mixture_keeps_its_weights(args, text_tasks, base_folder):
    mixture = mixture_of(24, next=0.75, skip=0.0, same=0.25)
    tuned = fine_tune(str(base_folder), text_tasks, mixture, args)
    assert (tuned.tasks, tuned.train_samples) == (["next", "same"], 24)
    assert MixtureResult.load(tuned.output_dir) == mixture


def test_a_fine_tune_from_a_folder_lowers_the_loss_and_saves_the_evidence(args, text_tasks, base_folder, tokenizer):
    from transformers import AutoModelForCausalLM

    selection = SelectionResult("goal", "forward", ["next"], ["skip", "same"], 1.0, 1.0, {"next": 0.0})
    tuned = fine_tune(str(base_folder), text_tasks, selection, args)
    assert (tuned.tasks, tuned.train_samples) == (["next"], 12)
    assert SelectionResult.load(tuned.output_dir) == selection
    rows = tokenize_rows(text_tasks["next"], tokenizer)
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    before = mean_loss(base, tokenizer, rows)
    assert mean_loss(load_adapter(base, tuned.output_dir), tokenizer, rows) < before - 0.1


def test_tokenized_and_text_rows_give_the_same_adapter(args, text_tasks, base_folder, tokenizer, tmp_path):
    import dataclasses

    from safetensors.torch import load_file

    tokenized = tokenize_rows(combine_tasks(text_tasks), tokenizer)
    weights = []
    for i, rows in enumerate((text_tasks, tokenized)):
        options = dataclasses.replace(args, output_dir=str(tmp_path / str(i)))
        fine_tune(str(base_folder), rows, ["next", "skip"], options, processing_class=tokenizer)
        weights.append(load_file(tmp_path / str(i) / "adapter_model.safetensors"))
    assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])


def test_a_fine_tune_is_pushed_with_a_card_and_the_selection(args, text_tasks, base_folder, hub):
    from huggingface_hub import HfApi

    selection = SelectionResult(
        "goal", "forward", ["next"], ["skip", "same"], 1.0, 1.0, dict.fromkeys(text_tasks, 0.0)
    )
    tuned = fine_tune(str(base_folder), text_tasks, selection, args)
    tuned.push_to_hub("tester/tuned", api=HfApi(endpoint=hub.url, token=hub.token))
    files = hub.files("tester/tuned")
    wanted = {"adapter_model.safetensors", "selection.json", "README.md", "plots/selection.png", "run.json"}
    assert wanted <= set(files)
    card = files["README.md"].decode()
    assert "trained on 1 of 3 tasks" in card
    assert not any(str(base_folder).encode() in content for content in files.values())
    assert "hf-tasksel run config.yaml" not in card  # there is none


def test_a_fine_tune_on_named_tasks_is_pushed_with_a_card_of_its_own(args, text_tasks, base_folder, hub):
    from huggingface_hub import HfApi, ModelCard

    tuned = fine_tune(str(base_folder), text_tasks, {"next": 3, "same": 2}, args)
    tuned.push_to_hub("tester/named", api=HfApi(endpoint=hub.url, token=hub.token))
    files = hub.files("tester/named")
    assert not any(str(base_folder).encode() in content for content in files.values())
    card = ModelCard(files["README.md"].decode())
    assert "trained on next, same" in card.text
    assert card.data.base_model is None
    assert json.loads(files["run.json"])["fine_tune"]["train_samples"] == 5
