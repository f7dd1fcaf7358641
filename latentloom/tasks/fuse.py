"""Denoise with several models at once, their latents mixed after each step (FLDM, 2310.16400)."""

from __future__ import annotations

import numpy as np
import torch

from latentloom.models.control import with_control
from latentloom.models.load import ImageModel, VideoModel
from latentloom.models.schedulers import Sampler, check_agree
from latentloom.ops.edges import edges
from latentloom.ops.fuse import fuse_denoise, weight_schedule
from latentloom.ops.sampling import Step, ddim_step
from latentloom.schemas.stages import ControlNetUse, FuseSource, FuseStage
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.conditioning import draw_noise, predict_with
from latentloom.tasks.tensors import Array, latents_to_array, pad_to


def fuse(chunk: OpenChunk) -> Array:
    """Fuse the sources of a stage over one window."""
    stage = chunk.params(FuseStage)
    num_steps = _resolved_steps(stage)
    models = [chunk.models.denoising(source.model) for source in stage.sources]
    samplers = {
        source.name or source.model: model.sampler(num_steps)
        for source, model in zip(stage.sources, models, strict=True)
    }
    check_agree(samplers)
    sampler = next(iter(samplers.values()))
    inverted = chunk.input_latents().to(models[0].denoiser.device)
    start = sampler.start_index(1.0 if stage.strength is None else stage.strength)
    fused = fuse_denoise(
        [_step(chunk, stage, index, model, sampler) for index, model in enumerate(models)],
        [_initial(chunk, index, source, inverted) for index, source in enumerate(stage.sources)],
        _schedule(stage, models, num_steps),
        start=start,
    )
    return latents_to_array(fused, chunk.dtype)


def _resolved_steps(stage: FuseStage) -> int:
    assert stage.num_inference_steps is not None
    return stage.num_inference_steps


def _initial(
    chunk: OpenChunk, index: int, source: FuseSource, inverted: torch.Tensor
) -> torch.Tensor:
    if source.start == "inverted":
        return inverted
    noise = draw_noise(chunk, tuple(inverted.shape[1:]), suffix=f"/{index}")
    return noise.to(inverted.device)


def _schedule(
    stage: FuseStage, models: list[ImageModel | VideoModel], num_steps: int
) -> list[tuple[float, ...] | None]:
    windowed = [model.denoiser.windowed for model in models]
    names = [source.name or source.model for source in stage.sources]
    toward: int | None = None
    if stage.toward is not None:
        toward = names.index(stage.toward)
    elif stage.schedule != "constant":
        toward = windowed.index(stage.schedule == "toward_video")
    tau = stage.first_mixed_step(num_steps)
    return weight_schedule(_weights(stage, windowed), tau, num_steps, toward=toward)


def _weights(stage: FuseStage, windowed: list[bool]) -> list[float]:
    """Return the weight of each source: its own, or alpha for the video model and the rest for the other."""
    given = [source.weight for source in stage.sources]
    if all(weight is not None for weight in given):
        return [float(weight or 0) for weight in given]
    video = windowed.index(True) if True in windowed else 0
    return [stage.alpha if index == video else 1 - stage.alpha for index in range(len(given))]


def _step(
    chunk: OpenChunk, stage: FuseStage, index: int, model: ImageModel | VideoModel, sampler: Sampler
) -> Step:
    source, texts = stage.sources[index], chunk.timed[f"sources.{index}"]
    scale = stage.guidance_scale if source.guidance_scale is None else source.guidance_scale
    plain = ddim_step(predict_with(chunk, model, texts, guidance_scale=scale), sampler)
    use = source.controlnet
    if use is None:
        return plain
    controlled_denoiser = with_control(
        model.denoiser,
        chunk.models.controlnet(use.model),
        scale=use.controlnet_conditioning_scale,
    )
    predict = predict_with(
        chunk,
        model,
        texts,
        guidance_scale=scale,
        denoiser=controlled_denoiser,
        control=_condition(chunk, model),
    )
    return _between(use, plain, ddim_step(predict, sampler), sampler.num_steps)


def _between(use: ControlNetUse, plain: Step, controlled: Step, num_steps: int) -> Step:
    def step(z: torch.Tensor, i: int) -> torch.Tensor:
        inside = use.control_guidance_start <= i / num_steps < use.control_guidance_end
        return controlled(z, i) if inside else plain(z, i)

    return step


def _condition(chunk: OpenChunk, model: ImageModel | VideoModel) -> torch.Tensor:
    """Make the edges of the source frames, at the padded size that the latents stand for."""
    frames = chunk.source_frames()
    if frames.dtype == np.uint16:
        frames = (frames >> 8).astype(np.uint8)
    _, height, width = chunk.stage.frame_shape
    factor = model.vae.downscale
    condition = pad_to(torch.from_numpy(edges(frames)), height * factor, width * factor)
    return condition.to(model.denoiser.device)
