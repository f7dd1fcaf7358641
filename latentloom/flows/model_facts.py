"""Read from a model's configuration files what planning needs. Torch is not imported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from latentloom.errors import ModelError
from latentloom.flows.digests import folder_digest
from latentloom.flows.texts import recipe_texts
from latentloom.models.fits import adapter_fault, controlnet_fault
from latentloom.models.folders import fetch_snapshot, resolve_folder
from latentloom.models.tokens import dropped_ends
from latentloom.schemas.base import digest
from latentloom.schemas.facts import ModelDtype, ModelFacts, ModelKind
from latentloom.schemas.recipe import ModelSpec, Recipe
from latentloom.storage.store import Store

USUAL_LENGTH = 16
"""Frames that AnimateDiff's and ModelScope's models were trained on; adapters take more."""
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
MAX_HEADER_BYTES = 100_000_000
"""safetensors' own limit."""
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
    if base is not None:
        _check_fits(name, kind, folder, recipe.models[base].subfolder, found[base])
    dtype = _dtype(name, spec, recipe, found[base].dtype if base is not None else None)
    own = folder_digest(folder, store)
    if spec.variant is not None or spec.weight_name is not None:
        own = digest([own, spec.variant, spec.weight_name])
    fields: dict[str, Any] = {}
    if base is not None:
        inherited = ("downscale", "latent_channels", "latent_multiple", "vae_channels", "scheduler")
        fields = {field: getattr(found[base], field) for field in (*inherited, "dropped")}
        fields["max_channels"] = found[base].max_channels
    fields |= _pipeline_fields(folder) | _adapter_fields(folder)
    if (folder / "tokenizer").is_dir():
        fields["dropped"] = dropped_ends(folder, recipe_texts(recipe))
    return ModelFacts(
        kind=kind,
        folder=str(root),
        digest=own if base is None else digest([own, found[base].digest]),
        dtype=dtype,
        parameter_bytes=_num_parameters(folder) * _ITEM_BYTES[dtype],
        base=base,
        **fields,
    )


def _root(spec: ModelSpec) -> Path:
    if spec.path is not None:
        return resolve_folder(spec.path)
    return fetch_snapshot(spec.repo_id or "", revision=spec.revision, variant=spec.variant)


def _kind(name: str, folder: Path) -> ModelKind:
    own = _read(folder / "config.json").get("_class_name")
    if own == "MotionAdapter":
        return "video"
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
    """Tell by what lies beside the latents: nothing, others, or a mask and what it leaves over."""
    taken, made = unet.get("in_channels", 4), unet.get("out_channels", 4)
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
        kind == "image"
        or (kind == "video" and (folder / "unet").is_dir())
        or (kind == "inpaint" and (folder / "vae").is_dir())
    )
    if kind == "instruct" and spec.base is None and (folder / "vae").is_dir():
        return None
    base = spec.base or "image"
    if base in found and found[base].kind == "image" and kind != "image":
        return base
    if stands_alone and spec.base is None:
        return None
    raise ModelError(
        f"models.{name}: is built on {base!r}, which is no image model of the recipe; name one with base"
    )


def _check_fits(
    name: str, kind: ModelKind, folder: Path, subfolder: str | None, base: ModelFacts
) -> None:
    """See by their configurations that a condition's model was made for its base.

    Raises:
        ModelError: If it was not.
    """
    unet = _read(Path(base.folder, subfolder or "", "unet", "config.json"))
    if unet.get("_class_name") != "UNet2DConditionModel":
        return
    fault, config = None, _read(folder / "config.json")
    if kind == "controlnet":
        fault = controlnet_fault(config, unet)
    if kind == "t2i_adapter":
        fault = adapter_fault(config, unet, base.downscale)
    if fault is not None:
        raise ModelError(f"models.{name}: {fault}; name another base or model")


def _pipeline_fields(folder: Path) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    unet, vae = _read(folder / "unet" / "config.json"), _read(folder / "vae" / "config.json")
    if levels := unet.get("block_out_channels"):
        fields |= {"max_channels": max(levels), "latent_multiple": 2 ** (len(levels) - 1)}
    if unet:
        fields["latent_channels"] = unet.get("out_channels", 4)
        fields["in_channels"] = unet.get("in_channels", 4)
        fields["standin"] = unet.get("_class_name") == "StandInDenoiser"
        fields |= _lengths(unet)
    if levels := vae.get("block_out_channels"):
        fields |= {"downscale": 2 ** (len(levels) - 1), "vae_channels": levels[0]}
    if scheduler := _read(folder / "scheduler" / "scheduler_config.json"):
        fields["scheduler"] = _scheduler(scheduler)
    return fields


def _adapter_fields(folder: Path) -> dict[str, Any]:
    config = _read(folder / "config.json")
    return _lengths(config) if config.get("_class_name") == "MotionAdapter" else {}


def _lengths(config: Mapping[str, Any]) -> dict[str, int]:
    longest = config.get("motion_max_seq_length")
    if longest is None:
        return {}
    return {"max_length": longest, "sample_length": min(USUAL_LENGTH, longest)}


def _scheduler(config: Mapping[str, Any]) -> dict[str, Any]:
    given = {field: config[field] for field in SCHEDULER_FIELDS if config.get(field) is not None}
    fields: dict[str, Any] = {**DDIM_DEFAULTS, **given}
    # Sampling knows two spacings; every other one is walked as leading.
    trailing = config.get("timestep_spacing") == "trailing"
    return fields | {"timestep_spacing": "trailing" if trailing else "leading"}


def _num_parameters(folder: Path) -> int:
    return sum(_count(path) for path in folder.rglob("*.safetensors"))


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
