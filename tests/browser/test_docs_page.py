"""The OpenAPI page in a real browser, which must not ask anybody but the gateway."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from live_mesh import LiveMesh
from playwright.async_api import async_playwright

MAKEFILE = Path(__file__).parents[2] / "Makefile"
(NAMES,) = re.findall(r"^CHROMIUM = .*command -v (.*?) >", MAKEFILE.read_text(), re.MULTILINE)
BROWSERS = NAMES.split()
"""Any of them keeps `make test` from installing one."""
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    running = LiveMesh(tmp_path_factory.mktemp("docs-page"))
    try:
        running.start()
        yield running
    finally:
        running.stop()


async def visit(url: str, tmp_path):
    """Open the page; what it asked for, what it complained of, and the operations it shows."""
    chromium = next(filter(None, map(shutil.which, BROWSERS)), None)
    assert chromium, "chromium is missing: `make test` installs it"
    asked, complaints = [], []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        try:
            page = await browser.new_page(viewport={"width": 1280, "height": 1600})
            page.on("request", lambda request: asked.append(request.url))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on(
                "console",
                lambda line: complaints.append(line.text) if line.type == "error" else None,
            )
            await page.goto(url)
            await page.wait_for_selector(".opblock")
            shown = await page.locator(".opblock-summary-path").all_inner_texts()
            await page.locator("[data-path$='/search']").click()
            await page.wait_for_selector(".opblock-body")
            body = await page.locator(".opblock-body").inner_text()
            await page.screenshot(path=tmp_path / "docs.png", full_page=True)
        finally:
            await browser.close()
    return asked, complaints, [text.replace("\u200b", "") for text in shown], body


def test_docs_page_asks_only_the_gateway(live, tmp_path):
    url = live.file()["http_url"]
    asked, complaints, shown, body = asyncio.run(visit(f"{url}/docs", tmp_path))
    ours = urlsplit(url).netloc
    assert len(asked) >= 4, asked  # the page, its style, its script, the description
    assert {urlsplit(one).netloc for one in asked if not one.startswith("data:")} == {ours}
    assert not complaints
    for route in (
        "/search",
        "/actions",
        "/actions/{action_id}",
        "/register",
        "/refresh-token",
        "/nodes",
    ):
        assert any(path.endswith(route) for path in shown), (route, shown)
    assert "query" in body
