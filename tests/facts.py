"""Facts of a video and models that do not exist, for tests of planning."""

from __future__ import annotations

from typing import Any

from latentloom.schemas.facts import Facts, MachineFacts, ModelFacts, SourceFacts
from latentloom.schemas.load import validate_recipe
from latentloom.schemas.media import VideoInfo
from latentloom.schemas.recipe import Recipe

SCHEDULER = {"num_train_timesteps": 1000, "beta_schedule": "scaled_linear", "beta_end": 0.012}


def make_info(num_frames: int = 100, **changes: Any) -> VideoInfo:
    """Return the index of a video of 10 frames a second."""
    fields: dict[str, Any] = {
        "format_name": "mov",
        "stream": 0,
        "codec": "h264",
        "width": 64,
        "height": 48,
        "pix_fmt": "yuv420p",
        "time_base": (1, 1000),
        "pts": tuple(range(0, num_frames * 100, 100)),
        "last_duration": 100,
    }
    return VideoInfo(**(fields | changes))


def make_model(kind: str, name: str, **changes: Any) -> ModelFacts:
    """Return the facts of a small model."""
    fields: dict[str, Any] = {
        "kind": kind,
        "folder": f"/models/{name}",
        "digest": f"digest-of-{name}",
        "parameter_bytes": 1 << 20,
        "downscale": 8,
        "latent_multiple": 1,
        "scheduler": SCHEDULER,
    }
    if kind == "video":
        fields |= {"sample_length": 16, "max_length": 32}
    if kind == "video_upsampler":
        fields |= {"sample_length": 8, "max_length": 32}
    if kind != "image":
        fields["base"] = "image"
    return ModelFacts(**(fields | changes))


def make_facts(num_frames: int = 100, **changes: Any) -> Facts:
    """Return the facts that ``make_recipe`` is compiled with."""
    kinds = {
        "image": "image",
        "video": "video",
        "control": "controlnet",
        "upsample": "upsampler",
        "upsample_video": "video_upsampler",
        "interpolate": "interpolator",
    }
    fields: dict[str, Any] = {
        "source": SourceFacts(
            uri="/clips/clip.mp4",
            path="/clips/clip.mp4",
            digest="digest-of-clip",
            info=changes.pop("info", make_info(num_frames)),
        ),
        "models": {name: make_model(kind, name) for name, kind in kinds.items()},
        "machine": MachineFacts(device="cpu", torch="2.13.0", av="18.1.0", memory_bytes=1 << 40),
    }
    return Facts(**(fields | changes))


FUSE = {
    "op": "fuse",
    "tau": 2,
    "sources": [{"model": "image", "controlnet": {}}, {"model": "video"}],
}


def make_recipe(**changes: Any) -> Recipe:
    """Return an FLDM recipe, with parts of it replaced."""
    data: dict[str, Any] = {
        "version": 1,
        "source": {"uri": "/clips/clip.mp4", "size": {"width": 64, "height": 48}},
        "models": {
            name: {"path": f"embedded:{name}"}
            for name in ("image", "video", "control", "upsample", "upsample_video", "interpolate")
        },
        "prompts": {"source": "a red car", "target": "a blue car"},
        "stages": [
            {"op": "encode"},
            {"op": "invert", "num_inference_steps": 4},
            FUSE,
            {"op": "decode"},
        ],
        "output": {"uri": "/out/{stem}.mp4"},
    }
    return validate_recipe(data | changes)
