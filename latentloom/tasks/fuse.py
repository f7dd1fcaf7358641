"""Denoise with several models at once, their latents mixed after each step (FLDM, 2310.16400)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import torch
from pydantic import JsonValue

from latentloom.models.control import Control, ControlNet, with_controls
from latentloom.models.load import ImageModel, VideoModel
from latentloom.models.schedulers import Sampler, check_agree
from latentloom.ops.fuse import fuse as fuse_latents
from latentloom.ops.fuse import fuse_denoise, similarity, weight_schedule
from latentloom.ops.sampling import Predict, active_timesteps
from latentloom.schemas.conditions import ControlNetUse
from latentloom.schemas.fusion import FuseSource, FuseStage
from latentloom.schemas.similarity import Similarity
from latentloom.tasks.checkpoints import StepState
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.conditioning import draw_noise, make_condition, predict_with
from latentloom.tasks.stepping import Steps, estimate_after
from latentloom.tasks.tensors import Array, pad_to

Rows = list[tuple[float, ...] | None]
_SIMILARITY = "similarity"
_DIGITS = 5


def fuse(chunk: OpenChunk) -> Array:
    """Fuse the sources of a stage over one window: to its end, or by one step."""
    stage = chunk.params(FuseStage)
    models = [chunk.models.denoising(source.model) for source in stage.sources]
    sampler = _sampler(stage, models)
    reference = _video([model.denoiser.windowed for model in models])
    rows = _rows(stage, models, sampler)
    start, stop = chunk.steps_between(_start(stage, sampler), sampler.num_steps)
    begun = _begin(chunk, stage, start, models[0].denoiser.device)
    trace = _Trace.since(stage, reference, begun)
    after: list[torch.Tensor] = []
    steps = Steps(chunk, sampler, begun, partial(_mixed, rows))

    def keep(i: int, states: list[torch.Tensor]) -> None:
        row = rows[i]
        weights: JsonValue = None if row is None else list(row)
        # From tau on the sources share one state.
        after[:] = states if row is None else states[:1]
        steps.after(i, states, after, lambda: {"weights": weights, **trace.notes()})

    fuse_denoise(
        [_predict(chunk, stage, index, model, sampler) for index, model in enumerate(models)],
        begun.states,
        rows,
        sampler,
        space=stage.space,
        start=begun.step,
        stop=stop,
        combine=partial(
            fuse_latents,
            interpolation=stage.interpolation,
            variance_preserving=stage.variance_preserving,
            match_statistics=stage.match_statistics,
            reference=reference,
        ),
        on_parts=trace.look,
        on_step=keep,
    )
    chunk.notes.update(trace.notes())
    return chunk.result(after)


def fuse_estimate(chunk: OpenChunk, after: list[torch.Tensor]) -> torch.Tensor:
    """Return the clean latents that the step at hand implied, from what it made.

    Args:
        chunk: A window at one step.
        after: S states ``(F, C, h, w)``, or the one that the sources share.
    """
    stage = chunk.params(FuseStage)
    models = [chunk.models.denoising(source.model) for source in stage.sources]
    sampler = _sampler(stage, models)
    rows = _rows(stage, models, sampler)
    i, _ = chunk.steps_between(_start(stage, sampler), sampler.num_steps)
    before = _begin(chunk, stage, i, torch.device("cpu")).states
    whole = after * (len(stage.sources) // len(after))
    return estimate_after(sampler, i, _mixed(rows, i, before), _mixed(rows, i, whole))


@dataclass
class _Trace:
    """Notes how alike the sources' latents are, step by step: whether they can be mixed."""

    stage: FuseStage
    reference: int
    first_step: int
    cosines: list[tuple[tuple[float, ...], ...]] = field(default_factory=list)

    @classmethod
    def since(cls, stage: FuseStage, reference: int, begun: StepState) -> _Trace:
        """Go on with what a checkpoint has noted, or begin."""
        if _SIMILARITY not in begun.attributes:
            return cls(stage, reference, begun.step)
        noted = Similarity.model_validate(begun.attributes[_SIMILARITY])
        return cls(stage, reference, noted.first_step, list(noted.cosines))

    def look(self, i: int, parts: list[torch.Tensor]) -> None:
        """Compare what the sources bring to step i."""
        found = similarity(parts, self.reference).nan_to_num().tolist()
        self.cosines.append(tuple(tuple(round(c, _DIGITS) for c in frames) for frames in found))

    def notes(self) -> dict[str, JsonValue]:
        """Return what has been noted so far."""
        names = self.stage.source_names
        noted = Similarity(
            to=names.pop(self.reference),
            sources=tuple(names),
            first_step=self.first_step,
            cosines=tuple(self.cosines),
        )
        return {_SIMILARITY: noted.model_dump(mode="json")}


def _sampler(stage: FuseStage, models: list[ImageModel | VideoModel]) -> Sampler:
    """Return the sampler that the sources share."""
    assert stage.num_inference_steps is not None
    found = [model.sampler(stage.num_inference_steps) for model in models]
    check_agree(dict(zip(stage.source_names, found, strict=True)))
    return found[0]


def _begin(chunk: OpenChunk, stage: FuseStage, start: int, device: torch.device) -> StepState:
    """Return where to go on: after a step of all windows, at the newest checkpoint, or at the start."""
    before = chunk.states_before()
    saved = chunk.checkpoints.newest() if before is None else StepState(start, before)
    if saved is not None:
        shared = len(stage.sources) // len(saved.states)
        states = [state.to(device) for state in saved.states] * shared
        return StepState(saved.step, states, saved.attributes)
    inverted = chunk.input_latents().to(device)
    states = [_initial(chunk, i, source, inverted) for i, source in enumerate(stage.sources)]
    return StepState(start, states)


def _start(stage: FuseStage, sampler: Sampler) -> int:
    return sampler.start_index(1.0 if stage.strength is None else stage.strength)


def _initial(
    chunk: OpenChunk, index: int, source: FuseSource, inverted: torch.Tensor
) -> torch.Tensor:
    if source.start == "inverted":
        return inverted
    noise = draw_noise(chunk, tuple(inverted.shape[1:]), suffix=f"/{index}")
    return noise.to(inverted.device)


def _video(windowed: list[bool]) -> int:
    """Return the source that alpha weighs and statistics are matched to: the first video model."""
    return windowed.index(True) if True in windowed else 0


def _rows(stage: FuseStage, models: list[ImageModel | VideoModel], sampler: Sampler) -> Rows:
    """Return the sources' weights at each step; none before tau, nor before the first step taken."""
    windowed = [model.denoiser.windowed for model in models]
    tau, start = stage.first_mixed_step(sampler.num_steps), _start(stage, sampler)
    if stage.weights is not None:
        written = [_whole(row, _video(windowed)) for row in stage.weights]
        rows: Rows = [None] * tau + written
    else:
        toward: int | None = None
        if stage.toward is not None:
            toward = stage.source_names.index(stage.toward)
        elif stage.moves != "constant":
            toward = windowed.index(stage.moves == "toward_video")
        rows = weight_schedule(
            _first_weights(stage, windowed), tau, sampler.num_steps, toward=toward
        )
    return [None] * min(start, len(rows)) + rows[start:]


def _mixed(rows: Rows, i: int, states: list[torch.Tensor]) -> torch.Tensor:
    """Mix the sources' states by the weights of step i, or before tau by the first ones."""
    weights = next(row for row in rows[i:] if row is not None)
    return torch.stack([w * state for w, state in zip(weights, states, strict=True)]).sum(0)


def _whole(row: tuple[float, ...], video: int) -> tuple[float, ...]:
    """Return a weight for each source, where a row is only the video model's."""
    if len(row) > 1:
        return row
    return (row[0], 1 - row[0]) if video == 0 else (1 - row[0], row[0])


def _first_weights(stage: FuseStage, windowed: list[bool]) -> list[float]:
    """Return the sources' weights at step tau."""
    if stage.first_alpha is None:
        return [source.weight or 0.0 for source in stage.sources]
    return list(_whole((stage.first_alpha,), _video(windowed)))


def _predict(
    chunk: OpenChunk, stage: FuseStage, index: int, model: ImageModel | VideoModel, sampler: Sampler
) -> Predict:
    source, texts = stage.sources[index], chunk.timed[f"sources.{index}"]
    scale = stage.guidance_scale if source.guidance_scale is None else source.guidance_scale
    use = source.controlnet
    if use is None:
        return predict_with(chunk, model, texts, guidance_scale=scale)
    control_net = chunk.models.controlnet(use.model)
    # Counted over all N steps, as tau is, whatever the strength.
    active = active_timesteps(
        sampler.timesteps, use.control_guidance_start, use.control_guidance_end
    )
    control = Control(control_net, use.controlnet_conditioning_scale, active)
    return predict_with(
        chunk,
        model,
        texts,
        guidance_scale=scale,
        denoiser=with_controls(model.denoiser, [control]),
        control=_condition(chunk, use, index, control_net, model),
    )


def _condition(
    chunk: OpenChunk,
    use: ControlNetUse,
    index: int,
    control_net: ControlNet,
    model: ImageModel | VideoModel,
) -> torch.Tensor:
    """Make the condition of a source, at the padded size that the latents stand for."""
    condition = make_condition(
        chunk,
        use,
        role=f"sources.{index}.controlnet",
        channels=control_net.condition_channels,
        frames=chunk.source_frames,
    )
    _, height, width = chunk.stage.frame_shape
    factor = model.vae.downscale
    return pad_to(condition, height * factor, width * factor).to(model.denoiser.device)
