"""Between stored arrays and tensors.

F frames, H x W pixels, C latent channels, h x w latent pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from numpy.typing import NDArray

from latentloom.models.protocols import VAE
from latentloom.ops.microbatch import in_micro_batches

Array = NDArray[Any]

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def latents_to_float(array: Array, dtype: str) -> NDArray[np.float32]:
    """Return stored latents as float32; bfloat16 is stored as its bits."""
    if dtype == "bfloat16":
        bits = torch.from_numpy(np.ascontiguousarray(array).view(np.int16))
        return bits.view(torch.bfloat16).float().numpy()
    return array.astype(np.float32, copy=False)


def latents_to_array(latents: torch.Tensor, dtype: str) -> Array:
    """Return latents as they are stored in ``dtype``."""
    tensor = latents.detach().to("cpu", _DTYPES[dtype]).contiguous()
    if dtype == "bfloat16":
        return tensor.view(torch.int16).numpy().view(np.uint16)
    return tensor.numpy()


def frames_to_tensor(frames: Array) -> torch.Tensor:
    """Turn uint8 or uint16 frames ``(F, H, W, 3)`` into float32 ``(F, 3, H, W)`` in [-1, 1]."""
    top = np.iinfo(frames.dtype).max
    planes = frames.transpose(0, 3, 1, 2)
    scaled = np.empty(planes.shape, np.float32)
    np.multiply(planes, np.float32(2 / top), out=scaled)
    return torch.from_numpy(np.subtract(scaled, np.float32(1), out=scaled))


def frames_to_array(frames: torch.Tensor, dtype: str) -> Array:
    """Turn float frames ``(F, 3, H, W)`` in [-1, 1] into ``(F, H, W, 3)`` of uint8 or uint16.

    One frame at a time is a float a second time: frames as floats are the largest arrays of a run.
    """
    top = float(np.iinfo(dtype).max)
    planes = frames.detach().float().cpu()
    array = np.empty((len(planes), *planes.shape[2:], planes.shape[1]), dtype)
    for pixels, plane in zip(array, planes, strict=True):
        scaled = (plane + 1).mul_(top / 2).round_().clamp_(0, top)
        pixels[...] = scaled.numpy().astype(dtype).transpose(1, 2, 0)
    return array


def decode_to_array(
    vae: VAE, latents: torch.Tensor, size: tuple[int, int], dtype: str, micro_batch: int
) -> Array:
    """Decode latents ``(F, C, h, w)``, cut to height and width; one micro-batch at a time is float.

    Returns:
        Frames ``(F, H, W, 3)`` of uint8 or uint16.
    """
    height, width = size

    def decode_part(part: torch.Tensor) -> torch.Tensor:
        frames = vae.decode_latents(part)[..., :height, :width]
        return torch.from_numpy(frames_to_array(frames, dtype))

    return in_micro_batches(decode_part, micro_batch, latents).numpy()


def pad_to(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Repeat the last row and column of ``(F, c, H, W)`` until it is ``height`` x ``width``."""
    right, bottom = width - frames.shape[-1], height - frames.shape[-2]
    if right == 0 and bottom == 0:
        return frames
    return nnf.pad(frames, (0, right, 0, bottom), mode="replicate")
