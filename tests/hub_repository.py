"""Repositories as the local stand-in for the Hub keeps them: files, commits and references, in memory."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import PurePosixPath
from typing import Any


class HubError(Exception):
    """An answer of the Hub that is not a success; clients turn `code` into a specific exception."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}


@dataclass(frozen=True)
class Blob:
    """One file of one commit. A large file (LFS) lies in a separate storage and git holds a pointer to it."""

    content: bytes
    large: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        version = "https://git-lfs.github.com/spec/v1"
        return f"version {version}\noid sha256:{self.sha256}\nsize {len(self.content)}\n".encode()

    @property
    def oid(self) -> str:
        """The id that git gives to what it stores."""
        stored = self.pointer if self.large else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    def lfs(self) -> dict[str, Any]:
        """What the Hub says about a large file; nothing for a small one."""
        size = {"size": len(self.content), "pointerSize": len(self.pointer)}
        return {"lfs": {"oid": self.sha256, "sha256": self.sha256, **size}} if self.large else {}


@dataclass(frozen=True)
class Commit:
    oid: str
    title: str
    message: str
    parent: str | None
    date: str
    files: Mapping[str, Blob]

    def folders(self) -> set[str]:
        parents = {str(parent) for path in self.files for parent in PurePosixPath(path).parents}
        return parents - {"."}

    def header(self) -> dict[str, Any]:
        return {"id": self.oid, "title": self.title, "message": self.message, "date": self.date}

    def describe(self, path: str) -> dict[str, Any]:
        """The entry of a file or folder in a listing of the Hub."""
        if path not in self.files:
            return {"type": "directory", "path": path, "oid": hashlib.sha1(path.encode()).hexdigest(), "size": 0}
        blob = self.files[path]
        return {"type": "file", "path": path, "oid": blob.oid, "size": len(blob.content), **blob.lfs()}


@dataclass
class Repo:
    """A repository: its commits by id, and the commit that each full reference name (`refs/heads/main`) points to."""

    repo_id: str
    repo_type: str  # model, dataset or space
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.repo_id.split("/")[0]

    @property
    def page(self) -> str:
        return f"/{self.repo_id}" if self.repo_type == "model" else f"/{self.repo_type}s/{self.repo_id}"

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a full reference name, or the beginning of a commit id stands for."""
        for oid in self.commits:
            if len(revision) >= 7 and oid.startswith(revision):
                return self.commits[oid]
        return self.commits[self.refs[self.ref(revision)]]

    def ref(self, revision: str) -> str:
        """The full name of a branch or of a reference."""
        for name in (f"refs/heads/{revision}", revision):
            if name in self.refs:
                return name
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def history(self, revision: str) -> list[Commit]:
        """The commits that lead to a revision, newest first."""
        commits = [self.at(revision)]
        while commits[-1].parent is not None:
            commits.append(self.commits[commits[-1].parent])
        return commits

    def commit(self, ref: str, parent: str | None, files: Mapping[str, Blob], title: str, message: str = "") -> Commit:
        """Add a commit and let `ref` point to it."""
        date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        tree = sorted((path, blob.oid) for path, blob in files.items())
        oid = hashlib.sha1(repr((len(self.commits), parent, title, message, date, tree)).encode()).hexdigest()
        self.commits[oid] = Commit(oid, title, message, parent, date, dict(files))
        self.refs[ref] = oid
        return self.commits[oid]

    def describe(self, revision: str, with_sizes: bool) -> dict[str, Any]:
        """What the Hub says about a repository, with the files of one revision."""
        commit = self.at(revision)
        siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
        if with_sizes:
            for sibling in siblings:
                blob = commit.files[sibling["rfilename"]]
                sibling.update(size=len(blob.content), blobId=blob.oid, **blob.lfs())
        identity = {"_id": hashlib.sha1(self.page.encode()).hexdigest()[:24], "id": self.repo_id, "author": self.owner}
        dates = {"createdAt": self.history(revision)[-1].date, "lastModified": commit.date}
        state = {"private": self.private, "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
        return {**identity, "sha": commit.oid, **dates, **state, "siblings": siblings}

    def next_pull_request(self) -> int:
        return 1 + sum(ref.startswith("refs/pr/") for ref in self.refs)


def apply_operations(
    files: Mapping[str, Blob], operations: Iterable[Mapping[str, Any]], storage: Mapping[str, bytes]
) -> dict[str, Blob]:
    """The files of a commit that carries out `operations`, the lines that clients send, on the `files` of its parent.

    Raises:
        HubError: 400 for a large file that is not in `storage` or an unknown operation,
            404 for deleting what is not there.
    """
    changed = dict(files)
    for operation in operations:
        kind, value = operation["key"], operation["value"]
        path = value["path"]
        if kind == "file":
            changed[path] = Blob(base64.b64decode(value["content"]))
        elif kind == "lfsFile":
            if value["oid"] not in storage:
                raise HubError(400, f"LFS pointer pointed to a file that does not exist: {path}")
            changed[path] = Blob(storage[value["oid"]], large=True)
        elif kind in ("deletedFile", "deletedFolder"):
            folder = f"{path.rstrip('/')}/"
            deleted = [name for name in changed if name.startswith(folder)] if kind == "deletedFolder" else [path]
            if not deleted or not changed.keys() >= set(deleted):
                raise HubError(404, f"There is no {path} to delete", "EntryNotFound")
            for name in deleted:
                del changed[name]
        else:
            raise HubError(400, f"Unknown operation in a commit: {kind}")
    return changed
