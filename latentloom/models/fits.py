"""Whether a ControlNet or T2I-Adapter was made for a UNet, by their configurations.

Torch is not imported: planning asks too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

ADAPTER_FIELDS: Final = ("adapter_type", "channels", "downscale_factor")
"""What decides the shapes of a T2I-Adapter's features."""

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
    """Say how a ControlNet differs from the UNet that it steers, or return nothing.

    Args:
        config: Configuration of the ControlNet; what either leaves out is not compared.
        unet: Configuration of the UNet.
    """
    fields = [field for field in CONTROLNET_FIELDS if field in config and field in unet]
    ours, theirs = ({f: _plain(side[f]) for f in fields} for side in (config, unet))
    if ours == theirs:
        return None
    return f"the ControlNet does not fit the UNet: {ours} against {theirs}"


def adapter_fault(config: Mapping[str, Any], unet: Mapping[str, Any], downscale: int) -> str | None:
    """Say how a T2I-Adapter differs from the UNet that it steers, or return nothing.

    Args:
        config: Configuration of the T2I-Adapter.
        unet: Configuration of the UNet.
        downscale: Pixels along one side of a latent pixel.
    """
    ours, theirs = adapter_levels(config), _encoder_levels(unet, downscale)
    if ours == theirs:
        return None
    return (
        "the T2I-Adapter does not fit the UNet: levels (channels, pixels along one side of a"
        f" feature) {ours} against {theirs}"
    )


def adapter_levels(config: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return channels of a T2I-Adapter's features, and pixels along one side of one, level by level."""
    kind = config.get("adapter_type", "full_adapter")
    channels = [int(width) for width in config.get("channels", DEFAULT_CHANNELS)]
    if kind == "light_adapter":
        channels.append(channels[-1])
    is_xl = kind == "full_adapter_xl"
    factor = config.get("downscale_factor", 16 if is_xl else 8)
    # Of the XL kind only the third block halves the size; of the others, all but the first.
    return [
        (width, factor * 2 ** (level >= 2 if is_xl else level))
        for level, width in enumerate(channels)
    ]


def _encoder_levels(unet: Mapping[str, Any], downscale: int) -> list[tuple[int, int]]:
    """Return channels and pixels of a latent where features are added to each block of an encoder.

    diffusers adds them before a block with attention halves the size, and after any other block.
    """
    channels, blocks = unet["block_out_channels"], unet["down_block_types"]
    last = len(blocks) - 1
    return [
        (width, downscale * 2 ** (level + ("CrossAttn" not in block and level < last)))
        for level, (width, block) in enumerate(zip(channels, blocks, strict=True))
    ]


def _plain(value: Any) -> Any:
    """Make lists comparable, and blocks of video UNets, whose skip connections are as those of images."""
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    return re.sub("(3D|Motion)$", "2D", value) if isinstance(value, str) else value
