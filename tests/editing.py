"""Editors on tiny checkpoints: one stage, compiled, and its only chunk opened."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentloom.media.write import write_video
from latentloom.models.pretrained import library
from latentloom.ops.noise import frame_generator
from latentloom.schemas.edits import EditStage
from latentloom.schemas.plan import Plan
from latentloom.storage.store import Store
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.editors.latents import Canvas
from latentloom.tasks.loading import PlanModels
from tests.runs import compile_small

STEPS = 4
NUM_FRAMES = 9
PROMPTS = {"target": "a red circle", "negative": "blue"}


def compile_edit(
    folder: Path, models: Path, clip: Path, stage: dict[str, Any], /, **changes: Any
) -> Plan:
    """Compile a recipe of one editor, on the tiny checkpoints of ``models``."""
    named = {path.name: {"path": str(path)} for path in models.iterdir()}
    stage = {
        "op": "edit",
        "num_inference_steps": STEPS,
        "guidance_scale": 3.0,
        "keep": True,
    } | stage
    data: dict[str, Any] = {
        "models": named,
        "prompts": PROMPTS,
        "stages": [{k: v for k, v in stage.items() if v is not None}],
        "numerics": {"threads": 1, "device": "cpu", "micro_batch": 4},
        "chunks": {"frames": 16},
    }
    return compile_small(Store.open(str(folder / "store")), clip, None, **(data | changes))


def open_chunk(folder: Path, plan: Plan, index: int = 0) -> OpenChunk:
    """Open a chunk of the last stage of a plan."""
    stage = plan.stages[-1]
    store = Store.open(str(folder / "store"))
    return OpenChunk(store, plan, stage, stage.chunks[index], PlanModels(plan))


def open_canvas(folder: Path, plan: Plan) -> Canvas:
    """Open the first chunk of an editor with its model."""
    chunk = open_chunk(folder, plan)
    stage = chunk.params(type(plan.recipe.stages[-1]))
    assert isinstance(stage, EditStage)
    return Canvas.of(chunk, stage)


def write_map(path: Path, num_frames: int = NUM_FRAMES, *, size: int = 16, seed: int = 0) -> Path:
    """Write a map video of smooth colours, without loss."""
    grid = np.mgrid[:num_frames, :size, :size].transpose(1, 2, 3, 0)
    waves = np.sin(grid * [0.5, 0.4, 0.3] + seed)
    write_video(path, (127 * waves + 128).astype(np.uint8), Fraction(8), codec="ffv1")
    return path


def write_mask(path: Path, *, size: int = 16) -> Path:
    """Write an image whose middle is white; its borders lie between latent pixels."""
    white = np.zeros((1, size, size, 3), np.uint8)
    white[:, size // 4 : size // 2, size // 4 : -size // 4] = 255
    write_video(path, white, Fraction(8), codec="ffv1")
    return path


def generators(canvas: Canvas) -> list[torch.Generator]:
    """Return the generators of the chunk's frames, as the editor draws from them."""
    seed, stream = canvas.chunk.noise_stream
    return [frame_generator(seed, stream, frame) for frame in canvas.chunk.frames]


def pipeline(name: str, models: Path, *, model: str = "image", **parts: Any) -> Any:
    """Return a pipeline of diffusers on a tiny checkpoint, with DDIM."""
    diffusers = library("diffusers")
    scheduler = diffusers.DDIMScheduler.from_pretrained(
        models / model / "scheduler", clip_sample=False
    )
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(
        models / model, scheduler=scheduler, safety_checker=None, requires_safety_checker=False
    )
    components = {k: v for k, v in loaded.components.items() if k != "image_encoder"} | parts
    made = getattr(diffusers, name)(**components, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def settings(canvas: Canvas) -> dict[str, Any]:
    """Return the arguments that all of diffusers' pipelines share."""
    num_frames = len(canvas.chunk.frames)
    return {
        "prompt": [PROMPTS["target"]] * num_frames,
        "negative_prompt": [PROMPTS["negative"]] * num_frames,
        "num_inference_steps": STEPS,
        "guidance_scale": 3.0,
        "generator": generators(canvas),
        "output_type": "latent",
    }
