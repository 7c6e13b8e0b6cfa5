"""A local stand-in for the Hugging Face Hub, so that pushing and pulling can be tested without a network.

It speaks as much of the Hub's HTTP interface as the clients of `huggingface_hub` need and keeps everything in memory:

    with HubServer() as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("tester/demo")
        api.upload_folder(repo_id="tester/demo", folder_path="out")
        assert hub.files("tester/demo")["README.md"].startswith(b"---")

`huggingface_hub` reads its environment when it is imported. Code that cannot be given an endpoint therefore belongs in
a process that starts with `hub.environment(home)`. Clients need HF_HUB_DISABLE_XET=1: that protocol is not served.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from hub_repository import Blob, HubError, Repo, apply_operations

LFS_SUFFIXES = (".arrow", ".bin", ".gz", ".model", ".npy", ".npz", ".parquet", ".pt", ".pth", ".safetensors", ".zip")
LFS_THRESHOLD = 10 * 2**20  # bytes; above it a file of any name is large
STORAGE = "/_lfs/"  # where large files lie; like the Hub's storage it asks for no token


class LogEntry(NamedTuple):
    """One request as it was answered; `path` is unquoted and has no query."""

    method: str
    path: str
    status: int


@dataclass(frozen=True)
class Request:
    method: str
    path: str  # still quoted
    query: Mapping[str, list[str]]
    headers: Message
    body: bytes
    user: str | None = None

    def json(self) -> Any:
        return json.loads(self.body)

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[-1].lower() in ("1", "true")


@dataclass(frozen=True)
class Response:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def as_json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(status, json.dumps(content).encode(), {"Content-Type": "application/json", **(headers or {})})


def as_file(request: Request, content: bytes, headers: Mapping[str, str]) -> Response:
    """A file, or the part of it that a Range header asks for."""
    headers = {**headers, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if wanted is None:
        return Response(200, content, headers)
    start, end = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
    if start > end:
        return Response(416, headers={**headers, "Content-Range": f"bytes */{len(content)}"})
    return Response(206, content[start : end + 1], {**headers, "Content-Range": f"bytes {start}-{end}/{len(content)}"})


Endpoint = Callable[..., Response]
ROUTES: list[tuple[str, re.Pattern[str], Endpoint]] = []

REPO = r"(?P<types>models|datasets|spaces)/(?P<repo_id>[^/]+/[^/]+)"
PAGE = r"(?:(?P<types>datasets|spaces)/)?(?P<repo_id>[^/]+/[^/]+?)"
REVISION = r"(?P<revision>refs/[^/]+/[^/]+|[^/]+)"


def route(method: str, pattern: str) -> Callable[[Endpoint], Endpoint]:
    """Register an endpoint. The named groups of `pattern` are its arguments; `types` and `repo_id` become `repo`."""

    def register(endpoint: Endpoint) -> Endpoint:
        ROUTES.append((method, re.compile(pattern), endpoint))
        return endpoint

    return register


class HubServer:
    """The stand-in server: listens on a free port while it is entered.

    Attributes:
        url: what to give as `endpoint` or HF_ENDPOINT.
        user, token: a user, who may write to repositories named `user/...` and no others, and their token.
        log: every request in the order of the answers.
    """

    def __init__(self, user: str = "tester", token: str = "hf_test"):
        self.user, self.token = user, token
        self.log: list[LogEntry] = []
        self._users = {token: user}
        self._repos: dict[tuple[str, str], Repo] = {}
        self._storage: dict[str, bytes] = {}  # large files by their sha256
        self._failures: list[tuple[str, int]] = []
        self._lock = threading.Lock()
        handler = type("Handler", (_Handler,), {"answer": staticmethod(self._answer)})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path | str) -> dict[str, str]:
        """Variables to add to the environment of a client process, which keeps its caches below `home`."""
        on = ("DISABLE_XET", "DISABLE_TELEMETRY", "DISABLE_PROGRESS_BARS", "DISABLE_UPDATE_CHECK")
        off = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
        address = {"HF_ENDPOINT": self.url, "HF_TOKEN": self.token, "HF_HOME": str(home), "NO_PROXY": "*"}
        return {**address, **{f"HF_HUB_{name}": "1" for name in on}, **dict.fromkeys(off, "0")}

    def add_user(self, user: str) -> str:
        """Let another user in and return their token."""
        token = f"hf_{user}"
        self._users[token] = user
        return token

    def files(self, repo_id: str, repo_type: str = "model", revision: str = "main") -> dict[str, bytes]:
        """The files of a repository as path -> content.

        Raises:
            KeyError: there is no such repository.
        """
        return {path: blob.content for path, blob in self._repos[repo_type, repo_id].at(revision).files.items()}

    def fail_next(self, count: int = 1, path: str = "", status: int = 503) -> None:
        """Answer the next `count` requests whose path contains `path` with `status` instead of serving them."""
        self._failures += [(path, status)] * count

    def _answer(self, request: Request) -> Response:
        with self._lock:
            try:
                response = self._dispatch(request)
            except HubError as error:
                response = as_json({"error": error.message}, error.status, error.headers)
            except Exception as error:  # a defect of the stand-in: let the client's message show it
                response = as_json({"error": repr(error)}, 500, {"X-Error-Message": repr(error)})
            self.log.append(LogEntry(request.method, unquote(request.path), response.status))
        return response

    def _dispatch(self, request: Request) -> Response:
        for path, status in self._failures:
            if path in unquote(request.path):
                self._failures.remove((path, status))
                raise HubError(status, "The server was told to fail")
        if not request.path.startswith(STORAGE):
            request = replace(request, user=self._authenticate(request))
        method = "GET" if request.method == "HEAD" else request.method
        for served_method, pattern, endpoint in ROUTES:
            match = pattern.fullmatch(request.path) if served_method == method else None
            if match:
                groups = match.groupdict().items()
                arguments: dict[str, Any] = {name: unquote(value) for name, value in groups if value}
                if "repo_id" in arguments:
                    repo_type = arguments.pop("types", "models").removesuffix("s")
                    arguments["repo"] = self._readable(repo_type, arguments.pop("repo_id"), request.user)
                return endpoint(self, request, **arguments)
        raise HubError(404, f"This stand-in does not serve {request.method} {unquote(request.path)}")

    def _authenticate(self, request: Request) -> str | None:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self._users:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self._users.get(token)

    def _readable(self, repo_type: str, repo_id: str, user: str | None) -> Repo:
        repo = self._repos.get((repo_type, repo_id))
        if repo is None or (repo.private and user != repo.owner):
            raise HubError(404 if user else 401, "Repository not found", "RepoNotFound")
        return repo

    def _require_write(self, owner: str | None, user: str | None) -> None:
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if user != owner:
            raise HubError(403, f"You don't have the rights to write to the namespace {owner}")

    @route("GET", "/api/whoami-v2")
    def whoami(self, request: Request) -> Response:
        self._require_write(request.user, request.user)
        auth = {"type": "access_token", "accessToken": {"role": "write", "displayName": "test"}}
        return as_json({"type": "user", "name": request.user, "orgs": [], "auth": auth})

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self, request: Request) -> Response:
        """Check that the metadata of a card looks like lines of `key: value`; not the full grammar of YAML."""
        metadata = re.match(r"---\s*\n(.*?)\n?---\s*(\n|$)", request.json()["content"], re.DOTALL)
        if metadata is None:
            return as_json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
        outer = [line for line in metadata[1].splitlines() if line.strip() and line[0] not in " #-]}"]
        errors = [f"not a key: {line}" for line in outer if not re.match(r"[\w-]+:(\s|$)", line)]
        if any(metadata[1].count(left) != metadata[1].count(right) for left, right in ("[]", "{}")):
            errors.append("unbalanced brackets")
        return as_json({"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200)

    @route("POST", "/api/repos/create")
    def create_repo(self, request: Request) -> Response:
        wanted = request.json()
        repo_type, owner = wanted.get("type") or "model", wanted.get("organization") or request.user
        self._require_write(owner, request.user)
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        repo = Repo(f"{owner}/{wanted['name']}", repo_type, private)
        created = {"url": self.url + repo.page, "name": repo.repo_id, "id": repo.repo_id}
        if (repo_type, repo.repo_id) in self._repos:
            return as_json({**created, "error": f"You already created this {repo_type} repo"}, 409)
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        repo.commit("refs/heads/main", None, {".gitattributes": Blob(attributes.encode())}, "initial commit")
        self._repos[repo_type, repo.repo_id] = repo
        return as_json(created)

    @route("DELETE", "/api/repos/delete")
    def delete_repo(self, request: Request) -> Response:
        wanted = request.json()
        repo_type, owner = wanted.get("type") or "model", wanted.get("organization") or request.user
        self._require_write(owner, request.user)
        repo = self._readable(repo_type, f"{owner}/{wanted['name']}", request.user)
        del self._repos[repo.repo_type, repo.repo_id]
        return as_json({})

    @route("GET", f"/api/{REPO}(?:/revision/{REVISION})?")
    def info(self, request: Request, repo: Repo, revision: str = "main") -> Response:
        return as_json(repo.describe(revision, with_sizes=request.flag("blobs")))

    @route("GET", f"/api/{REPO}/tree/{REVISION}(?:/(?P<path>.+))?")
    def tree(self, request: Request, repo: Repo, revision: str, path: str = "") -> Response:
        commit = repo.at(revision)
        prefix = f"{path.rstrip('/')}/" if path else ""
        inside = [name for name in sorted([*commit.files, *commit.folders()]) if name.startswith(prefix)]
        if path and not inside:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        listed = inside if request.flag("recursive") else [name for name in inside if "/" not in name[len(prefix) :]]
        return as_json([commit.describe(name) for name in listed])

    @route("POST", f"/api/{REPO}/paths-info/{REVISION}")
    def paths_info(self, request: Request, repo: Repo, revision: str) -> Response:
        commit = repo.at(revision)
        is_json = "json" in request.headers.get("Content-Type", "")
        paths = request.json()["paths"] if is_json else parse_qs(request.body.decode())["paths"]
        return as_json([commit.describe(path) for path in paths if path in commit.files or path in commit.folders()])

    @route("GET", f"/api/{REPO}/refs")
    def list_refs(self, request: Request, repo: Repo) -> Response:
        described = {ref: {"ref": ref, "targetCommit": oid} for ref, oid in repo.refs.items()}
        heads = [{"name": ref[len("refs/heads/") :], **described[ref]} for ref in described if "/heads/" in ref]
        pulls = [{"name": ref, **described[ref]} for ref in described if "/pr/" in ref]
        return as_json({"branches": heads, "pullRequests": pulls, "tags": [], "converts": []})

    @route("GET", f"/api/{REPO}/commits/{REVISION}")
    def list_commits(self, request: Request, repo: Repo, revision: str) -> Response:
        return as_json([{**commit.header(), "authors": [{"user": repo.owner}]} for commit in repo.history(revision)])

    @route("GET", f"/{PAGE}/resolve/{REVISION}/(?P<path>.+)")
    def resolve(self, request: Request, repo: Repo, revision: str, path: str) -> Response:
        commit = repo.at(revision)
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit.oid})
        blob = commit.files[path]
        headers = {"X-Repo-Commit": commit.oid, "ETag": f'"{blob.oid}"'}
        if not blob.large:
            return as_file(request, blob.content, headers)
        linked = {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
        # Another host than the Hub's own, as it is there: clients must not send it their token.
        location = f"http://localhost:{self._server.server_port}{STORAGE}{blob.sha256}"
        return Response(302, headers={**headers, **linked, "Location": location})

    @route("POST", f"/api/{REPO}/branch/(?P<branch>[^/]+)")
    def create_branch(self, request: Request, repo: Repo, branch: str) -> Response:
        self._require_write(repo.owner, request.user)
        if f"refs/heads/{branch}" in repo.refs:
            raise HubError(409, f"Reference already exists: refs/heads/{branch}")
        repo.refs[f"refs/heads/{branch}"] = repo.at(request.json().get("startingPoint") or "main").oid
        return as_json({})

    @route("POST", f"/api/{REPO}/preupload/{REVISION}")
    def preupload(self, request: Request, repo: Repo, revision: str) -> Response:
        self._require_contribution(request, repo)
        files = repo.at(revision).files
        answers = []
        for wanted in request.json()["files"]:
            large = wanted["path"].endswith(LFS_SUFFIXES) or wanted["size"] > LFS_THRESHOLD
            answer = {"path": wanted["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            if present := files.get(wanted["path"]):  # lets a client leave out what has not changed
                answer["oid"] = present.sha256 if present.large else present.oid
            answers.append(answer)
        return as_json({"files": answers})

    @route("POST", rf"/{PAGE}\.git/info/lfs/objects/batch")
    def lfs_batch(self, request: Request, repo: Repo) -> Response:
        self._require_write(request.user or repo.owner, request.user)
        answers = []
        for wanted in request.json()["objects"]:
            answers.append({"oid": wanted["oid"], "size": wanted["size"]})
            if wanted["oid"] not in self._storage:
                address = f"{self.url}{STORAGE}{wanted['oid']}"
                answers[-1]["actions"] = {"upload": {"href": address}, "verify": {"href": f"{address}/verify"}}
        return as_json({"transfer": "basic", "objects": answers})

    @route("PUT", f"{STORAGE}(?P<oid>[0-9a-f]+)")
    def lfs_upload(self, request: Request, oid: str) -> Response:
        if hashlib.sha256(request.body).hexdigest() != oid:
            raise HubError(400, f"The uploaded content does not have the sha256 {oid}")
        self._storage[oid] = request.body
        return Response()

    @route("POST", f"{STORAGE}(?P<oid>[0-9a-f]+)/verify")
    def lfs_verify(self, request: Request, oid: str) -> Response:
        if len(self._storage.get(oid, b"")) != request.json()["size"]:
            raise HubError(404, f"No object {oid} of this size")
        return as_json({})

    @route("GET", f"{STORAGE}(?P<oid>[0-9a-f]+)")
    def lfs_download(self, request: Request, oid: str) -> Response:
        if oid not in self._storage:
            raise HubError(404, f"No object {oid}")
        return as_file(request, self._storage[oid], {"ETag": f'"{oid}"'})

    @route("POST", f"/api/{REPO}/commit/{REVISION}")
    def create_commit(self, request: Request, repo: Repo, revision: str) -> Response:
        self._require_contribution(request, repo)
        header, *operations = (json.loads(line) for line in request.body.splitlines() if line.strip())
        expected = header["value"].get("parentCommit")
        pull_request = repo.next_pull_request() if request.flag("create_pr") else None
        parent = repo.at(expected if pull_request and expected else revision)
        if expected and not parent.oid.startswith(expected):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        ref = f"refs/pr/{pull_request}" if pull_request else repo.ref(revision)
        files = apply_operations(parent.files, operations, self._storage)
        title, message = header["value"]["summary"], header["value"].get("description", "")
        commit = repo.commit(ref, parent.oid, files, title, message)
        page = self.url + repo.page
        answer = {"success": True, "commitOid": commit.oid, "commitUrl": f"{page}/commit/{commit.oid}"}
        return as_json({**answer, "pullRequestUrl": f"{page}/discussions/{pull_request}"} if pull_request else answer)

    def _require_contribution(self, request: Request, repo: Repo) -> None:
        """The owner may commit; every user may open a pull request."""
        proposes = request.flag("create_pr") and request.user is not None
        self._require_write(request.user if proposes else repo.owner, request.user)


class _Handler(BaseHTTPRequestHandler):
    """Turns HTTP into `Request` and `Response` for `answer`, which the server supplies."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer on a kept connection waits for a delayed acknowledgement
    answer: Callable[[Request], Response]

    def _serve(self) -> None:
        url = urlsplit(self.path)
        response = self.answer(Request(self.command, url.path, parse_qs(url.query), self.headers, self._body()))
        self.send_response(response.status)
        for name, value in {**response.headers, "Content-Length": str(len(response.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep quiet: the requests are in `HubServer.log`."""
