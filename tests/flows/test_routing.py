"""Which stages ask for a device, and who gets one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from latentloom.errors import UsageError
from latentloom.flows import cluster
from latentloom.flows.routing import needs_device, resources_needed, route
from latentloom.flows.slots import slot_name
from latentloom.schemas.plan import Plan
from latentloom.schemas.settings import DEVICE_SLOT
from latentloom.storage.store import Store
from tests.runs import STAGES, compile_small, make_clip

CHECKED = {"encode", "invert", "fuse", "decode", "encode_video"}


def plan_for(folder: Path, device: str, *, keep: bool = False) -> Plan:
    """Compile for this machine, and say that it is another."""
    stages: list[dict[str, Any]] = [*STAGES[:-1], {"op": "decode", "keep": keep}]
    clip = make_clip(folder / "clip.mp4", 8)
    store = Store.open(str(folder / "store"))
    plan = compile_small(store, clip, folder / "out.mp4", stages=stages)
    machine = plan.facts.machine.model_copy(update={"device": device})
    return plan.model_copy(update={"facts": plan.facts.model_copy(update={"machine": machine})})


def asking(plan: Plan, **routes: str) -> dict[str, set[str]]:
    found = {name: set(route(plan, name, routes).resources) for name in CHECKED}
    return {name: resources for name, resources in found.items() if resources}


def test_nothing_of_a_cpu_plan_is_routed(tmp_path: Path) -> None:
    assert asking(plan_for(tmp_path, "cpu")) == {}


def test_stage_that_makes_its_frames_with_a_model_needs_the_device(tmp_path: Path) -> None:
    assert asking(plan_for(tmp_path, "cuda")) == {name: {"GPU"} for name in CHECKED}


def test_video_of_kept_frames_is_encoded_by_any_worker(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, "cuda", keep=True)
    assert asking(plan) == {name: {"GPU"} for name in CHECKED - {"encode_video"}}
    assert not needs_device(plan, "encode_video")
    assert route(plan, "encode_video", {}).tags == ("op:encode_video", "device:cpu")


def test_settings_route_stages_by_name_before_op(tmp_path: Path) -> None:
    plan = plan_for(tmp_path, "cpu")
    assert asking(plan, fuse="LARGE", encode_video="DISK") == {
        "fuse": {"LARGE"},
        "encode_video": {"DISK"},
    }
    plan = plan_for(tmp_path, "cuda")
    assert asking(plan, fuse="LARGE")["fuse"] == {"GPU", "LARGE"}
    assert route(plan, "fuse", {"fuse": "LARGE"}).tags == (
        "op:fuse",
        "device:cuda",
        "machine:GPU",
        "machine:LARGE",
    )
    assert resources_needed(plan, ["encode", "fuse"], {"fuse": "LARGE"}) == {
        frozenset({"GPU"}): "encode",
        frozenset({"GPU", "LARGE"}): "fuse",
    }


def test_each_device_has_one_worker_and_the_others_have_none() -> None:
    options = [cluster.worker_options(index, ("4", "7"), Path("x")) for index in range(3)]
    visible = [option["env"]["CUDA_VISIBLE_DEVICES"] for option in options]
    assert visible == ["4", "7", ""]
    assert [option.get("resources") for option in options] == [{"GPU": 1}, {"GPU": 1}, None]


def test_worker_of_a_machine_without_devices_is_left_as_it_is() -> None:
    assert cluster.worker_options(0, (), Path("x")).keys().isdisjoint({"env", "resources"})


@pytest.mark.parametrize("address", ["10.0.0.5:8786", "http://10.0.0.5:8786", "tcp://10.0.0.5", ""])
def test_what_is_no_address_of_a_scheduler_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match="no address such as tcp://"):
        cluster.check_address(address)


def test_workers_that_last_need_a_server_that_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(UsageError, match="set PREFECT_API_URL"):
        cluster.check_address("tls://gpu-1:8786")
    monkeypatch.setenv("PREFECT_API_URL", "http://10.0.0.4:4200/api")
    cluster.check_address("tls://gpu-1:8786")
    cluster.check_address("tcp://[fd00::5]:8786")


def test_slot_is_named_by_host_and_device_unless_it_has_a_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "gpu-1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert slot_name("cuda") == "latentloom-gpu-1-0"
    assert slot_name("cpu") == "latentloom-gpu-1-cpu"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert slot_name("cuda") == "latentloom-gpu-1-3"
    monkeypatch.setenv(DEVICE_SLOT, "the-one-under-the-desk")
    assert slot_name("cuda") == "the-one-under-the-desk"
