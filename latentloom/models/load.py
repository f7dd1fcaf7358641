"""Load models from folders in diffusers' layout, once per process.

An image model is a whole pipeline folder, a motion adapter is loaded on top of one and shares its text
encoder and VAE; `dependents` loads what else is built on an image model.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from latentloom.errors import ModelError
from latentloom.models import standin
from latentloom.models.denoisers import Prediction
from latentloom.models.folders import inside, resolve_folder
from latentloom.models.image import ImageDenoiser
from latentloom.models.lora import Lora, merge_loras
from latentloom.models.offload import ON_CPU, Placement, place
from latentloom.models.pretrained import (
    class_name,
    load_component,
    load_tokenizer,
    read_config,
)
from latentloom.models.protocols import VAE, Denoiser, TextEncoder
from latentloom.models.schedulers import Sampler, Schedule
from latentloom.models.text import CLIPText
from latentloom.models.vae import check_same_latent_space, load_kl_autoencoder
from latentloom.models.video import VideoDenoiser, inflate

Changes = tuple[tuple[str, object], ...]
"""Fields and their new values, as something that a cache can look up."""


@dataclasses.dataclass(frozen=True, eq=False)
class ImageModel:
    """A text-to-image model."""

    vae: VAE
    text: TextEncoder
    denoiser: Denoiser
    schedule: Schedule
    placement: Placement

    def sampler(self, num_inference_steps: int) -> Sampler:
        """Return DDIM and its inverse with N steps."""
        return self.schedule.sampler(num_inference_steps)


@dataclasses.dataclass(frozen=True, eq=False)
class VideoModel:
    """A text-to-video model; `vae` is the image model's unless it stands alone."""

    vae: VAE
    text: TextEncoder
    denoiser: Denoiser
    schedule: Schedule

    def sampler(self, num_inference_steps: int) -> Sampler:
        """Return DDIM and its inverse with N steps."""
        return self.schedule.sampler(num_inference_steps)


@functools.lru_cache(maxsize=8)
def load_image_model(
    folder: str | Path,
    *,
    subfolder: str | None = None,
    variant: str | None = None,
    placement: Placement = ON_CPU,
    vae: VAE | None = None,
    loras: tuple[Lora, ...] = (),
    scheduler: Changes = (),
) -> ImageModel:
    """Load a text-to-image model from a pipeline folder.

    Args:
        folder: Holds `vae/`, `unet/`, `text_encoder/`, `tokenizer/` and `scheduler/`.
        subfolder: Where in it the pipeline lies.
        variant: As in diffusers, `fp16` for instance.
        placement: Where it goes, and what it computes in.
        vae: Another VAE than the folder's.
        loras: Merged into its weights.
        scheduler: Fields of the scheduler's configuration with other values.

    Raises:
        ModelError: If something is missing or damaged, or the parts do not fit.
        PolicyError: If a class is not allowed.
    """
    root = inside(resolve_folder(folder), subfolder)
    options: dict[str, Any] = {"variant": variant, "placement": placement}
    schedule = Schedule.from_folder(root / "scheduler", dict(scheduler))
    own_vae = vae if vae is not None else load_vae(root / "vae", **options)
    denoiser = load_denoiser(root / "unet", schedule, ("UNet2DConditionModel",), options)
    check_channels(root, denoiser, own_vae)
    text = load_text(root, options)
    _merge(loras, denoiser, text)
    return ImageModel(own_vae, text, denoiser, schedule, placement)


@functools.lru_cache(maxsize=8)
def load_video_model(
    folder: str | Path,
    *,
    base: ImageModel | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    placement: Placement = ON_CPU,
    vae: VAE | None = None,
    loras: tuple[Lora, ...] = (),
    scheduler: Changes = (),
) -> VideoModel:
    """Load a video model: a motion adapter on a base, or a pipeline of its own.

    Args:
        folder: A `MotionAdapter` folder, with its own `scheduler/` or the base's; or a pipeline
            folder whose `unet/` is a `UNetMotionModel` or `UNet3DConditionModel`.
        base: The image model. Text encoder and VAE are its own where the folder has none.
        subfolder: Where in the folder the model lies.
        variant: As in diffusers.
        placement: Where it goes, and what it computes in; an adapter's is its base's.
        vae: The VAE named explicitly. Without it the folder's must share the base's latent space.
        loras: Merged into its weights; an adapter's can change the UNet alone.
        scheduler: Fields of the scheduler's configuration with other values.

    Raises:
        ModelError: If something is missing or damaged, or the parts do not fit.
        PolicyError: If a class is not allowed.
    """
    root = inside(resolve_folder(folder), subfolder)
    options: dict[str, Any] = {"variant": variant, "placement": placement}
    if (root / "config.json").is_file():
        on = required(base, root)
        return _load_adapter(root, on, variant, vae, loras, dict(scheduler))
    schedule = Schedule.from_folder(root / "scheduler", dict(scheduler))
    classes = ("UNetMotionModel", "UNet3DConditionModel")
    denoiser = load_denoiser(root / "unet", schedule, classes, options)
    own_text = (root / "text_encoder").is_dir()
    text = load_text(root, options) if own_text else required(base, root).text
    chosen = vae if vae is not None else shared_vae(root, base, options)
    check_channels(root, denoiser, chosen)
    _merge(loras, denoiser, text if own_text else None)
    return VideoModel(chosen, text, denoiser, schedule)


@functools.lru_cache(maxsize=8)
def load_vae(
    folder: str | Path,
    *,
    subfolder: str | None = None,
    variant: str | None = None,
    placement: Placement = ON_CPU,
) -> VAE:
    """Load a VAE from its own folder, or from the `vae/` of a pipeline's.

    Raises:
        ModelError: If it is missing or damaged.
        PolicyError: If the class is not allowed.
    """
    root = inside(resolve_folder(folder), subfolder)
    root = root / "vae" if (root / "vae").is_dir() else root
    config = read_config(root / "config.json")
    if class_name(config) == "StandInVAE":
        return standin.load_vae(root, placement.device)
    return load_kl_autoencoder(root, variant=variant, placement=placement)


def _load_adapter(
    root: Path,
    base: ImageModel,
    variant: str | None,
    vae: VAE | None,
    loras: tuple[Lora, ...],
    scheduler: dict[str, object],
) -> VideoModel:
    image = real_base(base, root)
    adapter = load_motion_adapter(root, base, variant)
    own = (root / "scheduler").is_dir()
    schedule = Schedule.from_folder(root / "scheduler") if own else base.schedule
    schedule = schedule.changed(scheduler)
    module = place(inflate(image.module, adapter), base.placement)
    denoiser = VideoDenoiser(module, prediction_of(schedule))
    _merge(loras, denoiser, None)
    return VideoModel(vae if vae is not None else base.vae, base.text, denoiser, schedule)


def load_motion_adapter(root: Path, base: ImageModel, variant: str | None) -> Any:
    """Load temporal layers in their base's dtype; where they go, the model that they are put into says."""
    placement = Placement(dtype=base.placement.dtype)
    return load_component(root, expected=("MotionAdapter",), variant=variant, placement=placement)


def _merge(loras: tuple[Lora, ...], denoiser: Denoiser, text: TextEncoder | None) -> None:
    if not loras:
        return
    if not isinstance(denoiser, ImageDenoiser | VideoDenoiser):
        raise ModelError(f"{type(denoiser).__name__} takes no LoRA; remove its loras")
    encoder = text.module if isinstance(text, CLIPText) else None
    merge_loras(loras, unet=denoiser.module, text_encoder=encoder)


def load_denoiser(
    folder: Path, schedule: Schedule, expected: tuple[str, ...], options: dict[str, Any]
) -> Denoiser:
    """Load a UNet, or the stand-in for one, as the denoiser of its class."""
    prediction = prediction_of(schedule)
    if class_name(read_config(folder / "config.json")) == "StandInDenoiser":
        return standin.load_denoiser(folder, prediction, options["placement"].device)
    module = load_component(folder, expected=expected, **options)
    if module.config.get("addition_embed_type"):
        raise ModelError(f"{folder} needs more than text embeddings (SDXL); not supported")
    if expected == ("UNet2DConditionModel",):
        return ImageDenoiser(module, prediction)
    return VideoDenoiser(module, prediction)


def load_text(root: Path, options: dict[str, Any]) -> TextEncoder:
    """Load the text encoder of a pipeline folder, with its tokenizer."""
    folder = root / "text_encoder"
    if class_name(read_config(folder / "config.json")) == "StandInText":
        return standin.load_text(options["placement"].device)
    module = load_component(folder, expected=("CLIPTextModel",), **options)
    return CLIPText(load_tokenizer(root / "tokenizer"), module)


def shared_vae(root: Path, base: ImageModel | None, options: dict[str, Any]) -> VAE:
    """Return the base's VAE, checked against the folder's own where it has one."""
    if not (root / "vae").is_dir():
        return required(base, root).vae
    own = load_vae(root / "vae", **options)
    if base is None:
        return own
    check_same_latent_space(base.vae, own)
    return base.vae


def prediction_of(schedule: Schedule) -> Prediction:
    """Return what the outputs of models of a schedule mean."""
    return Prediction(schedule.prediction_type, schedule.alphas_cumprod())


def check_channels(root: Path, denoiser: Denoiser, vae: VAE, *, extra: int = 0) -> None:
    """Refuse a denoiser whose channels are not those that its VAE makes and an editor adds."""
    found = getattr(denoiser, "extra_channels", 0)
    if (denoiser.channels, found) != (vae.channels, extra):
        raise ModelError(
            f"the denoiser of {root} takes {denoiser.channels + found} channels, but its VAE makes "
            f"{vae.channels} and {extra} more are given to it here; inpainting and other conditioned"
            " models belong to editors of their own kind"
        )


def real_base(base: ImageModel, root: Path) -> ImageDenoiser:
    """Return the UNet that another part is built on; a stand-in has none."""
    if not isinstance(base.denoiser, ImageDenoiser):
        raise ModelError(f"{root} cannot be built on {type(base.denoiser).__name__}")
    return base.denoiser


def required(base: ImageModel | None, root: Path) -> ImageModel:
    """Return the base, or say that it is missing."""
    if base is None:
        raise ModelError(f"{root} is built on an image model; name it with `base`")
    return base
