"""Share a batch among machines: a video is one machine's at a time, and a dead machine's is the next one's.

The flow run that begins a scan leads it. It starts its deployment again for the other machines, and says at
the end what came of the batch. All of them take videos under leases and tell each other of the end of one by
its record, so none is worked on twice, and no server has to keep a queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import StateType
from prefect.context import FlowRunContext
from prefect.deployments import run_deployment
from prefect.runtime import deployment, flow_run
from prefect.states import Crashed

from latentloom.errors import HeldError, UsageError
from latentloom.flows.archive import Video, current, read_record
from latentloom.flows.outage import outlast
from latentloom.schemas.batch import VideoRecord
from latentloom.storage.leases import Lease, holder, is_held, lease, try_lease
from latentloom.storage.store import Store
from latentloom.tasks.stop import stop_requested

_BY = "by:"
_STILL = (StateType.RUNNING, StateType.PENDING)


@dataclass(frozen=True)
class Share:
    """What one flow run may take of a batch."""

    store: Store
    batch: str
    scan: str
    """Id of the scan, the same on every machine that shares it."""
    leads: bool

    def claim(self, video: Video) -> Lease | VideoRecord | None:
        """Take a video.

        Returns:
            A lease, to be released once the video's record says how it ended; or the record, if another
            machine ended it; or nothing while another one works on it.
        """
        if (ended := self._ended(video)) is not None:
            return ended
        taken = try_lease(self.store, f"video-{self.batch}-{video.name}")
        if taken is not None and (ended := self._ended(video)) is not None:
            taken.release()
            return ended
        return taken

    def goes_on(self) -> bool:
        """Tell whether to begin another video: a leader that has ended wants no more, a dead one does."""
        return self.leads or holder(self.store, leading(self.batch)) is not None

    def _ended(self, video: Video) -> VideoRecord | None:
        found = read_record(self.store, self.batch, video)
        if found is None:
            return None
        record = current(found, video.source, video.output, video.recipe)
        failed = record.state in ("failed", "quarantined") and record.scan == self.scan
        return record if failed or (record.state == "done" and record != video.record) else None


@contextmanager
def alone(store: Store, batch: str, *, wait: bool) -> Iterator[bool]:
    """Lead the scans of a batch, one process at a time; yields whether this is the one."""
    try:
        with lease(store, leading(batch), wait=wait, stop=stop_requested):
            yield True
    except HeldError:
        yield False


def leading(batch: str) -> str:
    """Return the name of the lease of the flow run that leads."""
    return f"batch-{batch}"


def invite(machines: int, scan: str) -> None:
    """Start the deployment of the flow run at hand for so many more machines, as helpers of its scan.

    Raises:
        UsageError: If the flow run is of no deployment, so that nobody knows where others could run.
    """
    if machines < 1:
        return
    if deployment.id is None:
        raise UsageError("machines is for runs of a deployment; use `latentloom submit`")
    given = {**flow_run.get_parameters(), "helps": scan}
    for _ in range(machines):
        outlast(lambda: _start(UUID(str(deployment.id)), given))


def _start(name: UUID, parameters: dict[str, Any]) -> None:
    context = FlowRunContext.get()
    own = None if context is None else context.flow_run
    queue = None if own is None else own.work_queue_name
    run_deployment(name, parameters=parameters, timeout=0, as_subflow=False, work_queue_name=queue)


@contextmanager
def at_work(store: Store, batch: str) -> Iterator[tuple[str, ...]]:
    """Show that the flow run at hand works on a batch, for as long as its process lives.

    Yields:
        Tags for the flow runs of its videos, which die with it.
    """
    tags = (_tag(batch), f"{_BY}{flow_run.id}")
    outlast(lambda: _add_tags(tags))
    with lease(store, _life(_own_id()), stop=stop_requested):
        yield tags
    # A flow run whose end the server missed has none that would tell it later.
    mark_crashed(store, batch)


def _add_tags(tags: tuple[str, ...]) -> None:
    with get_client(sync_client=True) as client:
        client.update_flow_run(_own_id(), tags={*flow_run.tags, *tags})


def mark_crashed(store: Store, batch: str) -> None:
    """Tell the server of flow runs of a batch whose processes died or went on; not of the one at hand."""
    outlast(lambda: _mark_crashed(store, batch))


def _mark_crashed(store: Store, batch: str) -> None:
    still = FlowRunFilter(
        tags=FlowRunFilterTags(all_=[_tag(batch)]),
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=list(_STILL))),
    )
    with get_client(sync_client=True) as client:
        for found in client.read_flow_runs(flow_run_filter=still):
            owners = [UUID(tag.removeprefix(_BY)) for tag in found.tags if tag.startswith(_BY)]
            alive = any(is_held(store, _life(owner)) for owner in owners)
            if not alive and found.id != _own_id():
                client.set_flow_run_state(found.id, Crashed(message="its process died"), force=True)


def _own_id() -> UUID:
    return UUID(str(flow_run.id))


def _tag(batch: str) -> str:
    return f"batch:{batch}"


def _life(owner: UUID) -> str:
    return f"flow-run-{owner}"
