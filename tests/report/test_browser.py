"""The page in a real browser: nothing asked for from outside, no complaint, and nothing wider than a phone.

Chromium opens a small page of ours, served on this machine, which shows the report in a frame of 390 pixels and writes
what it finds as text.
"""

from __future__ import annotations

import http.server
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mfd_cli.inference.models import load_models
from mfd_cli.report.gather import gather
from mfd_cli.report.page import render
from mfd_cli.report.samples import draw
from mfd_cli.store.layout import RunFolder

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")]

FRAME = """<!DOCTYPE html><title>frame</title><link rel="icon" href="data:,">
<iframe src="report.html" style="width: 390px; height: 3000px; border: 0"></iframe><pre id="found"></pre>
<script>
document.querySelector("iframe").addEventListener("load", event => {
  const page = event.target.contentDocument, root = page.documentElement;
  const wide = [...page.body.querySelectorAll("*")].filter(
    one => !one.closest(".scroll, pre, svg") && one.getBoundingClientRect().right > 391);
  document.getElementById("found").textContent = JSON.stringify({
    width: root.clientWidth, scroll: root.scrollWidth, wide: wide.map(one => one.outerHTML.slice(0, 80)),
    asked: event.target.contentWindow.performance.getEntriesByType("resource").map(one => one.name),
    broken: [...page.images].filter(one => !one.complete || !one.naturalWidth).length,
    images: page.images.length, plots: page.querySelectorAll("svg[role=img]").length,
    flat: [...page.querySelectorAll("svg[role=img]")].filter(one => one.getBoundingClientRect().height < 80).length,
  });
});
</script>
"""


class Served(http.server.SimpleHTTPRequestHandler):
    """Serves a folder and remembers what was asked for."""

    asked: list[str] = []  # noqa: RUF012 (one server at a time)

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()

    def log_message(self, format: str, *arguments: Any) -> None:
        return None


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Where the working folder is served."""
    Served.asked.clear()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *arguments: Served(*arguments, directory=str(tmp_path))
    )  # fmt: skip
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def browse(url: str, profile: Path) -> tuple[str, str]:
    """The text of a page once it is shown, and what the browser says."""
    assert CHROMIUM is not None
    done = subprocess.run(
        [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
         "--enable-logging=stderr",
         f"--user-data-dir={profile}", "--virtual-time-budget=20000", "--dump-dom", url],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    return done.stdout, done.stderr


def test_a_page_on_a_phone(made: Callable[..., RunFolder], figures: Any, address: str, tmp_path: Path) -> None:
    names = ("frechet", "frechet_features", "sliced_wasserstein", "class_agreement")
    report = figures(*(dict.fromkeys(names, (value, 0.01)) for value in (0.1, 0.2, 5.0)), dict.fromkeys(names, 1.0))
    run = gather(made(report=report, lines=60).root)
    samples = draw(load_models(run.stored or Path(), device="cpu", dtype="fp32"))
    (tmp_path / "report.html").write_text(render(run, samples), encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME)
    shown, complaints = browse(f"{address}/frame.html", tmp_path / "profile")
    found = json.loads(re.findall(r'<pre id="found">(.*?)</pre>', shown, re.S)[0].replace("&gt;", ">"))
    assert found["width"] == 390 and found["scroll"] <= 390 and found["wide"] == []
    assert found["plots"] == 4 + 8 + 6 and found["flat"] == 0 and found["broken"] == 0
    assert not [name for name in found["asked"] if not name.startswith("data:")]
    assert sorted(Served.asked) == ["/frame.html", "/report.html"]
    assert "CONSOLE" not in complaints, complaints
