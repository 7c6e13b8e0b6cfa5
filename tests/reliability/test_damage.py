"""Files that are not what was written: found, named, and made again with what depends on them, and nothing else."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from conftest import small_run
from hf_tasksel import GradientStore
from hf_tasksel.config.run_config import RunConfig
from hf_tasksel.core.errors import TaskSelectionError
from hf_tasksel.core.files import read_json
from hf_tasksel.pipeline import pipeline
from hf_tasksel.pipeline.context import Run
from hf_tasksel.pipeline.expansion import check_expansion
from hf_tasksel.pipeline.stages import meta_training
from hf_tasksel.pipeline.verification import verify
from reliability.test_faults import assert_same_result, content

# they say when, how long it took, and which rank did it
CHANGING = ("run.json", "README.md", "manifest.json", "meta.json", "training_log.json")
COSTLY = ("meta/", "gradients/")
RESULTS = ("meta/adapter_model.safetensors", "manifest.json")  # to delete one asks for it again
OF_TRAINER = ("trainer_state", "scheduler", "optimizer", "rng_state", "training_args")
OF_CHECKPOINTS = (*OF_TRAINER, "checksums", "README", "tokenizer", "chat_template")
NOT_READ = (  # by anything after the stage that wrote it
    "meta/training_args.bin",
    "meta/README.md",
    "meta/resume.json",
    "meta/tokenizer",
    "meta/chat_template.jinja",
    "gradients/checkpoint-2/statistics",  # a cache: made again in silence
    "compare/all-tasks/README.md",
    ".run.json.copy",  # written again with the record
)
STAGE_OF = {  # start of a name -> stages that may be made again when it is damaged
    "meta/": {"meta"},
    "gradients/checkpoint-2/": {"gradients/checkpoint-2"},
    "gradients/checkpoint-3/": {"gradients/checkpoint-3"},
    "known_loss.json": {"known_loss"},
    "selection.json": {"select"},
    "affinity.json": {"select"},
    "estimates.parquet": {"select"},
    "compare/": {"fine_tune/all tasks"},
    "final/evaluation.json": {"final"},
    "final/selection.json": {"final"},
    "final/": {"fine_tune/selection"},
}


def truncated(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path, other: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


def deleted(path: Path, other: Path) -> None:
    path.unlink()


def swapped(path: Path, other: Path) -> None:
    shutil.copyfile(other, path)


LATER = ("truth/*.json", "verification.json", "expansion.json", "plots/fidelity.png", "plots/expansion.png")
DAMAGES: tuple[Callable[[Path, Path], None], ...] = (truncated, flipped, deleted, swapped)


@pytest.fixture(scope="module")
def other_run(tmp_path_factory, base_folder, task_folder) -> Path:
    """A finished run with another seed."""
    values = small_run(base_folder, task_folder, tmp_path_factory.mktemp("other") / "out")
    pipeline.run(RunConfig.from_dict({**values, "seed": 5}), say=lambda message: None)
    return Path(values["output_dir"])


def files_of(folder: Path) -> list[str]:
    """Return the names of all files of a run that damage is to be found in."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith("lock")]
    # what only an interrupted training reads, which looks at the seal of the whole checkpoint
    paths = [path for path in paths if "/checkpoint-" not in str(path) or not path.name.startswith(OF_CHECKPOINTS)]
    names = [path.relative_to(folder).as_posix() for path in paths]
    return [name for name in names if not name.startswith(NOT_READ)]


def counterpart(name: str, other: Path) -> Path:
    """Return the file of another run that has a name, or of which the shard begins with the same sample."""
    start = name.rsplit("-", 1)[0] if name.endswith(".arrow") else name
    return next(other.glob(f"{start}*"), other / "selection.json")


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_every_file(damage, finished_run, other_run, base_folder, task_folder, tmp_path, record_property):
    names = files_of(finished_run)
    record_property("files", len(names))
    for number, name in enumerate(names):
        check(damage, name, finished_run, other_run, small_run(base_folder, task_folder, tmp_path / str(number)))
        shutil.rmtree(tmp_path / str(number))


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (flipped, "run.json"),
        (deleted, "run.json"),
        (swapped, "run.json"),
        (flipped, "meta/adapter_model.safetensors"),
        (truncated, "meta/checkpoint-2/adapter_model.safetensors"),
        (deleted, "meta/meta.json"),
        (swapped, "gradients/checkpoint-3/manifest.json"),
        (flipped, "known_loss.json"),
        (swapped, "selection.json"),
        (flipped, "estimates.parquet"),
        (flipped, "compare/all-tasks/adapter_model.safetensors"),
        (swapped, "final/adapter_model.safetensors"),
        (flipped, "final/evaluation.json"),
        (truncated, "final/README.md"),
        (flipped, "plots/selection.png"),
    ],
)
def test_files_of_every_stage(damage, name, finished_run, other_run, base_folder, task_folder, tmp_path):
    check(damage, name, finished_run, other_run, small_run(base_folder, task_folder, tmp_path / "out"))


def test_what_was_made_from_a_result_that_came_out_differently_is_made_again(
    finished_run, base_folder, task_folder, tmp_path, monkeypatch
):
    values = small_run(base_folder, task_folder, tmp_path / "out")
    out = Path(shutil.copytree(finished_run, values["output_dir"]))
    for path in out.glob("meta/**/adapter_model.safetensors"):
        flipped(path, path)
    add_lora, said = meta_training.add_lora, []
    monkeypatch.setattr(meta_training, "add_lora", lambda base, config: add_lora(base, replace(config, seed=7)))
    pipeline.run_all(Run(RunConfig.from_dict(values), said.append, repair=True))
    assert any("meta came out differently than before: gradients/checkpoint-2" in line for line in said)
    before, after = (read_json(folder / "run.json")["stages"] for folder in (finished_run, out))
    again = {stage for stage in after if after[stage] != before[stage]}
    assert {"meta", "gradients/checkpoint-2", "gradients/checkpoint-3", "known_loss", "select"} <= again
    assert "fine_tune/all tasks" not in again, "which starts at the base"
    ours, theirs = (GradientStore(folder / "gradients" / "checkpoint-3") for folder in (out, finished_run))
    assert ours.fingerprint["adapter"] != theirs.fingerprint["adapter"]


def check(damage, name: str, finished: Path, other: Path, values: dict) -> None:
    """Damage a file of a copy: a command must name it, and with --repair make again what depends on it, no more."""
    out = Path(shutil.copytree(finished, values["output_dir"]))
    damage(out / name, counterpart(name, other))
    if damage is swapped and (out / name).read_bytes() == (finished / name).read_bytes():
        return
    said: list[str] = []
    if name.startswith(COSTLY) and not (damage is deleted and name.endswith(RESULTS)):
        with pytest.raises(TaskSelectionError) as refused:
            pipeline.run(RunConfig.from_dict(values), say=said.append)
        assert name.split("/")[-1] in str(refused.value), (name, damage)
        assert "repair" in str(refused.value) or "delete" in str(refused.value), (name, damage)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        pipeline.run_all(Run(RunConfig.from_dict(values), said.append, repair=True))
    heard = [*said, *(str(warning.message) for warning in warned)]
    assert name.startswith("gradients") or any(name.split("/")[-1] in line for line in heard), (name, damage, heard)
    assert_same_result(out, finished, ("selection.json", "known_loss.json", "affinity.json"))
    before, after = (read_json(folder / "run.json")["stages"] for folder in (finished, out))
    again = {stage for stage in after if after[stage] != before[stage]}
    allowed = next((stages for start, stages in STAGE_OF.items() if name.startswith(start)), set())
    assert again <= allowed, (name, damage)
    if not name.endswith(CHANGING):
        assert content(out / name) == content(finished / name), (name, damage)


@pytest.fixture(scope="module")
def verified_run(finished_run, base_folder, task_folder, tmp_path_factory) -> Path:
    """A finished run that was verified, and whose expansion was measured."""
    values = small_run(base_folder, task_folder, tmp_path_factory.mktemp("verified") / "out")
    out = Path(shutil.copytree(finished_run, values["output_dir"]))
    run = Run(RunConfig.from_dict(values), lambda message: None)
    verify(run, 3, processes=1)
    check_expansion(run)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_later_commands_wrote(damage, verified_run, base_folder, task_folder, tmp_path, record_property):
    """It is named, or nothing reads it; the command that wrote it brings it back, and nothing else is done again."""
    files = [path for pattern in LATER for path in sorted(verified_run.glob(pattern))]
    assert len(files) == 7
    record_property("files", len(files))
    for number, path in enumerate(files):
        values = small_run(base_folder, task_folder, tmp_path / str(number))
        out, name = Path(shutil.copytree(verified_run, values["output_dir"])), path.relative_to(verified_run)
        damage(out / name, next(other for other in files if other != path and other.suffix == path.suffix))
        heard = heard_of(lambda run: pipeline.run_all(run), values)
        if damage is not deleted and path.suffix == ".json":
            assert any(path.name in line for line in heard), (path.name, damage, heard)
        heard += heard_of(lambda run: (verify(run, 3, processes=1), check_expansion(run)), values, repair=True)
        assert not any("gradient pass" in line or "meta training" in line for line in heard), heard
        assert content(out / name) == content(path), (path.name, damage)
        shutil.rmtree(out)


def heard_of(command, values: dict, *, repair: bool = False) -> list[str]:
    """Return what a command says, warns of or refuses."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            command(Run(RunConfig.from_dict(values), said.append, repair=repair))
        except TaskSelectionError as error:
            assert not repair
            said.append(str(error))
    return [*said, *(str(warning.message) for warning in warned)]
