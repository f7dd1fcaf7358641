"""Make frames under the conditions of ControlNets (2302.05543), from noise or from noised frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from latentloom.models.control import Control, with_controls
from latentloom.ops.sampling import active_timesteps, denoise
from latentloom.schemas.conditions import ControlNetUse
from latentloom.schemas.edits import ControlNetEdit
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.conditioning import make_condition, predict_with
from latentloom.tasks.editors.latents import Canvas, noised
from latentloom.tasks.tensors import Array


def controlnet(chunk: OpenChunk) -> Array:
    """Edit the frames of a chunk."""
    canvas = Canvas.of(chunk, chunk.params(ControlNetEdit))
    return canvas.decode(controlnet_latents(canvas))


def controlnet_latents(canvas: Canvas) -> torch.Tensor:
    """Denoise under the conditions."""
    chunk = canvas.chunk
    stage = chunk.params(ControlNetEdit)
    sampler = canvas.model.sampler(stage.num_inference_steps)
    start = sampler.start_index(stage.strength)
    controls = [_control(chunk, use, sampler.timesteps[start:]) for use in stage.controlnet]
    predict = predict_with(
        chunk,
        canvas.model,
        chunk.timed,
        guidance_scale=stage.guidance_scale,
        denoiser=with_controls(canvas.model.denoiser, controls),
        control=_conditions(canvas, stage.controlnet, controls),
    )
    return denoise(noised(canvas, sampler, stage.strength), predict, sampler, start=start)


def _control(chunk: OpenChunk, use: ControlNetUse, timesteps: tuple[int, ...]) -> Control:
    return Control(
        chunk.models.controlnet(use.model),
        use.controlnet_conditioning_scale,
        active_timesteps(timesteps, use.control_guidance_start, use.control_guidance_end),
    )


def _conditions(
    canvas: Canvas, uses: Sequence[ControlNetUse], controls: Sequence[Control]
) -> list[torch.Tensor]:
    return [
        canvas.padded(
            make_condition(
                canvas.chunk,
                use,
                role=f"controlnet.{index}",
                channels=control.control_net.condition_channels,
                frames=canvas.chunk.input_frames,
            )
        )
        for index, (use, control) in enumerate(zip(uses, controls, strict=True))
    ]
