"""Files: writing them whole or not at all, reading JSON, and finding those that come with the package."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from .errors import TaskSelectionError

EMBEDDED_PREFIX = "embedded:"
MOST_BYTES = 1 << 28  # of a JSON file
MOST_PARTS = 10_000_000  # in a JSON file
SECONDS_ABANDONED = 60.0  # without a change; another machine may write here, too


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it takes the place of `path`, on failure it is removed."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise TaskSelectionError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def sweep(folder: Path) -> None:
    """Delete temporary files that processes left half-written when they were killed, and that nobody writes on."""
    for path in folder.rglob(".*.tmp"):
        owner = path.name.split(".")[-2]
        with contextlib.suppress(OSError):
            if not owner.isdigit() or is_running(int(owner)) or time.time() - path.stat().st_mtime < SECONDS_ABANDONED:
                continue
            path.unlink()


def is_running(process: int) -> bool:
    """Say whether a process of this machine is running."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is somebody else's
        return True
    return True


def write_json(path: str | Path, values: Any) -> None:
    """Write plain values as indented UTF-8 JSON, atomically."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps(values, indent=2, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())  # or the new name may outlive a power cut that its content does not


def file_in(path: str | Path, name: str) -> Path:
    """Return `path`, or the file `name` in it where it is a folder."""
    path = Path(path)
    return path / name if path.is_dir() else path


def read_json(path: str | Path, kind: type | tuple[type, ...] = dict) -> Any:
    """Read a JSON file that holds a value of some kind, mostly a mapping.

    Raises:
        TaskSelectionError: when it cannot be read, is not JSON, holds something else, or is larger than anything that
            is written here.
    """
    try:
        if (size := os.path.getsize(path)) > MOST_BYTES:
            raise TaskSelectionError(f"{path} has {size:,} bytes of JSON, more than {MOST_BYTES:,}: it is not read")
        content = Path(path).read_bytes()
        if sum(map(content.count, b",[{")) > MOST_PARTS:  # each of which takes many bytes in memory
            raise TaskSelectionError(f"{path} has more than {MOST_PARTS:,} parts of JSON: it is not read")
        values = json.loads(content.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise TaskSelectionError(f"{path} is not valid JSON ({error.msg} at line {error.lineno})") from None
    except RecursionError:
        raise TaskSelectionError(f"{path} is not valid JSON (nested too deeply)") from None
    except TaskSelectionError:
        raise
    except UnicodeDecodeError as error:
        raise TaskSelectionError(f"{path} is not valid JSON (not UTF-8 text at byte {error.start})") from None
    except ValueError as error:  # a number of thousands of digits
        raise TaskSelectionError(f"{path} is not valid JSON ({error})") from None
    except OSError as error:
        raise TaskSelectionError(f"cannot read {path}: {error.strerror or error}") from error
    if not isinstance(values, kind):
        expected = "mapping" if kind is dict else "value of another kind"
        raise TaskSelectionError(f"{path} is damaged: it holds a {type(values).__name__} where a {expected} should be")
    return values


@contextlib.contextmanager
def as_written(path: str | Path) -> Iterator[None]:
    """Say of a file that its content is not what is written there, whatever stumbles over it.

    Raises:
        TaskSelectionError: in place of the errors of a value that is missing or of another type.
    """
    try:
        yield
    except TaskSelectionError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise TaskSelectionError(f"{path} does not hold what is written there ({error!r})") from error


def resolve_path(path: str) -> str:
    """Turn `embedded:quickstart/...` into a path inside the installed package; leave anything else alone."""
    if not path.startswith(EMBEDDED_PREFIX):
        return path
    return str(resources.files("hf_tasksel") / path[len(EMBEDDED_PREFIX) :])
