"""The monitor as people meet it: Chromium on pages about a real boss, at 10 and at 10,000 tasks, small and large,
light and dark, with a keyboard only, without JavaScript. Screenshots stay in the test's directory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from doors import Doors
from monitor_client import Monitor
from monitored import RUN, SWEEP, fill
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from services import Daemon

from ecloud.db.database import make_engine, migrate

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text()
PAGE_BYTES = 100_000
LOOKS = ((360, "light"), (1600, "dark"))
PATIENCE_MS = 60_000


def pages(tasks: int) -> list[str]:
    at = tasks // 2
    some = urlencode({"run": RUN, "id": f"count-{at:07d}"})
    opened = urlencode({"kind": "count", "from": 2, "to": 2})
    return [
        "/", f"/run/{RUN}", f"/run/{RUN}?{opened}", f"/sweep/{SWEEP}?sort=-accuracy", f"/tasks?run={RUN}",
        f"/tasks?run={RUN}&state=failed", f"/task?{some}", "/machines", "/ledger",
        f"/confirm?verb=redo_task&{some}", "/run/nope",
    ]  # fmt: skip


class Site:
    """A filled home, its boss and its monitor."""

    def __init__(self, place: Path, tasks: int) -> None:
        self.tasks = tasks
        self.daemon = Daemon(place / "daemon")
        self.daemon.home.make()
        engine = make_engine(f"sqlite:///{self.daemon.home.database}")
        migrate(engine)
        fill(engine, tasks)
        engine.dispose()
        self.daemon.start()
        self.monitor = Monitor(Doors(place / "doors", self.daemon))

    @property
    def url(self) -> str:
        return f"http://{self.monitor.host}"

    def end(self) -> None:
        self.monitor.end()
        self.daemon.end()


@pytest.fixture(scope="module", params=[10, pytest.param(10_000, marks=pytest.mark.long)])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    made = Site(tmp_path_factory.mktemp("site"), request.param)
    yield made
    made.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium. No sandbox: tests run as root."""
    with sync_playwright() as playwright:
        program = shutil.which("chromium") or "/usr/bin/chromium"
        made = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield made
        made.close()


def entered(browser: Browser, site: Site, **options: Any) -> BrowserContext:
    """A viewer who has opened the address with the key."""
    context = browser.new_context(timezone_id="Europe/Zurich", locale="en-GB", **options)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(f"{site.url}/?token={site.monitor.token}")
    page.close()
    return context


def whole(page: Page) -> None:
    """Wait until the page reads nothing."""
    page.locator(".reading").first.wait_for(state="detached")


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("width", "scheme"), LOOKS)
def test_every_page_is_clean_small_and_accessible(
    site: Site, browser: Browser, tmp_path: Path, width: int, scheme: Any
) -> None:
    context = entered(browser, site, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    for number, path in enumerate(pages(site.tasks)):
        answer = page.goto(f"{site.url}{path}")
        assert answer is not None
        assert len(answer.body()) <= PAGE_BYTES, path
        whole(page)
        page.screenshot(path=tmp_path / f"{number}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, f"{path} is wider than the window"
        found = page.evaluate(f"() => {{ {AXE}; return axe.run(document); }}")
        serious = [one for one in found["violations"] if one["impact"] in ("serious", "critical")]
        told = [(one["id"], one["nodes"][0]["html"][:200]) for one in serious]
        assert not told, (path, told)
    said = [text for text in complaints if "404 (Not Found)" not in text]
    assert not said, "the policy is kept and nothing fails"
    context.close()


def test_without_javascript_the_pages_say_the_same(site: Site, browser: Browser) -> None:
    context = entered(browser, site, java_script_enabled=False)
    page = context.new_page()
    page.goto(f"{site.url}/run/{RUN}")
    assert page.locator("svg.graph a").count() >= 4
    assert "UTC" in page.locator("time").first.inner_text()
    assert page.locator("noscript meta").count() or 'http-equiv="refresh"' in page.content()
    page.goto(f"{site.url}/tasks?run={RUN}&state=failed")
    assert page.locator("tbody tr").count() >= 1
    page.locator("tbody a").first.click()
    assert "KeyError" in page.content() or "samtools" in page.content() or "MemoryError" in page.content()
    context.close()


def test_everything_is_reached_with_the_keyboard(site: Site, browser: Browser) -> None:
    context = entered(browser, site)
    page = context.new_page()
    page.goto(f"{site.url}/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    press_until(page, "document.activeElement.textContent === 'genomes'")
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/run/{RUN}")
    press_until(page, "document.activeElement.textContent.startsWith('Retry failed tasks')")
    page.keyboard.press("Enter")
    page.wait_for_url("**/confirm?**")
    assert "failed task" in page.locator("main").inner_text()
    press_until(page, "document.activeElement.textContent === 'Go back'")
    page.keyboard.press("Enter")
    page.wait_for_url("**/tasks?**")
    page.goto(f"{site.url}/run/{RUN}")
    whole(page)
    press_until(page, "document.activeElement.closest('svg.graph') !== null && document.activeElement.tagName === 'a'")
    page.keyboard.press("Enter")
    page.wait_for_url("**#graph" if site.tasks > 100 else "**/task?**")
    context.close()


def press_until(page: Page, reached: str) -> None:
    for _ in range(150):
        page.keyboard.press("Tab")
        if page.evaluate(reached):
            return
    raise AssertionError(f"Tab does not lead to where {reached}")


def test_an_open_page_follows_what_happens(site: Site, browser: Browser) -> None:
    context = entered(browser, site)
    page = context.new_page()
    page.goto(f"{site.url}/")
    doors = Doors(site.daemon.directory / "doors", site.daemon)
    doors.push(doors.write("t.json", [{"id": "a", "commands": "true"}]), "--run", f"new-{site.tasks}")
    page.wait_for_selector(f"text=new-{site.tasks}")
    page.wait_for_selector("text=1 / 1")
    context.close()
