"""Load models from folders in diffusers' layout, once per process.

An image model is a whole pipeline folder; a motion adapter, a ControlNet or an upsampler is loaded
on top of one, and shares its text encoder and VAE.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from latentloom.errors import ModelError
from latentloom.models import standin
from latentloom.models.adapter import T2IAdapter, check_adapter_fits
from latentloom.models.control import ControlNet, check_fits
from latentloom.models.denoisers import Prediction
from latentloom.models.folders import inside, resolve_folder
from latentloom.models.image import ImageDenoiser
from latentloom.models.instruct import InstructDenoiser
from latentloom.models.lora import Lora, merge_loras
from latentloom.models.offload import place
from latentloom.models.pretrained import (
    class_name,
    find_weights,
    load_component,
    load_tensors,
    load_tokenizer,
    read_config,
)
from latentloom.models.protocols import VAE, Denoiser, TextEncoder
from latentloom.models.reference import IPAdapter, attach
from latentloom.models.schedulers import Sampler, Schedule
from latentloom.models.text import CLIPText
from latentloom.models.upsample import Upsampler
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
    dtype: str
    device: str
    offload: bool = False

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
    dtype: str = "float32",
    device: str = "cpu",
    offload: bool = False,
    vae: VAE | None = None,
    loras: tuple[Lora, ...] = (),
    scheduler: Changes = (),
) -> ImageModel:
    """Load a text-to-image model from a pipeline folder.

    Args:
        folder: Holds `vae/`, `unet/`, `text_encoder/`, `tokenizer/` and `scheduler/`.
        subfolder: Where in it the pipeline lies.
        variant: As in diffusers, `fp16` for instance.
        dtype: What it computes in.
        device: Where it goes.
        offload: Whether it is there only while it runs.
        vae: Another VAE than the folder's.
        loras: Merged into its weights.
        scheduler: Fields of the scheduler's configuration with other values.

    Raises:
        ModelError: If something is missing or damaged, or the parts do not fit.
        PolicyError: If a class is not allowed or weights are pickled.
    """
    root = inside(resolve_folder(folder), subfolder)
    options = {"variant": variant, "dtype": dtype, "device": device, "offload": offload}
    schedule = Schedule.from_folder(root / "scheduler", dict(scheduler))
    own_vae = vae if vae is not None else load_vae(root / "vae", **options)
    denoiser = _load_denoiser(root / "unet", schedule, ("UNet2DConditionModel",), options)
    _check_channels(root, denoiser, own_vae)
    text = _load_text(root, options)
    _merge(loras, denoiser, text)
    return ImageModel(own_vae, text, denoiser, schedule, dtype, device, offload)


@functools.lru_cache(maxsize=8)
def load_video_model(
    folder: str | Path,
    *,
    base: ImageModel | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    offload: bool = False,
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
        dtype: What it computes in; an adapter's is its base's.
        device: Where it goes; an adapter's is its base's.
        offload: Whether it is there only while it runs; an adapter's is its base's.
        vae: The VAE named explicitly. Without it the folder's must share the base's latent space.
        loras: Merged into its weights; an adapter's can change the UNet alone.
        scheduler: Fields of the scheduler's configuration with other values.

    Raises:
        ModelError: If something is missing or damaged, or the parts do not fit.
        PolicyError: If a class is not allowed or weights are pickled.
    """
    root = inside(resolve_folder(folder), subfolder)
    options = {"variant": variant, "dtype": dtype, "device": device, "offload": offload}
    if (root / "config.json").is_file():
        on = _required(base, root)
        return _load_adapter(root, on, variant, vae, loras, dict(scheduler))
    schedule = Schedule.from_folder(root / "scheduler", dict(scheduler))
    classes = ("UNetMotionModel", "UNet3DConditionModel")
    denoiser = _load_denoiser(root / "unet", schedule, classes, options)
    own_text = (root / "text_encoder").is_dir()
    text = _load_text(root, options) if own_text else _required(base, root).text
    chosen = vae if vae is not None else _shared_vae(root, base, options)
    _check_channels(root, denoiser, chosen)
    _merge(loras, denoiser, text if own_text else None)
    return VideoModel(chosen, text, denoiser, schedule)


@functools.lru_cache(maxsize=8)
def load_controlnet(
    folder: str | Path,
    *,
    base: ImageModel,
    subfolder: str | None = None,
    variant: str | None = None,
) -> ControlNet:
    """Load a ControlNet for an image model, in its dtype and on its device.

    Raises:
        ModelError: If it is missing or damaged, or does not fit the base's UNet.
        PolicyError: If the class is not allowed or weights are pickled.
    """
    root = inside(resolve_folder(folder), subfolder)
    control_net = ControlNet(
        load_component(
            root,
            expected=("ControlNetModel",),
            variant=variant,
            dtype=base.dtype,
            device=base.device,
            offload=base.offload,
        )
    )
    check_fits(control_net, _real_base(base, root))
    return control_net


@functools.lru_cache(maxsize=8)
def load_t2i_adapter(
    folder: str | Path,
    *,
    base: ImageModel,
    subfolder: str | None = None,
    variant: str | None = None,
) -> T2IAdapter:
    """Load a T2I-Adapter for an image model, in its dtype and on its device.

    Raises:
        ModelError: If it is missing or damaged, or does not fit the base's UNet.
        PolicyError: If the class is not allowed or weights are pickled.
    """
    root = inside(resolve_folder(folder), subfolder)
    adapter = T2IAdapter(
        load_component(
            root,
            expected=("T2IAdapter",),
            variant=variant,
            dtype=base.dtype,
            device=base.device,
        )
    )
    check_adapter_fits(adapter, _real_base(base, root), base.vae)
    return adapter


@functools.lru_cache(maxsize=8)
def load_ip_adapter(
    folder: str | Path,
    *,
    base: ImageModel,
    scale: float,
    subfolder: str | None = None,
    weight_name: str | None = None,
) -> IPAdapter:
    """Load an IP-Adapter for an image model, in its dtype and on its device.

    Args:
        folder: Holds `image_encoder/` and a file of safetensors.
        base: The image model; it stays as it is.
        scale: Factor of what attention to the image adds.
        subfolder: Where in the folder both lie.
        weight_name: The file, where there are several.

    Raises:
        ModelError: If it is missing or damaged, or does not fit the base's UNet.
        PolicyError: If the class is not allowed or weights are pickled.
    """
    root = inside(resolve_folder(folder), subfolder)
    encoder = load_component(
        root / "image_encoder",
        expected=("CLIPVisionModelWithProjection",),
        dtype=base.dtype,
        device=base.device,
    )
    path = find_weights(root, weight_name)
    return attach(_real_base(base, root), encoder, load_tensors(path), scale, path)


@functools.lru_cache(maxsize=8)
def load_inpaint_model(
    folder: str | Path,
    *,
    base: ImageModel | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
) -> ImageModel:
    """Load an inpainting model: a pipeline of its own, or a UNet on a base.

    Args:
        folder: Holds `unet/`; text encoder, VAE and scheduler are the base's where it has none.
        base: The image model.
        subfolder: Where in the folder the model lies.
        variant: As in diffusers.
        dtype: What it computes in.
        device: Where it goes.

    Raises:
        ModelError: If something is missing or damaged, or the parts do not fit.
        PolicyError: If a class is not allowed or weights are pickled.
    """
    root = inside(resolve_folder(folder), subfolder)
    options = {"variant": variant, "dtype": dtype, "device": device}
    own = (root / "scheduler").is_dir()
    schedule = Schedule.from_folder(root / "scheduler") if own else _required(base, root).schedule
    denoiser = _load_denoiser(root / "unet", schedule, ("UNet2DConditionModel",), options)
    vae = _shared_vae(root, base, options)
    _check_channels(root, denoiser, vae, extra=1 + vae.channels)
    own_text = (root / "text_encoder").is_dir()
    text = _load_text(root, options) if own_text else _required(base, root).text
    return ImageModel(vae, text, denoiser, schedule, dtype, device)


@functools.lru_cache(maxsize=8)
def load_upsampler(
    folder: str | Path,
    *,
    base: ImageModel,
    subfolder: str | None = None,
    variant: str | None = None,
) -> Upsampler:
    """Load a latent upsampler, in its base's dtype and on its device.

    Raises:
        ModelError: If it is missing or damaged, or does not fit the base's latents or text.
        PolicyError: If the class is not allowed or weights are pickled.
    """
    root = inside(resolve_folder(folder), subfolder)
    module = load_component(
        root / "unet",
        expected=("UNet2DConditionModel",),
        variant=variant,
        dtype=base.dtype,
        device=base.device,
        offload=base.offload,
    )
    config, channels = module.config, base.vae.channels
    if (config.in_channels, config.out_channels) != (2 * channels, channels):
        raise ModelError(
            f"{root} maps {config.in_channels} channels to {config.out_channels}; "
            f"an upsampler of {channels}-channel latents maps {2 * channels} to {channels}"
        )
    return Upsampler(module, Schedule.from_folder(root / "scheduler"))


@functools.lru_cache(maxsize=8)
def load_instruct_model(
    folder: str | Path,
    *,
    base: ImageModel | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
) -> ImageModel:
    """Load an InstructPix2Pix model: a whole pipeline, or a UNet and schedule on a base.

    Args:
        folder: Holds `unet/` and `scheduler/`, and `vae/`, `text_encoder/`, `tokenizer/` where they
            are not the base's.
        base: The image model for what the folder lacks.
        subfolder: Where in the folder the model lies.
        variant: As in diffusers.
        dtype: What it computes in.
        device: Where it goes.

    Raises:
        ModelError: If something is missing or damaged, or the parts do not fit.
        PolicyError: If a class is not allowed or weights are pickled.
    """
    root = inside(resolve_folder(folder), subfolder)
    options: dict[str, Any] = {"variant": variant, "dtype": dtype, "device": device}
    schedule = Schedule.from_folder(root / "scheduler")
    module = load_component(root / "unet", expected=("UNet2DConditionModel",), **options)
    own_vae, own_text = (root / "vae").is_dir(), (root / "text_encoder").is_dir()
    vae = load_vae(root / "vae", **options) if own_vae else _required(base, root).vae
    text = _load_text(root, options) if own_text else _required(base, root).text
    channels = (module.config.in_channels, module.config.out_channels)
    if channels != (2 * vae.channels, vae.channels):
        raise ModelError(
            f"the UNet of {root} maps {channels[0]} channels to {channels[1]}; an instruction model"
            f" of {vae.channels}-channel latents maps {2 * vae.channels} to {vae.channels}"
        )
    denoiser = InstructDenoiser(module, _prediction(schedule))
    return ImageModel(vae, text, denoiser, schedule, dtype, device)


@functools.lru_cache(maxsize=8)
def load_vae(
    folder: str | Path,
    *,
    subfolder: str | None = None,
    variant: str | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    offload: bool = False,
) -> VAE:
    """Load a VAE from its own folder, or from the `vae/` of a pipeline's.

    Raises:
        ModelError: If it is missing or damaged.
        PolicyError: If the class is not allowed or weights are pickled.
    """
    root = inside(resolve_folder(folder), subfolder)
    root = root / "vae" if (root / "vae").is_dir() else root
    config = read_config(root / "config.json")
    if class_name(config) == "StandInVAE":
        return standin.load_vae(root, device)
    return load_kl_autoencoder(root, variant=variant, dtype=dtype, device=device, offload=offload)


def _load_adapter(
    root: Path,
    base: ImageModel,
    variant: str | None,
    vae: VAE | None,
    loras: tuple[Lora, ...],
    scheduler: dict[str, object],
) -> VideoModel:
    image = _real_base(base, root)
    adapter = load_component(root, expected=("MotionAdapter",), variant=variant, dtype=base.dtype)
    own = (root / "scheduler").is_dir()
    schedule = Schedule.from_folder(root / "scheduler") if own else base.schedule
    schedule = schedule.changed(scheduler)
    module = place(inflate(image, adapter), base.device, offload=base.offload)
    denoiser = VideoDenoiser(module, _prediction(schedule))
    _merge(loras, denoiser, None)
    return VideoModel(vae if vae is not None else base.vae, base.text, denoiser, schedule)


def _merge(loras: tuple[Lora, ...], denoiser: Denoiser, text: TextEncoder | None) -> None:
    if not loras:
        return
    if not isinstance(denoiser, ImageDenoiser | VideoDenoiser):
        raise ModelError(f"{type(denoiser).__name__} takes no LoRA; remove its loras")
    encoder = text.module if isinstance(text, CLIPText) else None
    merge_loras(loras, unet=denoiser.module, text_encoder=encoder)


def _load_denoiser(
    folder: Path, schedule: Schedule, expected: tuple[str, ...], options: dict[str, Any]
) -> Denoiser:
    prediction = _prediction(schedule)
    if class_name(read_config(folder / "config.json")) == "StandInDenoiser":
        return standin.load_denoiser(folder, prediction, options["device"])
    module = load_component(folder, expected=expected, **options)
    if module.config.get("addition_embed_type"):
        raise ModelError(f"{folder} needs more than text embeddings (SDXL); not supported")
    if expected == ("UNet2DConditionModel",):
        return ImageDenoiser(module, prediction)
    return VideoDenoiser(module, prediction)


def _load_text(root: Path, options: dict[str, Any]) -> TextEncoder:
    folder = root / "text_encoder"
    if class_name(read_config(folder / "config.json")) == "StandInText":
        return standin.load_text(options["device"])
    module = load_component(folder, expected=("CLIPTextModel",), **options)
    return CLIPText(load_tokenizer(root / "tokenizer"), module)


def _shared_vae(root: Path, base: ImageModel | None, options: dict[str, Any]) -> VAE:
    if not (root / "vae").is_dir():
        return _required(base, root).vae
    own = load_vae(root / "vae", **options)
    if base is None:
        return own
    check_same_latent_space(base.vae, own)
    return base.vae


def _prediction(schedule: Schedule) -> Prediction:
    return Prediction(schedule.prediction_type, schedule.alphas_cumprod())


def _check_channels(root: Path, denoiser: Denoiser, vae: VAE, *, extra: int = 0) -> None:
    found = getattr(denoiser, "extra_channels", 0)
    if (denoiser.channels, found) != (vae.channels, extra):
        raise ModelError(
            f"the denoiser of {root} takes {denoiser.channels + found} channels, but its VAE makes "
            f"{vae.channels} and {extra} more are given to it here; inpainting and other conditioned"
            " models belong to editors of their own kind"
        )


def _real_base(base: ImageModel, root: Path) -> ImageDenoiser:
    if not isinstance(base.denoiser, ImageDenoiser):
        raise ModelError(f"{root} cannot be built on {type(base.denoiser).__name__}")
    return base.denoiser


def _required(base: ImageModel | None, root: Path) -> ImageModel:
    if base is None:
        raise ModelError(f"{root} is built on an image model; name it with `base`")
    return base
