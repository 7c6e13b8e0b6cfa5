"""Uploading a folder to the Hub in one commit: retried, refused with one sentence, never with a token in a file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar, cast

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from .errors import TaskSelectionError

T = TypeVar("T")
RETRIES = 3
# The base of all errors of the client's HTTP library, whose name differs between versions of huggingface_hub.
HTTP_ERROR = cast("type[Exception]", next(c for c in HfHubHTTPError.__mro__ if c.__name__ == "HTTPError"))
PASSING = (408, 429)


def upload(
    folder: str | Path,
    repo_id: str,
    *,
    patterns: Sequence[str],
    replaced: Sequence[str] = (),
    commit_message: str,
    repo_type: str = "model",
    private: bool = True,
    revision: str | None = None,
    create_pr: bool = False,
    api: HfApi | None = None,
) -> str:
    """Create the repository if needed and upload what matches `patterns` in one commit.

    Args:
        folder: what to upload from; checkpoints and hidden files stay.
        repo_id: `user/name`; a bare name goes to the logged-in user.
        patterns: which files to upload.
        replaced: which files of the repository to delete in the same commit, unless they are uploaded again.
        private: whether a new repository is private.
        revision, create_pr: branch to commit to, or open a pull request instead.
        api: a client of your own (endpoint, token).

    Returns:
        The address of the commit or pull request.

    Raises:
        TaskSelectionError: without a token or rights, when the Hub cannot be reached, or when a file holds the token.
    """
    folder, api = Path(folder), api or HfApi()
    refuse_token(folder, patterns, api.token if isinstance(api.token, str) else get_token())
    with one_sentence(f"push to {repo_id!r}"):
        sdk = "gradio" if repo_type == "space" else None
        url = with_retries(
            lambda: api.create_repo(repo_id, private=private, exist_ok=True, repo_type=repo_type, space_sdk=sdk)
        )
        if revision is not None:
            with_retries(lambda: api.create_branch(url.repo_id, branch=revision, exist_ok=True, repo_type=repo_type))
        commit = with_retries(
            lambda: api.upload_folder(
                repo_id=url.repo_id,
                repo_type=repo_type,
                folder_path=folder,
                allow_patterns=list(patterns),
                delete_patterns=list(replaced) or None,
                ignore_patterns=["checkpoint-*", ".*"],
                revision=revision,
                create_pr=create_pr,
                commit_message=commit_message,
            )
        )
    return str(commit.pr_url or commit.commit_url)


def require_token() -> None:
    """Raise `TaskSelectionError` when there is no token to push with: better before hours of work than after."""
    if not get_token():
        raise TaskSelectionError("there is no Hub token to push with: run `hf auth login` or set HF_TOKEN")


@contextlib.contextmanager
def one_sentence(action: str) -> Iterator[None]:
    """Turn the Hub client's errors into one `TaskSelectionError` that says what could not be done and why."""
    try:
        yield
    except TaskSelectionError:
        raise
    except LocalTokenNotFoundError:
        raise TaskSelectionError(f"cannot {action} without a Hub token: run `hf auth login` or set HF_TOKEN") from None
    except HfHubHTTPError as error:
        raise TaskSelectionError(f"cannot {action}: {hub_reason(error)}") from error
    except (OSError, HTTP_ERROR) as error:
        raise TaskSelectionError(f"cannot {action}: the Hub cannot be reached ({error})") from error
    except ValueError as error:  # an id that is none, or a file whose name leads out of the repository
        raise TaskSelectionError(f"cannot {action}: {error}") from error


def hub_reason(error: HfHubHTTPError) -> str:
    """Say in a few words why the Hub refused."""
    status = getattr(error.response, "status_code", None)
    reasons = {
        401: "the token is missing or not valid: run `hf auth login` or set HF_TOKEN",
        403: "the token has no right to write there: choose another hub.repo_id, or a token with write access",
        404: "there is no such repository or revision",
    }
    return reasons.get(status or 0, (error.server_message or str(error)).strip().splitlines()[0])


def with_retries(call: Callable[[], T]) -> T:
    """Call, and again after 1 and 2 seconds when the Hub has a passing fault (5xx, 408, 429) or does not answer."""
    for attempt in range(RETRIES):
        try:
            return call()
        except HfHubHTTPError as error:
            status = getattr(error.response, "status_code", 0)
            if (status < 500 and status not in PASSING) or attempt == RETRIES - 1:
                raise
        except (ConnectionError, HTTP_ERROR):
            if attempt == RETRIES - 1:
                raise
        time.sleep(2.0**attempt)
    raise AssertionError("unreachable")


def refuse_token(folder: Path, patterns: Sequence[str], token: Any) -> None:
    """Raise `TaskSelectionError` when a file that would be uploaded holds the token."""
    if not isinstance(token, str) or not token:
        return
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()  # a pattern matches across folders, as it does when uploading
        if any(fnmatch(name, pattern) for pattern in patterns) and holds(path, token.encode()):
            raise TaskSelectionError(f"{path} holds your Hub token: remove it from the file before pushing")


def holds(path: Path, text: bytes) -> bool:
    """Say whether a file holds some bytes, without reading all of it into memory."""
    rest = b""
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            if text in rest + chunk:
                return True
            rest = chunk[-len(text) :]
    return False
