"""InstructPix2Pix and Prompt2Prompt as stages: chunking changes no byte, and diffusers edits alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from latentloom.ops.sampling import denoise, invert
from latentloom.schemas.plan import Plan
from latentloom.tasks.conditioning import predict_with
from latentloom.tasks.edit import edit
from latentloom.tasks.editors.latents import Canvas
from latentloom.tasks.editors.prompt2prompt import prompt2prompt_latents
from latentloom.tasks.tensors import frames_to_tensor
from tests.editing import compile_edit, open_canvas, open_chunk, pipeline, settings
from tests.models import tiny
from tests.runs import make_clip

NUM_FRAMES = 16
PROMPTS = {"source": "a dog", "target": "a big cat", "instruction": "make it blue"}
INSTRUCT = {"kind": "instruct_pix2pix", "num_inference_steps": 2, "image_guidance_scale": 1.8}
PROMPT2PROMPT = {
    "kind": "prompt2prompt",
    "num_inference_steps": 2,
    "mode": "refine",
    "equalizer": {"big": 2.0},
    "local_blend": {"words": ["dog", "cat"], "start": 0.5},
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of tiny checkpoints: image, instruct."""
    root = tmp_path_factory.mktemp("models")
    tiny.save_image_pipeline(root / "image")
    tiny.save_instruct_pipeline(root / "instruct")
    return root


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", NUM_FRAMES, size=16)


def all_frames(folder: Path, plan: Plan) -> NDArray[np.uint8]:
    torch.set_num_threads(1)
    chunks = (open_chunk(folder, plan, index) for index in range(len(plan.stages[-1].chunks)))
    return np.concatenate([edit(chunk) for chunk in chunks])


@pytest.mark.parametrize("stage", [INSTRUCT, PROMPT2PROMPT], ids=lambda stage: str(stage["kind"]))
def test_any_chunking_gives_the_same_bytes(
    models: Path, clip: Path, tmp_path: Path, stage: dict[str, Any]
) -> None:
    made = [
        all_frames(
            tmp_path,
            compile_edit(tmp_path, models, clip, stage, prompts=PROMPTS, chunks={"frames": size}),
        )
        for size in (16, 7, 4, 1)
    ]
    assert made[0].shape == (NUM_FRAMES, 16, 16, 3)
    for other in made[1:]:
        assert np.array_equal(made[0], other)


def test_instruction_edits_as_diffusers_does(models: Path, clip: Path, tmp_path: Path) -> None:
    plan = compile_edit(tmp_path, models, clip, INSTRUCT | {"num_inference_steps": 4})
    canvas = open_canvas(tmp_path, plan)
    source = frames_to_tensor(canvas.chunk.input_frames())
    theirs = pipeline("StableDiffusionInstructPix2PixPipeline", models, model="instruct")(
        image=(source + 1) / 2, image_guidance_scale=1.8, **settings(canvas) | {"output_type": "np"}
    ).images
    assert np.abs(edit(canvas.chunk) - 255 * theirs).max() < 0.51


def there_and_back(canvas: Canvas, source: str, target: str, guidance: float) -> torch.Tensor:
    """Invert with one prompt, denoise with another, and nothing else."""
    model = canvas.model
    sampler = model.sampler(2)
    inverted = invert(
        canvas.encode(canvas.chunk.input_frames()),
        predict_with(canvas.chunk, model, {"prompt": source}, guidance_scale=1),
        sampler,
    )
    texts = {"prompt": target, "negative": ""}
    back = predict_with(canvas.chunk, model, texts, guidance_scale=guidance)
    return denoise(inverted, back, sampler)


def test_steps_of_zero_are_an_edit_by_the_target_prompt_alone(
    models: Path, clip: Path, tmp_path: Path
) -> None:
    free = {"cross_replace_steps": 0, "self_replace_steps": 0, "local_blend": None}
    stage = PROMPT2PROMPT | free
    canvas = open_canvas(tmp_path, compile_edit(tmp_path, models, clip, stage, prompts=PROMPTS))
    alone = there_and_back(canvas, PROMPTS["source"], PROMPTS["target"], 3.0)
    assert torch.equal(prompt2prompt_latents(canvas), alone)
    held = compile_edit(tmp_path, models, clip, PROMPT2PROMPT, prompts=PROMPTS)
    assert not torch.allclose(prompt2prompt_latents(open_canvas(tmp_path, held)), alone, atol=0.01)


def test_equal_prompts_without_guidance_return_the_reconstruction(
    models: Path, clip: Path, tmp_path: Path
) -> None:
    stage = PROMPT2PROMPT | {"prompt": "source", "guidance_scale": 1.0}
    stage |= {"equalizer": None, "local_blend": {"words": ["dog"]}}
    canvas = open_canvas(tmp_path, compile_edit(tmp_path, models, clip, stage, prompts=PROMPTS))
    back = there_and_back(canvas, PROMPTS["source"], PROMPTS["source"], 1.0)
    assert (prompt2prompt_latents(canvas) - back).abs().max() <= 1e-5
