"""True fine-tunes of subsets: what estimates are measured against and calibrated with.

Every fine-tune leaves one small JSON file under `truth/`, named by all that it depends on, so that an interrupted
command goes on where it stopped and nothing is trained twice. Adapters are measured and thrown away.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from ..config.run_config import RunConfig
from ..core.checksums import write_sealed
from ..core.distributed import barrier, distributed_rank
from ..core.errors import ConfigError, TaskSelectionError
from ..core.fingerprints import value_fingerprint
from ..core.progress import progress_bar
from ..core.quiet import quiet_libraries
from ..records.true_runs import TRUTH_FOLDER, TrueRun, read_true_run, true_run_key
from ..training.evaluation import measure
from ..training.fine_tuning import Choice, chosen_tasks, fine_tune, row_counts
from .context import Run

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
        processes: fine-tunes at the same time; one per accelerator, or two on a CPU with more than one core, if None.
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
    count = min(len(missing), default_processes() if processes is None else processes)
    if missing:
        run.say(f"{len(missing)} true fine-tunes, {count} at a time")
    with progress_bar(len(missing), "true fine-tunes", unit="run") as advance:
        for _ in finished_jobs(run, missing, count):
            advance(1)
    return [[read_true_run(truth_path(run, tasks, s, accuracy)) for s in seeds] for tasks in ordered]


def default_processes() -> int:
    """Return how many fine-tunes run at the same time unless said otherwise."""
    return max(1, torch.accelerator.device_count()) if torch.accelerator.is_available() else min(2, cpu_count())


def cpu_count() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


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


def finished_jobs(run: Run, jobs: list[Job], processes: int) -> Iterator[None]:
    """Work through jobs, in this process or in several, and yield after each."""
    if processes <= 1:
        for job in jobs:
            measure_once(run, *job)
            yield
        return
    context = multiprocessing.get_context("spawn")
    config, threads = run.config.to_dict(), max(1, cpu_count() // processes)
    numbers = context.Value("i", 0)
    with ProcessPoolExecutor(processes, context, start_worker, (config, numbers, threads)) as pool:
        futures: list[Future[None]] = [pool.submit(worker_job, *job) for job in jobs]
        try:
            for future in as_completed(futures):
                future.result()
                yield
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            if not isinstance(error, Exception):  # a signal: their fine-tunes would be waited for
                for worker in multiprocessing.active_children():
                    worker.terminate()
            raise


WORKER: dict[str, Run] = {}


def start_worker(config: dict[str, Any], numbers: Any, threads: int) -> None:
    """Give a worker process its share of the machine, and the run."""
    with numbers.get_lock():
        number, numbers.value = numbers.value, numbers.value + 1
    threading.Thread(target=end_with, args=[os.getppid()], daemon=True).start()
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(number % torch.accelerator.device_count())
    torch.set_num_threads(threads)
    quiet_libraries(True)
    WORKER["run"] = Run(RunConfig.from_dict(config), say=lambda message: None, record=False)


def end_with(parent: int) -> None:
    """End this process when the one that started it is gone, killed too hard to tell its workers."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def worker_job(tasks: Choice, seed: int, accuracy: bool) -> None:
    """Do one job in a worker process."""
    measure_once(WORKER["run"], tasks, seed, accuracy)


def measure_once(run: Run, tasks: Choice, seed: int, accuracy: bool) -> None:
    """Do one job, and throw the adapter away."""
    with tempfile.TemporaryDirectory() as folder:
        train_and_measure(run, tasks, seed, accuracy, Path(folder))


def train_and_measure(run: Run, tasks: Choice, seed: int, accuracy: bool, folder: Path) -> None:
    """Fine-tune, leave the adapter in a folder, measure, and leave the result as JSON.

    Raises:
        TaskSelectionError: naming the subset that failed.
    """
    path, materials = truth_path(run, tasks, seed, accuracy), run.materials
    args = dataclasses.replace(
        materials.final_args, output_dir=str(folder), seed=seed, data_seed=seed, disable_tqdm=True
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
        write_sealed(path, {**result.to_dict(), "key": run_key(run)})
    barrier()
