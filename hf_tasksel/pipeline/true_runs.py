"""True fine-tunes of subsets: what estimates are measured against and calibrated with.

Every fine-tune leaves one small JSON file under `truth/`, named by all that it depends on, so that an interrupted
command goes on where it stopped and nothing is trained twice. Adapters are measured and thrown away.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..config.run_config import RunConfig
from ..core.checksums import write_sealed
from ..core.distributed import barrier, distributed_rank
from ..core.errors import ConfigError, TaskSelectionError
from ..core.fingerprints import value_fingerprint
from ..core.progress import progress_bar
from ..core.quiet import quiet_libraries
from ..engines.config import EngineConfig
from ..engines.engine import make_engine
from ..engines.local import default_processes
from ..engines.ranks import on_ranks
from ..records.true_runs import TRUTH_FOLDER, TrueRun, read_true_run, true_run_key
from ..training.evaluation import measure
from ..training.fine_tuning import Choice, chosen_tasks, fine_tune, row_counts
from .context import Run

JOBS_FOLDER = "jobs"  # where an engine keeps its logs
FIRST_SEED = 1  # the run itself uses its own seed; these are independent of it
Job = tuple[Choice, int, bool]  # what to train on, the seed, and whether answers are generated too


def true_runs(
    run: Run,
    subsets: Sequence[Choice],
    seeds: Sequence[int] = (0,),
    *,
    processes: int | None = None,
    accuracy: bool = False,
) -> list[list[TrueRun]]:
    """Fine-tune the base on each subset with each seed, unless that is on disk already.

    Args:
        run: the run whose data and settings are used.
        subsets: what each trains on, as in `fine_tune`.
        seeds: seeds of each subset's fine-tunes.
        processes: in place of `engine.processes` of the configuration.
        accuracy: also generate answers on the test rows.

    Returns:
        For each subset, its runs in the order of `seeds`.

    Raises:
        ConfigError: for an unknown task, or under a distributed launcher.
        TaskSelectionError: when a fine-tune fails; what is finished stays on disk.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError("true fine-tunes start their own processes: call this without a launcher")
    ordered = [s if row_counts(s) is not None else ordered_tasks(run, chosen_tasks(s)) for s in subsets]
    run.keep_config()
    jobs: list[Job] = [(tasks, seed, accuracy) for tasks in ordered for seed in seeds]
    missing = [job for job in {truth_path(run, *job): job for job in jobs}.values() if not is_done(run, job)]
    engine = run.config.engine
    if processes is not None:
        engine = dataclasses.replace(engine, processes=max(1, processes))
    if missing:
        count = min(len(missing), engine.processes or default_processes(engine.ranks))
        where = f", {count} at a time" if engine.name == "local" else f" by {engine.name}"
        run.say(f"{len(missing)} true fine-tunes{where}")
    with progress_bar(len(missing), "true fine-tunes", unit="run") as advance:
        for _ in finished_jobs(run, missing, engine):
            advance(1)
    return [[read_true_run(truth_path(run, tasks, s, accuracy)) for s in seeds] for tasks in ordered]


def ordered_tasks(run: Run, subset: Iterable[str]) -> list[str]:
    """Return a subset's names in the order of the task list, checked."""
    known = run.materials.splits.task_names
    wanted = set(subset)
    if unknown := sorted(wanted - set(known)):
        raise ConfigError(f"unknown task {unknown[0]!r}; the tasks are {known}")
    return [name for name in known if name in wanted]


def truth_path(run: Run, tasks: Choice, seed: int, accuracy: bool) -> Path:
    """Return the file of one fine-tune: its name depends on everything that its result depends on."""
    key = {"key": run_key(run), "tasks": chosen_tasks(tasks), "run_seed": seed, "accuracy": accuracy}
    if (drawn := row_counts(tasks)) is not None:
        key["drawn"] = drawn
    return run.output_dir / TRUTH_FOLDER / f"{value_fingerprint(key)}.json"


def run_key(run: Run) -> str:
    """Return the identity of a run's true fine-tunes."""
    return true_run_key(run.config, run.materials.data_hashes)


def is_done(run: Run, job: Job) -> bool:
    """Say whether a fine-tune's result is on disk."""
    return truth_path(run, *job).is_file()


def uses_engine(run: Run) -> bool:
    """Say whether a run's jobs go where its engine says: it names one, and no launcher deals them out to ranks."""
    return run.config.engine != EngineConfig() and distributed_rank()[1] == 1


def finished_jobs(run: Run, jobs: list[Job], engine: EngineConfig) -> Iterator[None]:
    """Work through jobs, in this process or where the engine runs them, and yield after each."""
    in_turn = engine.name == "local" and min(len(jobs), engine.processes or default_processes(engine.ranks)) <= 1
    if in_turn and engine.ranks == 1:
        for job in jobs:
            measure_once(run, *job)
            yield
        return
    config = run.config.to_dict()
    found = make_engine(engine, run.output_dir / JOBS_FOLDER, run.say)
    for _ in found.run(worker_job, [(config, *job) for job in jobs]):
        yield


WORKER: dict[str, Run] = {}


def worker_job(config: dict[str, Any], tasks: Choice, seed: int, accuracy: bool) -> None:
    """Do one job in a worker process, or the ranks that it starts; one that is done is not done again."""
    run = worker_run(config)
    if is_done(run, (tasks, seed, accuracy)):
        return
    if run.config.engine.ranks > 1:
        on_ranks(run.config.engine.ranks, rank_job, config, tasks, seed, accuracy)
    else:
        measure_once(run, tasks, seed, accuracy)


def worker_run(config: dict[str, Any]) -> Run:
    """Return the run of a configuration, which a worker process keeps for its next job."""
    key = value_fingerprint(config)
    if key not in WORKER:
        quiet_libraries(True)
        WORKER.clear()
        WORKER[key] = Run(RunConfig.from_dict(config), say=lambda message: None, record=False)
    return WORKER[key]


def rank_job(config: dict[str, Any], tasks: Choice, seed: int, accuracy: bool) -> None:
    """Do a share of one job, in a folder that all of its ranks see."""
    run = worker_run(config)
    folder = run.output_dir / JOBS_FOLDER / truth_path(run, tasks, seed, accuracy).stem
    train_and_measure(run, tasks, seed, accuracy, folder, run.config.engine.ranks)
    if distributed_rank()[0] == 0:
        shutil.rmtree(folder)


def shared_batch(size: int, ranks: int) -> int:
    """Return the rows of a batch that each rank takes.

    Raises:
        ConfigError: when ranks cannot share it.
    """
    if size % ranks:
        raise ConfigError(f"engine.ranks {ranks} cannot share batches of {size}: set a multiple as batch size")
    return size // ranks


def measure_once(run: Run, tasks: Choice, seed: int, accuracy: bool) -> None:
    """Do one job, and throw the adapter away."""
    with tempfile.TemporaryDirectory() as folder:
        train_and_measure(run, tasks, seed, accuracy, Path(folder))


def train_and_measure(run: Run, tasks: Choice, seed: int, accuracy: bool, folder: Path, sharing: int = 1) -> None:
    """Fine-tune, leave the adapter in a folder, measure, and leave the result as JSON.

    Args:
        run, tasks, seed, accuracy: the job.
        folder: for the adapter.
        sharing: how many ranks share the batches of the run's settings.

    Raises:
        TaskSelectionError: naming the subset that failed.
    """
    path, materials = truth_path(run, tasks, seed, accuracy), run.materials
    args = dataclasses.replace(
        materials.final_args,
        output_dir=str(folder),
        seed=seed,
        data_seed=seed,
        disable_tqdm=True,
        per_device_train_batch_size=shared_batch(materials.final_args.per_device_train_batch_size, sharing),
    )
    started = time.perf_counter()
    try:
        tuned = fine_tune(
            materials.base(),
            materials.tokenized["train"],
            tasks,
            args,
            peft_config=materials.lora,
            processing_class=materials.tokenizer,
        )
    except (RuntimeError, ValueError) as error:
        raise TaskSelectionError(f"the fine-tune on {chosen_tasks(tasks)} with seed {seed} failed: {error}") from error
    seconds = time.perf_counter() - started
    answers = materials.splits.test if accuracy else None
    size = materials.final_args.per_device_eval_batch_size
    model = materials.measurable(folder)
    found = measure(model, materials.tokenizer, materials.tokenized, answers, size, run.config.generation)
    result = TrueRun(
        tasks=chosen_tasks(tasks),
        seed=seed,
        **found,
        train_samples=tuned.train_samples,
        steps=tuned.steps,
        seconds=round(seconds, 3),
        drawn=row_counts(tasks),
    )
    if distributed_rank()[0] == 0:
        write_sealed(path, {**result.to_dict(), "key": run_key(run), "name": path.stem})
    barrier()
