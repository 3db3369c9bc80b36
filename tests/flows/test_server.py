"""The local server, really started; the address that a run would use, held against Prefect's own answer."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from waiting import clear, free_port

from prefect_cytotable.flows import connection, remembered, server
from prefect_cytotable.flows.connection import Connection, Origin
from prefect_cytotable.flows.remembered import ServerError, ServerState
from prefect_cytotable.tasks.core.errors import CytotableError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the local server is for POSIX systems")

URL = "http://a.example:4200/api"
OTHER = "http://b.example:4200/api"
LOCAL = "http://127.0.0.1:4200/api"


def get(url: str) -> str:
    """Fetch a page of this machine, whatever proxy the environment names."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=20) as answer:
        assert answer.status == 200
        text: str = answer.read().decode("utf-8")
        return text


@pytest.fixture(autouse=True)
def own_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees the state, the profile or the settings of the person who runs it."""
    clear(monkeypatch, "PREFECT_")
    folder = tmp_path / "state"
    monkeypatch.setenv("PREFECT_CYTOTABLE_HOME", str(folder))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect-home"))
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is none of ours, in a session of its own; it ends when its standard input does."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE, start_new_session=True
    )
    yield process
    process.communicate(timeout=20)


def living_members(group: int) -> list[str]:
    """The processes of a group; those that ended and wait for the system to fetch them do not count."""
    rows = subprocess.run(["ps", "-A", "-o", "pgid=,stat=,pid="], capture_output=True, text=True, check=True)
    fields = [row.split() for row in rows.stdout.splitlines()]
    return [pid for of_group, status, pid in fields if int(of_group) == group and not status.startswith("Z")]


def remember(folder: Path, state: ServerState) -> Path:
    folder.mkdir(exist_ok=True)
    remembered.write_state(folder, state)
    return remembered.state_file(folder)


def fake_state(folder: Path, pid: int, identity: str) -> ServerState:
    return ServerState(pid, identity, f"http://{remembered.HOST}:{free_port()}/api", folder / "server.log")


# --- import -------------------------------------------------------------------------------------------------


def test_neither_the_import_nor_the_question_loads_prefect(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OTHER=1\n")
    program = (
        "import sys; from prefect_cytotable.flows import connection, server; connection.configured_api_url(); "
        "print([name for name in sys.modules if name.partition('.')[0] == 'prefect'])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# --- precedence ---------------------------------------------------------------------------------------------

PROFILES = f"""
active = "remote"
[profiles.remote]
PREFECT_API_URL = "{URL}"
[profiles.other]
PREFECT_API_URL = "{OTHER}"
[profiles.ephemeral]
PREFECT_SERVER_EPHEMERAL_ENABLED = "true"
"""
HOME = "prefect-home/profiles.toml"
PROJECT = f'[tool.prefect.api]\nurl = "{OTHER}"\n'

# name, files, variables, what is expected
Case = tuple[str, dict[str, str], dict[str, str], Connection | None]
CASES: list[Case] = [
    ("nothing", {}, {}, None),
    ("variable", {".env": f"PREFECT_API_URL={OTHER}\n"}, {"PREFECT_API_URL": URL}, Connection(URL, Origin.ENVIRONMENT)),
    ("variable in lower case", {}, {"prefect_api_url": URL}, Connection(URL, Origin.ENVIRONMENT)),
    ("empty variable hides the profile", {HOME: PROFILES}, {"PREFECT_API_URL": ""}, None),
    (
        "dotenv before prefect.toml",
        {".env": f'export PREFECT_API_URL="{URL}" # ours\n', "prefect.toml": f'[api]\nurl = "{OTHER}"\n'},
        {},
        Connection(URL, Origin.DOTENV),
    ),
    (
        "prefect.toml before pyproject",
        {"prefect.toml": f'[api]\nurl = "{URL}"\n', "pyproject.toml": PROJECT},
        {},
        Connection(URL, Origin.PREFECT_TOML),
    ),
    ("pyproject before profile", {"pyproject.toml": PROJECT, HOME: PROFILES}, {}, Connection(OTHER, Origin.PYPROJECT)),
    ("active profile", {HOME: PROFILES}, {}, Connection(URL, Origin.PROFILE)),
    ("chosen profile", {HOME: PROFILES}, {"PREFECT_PROFILE": "other"}, Connection(OTHER, Origin.PROFILE)),
    ("ephemeral profile", {HOME: PROFILES}, {"PREFECT_PROFILE": "ephemeral"}, None),
    ("unknown profile", {HOME: PROFILES}, {"PREFECT_PROFILE": "gone"}, None),
    ("no profiles in a named home", {}, {"PREFECT_PROFILE": "local"}, None),
    (
        "profiles path in a variable",
        {"mine.toml": PROFILES},
        {"PREFECT_PROFILES_PATH": "mine.toml"},
        Connection(URL, Origin.PROFILE),
    ),
    (
        "profiles path in dotenv",
        {"mine.toml": PROFILES, ".env": "PREFECT_PROFILES_PATH=mine.toml\n"},
        {},
        Connection(URL, Origin.PROFILE),
    ),
    (
        "profiles path in prefect.toml",
        {"mine.toml": PROFILES, "prefect.toml": 'profiles_path = "mine.toml"\n'},
        {},
        Connection(URL, Origin.PROFILE),
    ),
    (
        "profiles path in pyproject",
        {"mine.toml": PROFILES, "pyproject.toml": '[tool.prefect]\nprofiles_path = "mine.toml"\n'},
        {},
        Connection(URL, Origin.PROFILE),
    ),
    ("test mode ignores profiles", {HOME: PROFILES}, {"PREFECT_TESTING_TEST_MODE": "1"}, None),
    (
        "a default home has Prefect's own profiles",
        {},
        {"PREFECT_HOME": "", "PREFECT_PROFILE": "local"},
        Connection(LOCAL, Origin.PROFILE),
    ),
    ("the user's home", {".prefect/profiles.toml": PROFILES}, {"PREFECT_HOME": ""}, Connection(URL, Origin.PROFILE)),
]


@pytest.mark.parametrize(("name", "files", "variables", "expected"), CASES, ids=[case[0] for case in CASES])
def test_the_address_is_the_one_that_prefect_resolves(
    name: str,
    files: dict[str, str],
    variables: dict[str, str],
    expected: Connection | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.setenv("HOME", str(tmp_path))
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
        if variable == "PREFECT_HOME" and not value:
            monkeypatch.delenv(variable)

    assert connection.configured_api_url() == expected

    program = "from prefect.settings import PREFECT_API_URL; print('url=', PREFECT_API_URL.value() or '', sep='')"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == f"url={expected.url if expected else ''}"


@pytest.mark.parametrize("file", ["prefect.toml", "pyproject.toml", HOME, ".env"])
@pytest.mark.parametrize("content", [b"[api\nurl = ", b"\xff\xfe\x00", b'api = 3\nprofiles = "x"\ntool = []\n'])
def test_a_malformed_file_is_no_answer_and_no_crash(file: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    assert connection.configured_api_url(cwd=tmp_path) is None


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"PREFECT_CYTOTABLE_HOME": "/here", "XDG_STATE_HOME": "/there"}, "/here"),
        ({"XDG_STATE_HOME": "/there"}, "/there/prefect-cytotable"),
        ({"XDG_STATE_HOME": "relative"}, "/home/u/.local/state/prefect-cytotable"),
        ({}, "/home/u/.local/state/prefect-cytotable"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="the XDG folders are those of Linux")
def test_the_state_folder_is_where_the_system_keeps_such_things(variables: dict[str, str], expected: str) -> None:
    assert remembered.state_folder({"HOME": "/home/u", **variables}) == Path(expected)


# --- states that lie ----------------------------------------------------------------------------------------


def test_nothing_was_ever_started(own_state_folder: Path) -> None:
    assert server.status() is None
    assert server.stop() is None
    assert not own_state_folder.exists()  # asking leaves nothing behind


@pytest.mark.parametrize("ask", [server.status, server.stop])
def test_a_process_that_is_gone_is_forgotten(ask: Callable[[], object], own_state_folder: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(timeout=20)
    file = remember(own_state_folder, fake_state(own_state_folder, gone.pid, "then"))
    assert connection.configured_api_url() is None
    assert ask() is None
    assert not file.exists()


@pytest.mark.parametrize("ask", [server.status, server.stop])
def test_a_number_that_is_used_again_is_never_signalled(
    ask: Callable[[], object], own_state_folder: Path, bystander: subprocess.Popen[bytes]
) -> None:
    file = remember(own_state_folder, fake_state(own_state_folder, bystander.pid, "another start time"))
    assert ask() is None
    assert not file.exists()
    assert bystander.poll() is None


def test_ending_a_server_whose_number_was_used_again_spares_the_new_process(
    own_state_folder: Path, bystander: subprocess.Popen[bytes]
) -> None:
    server._end(fake_state(own_state_folder, bystander.pid, "another start time"), timeout=1.0)
    assert bystander.poll() is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"pid": "x"}',
        '{"pid": -1, "identity": "i", "url": "http://127.0.0.1:1/api", "log": "l"}',
        '{"pid": 1, "identity": "i", "url": "http://127.0.0.1:1/api", "log": "l"}',
        '{"pid": 9, "identity": "i", "url": "http://127.0.0.1:x/api", "log": "l"}',
    ],
)
def test_a_damaged_state_file_means_no_server(text: str, own_state_folder: Path) -> None:
    own_state_folder.mkdir()
    remembered.state_file(own_state_folder).write_text(text)
    assert connection.configured_api_url() is None
    assert server.stop() is None
    assert not remembered.state_file(own_state_folder).exists()


def test_a_process_has_one_identity_and_a_dead_one_none() -> None:
    mine = remembered.process_identity(os.getpid())
    assert mine is not None
    assert mine == remembered.process_identity(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    identity = remembered.process_identity(child.pid)
    assert identity is not None
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, but not fetched
    assert remembered.process_identity(child.pid) is None
    child.wait(timeout=20)


def test_a_stopped_server_is_killed_when_it_does_not_listen(own_state_folder: Path) -> None:
    program = (
        "import signal, subprocess, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "child = subprocess.Popen([sys.executable, '-c', 'import sys; print(); sys.stdin.read()'], stdin=0); "
        "print(child.pid, flush=True); sys.stdin.read()"
    )
    stubborn = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert stubborn.stdout is not None
    child = int(stubborn.stdout.readline())
    identity = remembered.process_identity(stubborn.pid)
    assert identity is not None
    remember(own_state_folder, fake_state(own_state_folder, stubborn.pid, identity))
    stopped = server.stop(timeout=0.3)
    assert stopped is not None
    stubborn.communicate(timeout=20)  # ends only when the child, which holds the pipe, closes it: as it dies
    deadline = time.monotonic() + 20
    while remembered.process_identity(child) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert remembered.process_identity(child) is None


# --- a port that is taken, a server that dies ---------------------------------------------------------------


def test_a_taken_port_is_an_error_that_names_it(own_state_folder: Path) -> None:
    with socket.socket() as other:
        other.bind((remembered.HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        other.settimeout(0)
        with pytest.raises(ServerError, match=rf"port {port} .*--port") as caught:
            server.start(port=port)
    assert isinstance(caught.value, CytotableError)
    assert not remembered.state_file(own_state_folder).exists()


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(ServerError, match="--port"):
        server.start(port=port)


def test_a_server_that_ends_at_once_shows_its_last_words(
    own_state_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prefect.py").write_text("raise SystemExit('no database today')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(ServerError, match="no database today") as caught:
        server.start(port=free_port(), timeout=60)
    assert str(own_state_folder) in str(caught.value)
    assert server.status() is None
    assert not remembered.state_file(own_state_folder).exists()


def test_a_server_that_does_not_answer_in_time_is_ended(
    own_state_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prefect.py").write_text(
        "import os, pathlib, threading\n"
        "pathlib.Path(os.environ['PID_FILE']).write_text(str(os.getpid()))\n"
        "threading.Event().wait()\n"
    )
    monkeypatch.setenv("PID_FILE", str(tmp_path / "pid"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(ServerError, match="did not answer"):
        server.start(port=free_port(), timeout=2)
    assert remembered.process_identity(int((tmp_path / "pid").read_text())) is None
    assert not remembered.state_file(own_state_folder).exists()


def test_one_start_at_a_time(own_state_folder: Path) -> None:
    with remembered.lock(own_state_folder, 0.0), pytest.raises(ServerError, match="under way"):
        server.start(port=free_port(), timeout=0.1)


def test_a_state_folder_that_cannot_be_made_is_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PREFECT_CYTOTABLE_HOME", str(tmp_path / "file" / "state"))
    with pytest.raises(ServerError, match="PREFECT_CYTOTABLE_HOME"):
        server.start(port=free_port())
    assert server.status() is None


def test_the_environment_of_the_server_is_the_users_with_our_address(tmp_path: Path) -> None:
    variables = {
        "PREFECT_API_URL": OTHER,
        "PREFECT_UI_API_URL": OTHER,
        "PREFECT_HOME": "relative",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "true",
    }
    result = server._server_environment(variables, 4321, None)
    assert result["PREFECT_API_URL"] == result["PREFECT_SERVER_UI_API_URL"] == "http://127.0.0.1:4321/api"
    assert "PREFECT_UI_API_URL" not in result
    assert result["PREFECT_HOME"] == str(tmp_path / "relative")
    assert result["PREFECT_SERVER_ANALYTICS_ENABLED"] == "true"  # the user's own word
    assert result["PREFECT_SERVER_API_PORT"] == "4321"
    assert result["PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE"] == "100"
    assert server._server_environment(variables, 4321, tmp_path)["PREFECT_HOME"] == str(tmp_path)


# --- a real one ---------------------------------------------------------------------------------------------


START = """
import json, sys
from pathlib import Path
from prefect_cytotable.flows import server
state = server.start(port=int(sys.argv[1]), home=Path(sys.argv[2]), timeout=240)
print(json.dumps([state.pid, state.already_running]))
"""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerState, Path, list[bool]]]:
    """One server, asked for by two processes at once, with folders of its own."""
    folder = tmp_path_factory.mktemp("real")
    home = folder / "prefect-home"
    with pytest.MonkeyPatch.context() as patch:
        clear(patch, "PREFECT_")
        patch.setenv("PREFECT_CYTOTABLE_HOME", str(folder / "state"))
        starters = [
            subprocess.Popen(
                [sys.executable, "-c", START, str(free_port()), str(home)], stdout=subprocess.PIPE, text=True
            )
            for _ in range(2)
        ]
        try:
            told = [json.loads(starter.communicate(timeout=300)[0]) for starter in starters]
            state = server.status()
            assert state is not None
            assert {pid for pid, _ in told} == {state.pid}
            yield state, folder, [already for _, already in told]
        finally:
            patch.setenv("PREFECT_CYTOTABLE_HOME", str(folder / "state"))
            server.stop()


@pytest.fixture
def real(
    running: tuple[ServerState, Path, list[bool]], monkeypatch: pytest.MonkeyPatch, own_state_folder: Path
) -> ServerState:
    """The module's server, with this test's environment pointing at its folders."""
    monkeypatch.setenv("PREFECT_CYTOTABLE_HOME", str(running[1] / "state"))
    return running[0]


def test_of_two_starts_at_once_one_wins(running: tuple[ServerState, Path, list[bool]]) -> None:
    assert sorted(running[2]) == [False, True]


def test_a_started_server_is_found(real: ServerState) -> None:
    assert real.responding
    assert connection.configured_api_url() == Connection(real.url, Origin.OWN_SERVER)


def test_what_the_user_configured_comes_before_our_server(real: ServerState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", URL)
    assert connection.configured_api_url() == Connection(URL, Origin.ENVIRONMENT)


def test_the_pages_talk_to_the_servers_own_port(real: ServerState) -> None:
    assert "<html" in get(real.ui_url + "/").lower()
    assert json.loads(get(real.ui_url + "/ui-settings"))["api_url"] == real.url


def test_the_server_keeps_its_database_in_the_home_that_was_given(
    real: ServerState, running: tuple[ServerState, Path, list[bool]]
) -> None:
    assert (running[1] / "prefect-home" / "prefect.db").is_file()


def test_state_and_log_are_for_the_user_alone(real: ServerState) -> None:
    for path in (real.log, remembered.state_file(remembered.state_folder())):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_second_start_returns_the_first_server(real: ServerState) -> None:
    again = server.start(port=free_port())
    assert again == replace(real, already_running=True, responding=True)


def test_a_port_with_a_foreign_server_is_refused_with_its_address(
    real: ServerState, monkeypatch: pytest.MonkeyPatch, own_state_folder: Path
) -> None:
    monkeypatch.setenv("PREFECT_CYTOTABLE_HOME", str(own_state_folder))
    with pytest.raises(ServerError, match=rf"port {real.port} .*PREFECT_API_URL={real.url}"):
        server.start(port=real.port)


def test_stop_leaves_no_process_and_no_state(real: ServerState) -> None:
    """The last test of the module's server."""
    stopped = server.stop()
    assert stopped is not None
    assert stopped.pid == real.pid
    assert remembered.process_identity(real.pid) is None
    assert living_members(real.pid) == []  # nor any child of it
    assert not remembered.state_file(remembered.state_folder()).exists()
    assert server.status() is None
    assert connection.configured_api_url() is None
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((remembered.HOST, real.port))
