"""True fine-tunes of subsets: what estimates are measured against and calibrated with.

Every fine-tune leaves one small JSON file under `truth/`, named by all that it depends on, so that an interrupted
command goes on where it stopped and nothing is trained twice. Adapters are measured and thrown away.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..config.run_config import RunConfig
from ..core.errors import ConfigError, TaskSelectionError
from ..core.files import read_json, write_json
from ..core.fingerprints import value_fingerprint
from ..core.progress import progress_bar
from ..core.quiet import quiet_libraries
from ..estimation.comparison import TRUTH_FOLDER
from ..training.evaluation import answer_accuracy, mean_loss
from ..training.fine_tuning import Choice, chosen_tasks, fine_tune, row_counts
from ..training.models import load_adapter, load_base, lora_config
from .context import Run

Job = tuple[Choice, int, bool]  # what to train on, the seed, and whether answers are generated too


@dataclass(frozen=True)
class TrueRun:
    """One true fine-tune of the pretrained base.

    Attributes:
        tasks: what it was trained on, in the order of the task list.
        drawn: rows of each task, for a mixture or a budget of rows; None for a subset.
        seed: of adapter initialisation and sample order.
        dev_loss, test_loss: measured target losses, nats per token.
        answer_accuracy: share of right final answers on test, where that was asked for.
        train_samples: training rows of the subset.
        steps: optimizer steps.
        seconds: wall-clock time of the training.
    """

    tasks: list[str]
    seed: int
    dev_loss: float
    test_loss: float
    answer_accuracy: float | None
    train_samples: int
    steps: int
    seconds: float
    drawn: dict[str, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


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
    jobs: list[Job] = [(tasks, seed, accuracy) for tasks in ordered for seed in seeds]
    missing = [job for job in {truth_path(run, *job): job for job in jobs}.values() if not is_done(run, job)]
    count = min(len(missing), default_processes() if processes is None else processes)
    if missing:
        run.say(f"{len(missing)} true fine-tunes, {count} at a time")
    with progress_bar(len(missing), "true fine-tunes", unit="run") as advance:
        for _ in finished_jobs(run, missing, count):
            advance(1)
    return [[read_true_run(truth_path(run, tasks, s, accuracy)) for s in seeds] for tasks in ordered]


def read_true_run(path: Path) -> TrueRun:
    """Read the result of one fine-tune."""
    known = {f.name for f in dataclasses.fields(TrueRun)}
    return TrueRun(**{name: value for name, value in read_json(path).items() if name in known})


def default_processes() -> int:
    """Return how many fine-tunes run at the same time unless said otherwise."""
    return max(1, torch.accelerator.device_count()) if torch.accelerator.is_available() else min(2, cpu_count())


def cpu_count() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_tasks(run: Run, subset: Iterable[str]) -> list[str]:
    """Return a subset's names in the order of the task list, checked."""
    known = run.splits.task_names
    wanted = set(subset)
    if unknown := sorted(wanted - set(known)):
        raise ConfigError(f"unknown task {unknown[0]!r}; the tasks are {known}")
    return [name for name in known if name in wanted]


def truth_path(run: Run, tasks: Choice, seed: int, accuracy: bool) -> Path:
    """Return the file of one fine-tune: its name depends on everything that its result depends on."""
    settings = {k: v for k, v in run.settings("final").items() if k != "seed"}
    training = {k: v for k, v in settings.pop("fine_tuning").items() if k != "compare_with"}
    key = {**settings, "fine_tuning": training, "tasks": chosen_tasks(tasks), "run_seed": seed, "accuracy": accuracy}
    if (drawn := row_counts(tasks)) is not None:
        key["drawn"] = drawn
    return run.output_dir / TRUTH_FOLDER / f"{value_fingerprint(key)}.json"


def is_done(run: Run, job: Job) -> bool:
    """Say whether a fine-tune's result is on disk."""
    return truth_path(run, *job).is_file()


def finished_jobs(run: Run, jobs: list[Job], processes: int) -> Iterator[None]:
    """Work through jobs, in this process or in several, and yield after each."""
    if processes <= 1:
        for job in jobs:
            train_and_measure(run, *job)
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
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


WORKER: dict[str, Run] = {}


def start_worker(config: dict[str, Any], numbers: Any, threads: int) -> None:
    """Give a worker process its share of the machine, and the run."""
    with numbers.get_lock():
        number, numbers.value = numbers.value, numbers.value + 1
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(number % torch.accelerator.device_count())
    torch.set_num_threads(threads)
    quiet_libraries(True)
    WORKER["run"] = Run(RunConfig.from_dict(config), say=lambda message: None, record=False)


def worker_job(tasks: Choice, seed: int, accuracy: bool) -> None:
    """Do one job in a worker process."""
    train_and_measure(WORKER["run"], tasks, seed, accuracy)


def train_and_measure(run: Run, tasks: Choice, seed: int, accuracy: bool) -> None:
    """Fine-tune, measure, and leave the result as JSON.

    Raises:
        TaskSelectionError: naming the subset that failed.
    """
    path = truth_path(run, tasks, seed, accuracy)
    with tempfile.TemporaryDirectory() as folder:
        args = dataclasses.replace(run.final_args, output_dir=folder, seed=seed, data_seed=seed, disable_tqdm=True)
        started = time.perf_counter()
        try:
            tuned = fine_tune(
                load_base(run.config),
                run.tokenized["train"],
                tasks,
                args,
                peft_config=lora_config(run.config, run.is_encoder_decoder),
                processing_class=run.tokenizer,
            )
        except (RuntimeError, ValueError) as error:
            raise TaskSelectionError(
                f"the fine-tune on {chosen_tasks(tasks)} with seed {seed} failed: {error}"
            ) from error
        seconds = time.perf_counter() - started
        model = load_adapter(load_base(run.config), folder).to(run.final_args.device)
    size = run.final_args.per_device_eval_batch_size
    losses = {
        f"{split}_loss": mean_loss(model, run.tokenizer, run.tokenized[split], size) for split in ("dev", "test")
    }
    options = {"max_new_tokens": 128, "batch_size": 32, **run.config.generation}
    share = answer_accuracy(model, run.tokenizer, run.splits.test, **options) if accuracy else None
    result = TrueRun(
        tasks=chosen_tasks(tasks),
        seed=seed,
        **losses,
        answer_accuracy=share,
        train_samples=tuned.train_samples,
        steps=tuned.steps,
        seconds=round(seconds, 3),
        drawn=row_counts(tasks),
    )
    write_json(path, {**result.to_dict(), "settings": value_fingerprint(run.config.true_run_settings)})
