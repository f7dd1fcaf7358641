"""Whether models that work in time beat those that do not: new frames, and steadier large frames.

    python -m benchmarks.temporal [--clips 8] [--parts interpolate,upsample] [--steps 20] [--json]

On held-out sprite clips that move, in ways that are known exactly. New frames (T -> 4T) by the interpolator,
and by a linear cross-fade of the known ones, in latents and in pixels; frames of twice the size by the
upsampler frame by frame, and by the one with temporal layers in windows of 8.

flicker is the mean change between neighbouring frames, on 0..255, where in truth nothing moves. (The change
over the whole frame cannot rank interpolations: by the triangle inequality none between two frames has less
than their cross-fade.) warp error is the squared change along the true motion, where both frames show the
same; PSNR is against the rendered frames. Interpolations go through the VAE, as the truth beside them does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from itertools import count, islice, pairwise
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from latentloom.models.dependents import load_interpolator, load_upsampler, load_video_upsampler
from latentloom.models.interpolate import FACTOR, Interpolator
from latentloom.models.load import ImageModel, load_image_model
from latentloom.models.predict import predictor
from latentloom.models.upsample import Upsampler
from latentloom.models.upsample_video import VideoUpsampler
from latentloom.ops.blend import blend
from latentloom.ops.interpolate import lerp
from latentloom.ops.metrics import psnr, warp_error
from latentloom.ops.noise import frame_noise
from latentloom.ops.sampling import denoise
from latentloom.ops.windows import plan_windows
from latentloom.sprites.caption import caption
from latentloom.sprites.render import render
from latentloom.sprites.scene import Scene, random_scene
from latentloom.sprites.score import score
from latentloom.sprites.truth import Truth, tell_truth

Frames = NDArray[np.uint8]
Row = dict[str, float]
# No model was trained, and no setting chosen, on clips from here on.
FIRST_SEED: Final = 1_006_000
SEED: Final = 7
NUM_KEYS: Final = 5
KEY_RATES: Final = (8.0, 2.0)
"""Known frames a second: the world's own rate, and one at which much happens between two frames."""
WINDOW: Final = 8
OVERLAP: Final = 2
NUM_FRAMES: Final = 14
NOISE_LEVEL: Final = 50
INTERPOLATION_STEPS: Final = 1
TRUTH: Final = "truth, through the VAE"


def main() -> None:
    """Measure, and print a table or JSON."""
    options = _options()
    torch.set_num_threads(options.threads)
    bench = Bench.load(options.steps)
    tables: dict[str, dict[str, list[Row]]] = {}
    for scene in islice(moving_scenes(), options.clips):
        for part in options.parts.split(","):
            for title, rows in PARTS[part](bench, scene):
                for name, row in rows.items():
                    tables.setdefault(title, {}).setdefault(name, []).append(row)
    means = {
        title: {name: _mean(rows) for name, rows in table.items()}
        for title, table in tables.items()
    }
    for title, table in means.items():
        print(f"\n{title}, {options.clips} clips")
        print(f"{'':24}{'flicker':>10}{'warp error':>12}{'PSNR dB':>10}")
        for name, row in table.items():
            print(f"{name:24}{row['flicker']:10.3f}{row['warp_error']:12.2f}{row['psnr']:10.2f}")
    if options.json:
        print(json.dumps({"clips": options.clips, "steps": options.steps, "means": means}))


def moving_scenes() -> Iterator[Scene]:
    """Yield held-out scenes, but for those that stand still: there is nothing to find between two frames."""
    scenes = (random_scene(seed) for seed in count(FIRST_SEED))
    return (scene for scene in scenes if scene.sprites[0].motion.kind != "still")


@dataclasses.dataclass(frozen=True)
class Bench:
    """The models, and the steps that they take."""

    image: ImageModel
    interpolator: Interpolator
    num_steps: int

    @classmethod
    def load(cls, num_steps: int) -> Bench:
        """Load the embedded family in float32 on the CPU."""
        image = load_image_model("embedded:sprites/image")
        return cls(image, load_interpolator("embedded:sprites/interpolate", base=image), num_steps)

    @cached_property
    def upsampler(self) -> Upsampler:
        """Load the upsampler."""
        return load_upsampler("embedded:sprites/upsample", base=self.image)

    @cached_property
    def video_upsampler(self) -> VideoUpsampler:
        """Load the temporal layers on it, which `training/train_upsample_video.py` makes."""
        return load_video_upsampler(
            "embedded:sprites/upsample_video", upsampler=self.upsampler, base=self.image
        )

    def encode(self, frames: Frames) -> torch.Tensor:
        """Return the latents of frames."""
        pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1
        return self.image.vae.encode_latents(pixels)

    def decode(self, latents: torch.Tensor) -> Frames:
        """Return the frames of latents."""
        return _bytes(self.image.vae.decode_latents(latents))


def interpolations(bench: Bench, scene: Scene) -> Iterator[tuple[str, dict[str, Row]]]:
    """Measure ways to make the frames between known ones, at each rate of those."""
    for rate in KEY_RATES:
        fps, num_frames = FACTOR * rate, FACTOR * (NUM_KEYS - 1) + 1
        frames = render(scene, num_frames, fps=fps)
        truth = tell_truth(scene, num_frames, fps=fps)
        keys = bench.encode(frames[::FACTOR])
        made = {
            TRUTH: bench.decode(bench.encode(frames)),
            "cross-fade, pixels": _bytes(_fade(_pixels(bench.decode(keys)))),
            "cross-fade, latents": bench.decode(_fade(keys)),
            "interpolated": bench.decode(interpolate(bench, keys, scene)),
        }
        title = f"interpolation: {rate:g} to {fps:g} frames a second"
        yield title, {name: measure(m, frames, scene, truth, fps=fps) for name, m in made.items()}


def interpolate(bench: Bench, keys: torch.Tensor, scene: Scene) -> torch.Tensor:
    """Put three frames between every two keys: `(K, C, h, w)` to `(4 K - 3, C, h, w)`."""
    text = bench.image.text.encode([caption(scene)])
    made = [keys[:1]]
    for first, last in pairwise(keys):
        made += [bench.interpolator.between(first, last, text, INTERPOLATION_STEPS), last[None]]
    return torch.cat(made)


def enlargements(bench: Bench, scene: Scene) -> Iterator[tuple[str, dict[str, Row]]]:
    """Measure ways to double the size of a clip."""
    small = bench.encode(render(scene, NUM_FRAMES))
    frames = render(scene, NUM_FRAMES, 128)
    truth = tell_truth(scene, NUM_FRAMES, 128)
    made = {
        TRUTH: bench.decode(bench.encode(frames)),
        "bicubic": _bytes(_enlarged(_pixels(bench.decode(small)))),
        "frame by frame": bench.decode(by_frame(bench, small, scene)),
        f"windows of {WINDOW}": bench.decode(by_window(bench, small, scene)),
    }
    rows = {name: measure(m, frames, scene, truth) for name, m in made.items()}
    yield "twice the size, 64 to 128 pixels", rows


def by_frame(bench: Bench, small: torch.Tensor, scene: Scene) -> torch.Tensor:
    """Upsample each frame alone."""
    return _upsample(bench, bench.upsampler, small, scene, range(len(small)))


def by_window(bench: Bench, small: torch.Tensor, scene: Scene) -> torch.Tensor:
    """Upsample windows, their overlaps cross-faded."""
    windows = plan_windows(0, len(small), size=WINDOW, overlap=OVERLAP)
    parts = [
        (a, _upsample(bench, bench.video_upsampler, small[a:b], scene, range(a, b)).numpy())
        for a, b in windows
    ]
    return torch.from_numpy(blend(parts, 0, len(small), overlap=OVERLAP))


def measure(made: Frames, wanted: Frames, scene: Scene, truth: Truth, *, fps: float = 8.0) -> Row:
    """Return flicker, warp error and PSNR of frames that should be others."""
    back = np.where(truth.mask[1:, ..., None], -np.diff(truth.centres[0], axis=0)[:, None, None], 0)
    return {
        "flicker": score(made, scene, fps=fps).background_flicker,
        "warp_error": float(np.nanmean(warp_error(made, truth.flow, back))),
        "psnr": float(psnr(made, wanted).mean()),
    }


PARTS: Final[Mapping[str, Callable[[Bench, Scene], Iterator[tuple[str, dict[str, Row]]]]]] = {
    "interpolate": interpolations,
    "upsample": enlargements,
}


def _upsample(
    bench: Bench, model: Upsampler | VideoUpsampler, small: torch.Tensor, scene: Scene, span: range
) -> torch.Tensor:
    noise = frame_noise(SEED, "upsample/augmentation", span, (4, *small.shape[2:]))
    height, width = small.shape[2:]
    large = frame_noise(SEED, "upsample", span, (4, 2 * height, 2 * width))
    predict = predictor(
        model.denoiser(NOISE_LEVEL),
        bench.image.text.encode([caption(scene)]),
        control=model.condition(small, noise, NOISE_LEVEL),
    )
    return denoise(large, predict, model.sampler(bench.num_steps))


def _fade(keys: torch.Tensor) -> torch.Tensor:
    steps = [lerp(keys[:-1], keys[1:], k / FACTOR) for k in range(FACTOR)]
    return torch.cat([torch.stack(steps, 1).flatten(0, 1), keys[-1:]])


def _enlarged(pixels: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.interpolate(pixels, scale_factor=2, mode="bicubic")


def _pixels(frames: Frames) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1


def _bytes(pixels: torch.Tensor) -> Frames:
    values = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte()
    return values.permute(0, 2, 3, 1).contiguous().numpy()


def _mean(rows: list[Row]) -> Row:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=8)
    parser.add_argument("--parts", default="interpolate,upsample", help="separated by commas")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
