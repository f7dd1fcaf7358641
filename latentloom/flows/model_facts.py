"""Read from a model's configuration files what planning needs. Torch is not imported."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from latentloom.errors import ModelError
from latentloom.flows.digests import file_digest, files_digest
from latentloom.flows.texts import recipe_texts
from latentloom.models.fits import ADAPTER_FIELDS, CONTROLNET_FIELDS
from latentloom.models.folders import (
    fetch_snapshot,
    find_lora,
    find_weights,
    is_of_variant,
    require_safetensors,
    resolve_folder,
)
from latentloom.models.tokens import dropped_ends
from latentloom.schemas.base import digest
from latentloom.schemas.facts import LoraFacts, ModelDtype, ModelFacts, ModelKind
from latentloom.schemas.recipe import ModelSpec, Recipe
from latentloom.storage.store import Store

USUAL_LENGTH = 16
"""Frames that AnimateDiff's and ModelScope's models were trained on; adapters take more."""
UPSAMPLER_LENGTH = 8
"""Frames that temporal upsamplers are trained on (Video LDM, 2304.08818)."""
SCHEDULER_FIELDS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "set_alpha_to_one",
    "steps_offset",
    "rescale_betas_zero_snr",
)
DDIM_DEFAULTS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "rescale_betas_zero_snr": False,
}
"""What diffusers' DDIMScheduler takes for a field that a configuration leaves out."""
DEFAULT_SCALING_FACTOR = 0.18215
"""What diffusers' AutoencoderKL takes where its configuration, as Stable Diffusion 1.x's, names none."""
MAX_HEADER_BYTES = 100_000_000
"""safetensors' own limit."""
_PARTS = ("unet", "vae", "text_encoder")
_MORE_PARTS = ("image_encoder", "tokenizer", "scheduler", "low_res_scheduler")
_OF_VAE = ("downscale", "vae_channels", "scaling_factor", "shift_factor")
_INHERITED = (
    *_OF_VAE,
    "latent_channels",
    "latent_multiple",
    "max_channels",
    "unet",
    "scheduler",
    "dropped",
)
_SCHEDULED = ("image", "video", "inpaint", "instruct")
_TEXT_SUFFIXES = (".json", ".txt", ".model")
_ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


def model_facts(
    name: str, spec: ModelSpec, recipe: Recipe, found: Mapping[str, ModelFacts], store: Store
) -> ModelFacts:
    """Look a model up.

    Args:
        name: Its name in the recipe.
        spec: Where it lies.
        recipe: For the default dtype and base.
        found: Facts of models that were looked up before, bases among them.
        store: For cached digests.

    Raises:
        ModelError: If it is missing, of no known kind, or its base is.
    """
    root = _root(spec)
    folder = root / spec.subfolder if spec.subfolder else root
    kind = _kind(name, folder)
    base = _base(name, spec, kind, folder, found)
    if base is not None and found[base].kind == "upsampler":
        kind = "video_upsampler"
    dtype = _dtype(name, spec, recipe, found[base].dtype if base is not None else None)
    _check_weights(folder, spec.variant)
    weight_name = _weight_name(folder, spec, kind)
    loras = _loras(name, spec, kind, store)
    fields: dict[str, Any] = {}
    if base is not None:
        fields = {field: getattr(found[base], field) for field in _INHERITED}
    fields |= _pipeline_fields(folder) | _adapter_fields(folder, kind)
    fields["steering"] = _steering(folder, kind)
    if (folder / "tokenizer").is_dir():
        fields["dropped"] = dropped_ends(folder, recipe_texts(recipe))
    if spec.vae is not None:
        other = _vae(name, spec.vae, kind, found)
        fields |= {field: getattr(other, field) for field in _OF_VAE}
    changes = spec.scheduler.model_dump(exclude_none=True)
    if changes and kind not in _SCHEDULED:
        raise ModelError(
            f"models.{name}.scheduler: that of a model of kind {kind} cannot be changed; remove it"
        )
    if changes:
        fields["scheduler"] = fields.get("scheduler", {}) | _known(changes)
    files = _files(folder, spec.variant, weight_name)
    parts: list[Any] = [files_digest(folder, files, store)]
    parts += [name for name in (spec.variant, spec.weight_name) if name is not None]
    parts += [found[other].digest for other in (base, spec.vae) if other is not None]
    parts += [[lora.digest, lora.scale] for lora in loras] + ([changes] if changes else [])
    return ModelFacts(
        kind=kind,
        folder=str(root),
        digest=parts[0] if len(parts) == 1 else digest(parts),
        dtype=dtype,
        parameter_bytes=_num_parameters(files) * _ITEM_BYTES[dtype],
        base=base,
        loras=loras,
        vae=spec.vae,
        **fields,
    )


def _root(spec: ModelSpec) -> Path:
    if spec.path is not None:
        return resolve_folder(spec.path)
    return fetch_snapshot(
        spec.repo_id or "",
        revision=spec.revision,
        subfolder=spec.subfolder,
        variant=spec.variant,
        also=spec.weight_name,
    )


def _check_weights(folder: Path, variant: str | None) -> None:
    """Check that each part with a configuration has weights, before a run waits for them."""
    # Some pipelines have a copy of their UNet's configuration beside their folders.
    whole = [] if (folder / "unet").is_dir() else [folder]
    for part in (*whole, *(folder / name for name in _PARTS)):
        config = _read(part / "config.json")
        named = config.get("_class_name") or "".join(config.get("architectures") or ())
        if config and not named.startswith("StandIn"):
            require_safetensors(part, variant)


def _weight_name(folder: Path, spec: ModelSpec, kind: ModelKind) -> str | None:
    """Return the file that holds weights of no component, and see that an IP-Adapter has all of its."""
    if kind != "ip_adapter":
        return spec.weight_name
    require_safetensors(folder / "image_encoder", spec.variant)
    return find_weights(folder, spec.weight_name).name


def _loras(name: str, spec: ModelSpec, kind: ModelKind, store: Store) -> tuple[LoraFacts, ...]:
    if spec.loras and kind not in ("image", "video"):
        raise ModelError(f"models.{name}.loras: a model of kind {kind} takes none; remove them")
    found = []
    for lora in spec.loras:
        if lora.path is not None:
            root = Path(lora.path)
        else:
            only = lora.weight_name or "*.safetensors"
            root = fetch_snapshot(
                lora.repo_id or "", revision=lora.revision, subfolder=lora.subfolder, only=only
            )
        file = find_lora(root / lora.subfolder if lora.subfolder else root, lora.weight_name)
        _count(file)
        found.append(LoraFacts(file=str(file), digest=file_digest(file, store), scale=lora.scale))
    return tuple(found)


def _vae(name: str, wanted: str, kind: ModelKind, found: Mapping[str, ModelFacts]) -> ModelFacts:
    if kind not in ("image", "video"):
        raise ModelError(f"models.{name}.vae: a model of kind {kind} has no VAE; remove it")
    if wanted not in found or found[wanted].kind not in ("image", "vae"):
        raise ModelError(
            f"models.{name}.vae: {wanted!r} is neither an image model nor a VAE of the recipe"
        )
    return found[wanted]


def _kind(name: str, folder: Path) -> ModelKind:
    own = _read(folder / "config.json").get("_class_name")
    if own == "AutoencoderKL":
        return "vae"
    if own == "MotionAdapter":
        wide = _read(folder / "config.json").get("conv_in_channels")
        return "interpolator" if wide else "video"
    if own == "ControlNetModel":
        return "controlnet"
    if own == "T2IAdapter":
        return "t2i_adapter"
    if (folder / "image_encoder" / "config.json").is_file() and not (folder / "unet").is_dir():
        return "ip_adapter"
    unet = _read(folder / "unet" / "config.json")
    if unet.get("_class_name") in ("UNetMotionModel", "UNet3DConditionModel"):
        return "video"
    if unet.get("_class_name") == "StandInDenoiser":
        return "video" if unet.get("windowed") else "image"
    if unet.get("_class_name") == "UNet2DConditionModel":
        return _kind_of_image_unet(unet)
    raise ModelError(
        f"models.{name}: {folder} holds no model of a known kind (its class is"
        f" {own or unet.get('_class_name') or 'not named'}); give a folder in diffusers' layout"
    )


def _kind_of_image_unet(unet: Mapping[str, Any]) -> ModelKind:
    """Tell by what lies beside the latents: nothing, others, a frame, or a mask and what it leaves over."""
    taken, made = unet.get("in_channels", 4), unet.get("out_channels", 4)
    if taken == made + 3:
        return "upscaler"
    if taken == 2 * made + 1:
        return "inpaint"
    if taken != 2 * made:
        return "image"
    told_of_noise = unet.get("class_embed_type") or unet.get("num_class_embeds")
    return "upsampler" if told_of_noise else "instruct"


def _dtype(name: str, spec: ModelSpec, recipe: Recipe, of_base: ModelDtype | None) -> ModelDtype:
    """Return what a model runs in; one that is built on another runs in that one's dtype."""
    if of_base is None:
        return spec.dtype or recipe.numerics.dtype
    if spec.dtype not in (None, of_base):
        raise ModelError(
            f"models.{name}.dtype: {spec.dtype} differs from its base's {of_base}; set the base's"
        )
    return of_base


def _base(
    name: str, spec: ModelSpec, kind: ModelKind, folder: Path, found: Mapping[str, ModelFacts]
) -> str | None:
    stands_alone = (
        kind in ("image", "vae", "upscaler")
        or (kind == "video" and (folder / "unet").is_dir())
        or (kind == "inpaint" and (folder / "vae").is_dir())
    )
    if kind == "instruct" and spec.base is None and (folder / "vae").is_dir():
        return None
    base = spec.base or "image"
    bases = ("image", "upsampler") if kind == "video" else ("image",)
    if base in found and found[base].kind in bases and kind not in ("image", "vae", "upscaler"):
        return base
    if stands_alone and spec.base is None:
        return None
    raise ModelError(
        f"models.{name}: is built on {base!r}, which is no {' or '.join(bases)} model of the recipe;"
        " name one with base"
    )


def _steering(folder: Path, kind: ModelKind) -> dict[str, Any]:
    wanted = {"controlnet": CONTROLNET_FIELDS, "t2i_adapter": ADAPTER_FIELDS}.get(kind, ())
    config = _read(folder / "config.json") if wanted else {}
    return {field: config[field] for field in wanted if field in config}


def _pipeline_fields(folder: Path) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    unet, vae = _read(folder / "unet" / "config.json"), _read(folder / "vae" / "config.json")
    own = _read(folder / "config.json")
    vae = own if own.get("_class_name") == "AutoencoderKL" else vae
    if levels := unet.get("block_out_channels"):
        fields |= {"max_channels": max(levels), "latent_multiple": 2 ** (len(levels) - 1)}
    if unet:
        fields["latent_channels"] = unet.get("out_channels", 4)
        fields["in_channels"] = unet.get("in_channels", 4)
        fields["unet"] = {field: unet[field] for field in CONTROLNET_FIELDS if field in unet}
        fields["standin"] = unet.get("_class_name") == "StandInDenoiser"
        fields |= _lengths(unet)
    if levels := vae.get("block_out_channels"):
        fields |= {"downscale": 2 ** (len(levels) - 1), "vae_channels": levels[0]}
        fields["scaling_factor"] = vae.get("scaling_factor", DEFAULT_SCALING_FACTOR)
        fields["shift_factor"] = vae.get("shift_factor") or 0.0
    if scheduler := _read(folder / "scheduler" / "scheduler_config.json"):
        fields["scheduler"] = _scheduler(scheduler)
    return fields


def _adapter_fields(folder: Path, kind: ModelKind) -> dict[str, Any]:
    config = _read(folder / "config.json")
    if config.get("_class_name") != "MotionAdapter":
        return {}
    usual = UPSAMPLER_LENGTH if kind == "video_upsampler" else USUAL_LENGTH
    return _lengths(config, usual)


def _lengths(config: Mapping[str, Any], usual: int = USUAL_LENGTH) -> dict[str, int]:
    longest = config.get("motion_max_seq_length")
    if longest is None:
        return {}
    return {"max_length": longest, "sample_length": min(usual, longest)}


def _scheduler(config: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {**DDIM_DEFAULTS, **_known(config)}
    # Sampling knows two spacings; every other one is walked as leading.
    trailing = config.get("timestep_spacing") == "trailing"
    return fields | {"timestep_spacing": "trailing" if trailing else "leading"}


def _known(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a scheduler's configuration that sampling depends on."""
    wanted = (*SCHEDULER_FIELDS, "timestep_spacing")
    return {field: config[field] for field in wanted if config.get(field) is not None}


def _files(folder: Path, variant: str | None, weight_name: str | None) -> list[Path]:
    """Return the files that are loaded: others of a snapshot come and go with other uses of it."""
    found = []
    whole_pipeline = (folder / "unet").is_dir()
    for part in (folder, *(folder / name for name in (*_PARTS, *_MORE_PARTS))):
        inside = sorted(part.iterdir()) if part.is_dir() else []
        found += [path for path in inside if path.suffix in _TEXT_SUFFIXES and path.is_file()]
        if part == folder and whole_pipeline:
            continue
        wanted = weight_name if part == folder else None
        found += [
            path
            for path in inside
            if path.name == wanted or (wanted is None and is_of_variant(path.name, variant))
        ]
    return sorted(found)


def _num_parameters(files: Sequence[Path]) -> int:
    return sum(_count(path) for path in files if path.suffix == ".safetensors")


def _count(path: Path) -> int:
    """Count the parameters of a file by its header, and see that all of them are there.

    Source: https://github.com/huggingface/safetensors#format
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if not 0 < size <= MAX_HEADER_BYTES:
                raise ModelError(f"{path} is damaged: it has no header; fetch or copy it again")
            header = json.loads(file.read(size))
        entries = [entry for key, entry in header.items() if key != "__metadata__"]
        end = 8 + size + max((entry["data_offsets"][1] for entry in entries), default=0)
        if path.stat().st_size < end:
            raise ModelError(f"{path} is damaged: it is shorter than {end} bytes; fetch it again")
        return sum(prod(entry["shape"]) for entry in entries)
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ModelError(f"{path} cannot be read: {error}; fetch or copy it again") from error


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}; the model is damaged") from error
    return data if isinstance(data, dict) else {}
