"""Whether a ControlNet or T2I-Adapter was made for a UNet, by their configurations.

Torch is not imported: planning asks too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

CONTROLNET_FIELDS: Final = (
    "in_channels",
    "block_out_channels",
    "layers_per_block",
    "cross_attention_dim",
    "down_block_types",
)
"""What decides the shapes of skip connections."""

DEFAULT_CHANNELS: Final = (320, 640, 1280, 1280)
"""What diffusers takes for a T2I-Adapter whose configuration names none."""


def controlnet_fault(config: Mapping[str, Any], unet: Mapping[str, Any]) -> str | None:
    """Say how a ControlNet differs from the UNet that it is built on, or return nothing.

    Args:
        config: Configuration of the ControlNet; what either leaves out is not compared.
        unet: Configuration of the UNet.
    """
    fields = [field for field in CONTROLNET_FIELDS if field in config and field in unet]
    ours, theirs = ({f: _plain(side[f]) for f in fields} for side in (config, unet))
    if ours == theirs:
        return None
    return f"the ControlNet does not fit its base UNet: {ours} against {theirs}"


def adapter_fault(config: Mapping[str, Any], unet: Mapping[str, Any], downscale: int) -> str | None:
    """Say how a T2I-Adapter differs from the UNet that it is built on, or return nothing.

    Args:
        config: Configuration of the T2I-Adapter.
        unet: Configuration of the UNet.
        downscale: Pixels along one side of a latent pixel.
    """
    if config.get("adapter_type") == "full_adapter_xl":
        return "the T2I-Adapter is one for SDXL, which is not supported"
    ours = {
        "channels": tuple(config.get("channels", DEFAULT_CHANNELS)),
        "downscale": config.get("downscale_factor", 8),
    }
    theirs = {"channels": tuple(unet["block_out_channels"]), "downscale": downscale}
    if ours == theirs:
        return None
    return f"the T2I-Adapter does not fit its base UNet: {ours} against {theirs}"


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value
