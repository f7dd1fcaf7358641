"""Measure models that edit on single frames of held-out clips.

An instruction changes one attribute. A hole, a box around what is there before and after, is painted by
the target's caption. A ControlNet or T2I-Adapter makes a frame from noise, by the source's edges and the
target's caption; `--scale 0` is the image model without it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from data import HELD_OUT, MAX_START
from diffusers import UNet2DConditionModel
from family import EMBEDDED, decode, encode, load_text_encoder, load_tokenizer, load_vae
from numpy.typing import NDArray
from train_inpaint import HIDDEN, box_around, shrink

from latentloom.models.adapter import Adapted, with_adapters
from latentloom.models.control import with_control
from latentloom.models.denoisers import Prediction
from latentloom.models.dependents import load_controlnet, load_t2i_adapter
from latentloom.models.load import load_image_model
from latentloom.models.predict import predictor
from latentloom.models.schedulers import Schedule
from latentloom.models.text import CLIPText
from latentloom.ops.edges import edges
from latentloom.ops.metrics import psnr
from latentloom.ops.noise import frame_noise
from latentloom.ops.sampling import Predict, denoise
from latentloom.sprites.caption import caption
from latentloom.sprites.edits import Task, draw_edit, instructions
from latentloom.sprites.render import render
from latentloom.sprites.scene import Scene
from latentloom.sprites.score import preserved, score
from latentloom.sprites.truth import tell_truth

TASKS: Final[dict[str, tuple[Task, ...]]] = {
    "instruct": ("recolour", "reshape", "background", "style"),
    "inpaint": ("insert", "remove", "reshape", "recolour"),
    "control": ("recolour", "background"),
    "t2i_adapter": ("recolour", "background"),
}
# Pixels of background around what is painted anew.
ROOM: Final = 3
Frames = NDArray[np.uint8]
Pairs = list[tuple[Scene, Scene]]
# (z, timestep, words, further channels) -> eps
Epsilon = Callable[[torch.Tensor, int, torch.Tensor, torch.Tensor], torch.Tensor]


def main() -> None:
    """Measure, and print a line a task."""
    options = _options()
    vae, text = load_vae(), CLIPText(load_tokenizer(), load_text_encoder())
    schedule = Schedule.from_folder(EMBEDDED / "image/scheduler")
    for task in TASKS[options.model]:
        pairs = [draw_edit(task, HELD_OUT + options.first + k) for k in range(options.clips)]
        sources = draw_frames([source for source, _ in pairs])
        if options.model == "instruct":
            asked = text.encode([instructions(*pair)[0] for pair in pairs])
            predict = instructed(
                load_epsilon("instruct", schedule),
                asked,
                text.encode([""]),
                encode(vae, sources),
                options,
            )
        elif options.model != "inpaint":
            asked = text.encode([caption(target, motion=False) for _, target in pairs])
            predict = steered(asked, text.encode([""]), sources, options)
        else:
            asked = text.encode([caption(target, motion=False) for _, target in pairs])
            boxes = draw_boxes(pairs)
            seen = encode(vae, np.where(boxes[..., None], HIDDEN, sources))
            condition = torch.cat([shrink(boxes), seen], 1)
            predict = inpainted(
                load_epsilon("inpaint", schedule), asked, text.encode([""]), condition, options
            )
        noise = frame_noise(7, task, range(options.clips), (4, 16, 16))
        made = decode(vae, denoise(noise, predict, schedule.sampler(options.steps)))
        print(task, facts(made, sources, pairs), flush=True)
        if options.pictures:
            wanted = draw_frames([target for _, target in pairs])
            _save(options.pictures / f"{options.model}-{task}.png", [sources, wanted, made])


def load_epsilon(name: str, schedule: Schedule) -> Epsilon:
    """Load a UNet with further input channels."""
    folder = EMBEDDED / name / "unet"
    unet: Any = UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32)
    unet.eval().requires_grad_(False)
    prediction = Prediction(schedule.prediction_type, schedule.alphas_cumprod())

    def epsilon(
        z: torch.Tensor, timestep: int, words: torch.Tensor, further: torch.Tensor
    ) -> torch.Tensor:
        output = unet(torch.cat([z, further], 1), timestep, words.expand(len(z), -1, -1)).sample
        return prediction.epsilon(output, z, timestep)

    return epsilon


def instructed(
    epsilon: Epsilon,
    asked: torch.Tensor,
    nothing: torch.Tensor,
    picture: torch.Tensor,
    options: argparse.Namespace,
) -> Predict:
    """Return the prediction under two guidances. Source: InstructPix2Pix (2211.09800), equation 3."""

    def predict(z: torch.Tensor, timestep: int) -> torch.Tensor:
        full = epsilon(z, timestep, asked, picture)
        by_picture = epsilon(z, timestep, nothing, picture)
        by_nothing = epsilon(z, timestep, nothing, torch.zeros_like(picture))
        toward_picture = options.image_guidance * (by_picture - by_nothing)
        return by_nothing + toward_picture + options.guidance * (full - by_picture)

    return predict


def inpainted(
    epsilon: Epsilon,
    asked: torch.Tensor,
    nothing: torch.Tensor,
    condition: torch.Tensor,
    options: argparse.Namespace,
) -> Predict:
    """Return the prediction under classifier-free guidance, mask and masked picture in both passes."""

    def predict(z: torch.Tensor, timestep: int) -> torch.Tensor:
        full = epsilon(z, timestep, asked, condition)
        plain = epsilon(z, timestep, nothing, condition)
        return plain + options.guidance * (full - plain)

    return predict


def steered(
    asked: torch.Tensor, nothing: torch.Tensor, sources: Frames, options: argparse.Namespace
) -> Predict:
    """Return the image model's prediction, steered by the edges of the sources."""
    image, outlines = load_image_model(EMBEDDED / "image"), torch.from_numpy(edges(sources))
    if options.model == "control":
        control_net = load_controlnet(EMBEDDED / "control", base=image)
        denoiser, control = with_control(image.denoiser, control_net, scale=options.scale), outlines
    else:
        adapter = load_t2i_adapter(EMBEDDED / "t2i_adapter", base=image)
        denoiser = with_adapters(image.denoiser, [Adapted(adapter, options.scale)])
        control = adapter.features(outlines)
    return predictor(denoiser, asked, negative=nothing, guidance=options.guidance, control=control)


def draw_frames(scenes: list[Scene]) -> Frames:
    """Render one frame of each scene, `(F, 64, 64, 3)`."""
    return np.concatenate([render(s, 1, start=_start(k)) for k, s in enumerate(scenes)])


def draw_boxes(pairs: Pairs) -> NDArray[np.bool_]:
    """Return a box `(64, 64)` for each pair, around the sprite before and after."""
    boxes = []
    for k, pair in enumerate(pairs):
        before, after = (tell_truth(scene, 1, start=_start(k)).mask[0] for scene in pair)
        boxes.append(box_around(before | after, ROOM))
    return np.stack(boxes)


def facts(made: Frames, sources: Frames, pairs: Pairs) -> str:
    """Return the shares of right frames, and the PSNR where nothing should change."""
    rows = []
    for k, (source, target) in enumerate(pairs):
        row = score(made[k : k + 1], target, start=_start(k)).means()
        kept = preserved(source, target, 1, 64, start=_start(k))
        decibels = psnr(made[k : k + 1], sources[k : k + 1], mask=kept)
        rows.append({**row, "preserved_db": float(decibels[0])})
    keys = ("colour", "shape", "style", "background", "iou", "all", "preserved_db")
    return " ".join(f"{key} {np.nanmean([row[key] for row in rows]):.3f}" for key in keys)


def _start(index: int) -> int:
    return 7 * index % MAX_START


def _save(path: Path, rows: list[Frames]) -> None:
    """Write sources above targets above what was made."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    strips = [np.concatenate(list(row[:16]), axis=1) for row in rows]
    Image.fromarray(np.concatenate(strips)).save(path)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=list(TASKS))
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--first", type=int, default=0, help="number of the first held-out clip")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=3.0, help="toward the text")
    parser.add_argument("--image-guidance", type=float, default=1.5, help="toward the picture")
    parser.add_argument("--scale", type=float, default=1.0, help="of what the edges add")
    parser.add_argument("--pictures", type=Path, help="write a picture a task there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
