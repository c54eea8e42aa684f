"""infra/prefect against Prefect's own models and the flow that it deploys."""

import inspect
import json
from pathlib import Path

import pytest
import yaml

from flows.orchestration.events import DRIFTED, MOVED
from tests.support.workspace import ROOT

FOLDER = ROOT / "infra" / "prefect"
KNOWN = {"name", "description", "entrypoint", "schedules", "triggers", "parameters", "pull", "work_pool",
         "concurrency_limit"}  # fmt: skip


@pytest.fixture(scope="module")
def flows(tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.chdir(tmp_path_factory.mktemp("home"))  # where Prefect keeps its files
    from flows.orchestration.adapt import adapt
    from flows.orchestration.drift import drift
    from flows.orchestration.release import release

    yield {
        "flows.orchestration.adapt.adapt": adapt,
        "flows.orchestration.release.release": release,
        "flows.orchestration.drift.drift": drift,
    }
    patch.undo()


def test_every_deployment_is_what_prefect_knows_and_what_its_flow_takes(flows):
    from prefect.cli.deploy._models import PrefectYamlModel

    document = yaml.safe_load((FOLDER / "prefect.yaml").read_text())
    parsed = PrefectYamlModel.model_validate(document)
    assert [one.name for one in parsed.deployments] == [
        "nightly", "weekly-search", "release", "hourly", "nightly-cluster", "weekly-search-cluster"
    ]  # fmt: skip
    for one in document["deployments"]:
        assert one.keys() <= KNOWN  # Prefect passes over what it does not know
        flow = flows[one["entrypoint"]]
        assert one["parameters"].keys() <= inspect.signature(flow.fn).parameters.keys()
        flow.validate_parameters(one["parameters"])


def test_the_pools_take_what_the_deployments_give_them():
    from prefect.server.api import collections_data

    views = json.loads((Path(collections_data.__path__[0]) / "views/aggregate-worker-metadata.json").read_text())
    takes = {}
    for kind in ("process", "kubernetes"):
        worker = next(workers[kind] for workers in views.values() if kind in workers)
        takes[kind] = worker["default_base_job_configuration"]["variables"]["properties"].keys()
    for one in yaml.safe_load((FOLDER / "prefect.yaml").read_text())["deployments"]:
        kind = {"local": "process", "cluster": "kubernetes"}[one["work_pool"]["name"]]
        assert one["work_pool"]["job_variables"].keys() <= takes[kind]


def test_a_release_waits_for_a_champion_that_moved_and_a_run_for_predictions_that_drifted():
    waiting = {}
    for one in yaml.safe_load((FOLDER / "prefect.yaml").read_text())["deployments"]:
        waiting[one["name"]] = [event for trigger in one.get("triggers", []) for event in trigger["expect"]]
    assert {name: events for name, events in waiting.items() if events} == {"nightly": [DRIFTED], "release": [MOVED]}


def test_every_deployment_has_one_run_at_a_time_and_only_what_follows_an_event_alone_waits_for_its_turn(flows):
    from prefect.client.schemas.objects import ConcurrencyLimitConfig

    limits = {}
    for one in yaml.safe_load((FOLDER / "prefect.yaml").read_text())["deployments"]:
        limit = ConcurrencyLimitConfig.model_validate(one["concurrency_limit"])
        assert limit.limit == 1
        limits["schedules" in one, limit.collision_strategy.value] = one["name"]
    assert limits.keys() == {(True, "CANCEL_NEW"), (False, "ENQUEUE")}


def test_the_automation_reacts_to_a_failed_run_of_adapt_and_to_no_other(flows):
    from uuid import uuid4

    from prefect.events.schemas.automations import AutomationCore
    from prefect.server.events.schemas.automations import EventTrigger
    from prefect.server.events.schemas.events import ReceivedEvent
    from prefect.types._datetime import now

    automation = AutomationCore.model_validate(yaml.safe_load((FOLDER / "failures.yaml").read_text()))
    trigger = EventTrigger.model_validate(automation.trigger.model_dump(mode="json"))

    def reacts(event: str, name: str) -> bool:
        role = {"prefect.resource.id": "prefect.flow.1", "prefect.resource.role": "flow", "prefect.resource.name": name}
        resource = {"prefect.resource.id": f"prefect.flow-run.{uuid4()}"}
        seen = ReceivedEvent(occurred=now("UTC"), event=event, resource=resource, related=[role], id=uuid4())
        return trigger.covers(seen) and trigger.expects(seen.event)

    assert reacts("prefect.flow-run.Failed", "adapt") and reacts("prefect.flow-run.Crashed", "adapt")
    assert not reacts("prefect.flow-run.Completed", "adapt")
    assert not reacts("prefect.flow-run.Failed", "another")
