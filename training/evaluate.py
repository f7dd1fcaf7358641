"""Measure the embedded family on held-out clips, by the world's own truth.

Every clip's sprite is recoloured. Arms: the image model alone, the video model alone, both fused; each
from the source's inverted latents and from per-frame noise. And the round trip through inversion.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from data import HELD_OUT
from diffusers import ControlNetModel, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from family import EMBEDDED, decode, encode, load_text_encoder, load_tokenizer, load_unet, load_vae
from numpy.typing import NDArray

from latentloom.models.control import ControlNet, with_control
from latentloom.models.denoisers import Prediction
from latentloom.models.image import ImageDenoiser
from latentloom.models.predict import predictor
from latentloom.models.protocols import Denoiser
from latentloom.models.schedulers import Sampler, Schedule
from latentloom.models.text import CLIPText
from latentloom.models.upsample import Upsampler
from latentloom.models.video import VideoDenoiser
from latentloom.ops.edges import edges
from latentloom.ops.fuse import alpha_schedule, fuse_denoise
from latentloom.ops.noise import frame_noise
from latentloom.ops.sampling import Predict, denoise, invert
from latentloom.sprites.caption import caption
from latentloom.sprites.render import render
from latentloom.sprites.scene import COLOURS, Scene, random_scene, recolour
from latentloom.sprites.score import Score, score

STARTS: Final = ("inverted", "noise")
ARMS: Final = ("image", "video", "fused")
Frames = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True)
class Settings:
    """The edit's numbers; the defaults are those of `examples/fldm.yaml`."""

    num_steps: int = 20
    noise_start: int = 0
    guidance_image: float = 3.0
    guidance_video: float = 3.0
    alpha: float = 0.5
    tau: int = 6
    control_scale: float = 2.0
    control_video: bool = True
    num_frames: int = 16


@dataclasses.dataclass(frozen=True)
class Family:
    """The loaded models."""

    vae: Any
    text: CLIPText
    image: ImageDenoiser
    video: VideoDenoiser
    control: ControlNet
    sampler: Sampler

    @classmethod
    def load(cls, num_steps: int) -> Family:
        """Load the exported weights, in float32."""
        schedule = Schedule.from_folder(EMBEDDED / "image" / "scheduler")
        prediction = Prediction(schedule.prediction_type, schedule.alphas_cumprod())
        unet = load_unet()
        video = UNetMotionModel.from_unet2d(
            load_unet(), MotionAdapter.from_pretrained(EMBEDDED / "video")
        )
        control = ControlNetModel.from_pretrained(EMBEDDED / "control", torch_dtype=torch.float32)
        return cls(
            vae=load_vae(),
            text=CLIPText(load_tokenizer(), load_text_encoder()),
            image=ImageDenoiser(unet, prediction),
            video=VideoDenoiser(video.float().eval().requires_grad_(False), prediction),
            control=ControlNet(control.eval().requires_grad_(False)),
            sampler=schedule.sampler(num_steps),
        )


def held_out(index: int) -> tuple[Scene, Scene]:
    """Return a held-out scene and the same one recoloured, to each other colour in turn."""
    scene = random_scene(HELD_OUT + index)
    old = COLOURS.index(scene.sprites[0].colour)
    return scene, recolour(scene, COLOURS[(old + 1 + index % (len(COLOURS) - 1)) % len(COLOURS)])


def edit(
    family: Family, source: Scene, target: Scene, start: str, settings: Settings, arms: list[str]
) -> dict[str, Frames]:
    """Recolour a clip with each arm."""
    frames = render(source, settings.num_frames)
    z0 = encode(family.vae, frames)
    noise = frame_noise(7, "noise", range(len(frames)), (4, *z0.shape[-2:]))
    if start == "inverted":
        k = settings.noise_start
        begun = family.sampler.add_noise(z0, noise, k)
        z = invert(begun, _video(family, caption(source)), family.sampler, start=k)
    else:
        z = noise
    outline = torch.from_numpy(edges(frames))
    image = _image(family, caption(target, motion=False), outline, settings)
    steered = outline if settings.control_video else None
    video = _video(
        family, caption(target), settings.guidance_video, steered, settings.control_scale
    )

    def fused() -> torch.Tensor:
        weights = alpha_schedule(settings.alpha, settings.tau, settings.num_steps)
        pairs = [None if a is None else (a, 1 - a) for a in weights]
        return fuse_denoise([video, image], [z, z], pairs, family.sampler)

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "image": lambda: denoise(z, image, family.sampler),
        "video": lambda: denoise(z, video, family.sampler),
        "fused": fused,
    }
    return {arm: decode(family.vae, ways[arm]()) for arm in arms}


def round_trip(family: Family, scene: Scene, num_frames: int) -> tuple[float, float]:
    """Return the PSNR in dB of encode -> decode, and with invert -> denoise between."""
    frames = render(scene, num_frames)
    z0 = encode(family.vae, frames)
    video = _video(family, caption(scene))
    back = denoise(invert(z0, video, family.sampler), video, family.sampler)
    return psnr(decode(family.vae, z0), frames), psnr(decode(family.vae, back), frames)


def upsample(family: Family, scene: Scene, num_frames: int, level: int) -> dict[str, float]:
    """Return the PSNR in dB against the scene at 128 pixels: of the upsampler, and of plainer ways."""
    frames, wanted = render(scene, num_frames), render(scene, num_frames, 128)
    small = encode(family.vae, frames)
    model = Upsampler(
        UNet2DConditionModel.from_pretrained(EMBEDDED / "upsample/unet", torch_dtype=torch.float32),
        Schedule.from_folder(EMBEDDED / "upsample/scheduler"),
    )
    noise = frame_noise(7, "level", range(num_frames), (4, 16, 16))
    words, nothing = family.text.encode([caption(scene)]), family.text.encode([""])
    predict = predictor(
        model.denoiser(level),
        words,
        negative=nothing,
        guidance=1.0,
        control=model.condition(small, noise, level),
    )
    z = frame_noise(7, "upsample", range(num_frames), (4, 32, 32))
    made = decode(family.vae, denoise(z, predict, family.sampler))
    plain = torch.from_numpy(decode(family.vae, small)).permute(0, 3, 1, 2).float()
    plain = torch.nn.functional.interpolate(plain, scale_factor=2, mode="bicubic").clamp(0, 255)
    bicubic = plain.round().byte().permute(0, 2, 3, 1).numpy()
    return {
        "psnr": psnr(made, wanted),
        "psnr_bicubic": psnr(bicubic, wanted),
        "psnr_vae": psnr(decode(family.vae, encode(family.vae, wanted)), wanted),
    }


def psnr(one: Frames, other: Frames) -> float:
    """Return the peak signal-to-noise ratio in dB."""
    return float(10 * np.log10(255**2 / np.square(one.astype(float) - other).mean()))


def main() -> None:
    """Measure what is asked for, and print a table."""
    options = _options()
    settings = dataclasses.replace(Settings(), **dict(options.set))
    family = Family.load(settings.num_steps)
    rows: dict[str, list[dict[str, float]]] = {}
    began = time.monotonic()
    for index in range(options.first, options.first + options.clips):
        source, target = held_out(index)
        kept = decode(family.vae, encode(family.vae, render(target, settings.num_frames)))
        reference = score(kept, target)
        rows.setdefault("VAE alone", []).append(_facts(reference, reference))
        for start in options.starts:
            for arm, frames in edit(family, source, target, start, settings, options.arms).items():
                row = _facts(score(frames, target), reference)
                rows.setdefault(f"{arm}, {start}", []).append(row)
                if options.pictures:
                    _save(options.pictures, f"{index:03d}-{start}-{arm}", source, frames)
        if options.round_trip:
            plain, back = round_trip(family, source, settings.num_frames)
            row = {"psnr": back, "psnr_vae": plain, "lost_db": plain - back}
            rows.setdefault("round trip", []).append(row)
        if options.upsample:
            row = upsample(family, source, 2, options.level)
            rows.setdefault("upsampled", []).append(row)
        if options.verbose:
            print(index, {k: v[-1] for k, v in rows.items() if k != "VAE alone"}, flush=True)
    table = {name: _means(of) for name, of in rows.items()}
    print(_format(table))
    facts = {"clips": options.clips, "first": options.first, "seconds": time.monotonic() - began}
    if options.json:
        content = {**facts, "settings": dataclasses.asdict(settings), "means": table, "rows": rows}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def _video(
    family: Family,
    prompt: str,
    guidance: float = 1.0,
    outline: torch.Tensor | None = None,
    scale: float = 1.0,
) -> Predict:
    model: Denoiser = family.video
    if outline is not None:
        model = with_control(family.video, family.control, scale=scale)
    words, nothing = family.text.encode([prompt]), family.text.encode([""])
    return predictor(model, words, negative=nothing, guidance=guidance, control=outline)


def _image(family: Family, prompt: str, outline: torch.Tensor, settings: Settings) -> Predict:
    model = with_control(family.image, family.control, scale=settings.control_scale)
    words, nothing = family.text.encode([prompt]), family.text.encode([""])
    guidance = settings.guidance_image
    return predictor(model, words, negative=nothing, guidance=guidance, control=outline)


def _facts(result: Score, reference: Score) -> dict[str, float]:
    """Return shares of right frames, and flicker relative to the VAE's own reconstruction."""
    return {**result.means(), "flicker_vae": reference.flicker}


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    if means.get("flicker_vae"):
        # The ratio of the means: clips that stand still have no flicker to divide by.
        means["flicker_ratio"] = means["flicker"] / means["flicker_vae"]
    return means


def _format(table: dict[str, dict[str, float]]) -> str:
    lines = []
    for name, means in table.items():
        numbers = " ".join(f"{key} {value:.3f}" for key, value in means.items())
        lines.append(f"{name:18s} {numbers}")
    return "\n".join(lines)


def _save(folder: Path, name: str, source: Scene, frames: Frames) -> None:
    """Write source above edit, frames side by side."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rows = [np.concatenate(list(part), axis=1) for part in (render(source, len(frames)), frames)]
    Image.fromarray(np.concatenate(rows)).save(folder / f"{name}.png")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--first", type=int, default=0, help="number of the first held-out clip")
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument("--starts", nargs="*", choices=STARTS, default=list(STARTS))
    parser.add_argument("--round-trip", action="store_true", help="measure the inversion's too")
    parser.add_argument("--upsample", action="store_true", help="measure the upsampler's too")
    parser.add_argument("--level", type=int, default=50, help="noise level of its condition")
    parser.add_argument("--set", nargs="*", type=_assignment, default=[], metavar="FIELD=VALUE")
    parser.add_argument("--json", type=Path, help="write everything there")
    parser.add_argument("--pictures", type=Path, help="write each edit there, as a strip")
    parser.add_argument("--verbose", action="store_true", help="a line a clip")
    return parser.parse_args()


def _assignment(text: str) -> tuple[str, Any]:
    field, _, value = text.partition("=")
    return field, json.loads(value)


if __name__ == "__main__":
    main()
