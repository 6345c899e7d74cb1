"""The pages in a real headless Chromium: what charts, scripts and keys do, for everybody; nothing shown is ever run.

Needs the extra `browser` and a Chromium (CHROMIUM, or one on the PATH): `make browser` brings both. Pictures of every
page go to BROWSER_PICTURES where that is set.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from flops_fit_ray import formatting as fmt
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.spec import FitSection
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.sweep.directory import open_sweep
from tests.chaos import make_project
from tests.serving import Served, serving
from tests.sweeps import make_sweep, reference_parts, reference_spec
from tests.test_service import PAYLOADS, _fail
from tests.test_service_page import _run

Browser: TypeAlias = Any  # playwright's types are not everywhere
Page: TypeAlias = Any

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
MISSING = [name for name in ("playwright", "axe_playwright_python") if importlib.util.find_spec(name) is None]
OPTIONS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 400, "height": 800}
UNREADY = "section:has-text('The first fit is running'), :text('are being fitted'), [data-chart]:not([data-drawn])"

pytestmark = [
    pytest.mark.xdist_group("test_browser"),
    pytest.mark.skipif(CHROMIUM is None, reason="pages not tested: no Chromium here; `make browser` brings one"),
    pytest.mark.skipif(bool(MISSING), reason=f"pages not tested: no {' and '.join(MISSING)}; `make browser`"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield found
        found.close()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A sweep of which 14 experiments are completed and one runs, and code for another one, which stays queued."""
    place = tmp_path_factory.mktemp("browser")
    spec = reference_spec(fit=FitSection(draws=100))
    make_sweep(place / "whole", spec, reference_parts(spec))
    part = make_sweep(place / "runs" / "part", spec, reference_parts(spec), only=14)
    _run(place / "runs" / "part", part.plan.experiments[-1].key)
    code = make_project(place / "code").parent
    with serving(place / "runs", (code,), at_once=0) as found:
        yield found


@pytest.fixture(scope="module")
def page(browser: Browser, served: Served) -> Iterator[Page]:
    found = logged_in(browser, served)
    yield found
    assert found.said == []  # no error of a script, and no dialog, in all these tests
    found.close()


def logged_in(browser: Browser, served: Served, **options: Any) -> Page:
    """A page of somebody who has given the token; `said` is what its console says from then on."""
    page = browser.new_context(**{"viewport": DESKTOP, **options}).new_page()
    page.goto(served.url)
    page.fill("#token", served.token)
    page.click("button")
    page.wait_for_selector("h1:text-is('Sweeps')")
    page.said = []
    page.on(
        "console", lambda message: page.said.append(f"{message.type}: {message.text} {message.location.get('url', '')}")
    )
    page.on("pageerror", lambda error: page.said.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (page.said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    return page


def opened(page: Page, served: Served, path: str) -> Page:
    """The page at a path, with all of its fits and charts."""
    page.goto(served.url + path)
    page.wait_for_selector(UNREADY, state="detached", timeout=60_000)
    return page


FITS = "document.documentElement.scrollWidth <= window.innerWidth"


def unfolded(page: Page, served: Served, path: str) -> None:
    """Open a page with all that it can show."""
    opened(page, served, path)
    page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")


def paths_of(served: Served) -> dict[str, str]:
    """Every page, by name."""
    key = open_sweep(served.state.runs.paths.root / "part").results[0].key
    return {
        "sweeps": "/",
        "sweep": "/sweeps/part",
        "experiment": f"/sweeps/part/experiments/{key}",
        "comparison": "/compare?first=part&second=part",
        "new": "/new",
        "error": "/nothing",
        "login": "/login",
    }


BY_DAY: dict[str, Any] = {"viewport": DESKTOP, "color_scheme": "light"}
BY_NIGHT: dict[str, Any] = {"viewport": PHONE, "color_scheme": "dark"}


@pytest.mark.parametrize(
    "options",
    [pytest.param(BY_DAY, id="desk"), pytest.param(BY_NIGHT, id="phone by night", marks=pytest.mark.slow)],
)
def test_every_page_is_for_everybody(browser: Browser, served: Served, options: dict[str, Any]) -> None:
    """axe finds nothing, by day on a desk and by night on a phone, and nothing is wider than the screen."""
    from axe_playwright_python.sync_playwright import Axe

    page = logged_in(browser, served, bypass_csp=True, **options)
    for name, path in paths_of(served).items():
        unfolded(page, served, path)
        found = Axe().run(page)
        assert found.violations_count == 0, (name, found.generate_report())
        assert page.evaluate(FITS), name
        picture(page, f"{name}, {options['color_scheme']}")
    page.close()


def test_nothing_is_wider_than_a_phone(browser: Browser, served: Served) -> None:
    page = logged_in(browser, served, **BY_NIGHT)
    for name, path in paths_of(served).items():
        unfolded(page, served, path)
        assert page.evaluate(FITS), name
    page.close()


def test_a_point_of_a_chart_says_what_it_is_and_leads_there(page: Page, served: Served) -> None:
    """By the pointer and by the keys; dragging zooms, Escape shows all, the legend hides a budget."""
    sweep = open_sweep(served.state.runs.paths.root / "part")
    run = next(r for r in sweep.results if r.size == 24)
    opened(page, served, "/sweeps/part")
    page.locator("#chart-valleys").scroll_into_view_if_needed()
    chart = "[...charts.shown.values()].find((c) => c.figure.id === 'chart-valleys').plots[0]"
    # where the point of this loss is drawn
    x, y = page.evaluate(
        f"""(loss) => {{
            const p = {chart}, hit = p.hits().find((h) => h.y === loss), over = p.u.over.getBoundingClientRect();
            return [over.x + p.u.valToPos(hit.x, 'x'), over.y + p.u.valToPos(hit.y, 'y')];
        }}""",
        run.loss,
    )
    page.mouse.move(x, y)
    said = page.locator("#chart-valleys .tip").inner_text()
    assert f"C {fmt.flops(run.budget)}" in said and f"N {fmt.count(run.params)}" in said
    assert f"{run.loss:.4f} ± {run.loss_stderr:.4f}" in said and "completed" in said
    before = page.evaluate(f"{chart}.view")
    box = page.locator("#chart-valleys .u-over").bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    page.mouse.up()
    zoomed = page.evaluate(f"{chart}.view")
    assert before["x"][0] < zoomed["x"][0] < zoomed["x"][1] < before["x"][1]
    page.focus("#chart-valleys .plot")
    page.keyboard.press("Escape")
    assert page.evaluate(f"{chart}.view") == before
    page.keyboard.press("ArrowRight")
    first = page.locator("#chart-valleys .tip").inner_text()
    page.keyboard.press("ArrowRight")
    assert first and page.locator("#chart-valleys .tip").inner_text() not in ("", first)
    shown = page.evaluate(f"{chart}.hits().length")
    page.click(f"#chart-valleys .tools >> text=C {fmt.flops(1e5)}")
    assert page.evaluate(f"{chart}.hits().length") == shown - 8  # seven runs and their minimum
    key = page.evaluate(f"{chart}.hits().find((h) => h.href).href").rpartition("/")[2]
    page.focus("#chart-valleys .plot")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"code:text-is('{key}')")


def test_the_answer_follows_the_slider_and_the_address(page: Page, served: Served) -> None:
    opened(page, served, "/sweeps/part")
    asked = served.client.ask("GET", "/sweeps/part/predict?budget=1e7")
    page.focus("#slider")
    page.evaluate("document.getElementById('slider').value = 7")
    page.dispatch_event("#slider", "input")
    page.wait_for_selector(f"[data-of=params]:text-is('{fmt.count(asked['params'])}')")
    low, high = asked["params_interval"]
    assert page.inner_text("[data-of=params_interval]") == fmt.interval(low, high)
    assert page.inner_text("[data-of=loss]") == f"{asked['loss']:.4f}" and "budget=1e7" in page.url
    assert "x beyond the fitted budgets" in page.inner_text("[data-of=far]")
    page.reload()
    assert page.inner_text("[data-of=params]") == fmt.count(asked["params"])


def test_a_spec_is_checked_and_a_sweep_stopped_after_a_question(page: Page, served: Served) -> None:
    spec = (served.state.specs.roots[0] / "sweep.yaml").read_text()
    page.goto(served.url + "/new")
    page.fill("#text", spec.replace("features", "feature"))
    page.click("text=Validate")
    page.wait_for_selector(".bad li")
    assert "feature" in page.inner_text(".bad") and page.locator("text=Start").count() == 0
    served.client.start(spec)  # as the button does that comes with the price
    page.goto(served.url + "/sweeps/chaos")
    page.get_by_role("button", name="Stop chaos").click()
    page.click("text=Let it run")
    page.wait_for_selector("#standing .queued")
    page.get_by_role("button", name="Stop chaos").click()
    page.keyboard.press("Escape")
    assert page.locator("text=Stop it").is_hidden()
    page.get_by_role("button", name="Stop chaos").click()
    page.click("text=Stop it")
    page.wait_for_selector("#standing .failed, #standing .stopped", timeout=30_000)
    refused = [line for line in page.said if "422 (Unprocessable" in line]
    page.said[:] = [line for line in page.said if line not in refused]  # of the wrong spec
    assert len(refused) == 1


def test_the_keyboard_goes_over_the_page_in_order_and_is_seen(page: Page, served: Served) -> None:
    opened(page, served, "/sweeps/part")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    passed = []
    for _ in range(12):
        page.keyboard.press("Tab")
        passed.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", passed
    assert passed.index("Valleys") < passed.index("Files") < passed.index("budget") < passed.index("slider")


def test_without_scripts_there_are_pictures_and_links(browser: Browser, served: Served) -> None:
    page = logged_in(browser, served, java_script_enabled=False)
    page.goto(served.url + "/sweeps/part?status=completed&sort=loss")
    losses = [float(text) for text in page.locator("#experiments tbody tr td:nth-child(8)").all_inner_texts()]
    assert losses == sorted(losses) and len(losses) == 14
    page.click("#experiments th a:has-text('loss')")
    assert [float(t) for t in page.locator("#experiments tbody tr td:nth-child(8)").all_inner_texts()] == losses[::-1]
    for picture_of in ("#chart-valleys img", "#chart-laws img", "#chart-curves img"):
        source = page.get_attribute(picture_of, "src")
        assert page.request.get(served.url + source).text().startswith("<svg") and page.locator(picture_of).is_visible()
    assert page.locator(".plots").first.is_hidden()
    page.fill("#find", "grid 24 completed")
    page.get_by_role("button", name="Show").click()
    assert "1 to 3 of 3" in page.inner_text("#experiments")  # of size 24 in both budgets, and one of 244 tokens
    picture(page, "sweep, without scripts")
    page.close()


def test_the_page_renews_itself_and_keeps_what_is_typed(page: Page, served: Served) -> None:
    """A further result appears in table, state and chart; nobody reloads anything."""
    root = served.state.runs.paths.root
    sweep = open_sweep(root / "part")
    running = sweep.plan.experiments[-1].key
    _run(root / "part", running)  # a fresh sign of life
    opened(page, served, "/sweeps/part")
    page.wait_for_selector("#standing >> text=14 completed, 1 running")
    page.fill("#text", "half a note")
    drawn = page.get_attribute("#chart-curves", "data-drawn")
    whole = Ledger(SweepPaths(root.parent / "whole"))
    result = whole.result(running)
    assert result is not None
    Ledger(sweep.paths).record_curve(running, whole.curve_rows(running))
    Ledger(sweep.paths).record_result(result)
    page.wait_for_selector("#standing >> text=15 completed", timeout=30_000)
    page.wait_for_selector(f"#chart-curves[data-drawn]:not([data-drawn='{drawn}'])", timeout=30_000)
    assert page.input_value("#text") == "half a note"
    page.fill("#find", running)
    page.wait_for_selector("#experiments >> text=1 to 1 of 1")
    assert f"{result.loss:.4f}" in page.inner_text("#experiments") and f"find={running}" in page.url


def test_no_script_of_a_sweep_is_run(page: Page, served: Served) -> None:
    """20 payloads as error, traceback, event, note and in a spec; the last thing that these tests do to `part`."""
    sweep = open_sweep(served.state.runs.paths.root / "part")
    key = _fail(sweep, "\n".join(PAYLOADS))
    for payload in PAYLOADS:
        Ledger(sweep.paths).record_event(key, payload, level="warning")
    served.client.ask("POST", "/sweeps/part/notes", {"author": PAYLOADS[0], "text": "\n".join(PAYLOADS)})
    served.state.caches._kept.clear()
    for path in ("/sweeps/part", f"/sweeps/part/experiments/{key}"):
        opened(page, served, path)
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert PAYLOADS[0] in page.inner_text("main")
    page.goto(served.url + "/new")
    page.fill("#text", f"name: {PAYLOADS[0]!r}\n" + "\n".join(f"x{i}: {p!r}" for i, p in enumerate(PAYLOADS)))
    page.click("text=Validate")
    page.wait_for_selector(".bad")
    refused = "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hit = 1'}))"
    page.evaluate(refused)  # what no template does; the policy would stop it even so
    assert page.evaluate("window.hit") is None
    wrong, page.said[:] = list(page.said), []
    assert [line for line in wrong if line.startswith("dialog")] == []
    policy = [line for line in wrong if "422 (Unprocessable" not in line]
    assert len(policy) == 1 and "Content Security Policy" in policy[0], policy


def picture(page: Page, name: str) -> None:
    if "BROWSER_PICTURES" in os.environ:
        page.screenshot(path=str(Path(os.environ["BROWSER_PICTURES"]) / f"{name}.png"), full_page=True)
