"""The section `hub` of a run's configuration."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class HubConfig:
    """Whether and where the result is pushed. Repositories are private unless said otherwise.

    Attributes:
        push: whether `run` ends with a push.
        repo_id: model repository; the name of the output folder, under the logged-in user, if None.
        store_repo_id: dataset repository for the gradients that estimates come from; not pushed if None.
        private, revision, create_pr: of every push.
    """

    push: bool = False
    repo_id: str | None = None
    store_repo_id: str | None = None
    private: bool = True
    revision: str | None = None
    create_pr: bool = False
