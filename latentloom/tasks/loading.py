"""Load the models of a plan: once per process, in the plan's numerics profile."""

from __future__ import annotations

import functools
import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentloom.errors import ModelError
from latentloom.models.adapter import T2IAdapter
from latentloom.models.control import ControlNet
from latentloom.models.dependents import (
    load_controlnet,
    load_inpaint_model,
    load_instruct_model,
    load_interpolator,
    load_ip_adapter,
    load_t2i_adapter,
    load_upsampler,
    load_video_upsampler,
)
from latentloom.models.interpolate import Interpolator
from latentloom.models.load import (
    ImageModel,
    VideoModel,
    load_image_model,
    load_vae,
    load_video_model,
)
from latentloom.models.lora import Lora
from latentloom.models.offload import Placement
from latentloom.models.protocols import VAE
from latentloom.models.reference import IPAdapter
from latentloom.models.upsample import Upsampler
from latentloom.models.upsample_video import VideoUpsampler
from latentloom.models.upscale import Upscaler, load_upscaler
from latentloom.models.vae import check_same_latent_space
from latentloom.schemas.facts import ModelFacts
from latentloom.schemas.plan import Plan


@dataclass(frozen=True)
class PlanModels:
    """The models of a plan by name."""

    plan: Plan

    def image(self, name: str) -> ImageModel:
        """Load an image model."""
        return load_image_model(self._facts(name).folder, **self._options(name))

    def video(self, name: str) -> VideoModel:
        """Load a video model, on its base where it has one."""
        facts = self._facts(name)
        base = self.image(facts.base) if facts.base else None
        return load_video_model(facts.folder, base=base, **self._options(name))

    def vae(self, name: str) -> VAE:
        """Load a VAE that stands alone, or return an image model's."""
        facts = self._facts(name)
        if facts.kind == "image":
            return self.image(name).vae
        return load_vae(facts.folder, **self._placed(name))

    def denoising(self, name: str) -> ImageModel | VideoModel:
        """Load a model that denoises, whichever kind it is.

        Raises:
            ModelError: If latents mean something else to it than to the model that encoded them.
        """
        model = self.video(name) if self._facts(name).kind == "video" else self.image(name)
        for encoder in self._encoders(name):
            _check_shared(self.vae(encoder), model.vae)
        return model

    def _encoders(self, name: str) -> set[str]:
        """Return the models that encoded the latents which a model is given."""
        found: set[str] = set()
        stages = [s for s in self.plan.stages if name in s.models.values() and s.op != "encode"]
        while stages:
            for upstream in map(self.plan.by_name.__getitem__, stages.pop().inputs):
                if upstream.op == "encode":
                    found.add(upstream.models["model"])
                elif upstream.produces != "frames":
                    stages.append(upstream)
        return found

    def controlnet(self, name: str) -> ControlNet:
        """Load a ControlNet on its base."""
        facts = self._facts(name)
        base = self.image(self._base(facts, name))
        return load_controlnet(facts.folder, base=base, **self._files(name))

    def painter(self, name: str) -> ImageModel:
        """Load an image model, an inpainting model or an instruction model."""
        spec, facts = self.plan.recipe.models[name], self._facts(name)
        if facts.kind == "image":
            return self.image(name)
        load = load_instruct_model if facts.kind == "instruct" else load_inpaint_model
        return load(
            facts.folder,
            base=self.image(facts.base) if facts.base else None,
            scheduler=tuple(spec.scheduler.model_dump(exclude_none=True).items()),
            **self._placed(name),
        )

    def t2i_adapter(self, name: str) -> T2IAdapter:
        """Load a T2I-Adapter on its base."""
        facts = self._facts(name)
        base = self.image(self._base(facts, name))
        return load_t2i_adapter(facts.folder, base=base, **self._files(name))

    def ip_adapter(self, name: str, base: ImageModel, scale: float) -> IPAdapter:
        """Load an IP-Adapter for an image or inpainting model."""
        spec, facts = self.plan.recipe.models[name], self._facts(name)
        return load_ip_adapter(
            facts.folder,
            base=base,
            scale=scale,
            weight_name=spec.weight_name,
            **self._files(name),
        )

    def upsampler(self, name: str) -> tuple[Upsampler | VideoUpsampler, ImageModel]:
        """Load an upsampler, with temporal layers or not, and the image model whose text encoder it uses."""
        facts, files = self._facts(name), self._files(name)
        if facts.kind == "video_upsampler":
            upsampler, base = self.upsampler(self._base(facts, name))
            return load_video_upsampler(facts.folder, upsampler=upsampler, base=base, **files), base
        base = self.image(self._base(facts, name))
        return load_upsampler(facts.folder, base=base, **files), base

    def interpolator(self, name: str) -> tuple[Interpolator, ImageModel]:
        """Load an interpolator, and the image model that it is built on."""
        facts = self._facts(name)
        base = self.image(self._base(facts, name))
        return load_interpolator(facts.folder, base=base, **self._files(name)), base

    def upscaler(self, name: str) -> Upscaler:
        """Load an upscaler, which needs no other model."""
        return load_upscaler(self._facts(name).folder, **self._placed(name))

    def _options(self, name: str) -> dict[str, Any]:
        """Return what an image and a video model are loaded with."""
        spec, facts = self.plan.recipe.models[name], self._facts(name)
        return self._placed(name) | {
            "vae": self.vae(facts.vae) if facts.vae else None,
            "loras": tuple(Lora(Path(lora.file), lora.scale) for lora in facts.loras),
            "scheduler": tuple(spec.scheduler.model_dump(exclude_none=True).items()),
        }

    def _placed(self, name: str) -> dict[str, Any]:
        """Return what a model is loaded with that is not placed by its base."""
        placement = Placement(
            dtype=self._facts(name).dtype,
            device=self.plan.facts.machine.device,
            offload=self.plan.recipe.numerics.offload == "model",
        )
        return self._files(name) | {"placement": placement}

    def _files(self, name: str) -> dict[str, Any]:
        spec = self.plan.recipe.models[name]
        return {"subfolder": spec.subfolder, "variant": spec.variant}

    def _facts(self, name: str) -> ModelFacts:
        return self.plan.facts.models[name]

    def _base(self, facts: ModelFacts, name: str) -> str:
        if facts.base is None:
            raise ModelError(f"model {name!r} needs a base; name an image model with base")
        return facts.base


@functools.lru_cache(maxsize=256)
def embed(model: ImageModel | VideoModel | Upscaler, text: str) -> torch.Tensor:
    """Return the embedding ``(1, L, D)`` of a prompt."""
    return model.text.encode([text])


@functools.lru_cache(maxsize=64)
def _check_shared(first: VAE, second: VAE) -> float:
    return check_same_latent_space(first, second)


_digests: dict[str, str] = {}


def forget_changed_models(plan: Plan) -> None:
    """Drop all loaded models if one of the plan's has other files than what was loaded from its folder."""
    wanted = {f"{m.folder}#{name}": m.digest for name, m in plan.facts.models.items()}
    if any(_digests.get(key, digest) != digest for key, digest in wanted.items()):
        forget_models()
    _digests.update(wanted)


def forget_models() -> None:
    """Drop all loaded models, from a GPU's memory too."""
    for cached in (
        load_image_model,
        load_instruct_model,
        load_video_model,
        load_controlnet,
        load_t2i_adapter,
        load_inpaint_model,
        load_ip_adapter,
        load_upsampler,
        load_video_upsampler,
        load_interpolator,
        load_upscaler,
        load_vae,
        embed,
        _check_shared,
    ):
        cached.cache_clear()
    _digests.clear()
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def use_profile(plan: Plan) -> None:
    """Set what the last bits depend on: threads, and deterministic kernels on a GPU."""
    numerics = plan.recipe.numerics
    if torch.get_num_threads() != numerics.threads:
        torch.set_num_threads(numerics.threads)
    if plan.facts.machine.device == "cuda":
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
