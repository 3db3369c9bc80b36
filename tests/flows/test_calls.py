"""What a plain function call and its flow tell each other. That of real runs is in the tests of each flow."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import httpx
import pytest
from prefect.task_runners import ThreadPoolTaskRunner

from prefect_cytotable.flows.calls import GIVEN, Call, answered, begin, dispensable, plain
from prefect_cytotable.tasks.core.errors import ArgumentError
from prefect_cytotable.tasks.core.memory.model import Profiling
from prefect_cytotable.tasks.core.model import ChunkResult
from prefect_cytotable.tasks.core.progress import Silent


class Texts(Call[str, ChunkResult]):
    """The call of a flow."""


LOST = httpx.ConnectError("nobody answers")


def test_an_answer_that_is_known_outlives_the_server() -> None:
    call = Texts("process", Silent())

    def flow(name: str, task_runner: str) -> str:
        call.answer = f"{name} on {task_runner}"
        raise LOST

    assert answered(call, flow, {"name": "a"}) == ("a on process", LOST)


def test_what_was_not_answered_is_an_error() -> None:
    def lost(task_runner: str) -> str:
        raise LOST

    def wrong(task_runner: str) -> str:
        raise ValueError("wrong")

    for flow in (lost, wrong):
        with pytest.raises((httpx.ConnectError, ValueError)):
            answered(Texts("process", Silent()), flow, {})
    call = Texts("process", Silent(), answer="known")
    with pytest.raises(ValueError, match="wrong"):  # whatever was answered: the server is not what failed
        answered(call, wrong, {})


class Others(Call[int, ChunkResult]):
    """The call of another flow."""


def test_a_flow_takes_the_call_that_is_meant_for_it() -> None:
    begun: list[str] = []
    meant = Texts("process", Silent(), begun=lambda: begun.append("meant"))

    def outer(task_runner: str) -> str:
        assert begin(Texts(task_runner, Silent())) is meant
        other = Others(task_runner, Silent())
        assert begin(other) is other  # a flow of another kind, called without a call of its own
        inner = Others("dask", Silent())
        assert answered(inner, lambda task_runner: begin(Others(task_runner, Silent())), {}) == (inner, None)
        assert begin(Texts(task_runner, Silent())) is meant
        return "done"

    assert answered(meant, outer, {}) == ("done", None)
    assert begun == ["meant", "meant"]
    alone = Texts("process", Silent())
    assert begin(alone) is alone


def test_a_runner_that_no_parameter_can_hold() -> None:
    runner = ThreadPoolTaskRunner(max_workers=1)
    call = Texts(runner, Silent())
    assert answered(call, lambda task_runner: task_runner, {}) == (GIVEN, None)
    assert call.runner(GIVEN) is runner
    assert call.runner("process") == "process"
    with pytest.raises(ArgumentError, match="task_runner is 'given'"):  # from a form, where none was passed
        Texts(GIVEN, Silent()).runner(GIVEN)


def test_what_a_run_can_do_without() -> None:
    said: list[str] = []
    with dispensable("the table", said.append):
        raise LOST
    assert said == ["The server was not told the table: nobody answers"]
    with pytest.raises(ValueError, match="wrong"), dispensable("the table", said.append):
        raise ValueError("wrong")
    assert len(said) == 1


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (PurePosixPath("a/b"), "a/b"),
        ("text", "text"),
        (("a", "b"), ["a", "b"]),
        ({"a": 1}.keys(), ["a"]),
        ({"a": 1}, {"a": 1}),
        (None, None),
        (7, 7),
    ],
)
def test_arguments_as_a_server_stores_them(value: Any, stored: Any) -> None:
    assert plain({"name": value}) == {"name": stored}


def test_a_profile_is_stored_with_all_that_it_asks_for() -> None:
    kept = plain({"profile": Profiling(str(Path("here")), native=True)})["profile"]
    assert (kept["folder"], kept["native"], kept["keep_raw"]) == ("here", True, False)
