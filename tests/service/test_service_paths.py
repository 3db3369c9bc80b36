"""The documented ways to operate, walked through with real processes: servers on SQLite and PostgreSQL, a worker that
takes runs of `deployments/prefect.yaml`, `prefect-cytotable serve`, a Dask scheduler with workers.

Everything is started once, at the same time; a test asks for what it needs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from ears import Ear
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.objects import FlowRun
from prefect.concurrency.sync import concurrency
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings
from service_tools import ROOT, Processes, listens, postgres, processes, variables
from waiting import SECONDS, free_port, until

from prefect_cytotable.flows import convert, server
from prefect_cytotable.flows.limits import machine
from prefect_cytotable.flows.telling import tell_all
from prefect_cytotable.tasks.core.demo import PlateShape, tables, write_sqlite
from prefect_cytotable.tasks.core.roots import ENDPOINTS, ROOTS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the scripts are for POSIX systems")

SQLITE = "cellprofiler_sqlite"
POOL = "my-work-pool"
"""As in deployments/prefect.yaml."""


@dataclass
class Site:
    """A folder that runs may use, one that they may not, and what is running.

    Attributes:
        expected: The bytes that every way has to give.
    """

    folder: Path
    started: Processes
    scheduler: str
    expected: bytes
    urls: dict[str, str] = field(default_factory=dict)

    @property
    def allowed(self) -> Path:
        return self.folder / "allowed"

    @property
    def plate(self) -> Path:
        return self.allowed / "plate.sqlite"

    def variables(self, name: str, **more: str) -> dict[str, str]:
        """The environment of what works for a server; its own home, as on another machine."""
        own = {"PREFECT_API_URL": self.urls[name], "PREFECT_HOME": str(self.folder / f"home-{name}")}
        own |= {"PREFECT_CYTOTABLE_HOME": str(self.folder / "none")}
        limits = {ROOTS: str(self.allowed), ENDPOINTS: self.scheduler}
        return variables(**(own | limits | more))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two servers and a Dask cluster, all starting at once."""
    folder = tmp_path_factory.mktemp("service")
    (folder / "allowed").mkdir()
    plate = write_sqlite(tables(PlateShape(wells=2, sites=2)), folder / "allowed" / "plate.sqlite")
    expected = folder / "expected.parquet"
    with pytest.MonkeyPatch.context() as patch, temporary_settings(restore_defaults={PREFECT_API_URL}):
        patch.setenv("PREFECT_CYTOTABLE_HOME", str(folder / "none"))
        convert(plate, expected, preset=SQLITE, chunk_size=40)
    with processes(folder / "logs") as started:
        scheduler = f"tcp://127.0.0.1:{free_port()}"
        yield Site(folder, started, scheduler, expected.read_bytes())


@pytest.fixture(scope="module")
def servers(site: Site) -> Iterator[Site]:
    """On SQLite by `prefect-cytotable server start`, on PostgreSQL by `deployments/start-server.sh`."""
    home = site.folder / "sqlite"
    with processes(site.folder / "postgres") as database, postgres(database) as address:
        port = free_port()
        script = [str(ROOT / "deployments" / "start-server.sh"), "127.0.0.1", str(port)]
        env = variables(PREFECT_HOME=str(site.folder / "pg"), PREFECT_API_DATABASE_CONNECTION_URL=address)
        on_postgres = site.started.start("server", script, env)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PREFECT_CYTOTABLE_HOME", str(site.folder / "state"))
            try:
                site.urls["sqlite"] = server.start(free_port(), home=home, timeout=240).url
                site.urls["postgres"] = f"http://127.0.0.1:{port}/api"
                site.started.wait_for("server", "Check out the dashboard", on_postgres)
                until(lambda: listens(port), "the server on PostgreSQL")
                yield site
            finally:
                patch.setenv("PREFECT_CYTOTABLE_HOME", str(site.folder / "state"))
                server.stop()
                site.started.end()  # before its database


@pytest.fixture(scope="module")
def cluster(site: Site) -> Iterator[str]:
    """A Dask scheduler and two workers, in processes of their own."""
    dask = [sys.executable, "-m", "dask"]
    port = site.scheduler.rpartition(":")[2]
    env = variables(PREFECT_HOME=str(site.folder / "home-dask"), **{ROOTS: str(site.allowed)})
    site.started.start("scheduler", [*dask, "scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard"], env)
    worker = [*dask, "worker", site.scheduler, "--no-nanny", "--nthreads", "1", "--no-dashboard"]
    for name in ("worker-a", "worker-b"):
        site.started.start(name, [*worker, "--name", name], env)
    until(lambda: listens(int(port)), "the scheduler")
    yield site.scheduler


@pytest.fixture(scope="module")
def worker(servers: Site) -> Iterator[Site]:
    """`deployments/start-worker.sh` on the PostgreSQL server, with the deployments of prefect.yaml."""
    env = servers.variables("postgres")
    started = servers.started.start("worker", [str(ROOT / "deployments" / "start-worker.sh"), POOL, "1"], env)
    servers.started.wait_for("worker", "started!", started)
    file = ROOT / "deployments" / "prefect.yaml"
    command = [sys.executable, "-m", "prefect", "deploy", "--all", "--no-prompt", "--prefect-file", str(file)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=servers.folder, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    yield servers


@pytest.fixture(scope="module")
def serving(servers: Site) -> Iterator[Site]:
    """`prefect-cytotable serve` on the SQLite server, which it finds by itself."""
    env = servers.variables("sqlite", PREFECT_CYTOTABLE_HOME=str(servers.folder / "state"))
    del env["PREFECT_API_URL"], env[ROOTS]
    command = [sys.executable, "-m", "prefect_cytotable.flows.entry", "serve", "--root", str(servers.allowed)]
    process = servers.started.start("serve", command, env)
    servers.started.wait_for("serve", "prefect deployment run", process)
    yield servers


@pytest.fixture
def on(servers: Site, request: pytest.FixtureRequest) -> Iterator[SyncPrefectClient]:
    """A client of the server that the test's marker names."""
    marker = request.node.get_closest_marker("usefixtures")
    name = "postgres" if marker is not None and "worker" in marker.args else "sqlite"
    with (
        temporary_settings({PREFECT_API_URL: servers.urls[name], PREFECT_HOME: servers.folder / "user"}),
        get_client(sync_client=True) as client,
    ):
        yield client
        tell_all()


def run_of(client: SyncPrefectClient, deployment: str, parameters: dict[str, Any], **more: Any) -> UUID:
    found = client.read_deployment_by_name(deployment)
    return client.create_flow_run_from_deployment(found.id, parameters=parameters, **more).id


def ended(client: SyncPrefectClient, run: UUID, site: Site, log: str) -> FlowRun:
    def finished() -> FlowRun | None:
        found = client.read_flow_run(run)
        return found if found.state is not None and found.state.is_final() else None

    try:
        found: FlowRun = until(finished, f"the run {run}")
    except AssertionError as error:
        raise AssertionError(f"{error}; {log} wrote: {site.started.log(log)[-3000:]}") from error
    return found


def settings_of(url: str) -> dict[str, Any]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"{url}/admin/settings", timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


@pytest.mark.parametrize("name", ["sqlite", "postgres"])
def test_a_fresh_server_writes_in_batches(servers: Site, name: str) -> None:
    found = settings_of(servers.urls[name])["server"]
    assert found["services"]["task_run_recorder"]["batch_size"] == 100
    assert found["services"]["event_persister"]["batch_size"] == 200
    assert found["analytics_enabled"] is False
    home = servers.folder / {"sqlite": "sqlite", "postgres": "pg"}[name]
    assert (home / "prefect.db").exists() == (name == "sqlite")


@pytest.mark.usefixtures("worker")
def test_a_worker_takes_runs_of_the_deployment(worker: Site, on: SyncPrefectClient) -> None:
    """Two runs, of which it may do one at a time; what is outside the roots is refused, whatever a run asks for."""
    out = worker.allowed / "worker.parquet"
    good = {"source_path": str(worker.plate), "dest_path": str(out), "preset": SQLITE, "chunk_size": 40}
    secret = worker.folder / "secret.sqlite"
    secret.write_bytes(worker.plate.read_bytes())
    runs = [run_of(on, "convert/convert", good | {"task_runner": "concurrent", "workers": None})]
    loose = {"env": {ROOTS: "/"}, "command": "true", "working_dir": "/"}
    runs.append(run_of(on, "convert/convert", good | {"source_path": str(secret)}, job_variables=loose))
    first, second = (ended(on, run, worker, "worker") for run in runs)
    assert first.state_name == "Completed", first.state
    assert first.name == f"plate.sqlite with {SQLITE}"
    assert out.read_bytes() == worker.expected
    assert second.state_name == "Failed"
    assert second.state is not None
    assert ROOTS in (second.state.message or "")
    times = sorted((one.start_time, one.end_time) for one in (first, second))
    assert times[0][1] <= times[1][0]


@pytest.mark.usefixtures("serving")
def test_what_is_served_runs_on_a_dask_cluster(serving: Site, cluster: str, on: SyncPrefectClient) -> None:
    out = serving.allowed / "served.parquet"
    given = {"source_path": str(serving.plate), "dest_path": str(out), "preset": SQLITE, "chunk_size": 40}
    run = ended(on, run_of(on, "convert/convert", given | {"task_runner": cluster}), serving, "serve")
    assert run.state_name == "Completed", (run.state, serving.started.log("serve")[-3000:])
    assert out.read_bytes() == serving.expected


@pytest.mark.usefixtures("serving")
def test_the_form_has_the_runner_of_the_deployment_and_refuses_nonsense(on: SyncPrefectClient, serving: Site) -> None:
    from prefect.exceptions import PrefectHTTPStatusError

    found = on.read_deployment_by_name("fetch-obs/fetch")
    assert found.entrypoint == "prefect_cytotable.flows.fetch_flow.fetch_flow"
    for wrong in ({"unmatched": "dorp"}, {"workers": 0}, {"join": "perhaps"}):
        given = {"source_path": str(serving.plate), "dest_path": str(serving.allowed / "none.parquet")}
        with pytest.raises(PrefectHTTPStatusError, match=next(iter(wrong))):
            run_of(on, "convert/convert", given | wrong)


def test_a_cluster_of_jobs_is_started_for_a_run(
    serving: Site, on: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same way as SLURM and its like: job scripts, here run by this machine."""
    import dask

    pytest.importorskip("dask_jobqueue")  # before its settings change: where that imports it, its defaults go with them
    out = serving.folder / "jobs.parquet"
    monkeypatch.delenv(ROOTS, raising=False)
    free = {"dashboard_address": "127.0.0.1:0"}
    told = {"cores": 1, "memory": "1GB", "scheduler-options": free, "local-directory": str(serving.folder)}
    with dask.config.set({f"jobqueue.local.{name}": value for name, value in told.items()}):
        convert(serving.plate, out, preset=SQLITE, chunk_size=40, task_runner="dask:local-jobs", workers=1)
    assert out.read_bytes() == serving.expected


def test_a_run_waits_for_room_in_the_limit_of_its_machine(
    serving: Site, on: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = serving.folder / "limited.parquet"
    monkeypatch.delenv(ROOTS, raising=False)
    name = f"cytotable-machine-{machine()}"
    on.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
    heard = Ear()
    arguments = {"preset": SQLITE, "chunk_size": 40, "progress": heard}
    try:
        with ThreadPoolExecutor(1) as pool:
            with concurrency(name, occupy=1, strict=True):
                run = pool.submit(copy_context().run, partial(convert, serving.plate, out, **arguments))
                until(lambda: any(name in line for line in heard.said) or run.done(), "the run")
                time.sleep(1)
                assert not run.done()
                assert heard.chunks == 0
            run.result(timeout=SECONDS)
    finally:
        on.delete_global_concurrency_limit_by_name(name)
    assert out.read_bytes() == serving.expected
