"""The app in a real browser, as a studio's colleague uses it: the seven steps, and what goes wrong on the way.

`ONBRAND_BROWSER` names a Chromium; without it the one on the path, or playwright's own. `ONBRAND_SCREENSHOTS` names a
folder for pictures of every step, of which docs/images/ui-*.webp were put together.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_jobs import wait
from test_serve import served

from worlds import write_blocks

pytest.importorskip("gradio")
sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.prove
SECONDS = 300
WIDE, NARROW = 1280, 500
STEPS = ("1 Photos and model", "2 Fit", "3 Diagnosis", "4 Images", "5 Check", "6 Train", "7 Report")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the app is opened with."""
    root = tmp_path_factory.mktemp("studio")
    write_blocks(root / "broken", 12)
    (root / "broken" / "000.png").write_bytes((root / "broken" / "001.png").read_bytes()[:60])
    (root / "wrong").mkdir()
    (root / "wrong" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    return root


@pytest.fixture(scope="module")
def app(root: Path) -> Iterator[str]:
    """Its address."""
    with served(root) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, asked for nothing but the app."""
    with sync_api.sync_playwright() as playwright:
        file = os.environ.get("ONBRAND_BROWSER") or shutil.which("chromium") or shutil.which("chromium-browser")
        try:
            one = playwright.chromium.launch(executable_path=file, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no browser: {str(error).splitlines()[0]}")
        yield one
        one.close()


class Page:
    """A tab."""

    def __init__(self, browser: Any, address: str, width: int = WIDE) -> None:
        self.tab = browser.new_page(viewport={"width": width, "height": 900})
        self.tab.set_default_timeout(1000 * SECONDS)  # a job may take both cores
        self.width, self.hosts = width, set[str]()
        self.tab.on("request", lambda request: self.hosts.add(re.split("[/:]+", request.url)[1]))
        self.open(address)

    def open(self, address: str) -> None:
        self.tab.goto(address)
        self.says("#status", "")
        sync_api.expect(self.tab.get_by_label("Model")).not_to_have_value("", timeout=1000 * SECONDS)

    def says(self, where: str, words: str) -> None:
        sync_api.expect(self.tab.locator(where).first).to_contain_text(words, timeout=1000 * SECONDS)

    def choose(self, label: str, value: str) -> None:
        field = self.tab.get_by_label(label, exact=True)
        field.fill(value)
        field.press("Enter")

    def step(self, number: int) -> None:
        tab = self.tab.get_by_role("tab", name=STEPS[number - 1])
        if not tab.count():  # a narrow window keeps it behind three dots
            self.tab.get_by_label("More tabs").click()
            tab = self.tab.locator(".overflow-dropdown").get_by_text(STEPS[number - 1])
        tab.click()

    def press(self, button: str) -> None:
        self.tab.get_by_role("button", name=button, exact=True).click()

    def picture(self, number: int) -> None:
        """The whole page, where it is asked for; nothing is wider than the window."""
        self.tab.wait_for_timeout(2500)
        assert self.tab.evaluate("document.documentElement.scrollWidth") <= self.width
        if folder := os.environ.get("ONBRAND_SCREENSHOTS"):
            self.tab.screenshot(path=Path(folder) / f"ui-{number}-{self.width}.png", full_page=True)


BRAND = "Brand: choose one, or type a new name"


def test_the_seven_steps(browser: Any, app: str, root: Path) -> None:
    page = Page(browser, app)
    page.choose(BRAND, "Acme")
    page.press("Take the embedded catalogue")
    page.says("#status", "data (Acme) is done")
    sync_api.expect(page.tab.get_by_label("Photos", exact=True)).to_have_value("garments")
    page.press("Look at them")
    page.says("#status", "look (Acme) is done")
    page.says(".card.fine", "240 will be read")
    page.picture(1)
    page.step(2)
    page.press("Fit")
    page.says("#status", "fit (Acme) is done")
    page.tab.get_by_text("240 photos fitted, 0 refused").wait_for()
    page.picture(2)
    page.step(3)
    page.press("Diagnose")
    page.says("#status", "diagnose (Acme) is done")
    page.tab.get_by_text("OB001").first.wait_for()
    page.picture(3)
    page.step(4)
    page.press("Make them, from noise and from this start")
    page.says("#status", "images 001 (Acme) is done")
    page.tab.get_by_text("the same descriptions and seeds").wait_for()
    page.picture(4)
    page.step(5)
    page.press("Check them")
    page.says("#status", "check 001-mean (Acme) is done")
    page.tab.get_by_role("gridcell", name="00000.png").first.click()
    page.tab.get_by_role("img").last.wait_for()
    page.picture(5)
    page.step(6)
    page.choose("Steps", "8")
    page.choose("Steps between validations", "4")
    page.press("Train, or go on with this run")
    page.says("#status", "run 001 (Acme) is done")
    page.picture(6)
    page.step(7)
    page.press("Write the report")
    page.says("#status", "report (Acme) is done")
    page.tab.get_by_role("link", name="Open the report of Acme").wait_for()
    page.picture(7)
    assert page.hosts == {"127.0.0.1"}
    brand = root / "onbrand" / "Acme"
    assert sorted(one.name for one in brand.iterdir() if one.is_dir()) == ["brand", "images", "runs", "ui"]
    assert (brand / "report.html").is_file()


def test_a_narrow_window_shows_the_same(browser: Any, app: str) -> None:
    """After the seven steps, whose results it shows."""
    page = Page(browser, app, NARROW)
    page.choose(BRAND, "Acme")
    for number in range(1, len(STEPS) + 1):
        page.step(number)
        page.picture(number)


def test_broken_photos_and_a_wrong_model_are_said_in_words(browser: Any, app: str) -> None:
    page = Page(browser, app)
    page.choose(BRAND, "Broken")
    page.says("#status", "Nothing runs")  # the page is that of the new brand
    page.choose("Photos", "broken")
    page.choose("Model", "wrong")
    page.press("Look at them")
    page.says("#status", "look (Broken) did not work")
    page.says(".card.problem", "FluxPipeline")
    page.tab.get_by_role("gridcell", name="000.png").first.wait_for()
    page.step(2)
    page.press("Fit")
    page.says("#status", "fit (Broken) did not work")
    page.says("#status .wrong", "FluxPipeline")
    page.step(1)
    page.choose("Photos", "../..")
    page.press("Look at them")
    page.tab.get_by_text("lies outside of").first.wait_for()


def test_a_second_tab_a_reload_a_stop_lose_nothing(browser: Any, app: str, root: Path) -> None:
    page, second = Page(browser, app), Page(browser, app)
    for one in (page, second):
        one.choose(BRAND, "Acme")
        one.step(6)
        sync_api.expect(one.tab.get_by_label("Run", exact=True)).to_have_value("001", timeout=1000 * SECONDS)
    page.choose("Run", "a new run")
    page.choose("Steps", "200")
    page.choose("Steps between validations", "0")
    page.press("Train, or go on with this run")
    second.says("#status", "run 002 (Acme) runs: train")
    page.open(app)
    page.says("#status", "run 002 (Acme) runs: train")
    log = root / "onbrand" / "Acme" / "runs" / "002" / "log.jsonl"
    wait(lambda: log.exists() and len(log.read_text().splitlines()) > 2, SECONDS)
    second.press("Stop")
    page.says("#status", "run 002 (Acme) was stopped")
    assert len(log.read_text().splitlines()) < 200
    page.step(6)
    sync_api.expect(page.tab.get_by_label("Run", exact=True)).to_have_value("002", timeout=1000 * SECONDS)
    page.choose("Steps", "200")
    page.choose("Steps between validations", "0")
    page.press("Train, or go on with this run")
    page.says("#status", "run 002 (Acme) is done")
    assert len(log.read_text().splitlines()) == 200
