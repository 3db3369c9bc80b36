"""The deployment that the repository ships parses, and its flow can be imported and called with its parameters."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.cli.deploy._models import PrefectYamlModel
from prefect.flows import load_flow_from_entrypoint

from prefect_cytotable.flows import convert

FOLDER = Path(__file__).resolve().parents[2] / "deployments"


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / "prefect.yaml").read_text(encoding="utf-8"))
    return loaded


def test_prefect_reads_the_file(content: dict[str, Any]) -> None:
    model = PrefectYamlModel.model_validate(content)
    assert [one.name for one in model.deployments] == ["convert"]
    assert set(content["deployments"][0]) <= set(type(model.deployments[0]).model_fields)


def test_the_entrypoint_is_the_flow(content: dict[str, Any]) -> None:
    (deployment,) = content["deployments"]
    flow = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
    assert flow.name == "convert"
    assert set(deployment["parameters"]) <= set(flow.parameters.properties)
    assert set(flow.parameters.required) == {"source_path", "dest_path"}


def test_the_flow_has_the_arguments_and_defaults_of_convert(content: dict[str, Any]) -> None:
    flow = load_flow_from_entrypoint(content["deployments"][0]["entrypoint"], use_placeholder_flow=False)
    ours = {name: one.default for name, one in inspect.signature(flow.fn).parameters.items()}
    theirs = {name: one.default for name, one in inspect.signature(convert).parameters.items()}
    theirs.pop("progress")  # an object, which no server can hold
    assert ours == theirs


def test_the_work_pool_is_the_placeholder_that_the_readme_names(content: dict[str, Any]) -> None:
    assert content["deployments"][0]["work_pool"]["name"] in (FOLDER / "README.md").read_text(encoding="utf-8")
