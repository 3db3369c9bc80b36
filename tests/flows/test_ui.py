"""What one sees: a run in Prefect's UI, and the report, each opened by a real browser; all against one real server."""

from __future__ import annotations

import json
import logging
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow.parquet as pq
import pytest
from ears import Ear
from plates import edited, sites_of
from prefect import flow, runtime
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import Artifact
from prefect.settings import PREFECT_API_URL, temporary_settings
from servers import Served
from waiting import HOST, SECONDS, until

from prefect_cytotable.flows import artifacts
from prefect_cytotable.flows.artifacts import Pace, Shown, story, watched
from prefect_cytotable.tasks.core.demo import PlateShape
from prefect_cytotable.tasks.core.model import Account, Cause, ChunkResult, Note, Options, Report
from prefect_cytotable.tasks.core.presets import load_preset
from prefect_cytotable.tasks.quiet import LOGGER, quieten

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the local server is for POSIX systems")

SECRET = "TOPSECRET"
PLATE = PlateShape(plate="BR7", wells=30, sites=1, cells=9)


@dataclass(frozen=True)
class Seen:
    """A finished run: its server, its id, what it told and where its output lies."""

    client: SyncPrefectClient
    url: str
    run: UUID
    told: list[str]
    output: Path

    @property
    def rows(self) -> int:
        count: int = pq.read_metadata(self.output).num_rows
        return count

    def artifacts(self, run: UUID | None = None) -> dict[str, Artifact]:
        wanted = ArtifactFilterFlowRunId(any_=[run or self.run])
        found = self.client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=wanted))
        return {str(one.key): one for one in found}


@pytest.fixture(scope="module")
def seen(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """One run of a plate with two bad sources, whose folder's name holds something like a credential."""
    folder = tmp_path_factory.mktemp("seen")
    source = sites_of(folder / f"BR7 sig={SECRET}", PLATE)
    first, second, third, *_ = sorted(source.iterdir())
    (first / "Cells.csv").write_bytes(b"")
    (second / "Nuclei.csv").write_bytes(b"\xff\xfe\x00")
    edited(third / "Cells.csv", lambda rows: [row[:-1] for row in rows])
    environment = served.variables(PREFECT_API_URL=served.url)
    command = [sys.executable, "-m", "prefect_cytotable.flows.cli", "convert", str(source), "cells.parquet"]
    done = subprocess.run(
        [*command, "--chunk-size", "25", "--cast", "float=float32", "--workers", "2"],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = served.flow_run(done.stderr)
    return Seen(served.client, served.url, run.id, done.stderr.splitlines(), folder / "cells.parquet")


def test_tags_name_and_artifacts_of_a_run(seen: Seen) -> None:
    run = seen.client.read_flow_run(seen.run)
    assert run.name == "BR7 sig=*** with cellprofiler_csv"
    assert run.tags == ["cytotable", "plate:BR7 sig=***", "preset:cellprofiler_csv"]
    found = seen.artifacts()
    assert set(found) == {"conversion-progress", "conversion-report", "row-account", "schema", "skipped-sources"}
    assert all(re.fullmatch(r"[a-z0-9-]+", key) for key in found)

    progress = found["conversion-progress"]
    assert float(str(progress.data)) == 100
    chunks = seen.told[-1].split(" ")[0]
    assert str(progress.description).startswith(f"**{chunks} of {chunks} chunks**, ")
    assert "cells/s, done after" in str(progress.description)

    text = str(found["conversion-report"].data)
    assert text.startswith(f"# {seen.rows:,} cells\n")
    assert f"- `{seen.output}`: {seen.rows:,} rows x " in text
    assert f"- `{seen.output.with_name('cells.report.html')}`: " in text
    assert "## Provenance" in text

    skipped = json.loads(str(found["skipped-sources"].data))
    assert sorted(one["table"] for one in skipped) == ["cells", "nuclei"]
    assert "the file is empty" in {one["cause"] for one in skipped}
    assert all(one["source"].endswith("sig=***") for one in skipped)
    schema = json.loads(str(found["schema"].data))
    assert len(schema) == pq.read_metadata(seen.output).num_columns
    absent = [one for one in schema if "absent from 1 of " in one["finding"]]
    assert [one["table"] for one in absent] == ["Cells"]
    assert all(one["type"] == "float" and "cast to float as asked" in one["finding"] for one in absent)
    assert [bool(one["finding"]) for one in schema] == sorted((bool(one["finding"]) for one in schema), reverse=True)


def test_the_python_in_the_report_opens_the_output(seen: Seen) -> None:
    text = str(seen.artifacts()["conversion-report"].data)
    blocks = re.findall(r"```python\n(.*?)\n```", text, re.DOTALL)
    assert [one.split("\n")[0] for one in blocks] == [
        "import pandas as pd",
        "import pyarrow.dataset as ds",
        "import duckdb",
    ]
    for block in blocks[1:]:  # pandas reads as pyarrow does, and would take long to import
        names: dict[str, Any] = {}
        exec(block.replace("print(", "told = ("), names)
        if "cells" in names:
            assert names["cells"].count_rows() == seen.rows
    for module in ("pandas",):
        assert f"pd.read_parquet('{seen.output}')" in blocks[0], module


def test_the_log_is_a_short_story_and_nothing_tells_the_secret(seen: Seen) -> None:
    def told() -> list[Any] | None:
        wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[seen.run]))
        logs = seen.client.read_logs(log_filter=wanted, limit=200)
        return (
            logs
            if any(one.message.startswith("Finished in state") and one.task_run_id is None for one in logs)
            else None
        )

    logs = until(told)
    lines = [one.message for one in logs if one.level >= logging.INFO]
    assert 10 < len(lines) < 30, lines
    assert sum(line == f"rows: {line[6:]}" and line.endswith("dropped") for line in lines) == 1
    assert any(line.startswith(f"wrote {seen.output}: {seen.rows:,} rows") for line in lines)
    assert sum("Finished in state" in line for line in lines) <= 8  # six stages, some of them twice, and the run
    named = [one.name for one in seen.client.read_task_runs()]
    shown = [*lines, *named, *seen.told, seen.output.with_name("cells.report.html").read_text()]
    shown += [str(one.data) + str(one.description) for one in seen.artifacts().values()]
    assert any("sig=***" in one for one in shown)
    assert not [one for one in shown if SECRET in one]


def chunk(number: int, rows: int, reused: bool = False) -> ChunkResult:
    return ChunkResult(f"key{number}", number, accounts=(Account("a", rows, rows),), reused=reused)


OPTIONS = Options("/data/BR7.sqlite", "/data/out.parquet", "/data/work", load_preset("cellprofiler_sqlite"), 1 << 30)


def test_the_progress_moves_while_chunks_are_converted(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "UPDATE_SECONDS", 0.05)
    known: dict[str, UUID] = {}

    def shown(percent: float) -> str:
        def there() -> str | None:
            one = seen.artifacts(known["run"]).get("conversion-progress")
            return str(one.description) if one is not None and float(str(one.data)) == percent else None

        found: str = until(there)
        return found

    @flow(name="watched")
    def body() -> None:
        known["run"] = UUID(str(runtime.flow_run.id))
        with watched(Ear(), OPTIONS) as progress:
            progress.start(4, 1000)
            assert shown(0.0) == "**0 of 4 chunks**, 0 of about 1,000 cells"
            progress.advance(chunk(0, 300, reused=True))
            assert shown(25.0).startswith("**1 of 4 chunks** (1 done before), 300 of about 1,000 cells")
            progress.advance(chunk(1, 200))
            assert re.search(r"500 of about 1,000 cells, [\d,]+ cells/s, .* left$", shown(50.0))
            progress.finish()
            progress.start(5, 500)  # planned again: the same artifact
            progress.advance(chunk(0, 100))
            assert shown(20.0).startswith("**1 of 5 chunks**, 100 of about 500 cells")
            for number in range(1, 5):
                progress.advance(chunk(number, 101))
            progress.finish()
        assert shown(100.0).startswith("**5 of 5 chunks**, 504 cells, ")

    body()
    made = seen.client.read_artifacts(
        artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[known["run"]]))
    )
    assert len(made) == 1
    assert seen.client.read_flow_run(known["run"]).tags == ["cytotable", "plate:BR7", "preset:cellprofiler_sqlite"]


def test_a_silent_server_holds_up_nothing_and_is_told_of_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(artifacts, "END_SECONDS", 0.5)
    with socket.socket() as silent:
        silent.bind((HOST, 0))
        silent.listen()
        with temporary_settings({PREFECT_API_URL: f"http://{HOST}:{silent.getsockname()[1]}/api"}):
            ear = Ear()
            shown = Shown(ear, "00000000-0000-0000-0000-000000000000", OPTIONS)
            for _ in range(2):
                shown.start(3, 30)
                for number in range(3):
                    shown.advance(chunk(number, 10))
                shown.finish()
    assert len(ear.results) == 6
    (line,) = ear.said
    assert line.startswith("The server was not told the progress: ")


def test_a_pace_tells_nothing_that_it_does_not_know() -> None:
    assert Pace(0, 0).text() == "**0 of 0 chunks**, 0 cells, done after 0 s"
    assert Pace(0, 0).percent == 100
    assert "cells/s" not in Pace(5, 100, 2, 40, 0, 0, 3.0).text()
    assert "left" not in Pace(5, 100, 2, 40, 0, 0, 3.0).text()


def test_a_long_report_is_short_in_the_log() -> None:
    notes = tuple(Note(f"Cells.{number}", "values are odd", 1) for number in range(50))
    accounts = tuple(Account(str(one), 1, 0, ((cause, 1),)) for one, cause in enumerate(Cause))
    warnings = tuple(f"warning {number}" for number in range(30))
    report = Report("/out", (), accounts, (), (), notes, warnings, (), (), 1, 0, 1.0)
    lines = story(report)
    assert len(lines) == artifacts.STORY
    assert lines[0].startswith("rows: ")
    assert lines[-1] == "1 chunk(s), 1.0 s"
    assert "more line(s): the artifact conversion-report has them" in lines[-3]


def test_only_the_routine_of_chunks_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    quieten()
    logger = logging.getLogger(LOGGER)
    wanted = [
        ("Finished in state Completed()", "convert_chunks", logging.INFO, False),
        ("Finished in state Cached(type=COMPLETED)", "convert_chunk", logging.INFO, False),
        ("Finished in state Completed()", "gather", logging.INFO, True),
        ("Finished in state Completed()", "convert_my_own", logging.INFO, True),
        ("Finished in state Failed('bad')", "convert_chunk", logging.ERROR, True),
        ("Retry 1/2 will start", "convert_chunk", logging.INFO, True),
    ]
    for message, name, level, told in wanted:
        record = logger.makeRecord(LOGGER, level, "", 0, message, (), None, extra={"task_name": name})
        assert bool(logger.filter(record)) is told, message
    before = len(logger.filters)
    quieten()
    assert len(logger.filters) == before


# --- by a browser -------------------------------------------------------------------------------------------

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--window-size=1280,1000"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium, where it and its driver are installed."""
    webdriver = pytest.importorskip("selenium.webdriver")
    program, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("no Chromium with its driver is installed (Debian: chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    one = webdriver.Chrome(options=options, service=service)
    one.set_page_load_timeout(SECONDS)
    try:
        yield one
    finally:
        one.quit()


def text_of(browser: Any) -> str:
    return str(browser.execute_script("return document.body.innerText"))


def test_the_run_page_shows_the_run(seen: Seen, browser: Any) -> None:
    page = f"{seen.url.removesuffix('/api')}/runs/flow-run/{seen.run}"
    browser.get(page)
    counts = next(line for line in seen.told if line.startswith("rows: "))
    until(lambda: counts in text_of(browser))
    text = text_of(browser)
    for wanted in ("BR7 sig=*** with cellprofiler_csv", "plate:BR7 sig=***", "preset:cellprofiler_csv", "Completed"):
        assert wanted in text
    assert SECRET not in text

    tab = "[...document.querySelectorAll('li, button, a')].find(one => one.textContent.trim() === 'Artifacts')"
    browser.execute_script(f"{tab}.click()")
    until(lambda: "skipped-sources" in text_of(browser))
    assert f"{seen.rows:,} cells in " in text_of(browser)
    report = seen.artifacts()["conversion-report"]
    browser.get(f"{seen.url.removesuffix('/api')}/artifacts/artifact/{report.id}")
    until(lambda: "How to open it" in text_of(browser))
    text = text_of(browser)
    assert re.search(rf"^{seen.rows:,} cells$", text, re.MULTILINE)
    assert f"{seen.output}: {seen.rows:,} rows x" in text
    assert "the file is empty" in text


def active(browser: Any, script: str) -> Any:
    return browser.execute_script(f"const it = document.activeElement; return {script}")


def press(browser: Any, *keys: str) -> None:
    from selenium.webdriver import ActionChains

    for key in keys:
        ActionChains(browser).send_keys(key).perform()


def test_the_report_is_read_with_a_browser_and_a_keyboard(seen: Seen, browser: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    browser.get_log("browser")
    browser.get(seen.output.with_name("cells.report.html").as_uri())
    table = pq.read_table(seen.output, columns=["Metadata_Well"])
    wells: dict[str, int] = {}
    for well in table["Metadata_Well"].to_pylist():
        wells[well] = wells.get(well, 0) + 1
    text = text_of(browser)
    assert f"{seen.rows:,}" in text
    assert f"BR7: {seen.rows:,} cells in {len(wells)} of 384 wells" in text
    assert SECRET not in text

    press(browser, Keys.TAB)
    assert active(browser, "it.className") == "skip"
    press(browser, Keys.ENTER)
    until(lambda: active(browser, "it.id") == "main")
    for _ in range(30):
        press(browser, Keys.TAB)
        if active(browser, "it.dataset.at") == "0 0":
            break
    told = "return document.querySelector('.told').textContent"

    def spoken(well: str) -> str:
        return f"Well {well}: {f'{wells[well]} cells' if well in wells else 'no cells'}"

    assert browser.execute_script(told) == spoken("A01")
    moves = (
        (Keys.ARROW_RIGHT, "A02"), (Keys.ARROW_RIGHT, "A03"), (Keys.ARROW_DOWN, "B03"), (Keys.ARROW_LEFT, "B02"),
        (Keys.END, "B24"), (Keys.ARROW_RIGHT, "B24"), (Keys.HOME, "B01"), (Keys.PAGE_DOWN, "P01"),
        (Keys.PAGE_UP, "A01"),
    )  # fmt: skip
    for key, well in moves:
        press(browser, key)
        assert browser.execute_script(told) == spoken(well)
        assert active(browser, "it.getAttribute('aria-label')") == spoken(well).removeprefix("Well ")
    assert browser.execute_script("return document.querySelectorAll('.map td[tabindex=\"0\"]').length") == 1

    column = (
        "return [...document.querySelector('#chunks table').tBodies[0].rows].map(row => Number(row.cells[2].dataset.v))"
    )
    button = browser.execute_script("return document.querySelectorAll('#chunks thead button')[2]")
    assert browser.execute_script(column) == sorted(browser.execute_script(column), reverse=True)
    browser.execute_script("arguments[0].focus()", button)
    press(browser, Keys.ENTER)
    assert browser.execute_script(column) == sorted(browser.execute_script(column))
    assert active(browser, "it.parentElement.getAttribute('aria-sort')") == "ascending"

    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert browser.get_log("browser") == []
    colours = "[...document.querySelectorAll('.map td')].map(one => getComputedStyle(one).backgroundColor)"
    assert (
        len(set(browser.execute_script(f"return {colours}"))) > 4
    )  # the style is applied: the page's own policy lets it
    ground = "return getComputedStyle(document.body).backgroundColor"
    light = browser.execute_script(ground)
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    assert browser.execute_script(ground) != light
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
