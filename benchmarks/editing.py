"""The methods that `methods.py` compares, on a clip of the sprite world: models and `ops`, no store, no flow.

F frames, H x W pixels, C latent channels, h x w latent pixels; N steps.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Final, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from latentloom.models.control import ControlNet, with_control
from latentloom.models.dependents import (
    load_controlnet,
    load_inpaint_model,
    load_instruct_model,
)
from latentloom.models.instruct import instruct_predictor, source_latents
from latentloom.models.load import ImageModel, VideoModel, load_image_model, load_video_model
from latentloom.models.predict import predictor
from latentloom.models.schedulers import Sampler
from latentloom.ops.edges import edges
from latentloom.ops.fuse import fuse, fuse_denoise, weight_schedule
from latentloom.ops.inpaint import latent_mask
from latentloom.ops.interpolate import mix
from latentloom.ops.noise import frame_noise
from latentloom.ops.sampling import Predict, denoise, invert
from latentloom.sprites.caption import caption
from latentloom.sprites.edits import Task, draw_edit, instructions
from latentloom.sprites.render import render
from latentloom.sprites.scene import Scene
from latentloom.sprites.truth import tell_truth
from latentloom.tasks.tensors import frames_to_tensor

Method = Literal["image", "video", "fldm", "bivdiff", "editor", "bivdiff_editor"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)
# Those that use a model made for the task: instructions, or a hole to fill.
SPECIAL: Final[frozenset[Method]] = frozenset({"editor", "bivdiff_editor"})
NUM_STEPS: Final = 20
SEED: Final = 7
# Pixels of background around what the inpainting model paints anew.
ROOM: Final = 3
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
    toward: Literal["video", "image", "constant"] = "video"
    """FLDM: whose weight grows to 1 from step tau on, if any."""
    variance_preserving: bool = False
    match_statistics: Literal["none", "per_frame"] = "none"
    start: Literal["inverted", "noise"] = "inverted"
    """Image model, video model and FLDM: from the source's inverted latents, or from noise drawn by frame."""
    num_sources: int = 2
    """FLDM: of `SOURCES`, in that order."""
    strength: float = 0.7
    """BIVDiff: how far the frames are noised before the image model edits them."""
    ratio: float = 0.25
    """BIVDiff: weight of the image model's inversion."""
    inversion: Literal["mixed", "none"] = "mixed"
    """BIVDiff: none noises the edited frames' latents, and inverts nothing."""
    smoothing_guidance_scale: float = 3.0
    """BIVDiff: of the video model, at the end."""
    guidance_scale: float = 3.0
    image_guidance_scale: float = 1.5
    """Instructions: how far toward the source."""
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


# The source whose weight grows, by its place among them.
TOWARD: Final = {"video": 0, "image": 1, "constant": None}


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
            "bivdiff": lambda settings: self.bivdiff(self.img2img(settings), settings),
            "editor": self.special,
            "bivdiff_editor": lambda settings: self.bivdiff(self.special(settings), settings),
        }
        return self.models.image.vae.decode_latents(ways[method](settings))

    @functools.cached_property
    def latents(self) -> torch.Tensor:
        """The source's clean latents `(F, C, h, w)`."""
        return self.models.image.vae.encode_latents(self._frames())

    @functools.cached_property
    def inverted(self) -> torch.Tensor:
        """The source's latents at the first timestep, by the video model."""
        predict = self._predict(self.models.video, caption(self.clip.source))
        return invert(self.latents, predict, self.sampler)

    def alone(self, name: str, settings: Settings) -> torch.Tensor:
        """Denoise the latents of the start with one model."""
        return denoise(self._start(settings), self._source(name, settings), self.sampler)

    def fldm(self, settings: Settings) -> torch.Tensor:
        """Denoise the latents of the start with several models, fused from step tau on."""
        names = list(SOURCES)[: settings.num_sources]
        others = (1 - settings.alpha) / (len(names) - 1)
        weights = [settings.alpha] + [others] * (len(names) - 1)
        combine = functools.partial(
            fuse,
            variance_preserving=settings.variance_preserving,
            match_statistics=settings.match_statistics,
        )
        return fuse_denoise(
            [self._source(name, settings) for name in names],
            [self._start(settings)] * len(names),
            weight_schedule(weights, settings.tau, NUM_STEPS, toward=TOWARD[settings.toward]),
            self.sampler,
            combine=combine,
        )

    def img2img(self, settings: Settings) -> torch.Tensor:
        """Noise each frame, and denoise it with the image model."""
        start = self.sampler.start_index(settings.strength)
        noisy = self.sampler.add_noise(self.latents, self._noise(), NUM_STEPS - start)
        return denoise(noisy, self._source("image", settings), self.sampler, start=start)

    def special(self, settings: Settings) -> torch.Tensor:
        """Edit each frame by the model made for the task."""
        insert_or_remove = self.clip.task in ("insert", "remove")
        predict = self._filled(settings) if insert_or_remove else self._instructed(settings)
        return denoise(self._noise(), predict, self.sampler)

    def bivdiff(self, edited: torch.Tensor, settings: Settings) -> torch.Tensor:
        """Take edited frames' latents to the first timestep, and smooth with the video model."""
        models = self.models
        # Through pixels, as the stages do: the frames may come from anywhere.
        clean = models.image.vae.encode_latents(models.image.vae.decode_latents(edited))
        predict = self._predict(
            models.video, caption(self.clip.target), settings.smoothing_guidance_scale
        )
        return denoise(self._bridged(clean, settings), predict, self.sampler)

    def _bridged(self, clean: torch.Tensor, settings: Settings) -> torch.Tensor:
        """Invert latents with both models and mix, or noise them."""
        if settings.inversion == "none":
            return self.sampler.add_noise(clean, self._noise("bridge"), NUM_STEPS)
        by_image, by_video = (
            invert(clean, self._predict(model, ""), self.sampler)
            for model in (self.models.image, self.models.video)
        )
        return mix(by_image, by_video, settings.ratio)

    def _start(self, settings: Settings) -> torch.Tensor:
        return self.inverted if settings.start == "inverted" else self._noise()

    def _noise(self, stream: str = "edit") -> torch.Tensor:
        channels, height, width = self.latents.shape[1:]
        frames = range(self.clip.num_frames)
        return frame_noise(SEED, stream, frames, (channels, height, width))

    def _instructed(self, settings: Settings) -> Predict:
        model = load_instruct_model("embedded:sprites/instruct")
        return instruct_predictor(
            model.denoiser,
            source_latents(model.vae, self._frames()),
            model.text.encode([instructions(self.clip.source, self.clip.target)[0]]),
            negative=model.text.encode([""]),
            guidance_scale=settings.guidance_scale,
            image_guidance_scale=settings.image_guidance_scale,
        )

    def _filled(self, settings: Settings) -> Predict:
        """Return the inpainting model's prediction; the hole is a box around the sprite."""
        model = load_inpaint_model("embedded:sprites/inpaint")
        hole = torch.from_numpy(self._boxes())[:, None].float()
        known = model.vae.encode_latents(self._frames() * (1 - hole))
        return predictor(
            model.denoiser,
            model.text.encode([caption(self.clip.target, motion=False)]),
            negative=model.text.encode([""]),
            guidance=settings.guidance_scale,
            control=torch.cat([latent_mask(hole, model.vae.downscale), known], 1),
        )

    def _boxes(self) -> NDArray[np.bool_]:
        """Return a box `(F, H, W)` around the sprite before and after, a little larger."""
        clip = self.clip
        before, after = (tell_truth(s, clip.num_frames).mask for s in (clip.source, clip.target))
        boxes = np.zeros_like(before)
        for box, covered in zip(boxes, before | after, strict=True):
            rows, columns = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
            top, left = max(rows[0] - ROOM, 0), max(columns[0] - ROOM, 0)
            box[top : rows[-1] + 1 + ROOM, left : columns[-1] + 1 + ROOM] = True
        return boxes

    def _frames(self) -> torch.Tensor:
        return frames_to_tensor(render(self.clip.source, self.clip.num_frames))

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
