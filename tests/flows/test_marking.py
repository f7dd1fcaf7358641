"""Flow runs of a batch whose processes are gone, as a real server has them."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID, uuid4

import pytest

from latentloom.flows import engine
from latentloom.flows.sharing import at_work, mark_crashed
from latentloom.storage.leases import lease
from latentloom.storage.store import Store


@pytest.mark.slow
def test_flow_runs_of_dead_processes_are_marked_and_no_others(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    with engine.session():
        from prefect import flow, get_client
        from prefect.states import Running

        @flow(name="video")
        def video() -> None:
            """Stand for the flow run of a video."""

        @flow(name="scan")
        def scan() -> tuple[str, ...]:
            with at_work(store, "night") as tags:
                mark_crashed(store, "night")
                with get_client(sync_client=True) as client:
                    mine = client.create_flow_run(video, tags=tags, state=Running())
                    states["mine"] = mine.id
            return tags

        def state(name: str) -> str:
            found = client.read_flow_run(states[name]).state
            return "" if found is None else found.type.value

        states: dict[str, UUID] = {}
        living = uuid4()
        tags = {
            "dead": ("batch:night", f"by:{uuid4()}"),
            "living": ("batch:night", f"by:{living}"),
            "other batch": ("batch:day", f"by:{uuid4()}"),
        }
        with get_client(sync_client=True) as client, lease(store, f"flow-run-{living}"):
            for name, chosen in tags.items():
                states[name] = client.create_flow_run(video, tags=chosen, state=Running()).id
            scan()
            assert {name: state(name) for name in states} == {
                "dead": "CRASHED",
                "living": "RUNNING",
                "other batch": "RUNNING",
                # Its flow run went on without it: nobody would say so later.
                "mine": "CRASHED",
            }
