"""The run configuration: what is read, and how mistakes are reported."""

from __future__ import annotations

import dataclasses

import pytest

from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.errors import ConfigError
from hf_tasksel.core.files import resolve_path
from hf_tasksel.core.values import keyword_arguments, parse_overrides
from hf_tasksel.data.sources import expand_files
from hf_tasksel.pipeline.arguments import fine_tuning_arguments
from hf_tasksel.training.training_args import TaskSelectionConfig

MINIMAL = {"model_name_or_path": "base", "output_dir": "out", "tasks": {"a": "a.jsonl"}, "target": {"task": "a"}}


def test_defaults_come_back_after_a_round_trip():
    config = RunConfig.from_dict(MINIMAL)
    assert RunConfig.from_dict(config.to_dict()) == config
    assert config.gradients.checkpoints == ["half"]
    assert not config.trust_remote_code
    assert config.hub.private


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"taks": {}}, "unknown key taks (did you mean 'tasks'?)"),
        ({"target": {"task": "a", "dev_sample": 3}}, "unknown key target.dev_sample (did you mean 'dev_samples'?)"),
        ({"gradients": {"dim": "many"}}, "gradients.dim must be int, not 'many'"),
        ({"gradients": {"dim": True}}, "gradients.dim must be int, not True"),
        ({"gradients": [1]}, "gradients must be a mapping of keys"),
        ({"target": {}}, "target.task is missing"),
        ({"target": {"task": "a", "leakage": "ignore"}}, "target.leakage must be 'error' or 'drop'"),
        ({"target": {"task": "a", "format": "chain_of_thougt"}}, "did you mean 'chain_of_thought'?"),
        ({"tasks": {}}, "tasks is empty"),
    ],
)
def test_a_mistake_is_one_sentence_with_the_key_and_the_nearest_known_one(changes, message):
    with pytest.raises(ConfigError) as error:
        RunConfig.from_dict({**MINIMAL, **changes})
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_key_is_named():
    values = {k: v for k, v in MINIMAL.items() if k != "model_name_or_path"}
    with pytest.raises(ConfigError, match="model_name_or_path is missing"):
        RunConfig.from_dict(values)


def test_overrides_win_over_the_file_and_are_read_as_yaml(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("{model_name_or_path: m, output_dir: o, tasks: {a: a.jsonl}, target: {task: a}}")
    overrides = ["--meta.learning_rate", "2e-4", "--hub.push=true", "--gradients.dim", "10", "--output_dir", "o2"]
    config = RunConfig.from_yaml(path, overrides)
    assert (config.output_dir, config.hub.push, config.gradients.dim) == ("o2", True, 10)
    assert keyword_arguments(TaskSelectionConfig, config.meta, "meta") == {"learning_rate": 2e-4}


def test_an_override_of_an_unknown_key_is_refused(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("{model_name_or_path: m, output_dir: o, tasks: {a: a.jsonl}, target: {task: a}}")
    with pytest.raises(ConfigError, match=r"unknown key gradients\.dims \(did you mean 'dim'\?\)"):
        RunConfig.from_yaml(path, ["--gradients.dims", "10"])


@pytest.mark.parametrize(("arguments", "message"), [(["stray"], "stray"), (["--meta.seed"], "has no value")])
def test_bad_overrides_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        parse_overrides(arguments)


@pytest.mark.parametrize("section", ["meta", "fine_tuning"])
def test_numbers_of_steps_must_be_numbers(section, run_values):
    with pytest.raises(ConfigError, match=rf"{section}\.max_steps must be a number, not 'twenty'"):
        RunConfig.from_dict({**run_values, section: {"max_steps": "twenty"}})


@pytest.mark.parametrize(
    ("meta", "tuned", "expected"),
    [
        ({}, {}, 1.0),
        ({"max_steps": 50}, {}, 1.0),
        ({"max_steps": 50}, {"max_steps": 25}, 0.5),
        ({"num_train_epochs": 1}, {"num_train_epochs": 3}, 3.0),
        ({}, {"num_train_epochs": 1}, 0.5),
        ({"max_steps": 50}, {"max_steps": -1}, 1.0),
        ({"per_device_train_batch_size": 8}, {"per_device_train_batch_size": 64}, 1 / 8),
        ({}, {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 4}, 0.5),
        ({"num_train_epochs": 1}, {"num_train_epochs": 3, "per_device_train_batch_size": 32}, 1.5),
        ({"max_steps": 50}, {"per_device_train_batch_size": 8}, 1.0),
    ],
)
def test_fine_tunes_are_measured_in_lengths_of_meta_training(meta, tuned, expected, run_values):
    config = RunConfig.from_dict({**run_values, "meta": meta, "fine_tuning": tuned})
    assert config.relative_steps == expected


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_train_epochs": 0}, r"meta\.num_train_epochs must be above 0"),
        (
            {"per_device_train_batch_size": 0},
            r"meta\.per_device_train_batch_size must be a whole number",
        ),
        ({"gradient_accumulation_steps": 1.5}, r"meta\.gradient_accumulation_steps must be a whole number"),
    ],
)
def test_lengths_that_are_none_are_refused(values, message, run_values):
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_dict({**run_values, "meta": values})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("tasks:\n  x: a.jsonl\n  x: b.jsonl\n", "the key 'x' occurs twice in one mapping"),
        ("x: &y {a: 1}\nz: {<<: *y, a: 2}\n", "unknown key x"),
        ("just words", "must hold a mapping"),
        ("", "must hold a mapping"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path, text, message):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_yaml(path)
    with pytest.raises(ConfigError, match="there is no configuration file"):
        RunConfig.from_yaml(tmp_path / "missing.yaml")


def test_unknown_training_arguments_name_the_nearest_known_one():
    with pytest.raises(ConfigError, match=r"unknown key meta\.learning_rat \(did you mean 'learning_rate'\?\)"):
        keyword_arguments(TaskSelectionConfig, {"learning_rat": 1}, "meta")


def test_embedded_paths_lie_inside_the_package():
    assert resolve_path("embedded:quickstart/base").endswith("hf_tasksel/quickstart/base")
    assert resolve_path("some/base") == "some/base"
    assert len(expand_files("embedded:quickstart/tasks/*.jsonl.gz")) == 13
    with pytest.raises(ConfigError, match="no file matches"):
        expand_files("nowhere/*.jsonl")


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_grad_norm", 0.1), ("adam_beta2", 0.95), ("weight_decay", 0.1), ("optim_args", "a=1"), ("warmup_steps", 7)],
)
@pytest.mark.parametrize("is_encoder_decoder", [False, True])
def test_the_fine_tune_trains_as_meta_training_does_unless_told(key, value, is_encoder_decoder, run_values, tmp_path):
    config = RunConfig.from_dict({**run_values, "meta": {key: value}})
    assert getattr(fine_tuning_arguments(config, str(tmp_path), is_encoder_decoder), key) == value
    assert config.fine_tune_settings["meta"] == {key: value}
    assert config.fine_tunes_as_meta


@pytest.mark.parametrize("key", ["gradient_checkpointing", "activation_checkpointing"])
def test_the_fine_tune_inherits_checkpointing_of_meta_training_under_either_name(key, run_values, tmp_path):
    names = {f.name for f in dataclasses.fields(TaskSelectionConfig)}
    if key not in names:
        pytest.skip(f"this version of transformers has no {key}")
    config = RunConfig.from_dict({**run_values, "meta": {key: True}})
    for is_encoder_decoder in (False, True):
        args = fine_tuning_arguments(config, str(tmp_path), is_encoder_decoder)
        assert getattr(args, "activation_checkpointing", False) or getattr(args, "gradient_checkpointing", False)
    args = fine_tuning_arguments(RunConfig.from_dict(run_values), str(tmp_path), False)
    assert not getattr(args, "activation_checkpointing", False)


def test_an_override_keeps_the_path_of_a_task_and_finds_names_with_dots(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(
        "model_name_or_path: m\noutput_dir: o\ntasks: {a: a.jsonl, v1.0: b.jsonl, v1: c.jsonl}\ntarget: {task: a}\n"
    )
    overrides = ["--tasks.a.max_samples", "5", "--tasks.v1.0.max_samples", "6", "--tasks.v1.max_samples", "7"]
    assert RunConfig.from_yaml(path, overrides).tasks == {
        "a": {"dataset": "a.jsonl", "max_samples": 5},
        "v1.0": {"dataset": "b.jsonl", "max_samples": 6},
        "v1": {"dataset": "c.jsonl", "max_samples": 7},
    }
