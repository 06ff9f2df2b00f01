"""Draw two digits on the demo page, press Go, and take a picture of the page.

python train/make_demo_picture.py --output docs/demo.png  # needs the extra browser and Debian's chromium
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from pathlib import Path

from hsal_env.command_line import run_command
from hsal_env.errors import ConfigError

SEVEN = [(14.0, 14.0), (35.0, 13.0), (23.0, 43.0)]  # (x, y) in px of the canvas
ZERO = [(74 + 10 * math.sin(n * math.pi / 12), 73 - 16 * math.cos(n * math.pi / 12)) for n in range(25)]


@dataclass(frozen=True)
class Args:
    """Draw two digits on the demo page, press Go, and take a picture of the page."""

    output: Path = Path("docs/demo.png")
    """file of the picture"""
    chromium: str = "/usr/bin/chromium"
    """path of the browser"""
    width_px: int = 1200
    """width of the page"""


def main(args: Args) -> None:
    """Serve the page, draw on it in a browser, and save a screenshot.

    Raises:
        ConfigError: Playwright, Flask or the browser is missing.
        CheckpointError: the picture cannot be written.
    """
    try:
        from playwright.sync_api import Error, sync_playwright

        from agents.demo.server import create_app, listen
    except ImportError as error:
        raise ConfigError('The picture needs a browser: pip install "hsal[browser]"') from error
    from agents.demo.player import Player
    from hsal_env.storage.files import replacing, writing

    server, address = listen(create_app(Player()))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=args.chromium, args=["--no-sandbox", "--disable-gpu"])
        except Error as error:
            raise ConfigError(f"Cannot start {args.chromium}: {error}. Pass --chromium.") from error
        page = browser.new_page(viewport={"width": args.width_px, "height": 900}, reduced_motion="reduce")
        page.goto(address)
        page.wait_for_selector("#go:enabled")
        frame = page.locator("#pad").bounding_box()
        assert frame is not None
        scale = frame["width"] / 100
        for points in (SEVEN, ZERO):
            for n, (x, y) in enumerate(points):
                page.mouse.move(frame["x"] + scale * x, frame["y"] + scale * y, steps=4)
                if n == 0:
                    page.mouse.down()
            page.mouse.up()
        page.fill("#labels", "7 0")
        with page.expect_response("**/api/play") as answer:
            page.click("#go")
        trace = answer.value.json()
        names = [n for n, label in enumerate(trace["label"]) if label >= 0]
        page.locator("#step").fill(str(names[1]))  # the second digit is named
        page.locator("h1").click()
        page.mouse.move(1, 1)
        picture = page.screenshot(full_page=True)
        browser.close()
    server.shutdown()
    with writing(args.output), replacing(args.output) as temporary:
        temporary.write_bytes(picture)


def cli() -> None:
    run_command(main, Args)


if __name__ == "__main__":
    cli()
