"""A page of ``adder-zoo export --format page`` in headless Chromium, without a network, by real clicks and keys."""

import contextlib
import os
import shutil
import time

import pytest

CHROMIUM = os.environ.get("CHROMIUM", "chromium")


def needs_chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if shutil.which(CHROMIUM) is None:
        pytest.skip("needs Chromium: apt-get install chromium, or set CHROMIUM to its program")
    for program in ("clang", "wasm-ld"):
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}")
    return playwright.sync_playwright


@contextlib.contextmanager
def browser():
    with needs_chromium()() as playwright:
        started = playwright.chromium.launch(executable_path=shutil.which(CHROMIUM))
        yield started
        started.close()


class Opened:
    """The page from its folder, by file://. What it said to the console, and whom it called, is kept."""

    def __init__(self, browser, folder, width=1100, height=900, scheme="light", **options):
        self.context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
        self.page = self.context.new_page()
        self.said, self.called = [], []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.called.append(request.url))
        self.context.set_offline(True)
        self.url = (folder / "index.html").resolve().as_uri()
        began = time.perf_counter()
        self.page.goto(self.url)
        self.page.wait_for_selector("body[data-answered]")
        self.seconds_to_open = time.perf_counter() - began

    def close(self):
        """The page called nobody, and no error was said."""
        self.context.close()
        assert self.called == [self.url]
        assert self.said == [], self.said

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if error[0] is None:
            self.close()
        else:
            self.context.close()

    def answered(self):
        """How many times it has answered."""
        return int(self.page.evaluate("document.body.dataset.answered"))

    def wait_beyond(self, before):
        self.page.wait_for_function("before => Number(document.body.dataset.answered) > before", arg=before)

    def draw(self, *strokes):
        """With the mouse; points are on a square from 0 to 1."""
        self.page.locator("#stage").scroll_into_view_if_needed()
        box = self.page.locator("#stage").bounding_box()
        mouse, before = self.page.mouse, self.answered()
        for stroke in strokes:
            places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
            mouse.move(*places[0])
            mouse.down()
            for place in places[1:]:
                mouse.move(*place, steps=6)
            mouse.up()
        self.wait_beyond(before)

    def choose(self, path):
        """By the button and the file chooser that it opens."""
        before = self.answered()
        with self.page.expect_file_chooser() as chooser:
            self.page.locator("label[for=file]").click()
        chooser.value.set_files(path)
        self.wait_beyond(before)

    def verdict(self):
        return self.page.locator("#verdict").inner_text()

    def best(self):
        return self.page.locator("#verdict b").inner_text()

    def logits(self):
        titles = self.page.eval_on_selector_all(
            "#classes tbody td:last-child", "cells => cells.map(cell => cell.title)"
        )
        return [int(title.removeprefix("integer logit ")) for title in titles]

    def seen(self):
        """What the network sees: bytes, rows of pixels of RGBA."""
        return self.page.evaluate(
            "() => { const seen = document.getElementById('seen'), copy = seen.cloneNode();"
            " const context = copy.getContext('2d', {willReadFrequently: true}); context.drawImage(seen, 0, 0);"
            " return Array.from(context.getImageData(0, 0, seen.width, seen.height).data); }"
        )

    def milliseconds(self):
        return float(self.page.locator("#time").inner_text().split()[0])
