"""The page in a real headless Chromium: the whole story, and nothing that is shown is ever run.

Needs `playwright` and a Chromium (CHROMIUM, or /usr/bin/chromium); pictures go to BROWSER_PICTURES where that is set.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from flops_fit_ray.ledger import Ledger
from tests.chaos import make_project
from tests.serving import ServiceProcess, serving
from tests.sweeps import make_sweep, reference_parts, reference_spec
from tests.test_service import PAYLOADS, _fail

Browser: TypeAlias = Any  # playwright's types are not everywhere
Page: TypeAlias = Any

CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
OPTIONS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("test_browser"),
    pytest.mark.skipif(shutil.which(CHROMIUM) is None, reason="no Chromium here"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield found
        found.close()


def logged_in(browser: Browser, url: str, token: str, **options: Any) -> tuple[Page, list[str]]:
    """A page of somebody who has given the token, and what its console says."""
    page = browser.new_context(**options).new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
    page.on("dialog", lambda dialog: dialog.dismiss())
    page.goto(url)
    page.fill("#token", token)
    page.click("button")
    page.wait_for_selector("h1:text-is('Sweeps')")
    said.clear()  # that it was asked for the token is no news
    return page, said


def picture(page: Page, name: str) -> None:
    if "BROWSER_PICTURES" in os.environ:
        page.screenshot(path=str(Path(os.environ["BROWSER_PICTURES"]) / f"{name}.png"), full_page=True)


@pytest.mark.ray
def test_the_whole_story(browser: Browser, tmp_path: Path) -> None:
    """Validate, start, watch a valley appear, stop, resume, predict, fetch the report; the script alone renews it."""
    spec = make_project(tmp_path / "code")
    os.environ["CHAOS_PAUSE"] = "0.03"
    service = ServiceProcess(tmp_path / "runs", spec.parent)
    try:
        token = (tmp_path / "runs" / ".service" / "token").read_text().strip()
        page, said = logged_in(browser, service.url, token)
        page.click("text=New sweep >> nth=0")
        page.fill("#text", spec.read_text().replace("features", "feature"))
        page.click("text=Validate")
        page.wait_for_selector(".bad li")
        assert "feature" in page.inner_text(".bad") and page.locator("text=Start").count() == 0
        picture(page, "faults")
        page.fill("#text", spec.read_text())
        page.click("text=Validate")
        page.wait_for_selector("h2:has-text('12 experiments: 2.64e5 FLOPs')")
        picture(page, "price")
        page.click("button:text-is('Start')")
        page.wait_for_selector("h1:text-is('chaos')")
        page.wait_for_selector("#run_status .running", timeout=60_000)
        page.wait_for_selector("#valleys img", timeout=120_000)  # a valley appears, and nobody has reloaded anything
        while not page.evaluate("document.querySelector('#valleys img')?.naturalWidth"):
            page.wait_for_timeout(100)
        picture(page, "running")
        page.click("button:has-text('Stop')")
        page.wait_for_selector("#run_status .stopped", timeout=60_000)
        picture(page, "stopped")
        page.click("button:has-text('Resume')")
        page.wait_for_selector("#run_status .completed", timeout=120_000)
        page.wait_for_selector("#valleys >> text=Of 12 results", timeout=60_000)
        page.reload()
        before = page.input_value("#budget")
        page.focus("#slider")
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        page.wait_for_selector("#prediction >> text=/N = .* \\[/")
        assert page.input_value("#budget") != before and "x beyond the fitted budgets" in page.inner_text("#prediction")
        with page.expect_download() as fetched:
            page.click("text=Report")
        report = Path(fetched.value.path()).read_text()
        assert "1ce7388c25c2945e5782820c4688f523543d480383a16a59d2c83ca9079991fb" in report  # an uninterrupted run's
        picture(page, "completed")
        assert [line for line in said if "422 (Unprocessable" not in line] == []  # which was the wrong spec's
        shapes: dict[str, dict[str, Any]] = {
            "narrow": {"viewport": {"width": 400, "height": 800}},
            "dark": {"color_scheme": "dark"},
            "narrow dark": {"viewport": {"width": 400, "height": 800}, "color_scheme": "dark"},
            "without script": {"java_script_enabled": False},
        }
        for name, options in shapes.items():
            other, _ = logged_in(browser, service.url, token, **options)
            other.click("text=chaos >> nth=0")
            other.wait_for_selector("h1:text-is('chaos')")
            if name != "without script":
                assert other.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), name
            other.wait_for_selector("text=With C =")
            picture(other, name)
    finally:
        os.environ["CHAOS_PAUSE"] = "0"
        service.end()


def test_no_script_of_a_sweep_is_run(browser: Browser, tmp_path: Path) -> None:
    """20 payloads as error, traceback, event and in a spec."""
    spec = reference_spec()
    sweep = make_sweep(tmp_path / "runs" / "x", spec, reference_parts(spec), only=1)
    key = sweep.plan.experiments[-1].key
    with serving(tmp_path / "runs", (tmp_path,), at_once=0) as served:
        page, said = logged_in(browser, served.url, served.token)
        for payload in PAYLOADS:
            _fail(sweep, payload)
            Ledger(sweep.paths).record_event(key, payload, level="warning")
            served.state.caches._kept.clear()
            for path in ("/sweeps/x", f"/sweeps/x/experiments/{key}"):
                page.goto(served.url + path)
                page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
                page.wait_for_timeout(50)
            page.goto(served.url + "/new")
            page.fill("#text", f"name: {payload!r}\nx: {payload!r}")
            page.fill("#name", payload)
            page.eval_on_selector("#name", "(field) => field.removeAttribute('pattern')")
            page.click("text=Validate")
            page.wait_for_selector(".bad")
        page.goto(served.url + "/sweeps/x")
        refused = (
            "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hit = 1'}))"
        )
        page.evaluate(refused)  # what no template does; the policy would stop it even so
        assert page.evaluate("window.hit") is None
    assert [line for line in said if line.startswith("dialog")] == []
    wrong = [line for line in said if line.startswith("error:") and "422 (Unprocessable" not in line]
    assert len(wrong) == 1 and "Content Security Policy" in wrong[0]
