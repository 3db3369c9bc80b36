"""Makes the pictures of docs/pages/ui.md from a real run: a server of its own, a plate, a conversion, a browser.

Needs Chromium with its driver (Debian: chromium-driver), and selenium and pillow beside this package:

    python docs/screenshots.py

Args:
    --folder: where the plate lies meanwhile; its path is seen in the pictures. It must not exist, and is removed.
    --port: of the server.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver

from prefect_cytotable.flows import server
from prefect_cytotable.tasks.core.demo import PlateShape, tables, write_csv_sites

IMAGES = Path(__file__).parent / "pages" / "images"
PLATE, WIDTH, SECONDS = "BR00117010", 1280, 90.0
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
KEYS = {"Nuclei": "ObjectNumber", "Cells": "Parent_Nuclei", "Cytoplasm": "Parent_Nuclei"}


def make_plate(folder: Path) -> Path:
    """A plate of 384 wells: fewer cells at the edge and along a dilution, and three sources that are damaged."""
    write_csv_sites(tables(PlateShape(plate=PLATE, wells=384, sites=1, cells=60)), folder)
    for site in folder.iterdir():
        well = site.name.split("-")[1]
        row, column = ord(well[0]) - 65, int(well[1:]) - 1
        edge = 0.75 if row in (0, 15) or column in (0, 23) else 1.0
        dose = 1 - 0.85 / (1 + 2.0 ** (row - 9)) if column in (5, 6, 15, 16) else 1.0
        _thin(site, edge * dose)
    sites = sorted(folder.iterdir())
    (sites[77] / "Cells.csv").write_bytes(b"")
    (sites[203] / "Image.csv").write_bytes(b"ImageNumber,Metadata_Plate\n")
    (sites[310] / "Nuclei.csv").write_bytes(b"ImageNumber\n")
    return folder


def _thin(site: Path, share: float) -> None:
    """Keep a share of the nuclei of a site, and what belongs to them."""
    counts = {}
    for name, key in KEYS.items():
        with (site / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            head, *rows = csv.reader(file)
        if name == "Nuclei":
            most = max(round(len(rows) * share), 2)
        rows = [row for row in rows if int(row[head.index(key)]) <= most]
        counts[f"Count_{name}"] = str(len(rows))
        _write(site / f"{name}.csv", [head, *rows])
    with (site / "Image.csv").open(newline="", encoding="utf-8") as file:
        head, row = csv.reader(file)
    _write(site / "Image.csv", [head, [counts.get(name, value) for name, value in zip(head, row, strict=True)]])


def _write(path: Path, rows: list[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


@contextmanager
def opened(profile: Path) -> Iterator[Any]:
    """A browser."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for flag in (*FLAGS, f"--window-size={WIDTH},1000", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield browser
    finally:
        browser.quit()


def until(condition: Callable[[], Any]) -> Any:
    """What the condition gives, once it gives something."""
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError("the page does not show what was waited for")
        time.sleep(0.2)
    return found


def take(browser: Any, name: str, height: int, top: int = 0) -> None:
    """A picture of the page from `top` down, with few colours so that it is small."""
    size = {"width": WIDTH, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_script(f"window.scrollTo({{top: {top}, behavior: 'instant'}})")
    time.sleep(2)  # lets the page draw itself anew; nothing is measured
    picture = Image.open(BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(IMAGES / name, optimize=True)
    print(f"{name}: {picture.size[0]} x {picture.size[1]}, {(IMAGES / name).stat().st_size / 1024:.0f} KiB")


def says(browser: Any, words: str) -> bool:
    """Whether the page shows these words."""
    return words in str(browser.execute_script("return document.body.innerText"))


def main() -> None:
    """Make every picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "plates")
    parser.add_argument("--port", type=int, default=4297)
    given = parser.parse_args()
    given.folder.mkdir(parents=True)
    home = Path(tempfile.mkdtemp(prefix="screenshots-"))
    os.environ["PREFECT_CYTOTABLE_HOME"] = str(home / "state")
    state = server.start(given.port, home=home / "server")
    try:
        plate = make_plate(given.folder / PLATE)
        command = [sys.executable, "-m", "prefect_cytotable.flows.cli", "convert", str(plate), "cells.parquet"]
        done = subprocess.run(
            [*command, "--chunk-size", "1200", "--cast", "float=float32"],
            cwd=given.folder,
            env={**os.environ, "PREFECT_API_URL": state.url},
            stderr=subprocess.PIPE,
            text=True,
            check=True,
        )
        print(done.stderr)
        address = re.search(r"Flow run: (\S+)", done.stderr)
        assert address is not None
        pictures(address[1], given.folder / "cells.report.html", home / "browser")
    finally:
        server.stop()
        shutil.rmtree(given.folder)
        shutil.rmtree(home, ignore_errors=True)


def pictures(run: str, report: Path, profile: Path) -> None:
    """Of the run, of its report as an artifact, and of the page beside the output."""
    with opened(profile) as browser:
        browser.get(run)
        until(lambda: says(browser, "rows: "))
        time.sleep(4)  # the timeline moves until it has found its place
        tab = "[...document.querySelectorAll('li, button, a')].find(one => one.textContent.trim() === 'Artifacts')"
        browser.execute_script(f"{tab}.click()")
        until(lambda: says(browser, "skipped-sources"))
        take(browser, "ui-run.png", 1010)
        link = "[...document.querySelectorAll('a')].find(one => one.textContent.includes('conversion-report')).href"
        browser.get(browser.execute_script(f"return {link}"))
        until(lambda: says(browser, "How to open it"))
        take(browser, "ui-artifact.png", 900)
        browser.get(report.as_uri())
        take(browser, "report.png", browser.execute_script("return document.getElementById('rows').offsetTop"))
        chunks = browser.execute_script("return document.getElementById('chunks').offsetTop - 20")
        take(browser, "report-chunks.png", 700, chunks)


if __name__ == "__main__":
    main()
