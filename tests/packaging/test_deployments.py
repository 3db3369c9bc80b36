"""The deployments that the repository ships: one table, the prefect.yaml, the scripts, and the form of each flow."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.cli.deploy._models import PrefectYamlModel
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import validate
from waiting import clear

from prefect_cytotable.flows import concat, convert, deployments, fetch_obs, reprocess, server
from prefect_cytotable.flows.clusters import RUNNERS
from prefect_cytotable.flows.deployments import DEPLOYMENTS, Deployment
from prefect_cytotable.flows.remembered import ServerError
from prefect_cytotable.tasks.core.errors import ArgumentError
from prefect_cytotable.tasks.core.presets import preset_names
from prefect_cytotable.tasks.core.roots import ROOTS, OutsideRootsError

FOLDER = Path(__file__).resolve().parents[2] / "deployments"
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "convert": convert,
    "reprocess": reprocess,
    "concat": concat,
    "fetch": fetch_obs,
}
"""The function whose arguments a deployed flow takes, by the deployment's name."""

EACH = pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda one: one.name)


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / "prefect.yaml").read_text(encoding="utf-8"))
    return loaded


def entry(content: dict[str, Any], deployment: Deployment) -> dict[str, Any]:
    (found,) = (one for one in content["deployments"] if one["name"] == deployment.name)
    assert isinstance(found, dict)
    return found


def fields(deployment: Deployment) -> dict[str, dict[str, Any]]:
    """The fields of the form, as `prefect deploy` finds them."""
    return parameter_schema(deployment.flow()).model_dump()["properties"]


def test_prefect_reads_the_file(content: dict[str, Any]) -> None:
    model = PrefectYamlModel.model_validate(content)
    assert [one.name for one in model.deployments] == [one.name for one in DEPLOYMENTS]
    for one in content["deployments"]:
        assert set(one) <= set(type(model.deployments[0]).model_fields)


@EACH
def test_the_file_and_the_table_say_the_same(content: dict[str, Any], deployment: Deployment) -> None:
    found = entry(content, deployment)
    assert found["entrypoint"] == deployment.entrypoint
    assert found["description"] == deployment.description
    assert found["parameters"] == deployment.parameters
    assert found["tags"] == [deployments.TAG]
    assert found.get("concurrency_limit") == deployment.limit
    assert [one["cron"] for one in found.get("schedules", [])] == ([deployment.cron] if deployment.cron else [])


@EACH
def test_the_entrypoint_is_the_flow(deployment: Deployment) -> None:
    flow = load_flow_from_entrypoint(deployment.entrypoint, use_placeholder_flow=False)
    assert flow.name == deployment.flow().name
    assert set(deployment.parameters) <= set(flow.parameters.properties)


@EACH
def test_the_flow_has_the_arguments_and_defaults_of_the_function(deployment: Deployment) -> None:
    signature = inspect.signature(deployment.flow().fn)
    ours = {name: one.default for name, one in signature.parameters.items()}
    theirs = {name: one.default for name, one in inspect.signature(FUNCTIONS[deployment.name]).parameters.items()}
    theirs.pop("progress")  # an object, which no server can hold
    assert ours == theirs


def test_the_work_pool_is_the_placeholder_that_the_readme_names(content: dict[str, Any]) -> None:
    pools = {one["work_pool"]["name"] for one in content["deployments"]}
    assert len(pools) == 1
    assert pools.pop() in (FOLDER / "README.md").read_text(encoding="utf-8")


# --- the form -----------------------------------------------------------------------------------------------


@EACH
def test_every_field_has_a_title_a_text_and_an_example(deployment: Deployment) -> None:
    for name, one in fields(deployment).items():
        assert one["title"] != name, name
        assert len(one["description"]) > 10, name
        assert one["examples"], name
        assert "`" not in one["description"], name  # one of Prefect's two UIs shows it as it is


@EACH
def test_an_example_fits_its_field(deployment: Deployment) -> None:
    schema = parameter_schema(deployment.flow()).model_dump()
    for name, one in fields(deployment).items():
        for example in one["examples"]:
            assert not validate({name: example}, schema, ignore_required=True), name


@EACH
def test_the_form_can_be_sent_as_it_is_shown(deployment: Deployment) -> None:
    """The UI sends each default, and null for a field without one: the server has to take that."""
    schema = parameter_schema(deployment.flow()).model_dump()
    shown = {name: one["default"] for name, one in fields(deployment).items() if "default" in one}
    asked = {name: ["x"] if schema["properties"][name]["type"] == "array" else "x" for name in schema["required"]}
    assert set(shown) | set(asked) == set(schema["properties"])
    assert not validate(asked | shown, schema)


@EACH
def test_fields_have_one_control_each_and_choices_are_lists(deployment: Deployment) -> None:
    for name, one in fields(deployment).items():
        for control in one.get("anyOf", [one]):
            assert isinstance(control.get("type"), str), name
        titles = [control["title"] for control in one.get("anyOf", [])]
        assert len(titles) == len(set(titles)), name
        if "anyOf" in one and one["default"] is None:
            assert one["anyOf"][0]["type"] == "null", name  # what is not touched is sent as null


@EACH
def test_required_fields_come_first_and_in_the_order_of_the_signature(deployment: Deployment) -> None:
    found = fields(deployment)
    assert [one["position"] for one in found.values()] == list(range(len(found)))
    required = parameter_schema(deployment.flow()).model_dump()["required"]
    parameters = inspect.signature(FUNCTIONS[deployment.name]).parameters
    wanted = [name for name, one in parameters.items() if one.default is inspect.Parameter.empty]
    assert list(found)[: len(required)] == required == wanted
    assert len(wanted) == 2


def test_the_choices_are_those_that_there_are() -> None:
    found = fields(DEPLOYMENTS[0])
    assert found["preset"]["anyOf"][0]["enum"] == list(preset_names())
    assert found["task_runner"]["anyOf"][0]["enum"] == list(RUNNERS)
    assert found["unmatched"]["enum"] == ["drop", "keep", "error"]
    assert found["join"]["type"] == "boolean"


@pytest.mark.parametrize(
    "wrong",
    [
        {"unmatched": "dorp"},
        {"workers": 0},
        {"workers": "many"},
        {"join": "perhaps"},
        {"compartments": "cells"},
        {"dest_datatype": "xls"},
        {"relations": ["x"]},
    ],
    ids=json.dumps,
)
def test_a_server_refuses_what_no_form_would_send(wrong: dict[str, Any]) -> None:
    schema = parameter_schema(DEPLOYMENTS[0].flow()).model_dump()
    assert validate(wrong, schema, ignore_required=True)


def test_a_value_that_no_form_would_send_has_our_own_error(tmp_path: Path) -> None:
    """Where a server does not check, since who starts a run may switch that off."""
    flow = DEPLOYMENTS[0].flow()
    checked = flow.validate_parameters({"source_path": "x", "dest_path": "y", "unmatched": "dorp"})
    assert checked["unmatched"] == "dorp"
    with pytest.raises(ArgumentError, match="Did you mean 'drop'"):
        convert(tmp_path, tmp_path / "y", unmatched="dorp")


# --- serve --------------------------------------------------------------------------------------------------


def test_what_is_served_is_the_table_with_the_runner_that_was_asked_for() -> None:
    found = deployments.served("dask:slurm")
    assert [(one.name, one.entrypoint) for one in found] == [(one.name, one.entrypoint) for one in DEPLOYMENTS]
    assert all(one.parameters["task_runner"] == "dask:slurm" for one in found)
    assert all(one.enforce_parameter_schema for one in found)
    assert all("task_runner" not in one.parameters for one in deployments.served())


def test_a_runner_that_there_is_not_is_refused() -> None:
    with pytest.raises(ArgumentError, match="dask:slurm"):
        deployments.served("dask:slrum")


@pytest.fixture
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clear(monkeypatch, "PREFECT_")
    monkeypatch.setenv("PREFECT_CYTOTABLE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_PROFILE", "none")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("own_environment")
def test_without_a_server_nothing_is_served() -> None:
    with pytest.raises(ServerError, match="prefect-cytotable server start"):
        deployments.connect()


@pytest.mark.usefixtures("own_environment")
def test_a_number_of_runs_that_is_none_is_refused() -> None:
    with pytest.raises(ArgumentError, match="limit is 0"):
        deployments.serve(limit=0)


@pytest.mark.usefixtures("own_environment")
def test_roots_of_the_command_line_hold_for_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ROOTS, "/elsewhere")
    deployments.limit_to(["data", "s3://bucket/tables"])
    assert os.environ[ROOTS] == os.pathsep.join([str(tmp_path / "data"), "s3://bucket/tables"])
    deployments.limit_to([])
    assert "bucket" in os.environ[ROOTS]
    monkeypatch.setenv(ROOTS, "relative")
    with pytest.raises(OutsideRootsError, match=ROOTS):
        deployments.limit_to([])


# --- the scripts and the pool -------------------------------------------------------------------------------


def test_the_pool_lets_no_run_change_command_environment_or_folder() -> None:
    template = json.loads((FOLDER / "process-pool.json").read_text(encoding="utf-8"))
    assert template["variables"]["properties"] == {}
    assert "{{" not in json.dumps(template["job_configuration"])
    assert "env" not in template["job_configuration"]  # where it is a mapping, Prefect merges a run's own into it


def script(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], **variables}
    command = [str(FOLDER / name), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_server_script_wants_a_database_and_a_password_where_others_reach_it() -> None:
    found = script("start-server.sh")
    assert (found.returncode, found.stdout) == (2, "")
    assert "PREFECT_API_DATABASE_CONNECTION_URL" in found.stderr
    found = script(
        "start-server.sh", "0.0.0.0", PREFECT_API_DATABASE_CONNECTION_URL="postgresql+asyncpg://x:hunter2@h/d"
    )
    assert (found.returncode, found.stdout) == (2, "")
    assert "PREFECT_SERVER_API_AUTH_STRING" in found.stderr
    assert "hunter2" not in found.stderr


def test_the_worker_script_wants_roots() -> None:
    found = script("start-worker.sh", "pool", PREFECT_API_URL="http://127.0.0.1:9/api")
    assert found.returncode == 2
    assert ROOTS in found.stderr


def test_the_settings_of_a_server_can_be_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    from prefect_cytotable.flows import cli

    assert cli.main(["server", "settings"]) == 0
    told = dict(line.split("=", 1) for line in capsys.readouterr().out.splitlines())
    assert told == dict(server.SERVER_SETTINGS)
