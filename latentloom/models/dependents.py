"""Load what is built on an image model: ControlNets, adapters, upsamplers, and models of single editors."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from latentloom.errors import ModelError
from latentloom.models.adapter import T2IAdapter, check_adapter_fits
from latentloom.models.control import ControlNet, check_fits
from latentloom.models.folders import find_weights, inside, resolve_folder
from latentloom.models.instruct import InstructDenoiser
from latentloom.models.interpolate import Interpolator
from latentloom.models.load import (
    Changes,
    ImageModel,
    check_channels,
    load_denoiser,
    load_motion_adapter,
    load_text,
    load_vae,
    prediction_of,
    real_base,
    required,
    shared_vae,
)
from latentloom.models.offload import ON_CPU, Placement, place
from latentloom.models.pretrained import load_component, load_tensors
from latentloom.models.reference import IPAdapter, attach
from latentloom.models.schedulers import Schedule
from latentloom.models.upsample import Upsampler
from latentloom.models.upsample_video import VideoUpsampler, inflate_upsampler
from latentloom.models.video import inflate


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
        PolicyError: If the class is not allowed.
    """
    root = inside(resolve_folder(folder), subfolder)
    control_net = ControlNet(
        load_component(
            root,
            expected=("ControlNetModel",),
            variant=variant,
            placement=base.placement,
        )
    )
    check_fits(control_net, real_base(base, root))
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
        PolicyError: If the class is not allowed.
    """
    root = inside(resolve_folder(folder), subfolder)
    adapter = T2IAdapter(
        load_component(
            root,
            expected=("T2IAdapter",),
            variant=variant,
            placement=base.placement,
        ),
        base.vae.downscale,
    )
    check_adapter_fits(adapter, real_base(base, root), base.vae)
    return adapter


@functools.lru_cache(maxsize=8)
def load_ip_adapter(
    folder: str | Path,
    *,
    base: ImageModel,
    scale: float,
    subfolder: str | None = None,
    variant: str | None = None,
    weight_name: str | None = None,
) -> IPAdapter:
    """Load an IP-Adapter for an image model, in its dtype and on its device.

    Args:
        folder: Holds `image_encoder/` and a file of safetensors.
        base: The image model; it stays as it is.
        scale: Factor of what attention to the image adds.
        subfolder: Where in the folder both lie.
        variant: Of the image encoder, as in diffusers.
        weight_name: The file, where there are several.

    Raises:
        ModelError: If it is missing or damaged, or does not fit the base's UNet.
        PolicyError: If the class is not allowed.
    """
    root = inside(resolve_folder(folder), subfolder)
    encoder = load_component(
        root / "image_encoder",
        expected=("CLIPVisionModelWithProjection",),
        variant=variant,
        placement=base.placement,
    )
    path = find_weights(root, weight_name)
    return attach(real_base(base, root), encoder, load_tensors(path), scale, path)


@functools.lru_cache(maxsize=8)
def load_inpaint_model(
    folder: str | Path,
    *,
    base: ImageModel | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    placement: Placement = ON_CPU,
    scheduler: Changes = (),
) -> ImageModel:
    """Load an inpainting model: a pipeline of its own, or a UNet on a base.

    Args:
        folder: Holds `unet/`; text encoder, VAE and scheduler are the base's where it has none.
        base: The image model.
        subfolder: Where in the folder the model lies.
        variant: As in diffusers.
        placement: Where it goes, and what it computes in; what is the base's follows the base.
        scheduler: Fields of the scheduler's configuration with other values.

    Raises:
        ModelError: If something is missing or damaged, or the parts do not fit.
        PolicyError: If a class is not allowed.
    """
    root = inside(resolve_folder(folder), subfolder)
    options: dict[str, Any] = {"variant": variant, "placement": placement}
    own = (root / "scheduler").is_dir()
    schedule = Schedule.from_folder(root / "scheduler") if own else required(base, root).schedule
    schedule = schedule.changed(dict(scheduler))
    denoiser = load_denoiser(root / "unet", schedule, ("UNet2DConditionModel",), options)
    vae = shared_vae(root, base, options)
    check_channels(root, denoiser, vae, extra=1 + vae.channels)
    own_text = (root / "text_encoder").is_dir()
    text = load_text(root, options) if own_text else required(base, root).text
    return ImageModel(vae, text, denoiser, schedule, placement)


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
        PolicyError: If the class is not allowed.
    """
    root = inside(resolve_folder(folder), subfolder)
    module = load_component(
        root / "unet",
        expected=("UNet2DConditionModel",),
        variant=variant,
        placement=base.placement,
    )
    config, channels = module.config, base.vae.channels
    if (config.in_channels, config.out_channels) != (2 * channels, channels):
        raise ModelError(
            f"{root} maps {config.in_channels} channels to {config.out_channels}; "
            f"an upsampler of {channels}-channel latents maps {2 * channels} to {channels}"
        )
    return Upsampler(module, Schedule.from_folder(root / "scheduler"))


@functools.lru_cache(maxsize=8)
def load_video_upsampler(
    folder: str | Path,
    *,
    upsampler: Upsampler,
    base: ImageModel,
    subfolder: str | None = None,
    variant: str | None = None,
) -> VideoUpsampler:
    """Load temporal layers for an upsampler, in its base's dtype and on its device.

    Args:
        folder: A `MotionAdapter` folder.
        upsampler: What they were trained on; its schedule holds.
        base: The image model that the upsampler is built on.
        subfolder: Where in the folder it lies.
        variant: As in diffusers.

    Raises:
        ModelError: If it is missing or damaged, or does not fit the upsampler.
        PolicyError: If the class is not allowed.
    """
    root = inside(resolve_folder(folder), subfolder)
    adapter = load_motion_adapter(root, base, variant)
    module = place(inflate_upsampler(upsampler.module, adapter), base.placement)
    return VideoUpsampler(module, upsampler.schedule)


@functools.lru_cache(maxsize=8)
def load_interpolator(
    folder: str | Path,
    *,
    base: ImageModel,
    subfolder: str | None = None,
    variant: str | None = None,
) -> Interpolator:
    """Load an interpolator, in its base's dtype and on its device.

    Args:
        folder: A `MotionAdapter` folder with a first convolution of its own.
        base: The image model.
        subfolder: Where in the folder it lies.
        variant: As in diffusers.

    Raises:
        ModelError: If it is missing or damaged, or does not fit the base.
        PolicyError: If the class is not allowed.
    """
    root = inside(resolve_folder(folder), subfolder)
    adapter = load_motion_adapter(root, base, variant)
    channels, wanted = adapter.config["conv_in_channels"], 2 * base.vae.channels + 1
    if channels != wanted:
        raise ModelError(
            f"{root} takes {channels} channels; an interpolator of {base.vae.channels}-channel latents"
            f" takes {wanted}: the latents, the mask and what is known"
        )
    image = real_base(base, root)
    module = place(inflate(image.module, adapter), base.placement)
    return Interpolator(module, image, base.text)


@functools.lru_cache(maxsize=8)
def load_instruct_model(
    folder: str | Path,
    *,
    base: ImageModel | None = None,
    subfolder: str | None = None,
    variant: str | None = None,
    placement: Placement = ON_CPU,
    scheduler: Changes = (),
) -> ImageModel:
    """Load an InstructPix2Pix model: a whole pipeline, or a UNet and schedule on a base.

    Args:
        folder: Holds `unet/` and `scheduler/`, and `vae/`, `text_encoder/`, `tokenizer/` where they
            are not the base's.
        base: The image model for what the folder lacks.
        subfolder: Where in the folder the model lies.
        variant: As in diffusers.
        placement: Where it goes, and what it computes in; what is the base's follows the base.
        scheduler: Fields of the scheduler's configuration with other values.

    Raises:
        ModelError: If something is missing or damaged, or the parts do not fit.
        PolicyError: If a class is not allowed.
    """
    root = inside(resolve_folder(folder), subfolder)
    options: dict[str, Any] = {"variant": variant, "placement": placement}
    schedule = Schedule.from_folder(root / "scheduler", dict(scheduler))
    module = load_component(root / "unet", expected=("UNet2DConditionModel",), **options)
    own_vae, own_text = (root / "vae").is_dir(), (root / "text_encoder").is_dir()
    vae = load_vae(root / "vae", **options) if own_vae else required(base, root).vae
    text = load_text(root, options) if own_text else required(base, root).text
    channels = (module.config.in_channels, module.config.out_channels)
    if channels != (2 * vae.channels, vae.channels):
        raise ModelError(
            f"the UNet of {root} maps {channels[0]} channels to {channels[1]}; an instruction model"
            f" of {vae.channels}-channel latents maps {2 * vae.channels} to {vae.channels}"
        )
    denoiser = InstructDenoiser(module, prediction_of(schedule))
    return ImageModel(vae, text, denoiser, schedule, placement)
