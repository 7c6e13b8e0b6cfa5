"""The page in a real browser: ticks change the number to what `estimate` says, on a desk and on a phone."""

from __future__ import annotations

import shutil
import time

import numpy as np
import pytest

from hf_tasksel.app.explorer import Explorer
from hf_tasksel.app.page import launch, make_page
from hf_tasksel.core.errors import ConfigError
from hf_tasksel.estimation.estimator import SubsetEstimator
from hf_tasksel.gradients.store.reader import GradientStore

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium or google-chrome to look at a page")
SIZES = {"desk": (1400, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def gradio():
    return pytest.importorskip("gradio", reason="needs gradio: pip install hf_tasksel[app]")


@pytest.fixture(scope="module")
def explorer(finished_run):
    return Explorer(finished_run)


@pytest.fixture
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as run:
        found = run.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


def served(explorer):
    page = make_page(explorer)
    _, address, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, share=False)
    return page, address


def shown_loss(view, expected):
    """Wait until the number on the page is what is expected."""
    for _ in range(100):
        if view.inner_text("#ts-loss") == f"{expected:.4f}":
            return True
        time.sleep(0.1)
    return False


@needs_browser
@pytest.mark.parametrize("size", SIZES)
def test_ticking_changes_the_number_to_what_is_estimated(gradio, explorer, browser, size):
    page, address = served(explorer)
    width, height = SIZES[size]
    view = browser.new_page(viewport={"width": width, "height": height})
    errors = []
    view.on("pageerror", lambda error: errors.append(str(error)))
    view.goto(address)
    view.wait_for_selector("#ts-loss", timeout=60_000)
    selected = explorer.files.selection.selected
    assert shown_loss(view, explorer.answer(dict.fromkeys(selected, 1.0)).loss)
    view.get_by_role("button", name="All", exact=True).click()
    assert shown_loss(view, explorer.answer(dict.fromkeys(explorer.names, 1.0)).loss)
    view.get_by_label(explorer.names[0]).uncheck()
    assert shown_loss(view, explorer.answer(dict.fromkeys(explorer.names[1:], 1.0)).loss)
    view.get_by_role("button", name="None", exact=True).click()
    view.get_by_text("Tick a task to see").wait_for(timeout=10_000)
    assert view.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert errors == []
    page.close()


@needs_browser
def test_two_hundred_tasks_stay_usable(gradio, explorer, browser, tmp_path):
    rng, n = np.random.default_rng(0), 200
    store = GradientStore.from_arrays(
        tmp_path / "store",
        task=np.asarray([f"task-{i // 3:03d}" for i in range(3 * n)] + ["goal"] * 10),
        split=np.asarray(["train"] * (3 * n) + ["dev"] * 10),
        value=np.zeros(3 * n + 10, np.float32),
        loss=np.ones(3 * n + 10, np.float32),
        num_tokens=np.full(3 * n + 10, 5),
        loss_gradient=rng.normal(size=(3 * n + 10, 20)).astype(np.float32),
    )
    many = Explorer.__new__(Explorer)
    many.__dict__.update(explorer.__dict__)
    many.estimator = SubsetEstimator().fit(store, "goal", loss_on_all=1.0)
    many.names, many.trained = list(many.estimator.task_names_), []
    many.files = type(explorer.files)(**{**vars(explorer.files), "selection": None, "affinity": None})
    page, address = served(many)
    view = browser.new_page(viewport={"width": 390, "height": 844})
    view.goto(address)
    view.wait_for_selector("#ts-loss", timeout=60_000)
    started = time.monotonic()
    view.get_by_label("task-150").uncheck()
    assert shown_loss(view, many.answer({name: 1.0 for name in many.names if name != "task-150"}).loss)
    assert time.monotonic() - started < 10
    assert view.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.close()


def test_without_gradio_it_says_what_to_install(explorer, finished_run, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ConfigError, match=r"pip install hf_tasksel\[app\]"):
        launch(finished_run)
