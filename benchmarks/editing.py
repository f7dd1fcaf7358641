"""The methods that `methods.py` compares, on a clip of the sprite world: models and `ops`, no store, no flow.

F frames, H x W pixels, C latent channels, h x w latent pixels; N steps.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Final, Literal, get_args

import torch

from latentloom.models.control import ControlNet, with_control
from latentloom.models.load import (
    ImageModel,
    VideoModel,
    load_controlnet,
    load_image_model,
    load_video_model,
)
from latentloom.models.predict import predictor
from latentloom.models.schedulers import Sampler
from latentloom.ops.edges import edges
from latentloom.ops.fuse import fuse_denoise, weight_schedule
from latentloom.ops.interpolate import mix
from latentloom.ops.noise import frame_noise
from latentloom.ops.sampling import Predict, denoise, invert
from latentloom.sprites.caption import caption
from latentloom.sprites.edits import Task, draw_edit
from latentloom.sprites.render import render
from latentloom.sprites.scene import Scene
from latentloom.tasks.tensors import frames_to_tensor

Method = Literal["image", "video", "fldm", "bivdiff"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)
NUM_STEPS: Final = 20
SEED: Final = 7
# The edits after which a sprite's outline is where it was: there all models are held to the source's
# edges, which would keep the others from happening.
STEERED: Final[frozenset[Task]] = frozenset({"recolour", "background"})


@dataclasses.dataclass(frozen=True)
class Settings:
    """A method's numbers; the defaults are those of `examples/fldm.yaml` and `examples/bivdiff.yaml`."""

    alpha: float = 0.5
    """FLDM: weight of the video latents at step tau."""
    tau: int = 6
    """FLDM: first fused step."""
    num_sources: int = 2
    """FLDM: of `SOURCES`, in that order."""
    strength: float = 0.7
    """BIVDiff: how far the frames are noised before the image model edits them."""
    ratio: float = 0.25
    """BIVDiff: weight of the image model's inversion."""
    guidance_scale: float = 3.0
    controlnet_conditioning_scale: float = 2.0


@dataclasses.dataclass(frozen=True, eq=False)
class Models:
    """The embedded family."""

    image: ImageModel
    video: VideoModel
    control_net: ControlNet

    @classmethod
    def load(cls) -> Models:
        """Load it in float32 on the CPU."""
        image = load_image_model("embedded:sprites/image")
        return cls(
            image,
            load_video_model("embedded:sprites/video", base=image),
            load_controlnet("embedded:sprites/control", base=image),
        )


@dataclasses.dataclass(frozen=True)
class Clip:
    """An edit of a clip, to be done."""

    task: Task
    source: Scene
    target: Scene
    num_frames: int

    @classmethod
    def draw(cls, task: Task, seed: int, num_frames: int) -> Clip:
        """Draw a scene and its edit."""
        return cls(task, *draw_edit(task, seed), num_frames)


# The sources of a fusion by name, and whether a ControlNet steers them on a steered task.
SOURCES: Final = {
    "video": True,
    "image": True,
    "free image": False,
    "free video": False,
}


class Editor:
    """A clip with every method on it; what the methods share is computed once, when it is needed."""

    def __init__(self, models: Models, clip: Clip) -> None:
        self.models, self.clip = models, clip
        self.sampler: Sampler = models.image.sampler(NUM_STEPS)

    def edit(self, method: Method, settings: Settings) -> torch.Tensor:
        """Return the edited frames `(F, 3, H, W)` in [-1, 1]."""
        ways: dict[Method, Callable[[Settings], torch.Tensor]] = {
            "image": functools.partial(self.alone, "image"),
            "video": functools.partial(self.alone, "video"),
            "fldm": self.fldm,
            "bivdiff": self.bivdiff,
        }
        return self.models.image.vae.decode_latents(ways[method](settings))

    @functools.cached_property
    def latents(self) -> torch.Tensor:
        """The source's clean latents `(F, C, h, w)`."""
        frames = frames_to_tensor(render(self.clip.source, self.clip.num_frames))
        return self.models.image.vae.encode_latents(frames)

    @functools.cached_property
    def inverted(self) -> torch.Tensor:
        """The source's latents at the first timestep, by the video model."""
        predict = self._predict(self.models.video, caption(self.clip.source))
        return invert(self.latents, predict, self.sampler)

    def alone(self, name: str, settings: Settings) -> torch.Tensor:
        """Denoise the inverted latents with one model."""
        return denoise(self.inverted, self._source(name, settings), self.sampler)

    def fldm(self, settings: Settings) -> torch.Tensor:
        """Denoise the inverted latents with several models, fused from step tau on."""
        names = list(SOURCES)[: settings.num_sources]
        others = (1 - settings.alpha) / (len(names) - 1)
        weights = [settings.alpha] + [others] * (len(names) - 1)
        return fuse_denoise(
            [self._source(name, settings) for name in names],
            [self.inverted] * len(names),
            weight_schedule(weights, settings.tau, NUM_STEPS, toward=0),
            self.sampler,
        )

    def bivdiff(self, settings: Settings) -> torch.Tensor:
        """Edit each frame, invert the result with both models, mix, and smooth with the video model."""
        models, start = self.models, self.sampler.start_index(settings.strength)
        channels, height, width = self.latents.shape[1:]
        noise = frame_noise(SEED, "edit", range(self.clip.num_frames), (channels, height, width))
        noisy = self.sampler.add_noise(self.latents, noise, NUM_STEPS - start)
        edited = denoise(noisy, self._source("image", settings), self.sampler, start=start)
        # Through pixels, as the stages do: the frames between them may come from anywhere.
        clean = models.image.vae.encode_latents(models.image.vae.decode_latents(edited))
        by_image, by_video = (
            invert(clean, self._predict(model, ""), self.sampler)
            for model in (models.image, models.video)
        )
        predict = self._predict(models.video, caption(self.clip.target), settings.guidance_scale)
        return denoise(mix(by_image, by_video, settings.ratio), predict, self.sampler)

    def _source(self, name: str, settings: Settings) -> Predict:
        """Return a denoiser under the target's caption; a still picture has no motion to name."""
        windowed = name.endswith("video")
        model = self.models.video if windowed else self.models.image
        scale = settings.controlnet_conditioning_scale
        steered = SOURCES[name] and self.clip.task in STEERED
        return self._predict(
            model,
            caption(self.clip.target, motion=windowed),
            settings.guidance_scale,
            scale if steered else 0.0,
        )

    def _predict(
        self,
        model: ImageModel | VideoModel,
        prompt: str,
        guidance: float = 1.0,
        control_scale: float = 0.0,
    ) -> Predict:
        denoiser, control = model.denoiser, None
        if control_scale:
            denoiser = with_control(denoiser, self.models.control_net, scale=control_scale)
            frames = render(self.clip.source, self.clip.num_frames)
            control = torch.from_numpy(edges(frames))
        words, nothing = model.text.encode([prompt]), model.text.encode([""])
        return predictor(denoiser, words, negative=nothing, guidance=guidance, control=control)
