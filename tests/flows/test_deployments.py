"""prefect.yaml: every config is deployed three ways, and what the deployments name is there and typed."""

import pytest
import yaml
from prefect.exceptions import ParameterTypeError
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema
from prefect.utilities.importtools import import_object

from flows.config import STAGES, read, validated
from flows.pipeline import pipeline
from tests.flows.conftest import ROOT

TEXT = (ROOT / "prefect.yaml").read_text()
DEPLOYMENTS = yaml.safe_load(TEXT)["deployments"]
CONFIGS = {path.stem for path in (ROOT / "configs").glob("*.yaml")}


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    ("name", "pool", "kind"),
    [
        ("local", "malmm", "process"),
        ("docker", "malmm-docker", "container"),
        ("kubernetes", "malmm-kubernetes", "kubernetes"),
    ],
)
def test_every_config_is_deployed(name, pool, kind):
    mine = {d["entrypoint"].rpartition(".")[2]: d for d in DEPLOYMENTS if d["name"] == name}
    assert set(mine) == CONFIGS  # configs/smoke.yaml by the smoke flow
    for config, deployment in mine.items():
        assert deployment["work_pool"]["name"] == pool
        flow, given = load_flow_from_entrypoint(deployment["entrypoint"], False), deployment.get("parameters", {})
        assert flow.name == config and flow.validate_parameters(given) is not None
        path = given.get("config", "configs/smoke.yaml")
        assert path == f"configs/{config}.yaml"
        values, lines = read(path, given.get("overrides", ()))
        assert validated(values, lines, path).runner.kind == kind
    assert len(DEPLOYMENTS) == 3 * len(CONFIGS)


def test_it_holds_no_path_of_a_machine():
    assert not any(place in TEXT for place in (str(ROOT), "/home", "/root", "/work", "/tmp"))


def test_a_flow_is_described_by_its_config():
    assert load_flow_from_entrypoint("flows.deployments.visdial").description.startswith("VisDial v1.0 with ImageBind")
    with pytest.raises(AttributeError, match=r"configs/nothing\.yaml"):
        import_object("flows.deployments.nothing")


@pytest.mark.parametrize(
    "wrong", [{"stages": ["train"]}, {"force": ["everything"]}, {"overrides": ["finetune.epochs"]}, {"retry_failed": 7}]
)
def test_parameters_are_checked(wrong):
    with pytest.raises(ParameterTypeError):
        pipeline.validate_parameters({"config": "configs/visdial.yaml"} | wrong)


def test_the_form_knows_the_stages():
    fields = parameter_schema(pipeline).model_dump()["properties"]
    assert fields["stages"]["items"]["enum"] == fields["force"]["items"]["enum"] == list(STAGES)
    assert "pattern" in fields["overrides"]["items"] and fields["retry_failed"]["type"] == "boolean"
    assert all(field["description"] for field in fields.values())
