"""Pictures of what a stopped stage is about to make: its estimates of the clean latents, decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from latentloom.errors import MissingChunkError
from latentloom.models.protocols import VAE
from latentloom.ops.windows import overlapping
from latentloom.schemas.plan import Plan, PlannedStage
from latentloom.schemas.stages import TiledStage
from latentloom.schemas.tiling import Tiling
from latentloom.storage.stops import read_stops
from latentloom.storage.store import Store
from latentloom.tasks.checkpoints import StepCheckpoints
from latentloom.tasks.chunk import OpenChunk, open_source, read_chunk
from latentloom.tasks.fuse import fuse_estimate
from latentloom.tasks.loading import PlanModels
from latentloom.tasks.smooth import smooth_estimate
from latentloom.tasks.tensors import Array, frames_to_array, latents_to_float
from latentloom.tasks.tiling import tiled_vae

_ESTIMATES: dict[str, Callable[[OpenChunk, list[torch.Tensor]], torch.Tensor]] = {
    "fuse": fuse_estimate,
    "smooth": smooth_estimate,
}
"""Of stages whose windows may meet at every step."""


@dataclass(frozen=True)
class Sample:
    """One frame of a stopped stage."""

    frame: int
    """Absolute source frame."""
    step: int | None
    """Steps done; nothing where the frame is finished."""
    source: Array
    """The source ``(H, W, 3)``, uint8."""
    picture: Array | None
    """The estimate, uint8; nothing where it is in an encoded segment already."""


def sample_estimates(
    store: Store, plan: Plan, stage_name: str, frames: Sequence[int]
) -> Iterator[Sample]:
    """Decode frames of a stage whose chunks stand where a run was told to stop, or are finished.

    One chunk and one frame is held at a time.

    Args:
        store: Where the chunks lie.
        plan: Their plan.
        stage_name: The stage.
        frames: Absolute source frames, ascending.

    Raises:
        MissingChunkError: If a chunk neither is finished nor stands anywhere.
    """
    opened = _Stopped(store, plan, plan.by_name[stage_name])
    for frame in frames:
        source = _eight_bits(open_source(plan).read(frame, frame + 1)[0])
        step, picture = opened.picture(frame)
        yield Sample(frame, step, source, picture)


class _Stopped:
    """A stage, and the chunk of it that was read last."""

    def __init__(self, store: Store, plan: Plan, stage: PlannedStage) -> None:
        self.store, self.plan, self.stage = store, plan, stage
        self.stops = read_stops(store, stage.key)
        self.vae = tiled_vae(_vae(PlanModels(plan), plan, stage), _tiling(plan, stage))
        self.index = -1
        self.step: int | None = None
        self.held: torch.Tensor | Array | None = None

    def picture(self, frame: int) -> tuple[int | None, Array | None]:
        """Return the steps done and the picture of a frame."""
        index = _middle(self.stage, frame)
        if index != self.index:
            self.step, self.held = self._read(index)
            self.index = index
        if self.held is None:
            return None, None
        one = self.held[self.stage.rate * (frame - self.stage.chunks[index].start)]
        if isinstance(one, torch.Tensor):
            return self.step, self._decoded(one)
        return self.step, _eight_bits(one)

    def _read(self, index: int) -> tuple[int | None, torch.Tensor | Array | None]:
        """Return the steps done, and the estimate, or what the finished chunk holds."""
        stage, chunk = self.stage, self.stage.chunks[index]
        if self.store.present([chunk.key]):
            array = read_chunk(self.store, stage, index)
            if stage.produces == "frames":
                return None, array
            return None, torch.from_numpy(latents_to_float(array, stage.dtype))
        if stage.steps:
            return self._between_steps(index)
        checkpoints = StepCheckpoints(self.store, stage, chunk, self.stops)
        state = checkpoints.newest_stop()
        if state is not None:
            return state.step, state.estimate
        readers = self.plan.readers(stage.name, index)
        if stage.transient and readers and self.store.present(readers) >= set(readers):
            return None, None
        raise _nowhere(stage, index)

    def _between_steps(self, index: int) -> tuple[int, torch.Tensor]:
        """Return the steps done by a window that meets its neighbours at every step, and its estimate."""
        stage, models = self.stage, PlanModels(self.plan)
        keys = {stage.key_at(index, step): step for step in stage.steps}
        step = max((keys[key] for key in self.store.present(keys)), default=None)
        if step is None:
            raise _nowhere(stage, index)
        chunk = stage.chunk_at(index, step)
        opened = OpenChunk(self.store, self.plan, stage, chunk, models, step)
        states = torch.from_numpy(read_chunk(self.store, stage, index, step))
        return step, _ESTIMATES[stage.op](opened, list(states.unbind(1)))

    def _decoded(self, latents: torch.Tensor) -> Array:
        frame = frames_to_array(self.vae.decode_latents(latents[None].to(self.vae.device)), "uint8")
        height, width = _size(self.plan, self.stage) or frame.shape[1:3]
        return frame[0, :height, :width]


def _nowhere(stage: PlannedStage, index: int) -> MissingChunkError:
    return MissingChunkError(f"stage {stage.name!r}: chunk {index} stands nowhere any more")


def _middle(stage: PlannedStage, frame: int) -> int:
    """Return the chunk in whose middle a frame lies most."""
    return max(
        overlapping(*stage.bounds, frame, frame + 1),
        key=lambda i: min(frame - stage.chunks[i].start, stage.chunks[i].stop - 1 - frame),
    )


def _size(plan: Plan, stage: PlannedStage) -> tuple[int, int] | None:
    """Return height and width of a stage's frames without what encoding padded, where the plan says."""
    if stage.produces == "frames":
        return stage.frame_shape[0], stage.frame_shape[1]
    for reader in plan.stages:
        if reader.op == "decode" and stage.name in reader.inputs:
            return reader.frame_shape[0], reader.frame_shape[1]
    return None


def _tiling(plan: Plan, stage: PlannedStage) -> Tiling | None:
    """Return the tiles by which a stage's latents are decoded, in it or behind it."""
    decoding = [stage.name] if stage.produces == "frames" else []
    decoding += [r.name for r in plan.stages if r.op == "decode" and stage.name in r.inputs]
    tiled = [
        one.tiling
        for one in plan.recipe.stages
        if one.name in decoding and isinstance(one, TiledStage)
    ]
    return next((tiling for tiling in tiled if tiling is not None), None)


def _vae(models: PlanModels, plan: Plan, stage: PlannedStage) -> VAE:
    """Return the VAE that a stage's latents are of."""
    name = stage.models.get("model") or stage.models["sources.0"]
    kind = plan.facts.models[name].kind
    if kind in ("image", "video"):
        return models.denoising(name).vae
    if kind == "upscaler":
        return models.upscaler(name).vae
    if kind in ("upsampler", "video_upsampler"):
        return models.upsampler(name)[1].vae
    return models.painter(name).vae


def _eight_bits(frame: Array) -> Array:
    return (frame >> 8).astype(np.uint8) if frame.dtype == np.uint16 else frame
