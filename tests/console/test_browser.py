"""The page in a real Chromium: signing in, labelling by keyboard, accessibility, and another site as an attacker.

Without Playwright or a Chromium of the system these tests are left out.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.app import Gateway
from gateway.settings import load_settings
from reasoning.config import load_config
from storage.log.land import land_decisions
from tests.gateway.conftest import serving
from tests.pipeline.test_labels import labels_of, write_questions

async_api = pytest.importorskip("playwright.async_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
TOKEN = "browser-token-0123456789"
PAGES = (
    "now",
    "decisions",
    "label",
    "label/should_respond",
    "data",
    "cycles",
    "models",
    "experiments",
    "money",
    "act/stop",
)

pytestmark = [pytest.mark.processes, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[str]:
    """The address of a gateway on a log of thirty questions."""
    data = tmp_path / "data"
    data.mkdir()
    await asyncio.to_thread(write_questions, data, 30, custom="IGNORE")
    settings = load_settings(data, tmp_path / "none.toml", {"REASONING_GATEWAY_TOKEN": TOKEN})
    async with serving(Gateway(load_config(data), settings)) as url:
        yield url


@pytest.fixture
async def browser() -> AsyncIterator[Any]:
    async with AsyncExitStack() as stack:
        playwright = await stack.enter_async_context(async_api.async_playwright())
        # Chromium's own sandbox does not start for root, as whom containers run.
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        found = await playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        stack.push_async_callback(found.close)
        yield found


async def open_page(browser: Any, address: str, **options: Any) -> tuple[Any, list[str]]:
    """A signed-in page, and what the browser complains about meanwhile."""
    context = await browser.new_context(**options)
    page = await context.new_page()
    page.set_default_timeout(60_000)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    await page.goto(address)
    await page.fill("#token", TOKEN)
    await page.press("#token", "Enter")
    return page, complaints


async def test_a_person_signs_in_and_labels_by_keyboard(browser: Any, site: str, tmp_path: Path) -> None:
    page, complaints = await open_page(browser, f"{site}/pages/label/should_respond")
    await page.wait_for_selector("text=Which answer is right?")
    assert await page.evaluate("document.cookie") == "" and TOKEN not in await page.content()
    await page.keyboard.press("2")
    await page.wait_for_selector("text=Recorded: IGNORE.")
    await page.keyboard.press("3")
    await page.wait_for_selector("text=Recorded: STOP.")
    await page.keyboard.press("u")
    await page.wait_for_selector("text=Taken back.")
    await page.keyboard.press("o")
    await page.wait_for_selector("text=Recorded: RESPOND.")
    await page.keyboard.down("s")
    await page.wait_for_selector("text=Skipped.")
    question = await page.input_value("input[name=decision_id] >> nth=0")
    await page.keyboard.down("s")  # still down: the browser repeats the key
    await page.wait_for_timeout(300)
    assert await page.input_value("input[name=decision_id] >> nth=0") == question
    await page.keyboard.up("s")
    await page.click("text=Decisions")
    await page.wait_for_selector("h1:text-is('Decisions')")
    assert page.url == f"{site}/pages/decisions" and await page.title() == "Decisions - Reasoning"
    await page.reload()  # the tab keeps the token
    await page.wait_for_selector("h1:text-is('Decisions')")
    assert complaints == []
    await asyncio.to_thread(land_decisions, tmp_path / "data")
    assert sorted(labels_of(tmp_path / "data").values()) == ["IGNORE", "RESPOND"]


@pytest.mark.torture
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
async def test_every_page_is_accessible_and_fits(browser: Any, site: str, scheme: str, width: int) -> None:
    """WCAG 2.2 A and AA and axe's best practices; no sideways scrolling."""
    axe = pytest.importorskip("axe_playwright_python.async_playwright").Axe()
    rules = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
    options = {"viewport": {"width": width, "height": 844}, "color_scheme": scheme}
    page, complaints = await open_page(browser, site, **options)
    await page.wait_for_selector("#live")
    for name in PAGES:
        await page.goto(f"{site}/pages/{name}")
        await page.wait_for_selector("main h1:not(#key h1)")
        found = (await axe.run(page, options=rules)).response
        assert [(each["id"], each["nodes"][0]["html"]) for each in found["violations"]] == [], name
        assert any(each["id"] == "color-contrast" for each in found["passes"]), name
        assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth + 1"), name
    assert complaints == []


ATTACK = """
async (site) => {
  const found = [];
  for (const mode of ["no-cors", "cors"])
    for (const method of ["GET", "POST"])
      try {
        const answer = await fetch(site + "/pages/act/stop", {
          method, mode, credentials: "include",
          headers: method === "POST" ? {"content-type": "application/x-www-form-urlencoded"} : {},
          body: method === "POST" ? "confirm=x" : undefined,
        });
        found.push(answer.type === "opaque" ? "opaque" : "read " + answer.status);
      } catch (error) { found.push("refused"); }
  try {
    await fetch(site + "/pages/now", {headers: {"x-reasoning-token": "guess"}});
    found.push("read");
  } catch (error) { found.push("refused"); }
  const frame = document.createElement("iframe");
  frame.src = site + "/pages/act/stop";
  document.body.append(frame);
  await new Promise((done) => { frame.onload = done; setTimeout(done, 3000); });
  let inside = "hidden";
  try { inside = frame.contentDocument.body.innerText; } catch (error) { inside = "hidden"; }
  const form = document.createElement("form");
  form.method = "POST"; form.action = site + "/pages/act/stop"; form.target = "other";
  document.body.append(form);
  form.submit();
  await new Promise((done) => setTimeout(done, 500));
  return [found, inside];
}
"""


@pytest.mark.torture
async def test_a_page_of_another_site_can_read_and_change_nothing(browser: Any, site: str) -> None:
    """The attacker is another port of this machine, which shares cookies and counts as the same site."""
    page, _ = await open_page(browser, site)
    await page.wait_for_selector("#live")
    other = await page.context.new_page()
    served: list[int] = []
    other.on("response", lambda answer: served.append(answer.status) if "/pages/act" in answer.url else None)
    attacker = await asyncio.start_server(_serve_nothing, "127.0.0.1", 0)
    async with attacker:
        await other.goto(f"http://127.0.0.1:{attacker.sockets[0].getsockname()[1]}/")
        found, inside = await other.evaluate(ATTACK, site)
    assert set(found) <= {"opaque", "refused"}, found
    assert inside in ("hidden", "", None)
    assert all(status in (200, 401, 403) for status in served)
    assert not re.search("Price:", str(inside))


async def _serve_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n<body>attack</body>")
    await writer.drain()
    writer.close()
