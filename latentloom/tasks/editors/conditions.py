"""The spatial conditions of editors: their models, when they act, and what they are shown."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from latentloom.models.adapter import Adapted
from latentloom.models.control import Control
from latentloom.ops.microbatch import in_micro_batches
from latentloom.ops.sampling import active_timesteps
from latentloom.schemas.conditions import Condition, ControlNetUse, T2IAdapterUse
from latentloom.tasks.conditioning import make_condition
from latentloom.tasks.editors.latents import Canvas


def load_controls(
    canvas: Canvas, uses: Sequence[ControlNetUse], timesteps: Sequence[int]
) -> tuple[list[Control], list[torch.Tensor]]:
    """Load ControlNets and make their conditions.

    Args:
        canvas: Where they are used.
        uses: What the recipe says of each.
        timesteps: Those that are walked; a ControlNet may act at a part of them.

    Returns:
        The ControlNets, and a condition `(F, channels, H, W)` for each.
    """
    controls = [
        Control(
            canvas.chunk.models.controlnet(use.model),
            use.controlnet_conditioning_scale,
            active_timesteps(timesteps, use.control_guidance_start, use.control_guidance_end),
        )
        for use in uses
    ]
    conditions = [
        _condition(canvas, use, f"controlnet.{index}", control.control_net.condition_channels)
        for index, (use, control) in enumerate(zip(uses, controls, strict=True))
    ]
    return controls, conditions


def load_adapters(
    canvas: Canvas, uses: Sequence[T2IAdapterUse], timesteps: Sequence[int]
) -> tuple[list[Adapted], list[torch.Tensor]]:
    """Load T2I-Adapters and compute the features of their conditions; see ``load_controls``."""
    adapters = [
        Adapted(
            canvas.chunk.models.t2i_adapter(use.model),
            use.adapter_conditioning_scale,
            active_timesteps(timesteps, 0.0, use.adapter_conditioning_factor),
        )
        for use in uses
    ]
    features = []
    for index, (use, used) in enumerate(zip(uses, adapters, strict=True)):
        channels = used.adapter.condition_channels
        condition = _condition(canvas, use, f"t2i_adapter.{index}", channels)
        features.append(
            in_micro_batches(used.adapter.features, canvas.chunk.micro_batch, condition)
        )
    return adapters, features


def _condition(canvas: Canvas, use: Condition, role: str, channels: int) -> torch.Tensor:
    condition = make_condition(
        canvas.chunk, use, role=role, channels=channels, frames=canvas.chunk.input_frames
    )
    return canvas.padded(condition)
