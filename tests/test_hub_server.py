"""The local stand-in for the Hub answers the real clients as the Hub does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import huggingface_hub
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hub_server import HubServer

REPO = "tester/demo"
FOLDER = {
    "README.md": b"---\nlicense: apache-2.0\ntags: [demo]\n---\n# Demo\n",
    "adapter_model.safetensors": bytes(range(256)) * 40,
    "empty.txt": b"",
    "plots/deep/pfad mit ä.json": b"{}",
}


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    client = HfApi(endpoint=hub.url, token=hub.token)
    client.create_repo(REPO)
    return client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for path, content in FOLDER.items():
        file = tmp_path / "folder" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return tmp_path / "folder"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def status(call: Request | str) -> int:
    try:
        return urlopen(call, timeout=5).status
    except HTTPError as error:
        return error.code


def test_an_uploaded_folder_comes_back_byte_for_byte(hub: HubServer, api: HfApi, folder: Path, tmp_path: Path):
    api.upload_folder(repo_id=REPO, folder_path=folder)
    snapshot = Path(api.snapshot_download(REPO, cache_dir=tmp_path / "cache"))
    downloaded = contents(snapshot)
    assert downloaded.pop(".gitattributes") == hub.files(REPO)[".gitattributes"]
    assert downloaded == FOLDER


def test_unchanged_files_are_not_uploaded_again(hub: HubServer, api: HfApi, folder: Path):
    api.upload_folder(repo_id=REPO, folder_path=folder)
    before = len(hub.log)
    api.upload_folder(repo_id=REPO, folder_path=folder)
    assert not [entry for entry in hub.log[before:] if entry.method == "PUT" or "/commit/" in entry.path]


def test_a_dataset_can_be_pushed_and_loaded(hub: HubServer, tmp_path: Path):
    code = """
        from datasets import Dataset, load_dataset
        rows = {"question": ["a", "b", "c"], "task": ["x", "y", "x"]}
        Dataset.from_dict(rows).push_to_hub("tester/mixture", revision="rows", create_pr=False)
        Dataset.from_dict(rows).push_to_hub("tester/mixture", private=True)
        assert load_dataset("tester/mixture", split="train").to_dict() == rows
        assert load_dataset("tester/mixture", split="train", revision="rows").to_dict() == rows
    """
    environment = {**os.environ, **hub.environment(tmp_path)}
    command = [sys.executable, "-c", dedent(code)]
    client = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert client.returncode == 0, client.stderr
    rows = "data/train-00000-of-00001.parquet"
    assert rows in hub.files("tester/mixture", "dataset")
    assert any(entry.path.endswith(f"/{rows}") for entry in hub.log)


def test_a_repository_is_created_once_and_can_be_deleted(hub: HubServer, api: HfApi):
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(REPO)
    api.create_repo(REPO, exist_ok=True)
    api.delete_repo(REPO)
    assert not api.repo_exists(REPO)
    with pytest.raises(RepositoryNotFoundError):
        api.delete_repo(REPO)


def test_a_name_stands_for_one_repository_of_each_type(hub: HubServer, api: HfApi):
    api.create_repo(REPO, repo_type="dataset")
    api.upload_file(path_or_fileobj=b"1", path_in_repo="rows.csv", repo_id=REPO, repo_type="dataset")
    assert "rows.csv" in hub.files(REPO, "dataset")
    assert "rows.csv" not in hub.files(REPO)
    assert api.dataset_info(REPO).sha != api.model_info(REPO).sha


def test_a_token_names_its_user(hub: HubServer, api: HfApi):
    assert api.whoami()["name"] == hub.user
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami(token="hf_unknown")


def test_only_the_owner_may_write(hub: HubServer, api: HfApi):
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("someone/else")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.upload_file(path_or_fileobj=b"", path_in_repo="a", repo_id=REPO, token=hub.add_user("reader"))
    with pytest.raises(HfHubHTTPError, match="401"):
        api.upload_file(path_or_fileobj=b"", path_in_repo="a", repo_id=REPO, token=False)


def test_a_private_repository_is_hidden_from_others(hub: HubServer, api: HfApi):
    api.create_repo("tester/secret", private=True)
    assert api.model_info("tester/secret").private
    for token, code in ((False, 401), (hub.add_user("reader"), 404)):
        with pytest.raises(RepositoryNotFoundError) as error:
            api.model_info("tester/secret", token=token)
        assert error.value.response.status_code == code


def test_what_is_missing_is_named(api: HfApi, tmp_path: Path):
    with pytest.raises(RepositoryNotFoundError):
        api.snapshot_download("tester/none", cache_dir=tmp_path)
    with pytest.raises(RevisionNotFoundError):
        api.model_info(REPO, revision="none")
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(path_or_fileobj=b"", path_in_repo="a", repo_id=REPO, revision="none")
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(REPO, "none.json", cache_dir=tmp_path)
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "none"))
    with pytest.raises(EntryNotFoundError):
        api.delete_file("none.json", REPO)


def test_a_commit_on_an_outdated_parent_is_refused(api: HfApi):
    parent = api.model_info(REPO).sha
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id=REPO, parent_commit=parent)
    with pytest.raises(HfHubHTTPError, match="412"):
        api.upload_file(path_or_fileobj=b"2", path_in_repo="a", repo_id=REPO, parent_commit=parent)


def test_a_pull_request_leaves_main_as_it_is(hub: HubServer, api: HfApi):
    token = hub.add_user("reader")
    weights = CommitOperationAdd("adapter.safetensors", b"weights")
    commit = api.create_commit(REPO, [weights], commit_message="Propose", create_pr=True, token=token)
    assert (commit.pr_revision, commit.pr_num) == ("refs/pr/1", 1)
    assert "adapter.safetensors" not in hub.files(REPO)
    assert hub.files(REPO, revision="refs/pr/1")["adapter.safetensors"] == b"weights"
    assert api.file_exists(REPO, "adapter.safetensors", revision="refs/pr/1")
    assert [ref.ref for ref in api.list_repo_refs(REPO, include_pull_requests=True).pull_requests] == ["refs/pr/1"]


def test_branches_have_a_history_of_their_own(api: HfApi):
    api.create_branch(REPO, branch="draft")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_branch(REPO, branch="draft")
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id=REPO, revision="draft", commit_message="Add a")
    assert [commit.title for commit in api.list_repo_commits(REPO, revision="draft")] == ["Add a", "initial commit"]
    assert [commit.title for commit in api.list_repo_commits(REPO)] == ["initial commit"]
    assert {branch.name for branch in api.list_repo_refs(REPO).branches} == {"main", "draft"}


def test_files_and_folders_can_be_deleted(hub: HubServer, api: HfApi, folder: Path):
    api.upload_folder(repo_id=REPO, folder_path=folder)
    api.delete_file("empty.txt", REPO)
    api.delete_folder("plots", REPO)
    assert set(hub.files(REPO)) == {".gitattributes", "README.md", "adapter_model.safetensors"}


def test_listings_tell_files_from_folders(api: HfApi, folder: Path):
    api.upload_folder(repo_id=REPO, folder_path=folder)
    assert {entry.path for entry in api.list_repo_tree(REPO)} >= {"README.md", "plots"}
    assert [entry.path for entry in api.list_repo_tree(REPO, "plots")] == ["plots/deep"]
    weights, plots = api.get_paths_info(REPO, ["adapter_model.safetensors", "plots", "none"])
    assert weights.lfs.size == len(FOLDER["adapter_model.safetensors"])
    assert isinstance(plots, huggingface_hub.hf_api.RepoFolder)
    sizes = {file.rfilename: file.size for file in api.model_info(REPO, files_metadata=True).siblings}
    assert sizes["README.md"] == len(FOLDER["README.md"])


def test_a_part_of_a_file_can_be_read(hub: HubServer, api: HfApi):
    api.upload_file(path_or_fileobj=b"0123456789", path_in_repo="digits.bin", repo_id=REPO)
    address = f"{hub.url}/{REPO}/resolve/main/digits.bin"
    with urlopen(Request(address, headers={"Range": "bytes=3-5"}), timeout=5) as response:
        assert (response.status, response.headers["Content-Range"], response.read()) == (206, "bytes 3-5/10", b"345")
    assert status(Request(address, headers={"Range": "bytes=10-"})) == 416


def test_a_damaged_upload_is_refused(hub: HubServer):
    assert status(Request(f"{hub.url}/_lfs/{'0' * 64}", data=b"damaged", method="PUT")) == 400


def test_a_card_without_proper_metadata_is_refused(api: HfApi):
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.upload_file(path_or_fileobj=b"---\ntags: [a\n---\n", path_in_repo="README.md", repo_id=REPO)


def test_a_client_outlives_a_failing_server(hub: HubServer, api: HfApi):
    hub.fail_next(1, path="/preupload/")
    api.upload_file(path_or_fileobj=b"1", path_in_repo="a", repo_id=REPO)
    assert [entry.status for entry in hub.log if "/preupload/" in entry.path] == [503, 200]
    hub.fail_next(1)
    with pytest.raises(HfHubHTTPError, match="503"):
        api.model_info(REPO)


def test_an_unknown_endpoint_is_said_to_be_unknown(hub: HubServer):
    assert status(f"{hub.url}/api/unknown") == 404
    assert hub.log[-1] == ("GET", "/api/unknown", 404)
