"""What the package stands on may be used by anybody."""

from __future__ import annotations

import pytest

import audit


def test_all_dependencies_have_free_licences():
    assert len(audit.dependencies()) > 20
    assert audit.unfree() == []


@pytest.mark.parametrize("text", ["AGPL-3.0", "GNU General Public License (GPL)", "CC-BY-NC-4.0", "", "see LICENSE"])
def test_licences_that_are_not_free_are_found(text):
    assert not audit.is_free(text)


def test_without_pip_audit_that_is_said(monkeypatch):
    monkeypatch.setattr(audit.shutil, "which", lambda name: None)
    assert audit.vulnerable() == ([], "pip-audit is not installed")
