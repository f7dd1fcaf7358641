"""Group norms that take mean and variance of a whole frame while a model sees a part of it.

B pictures, c channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

Affine = tuple[torch.Tensor, torch.Tensor]


@contextmanager
def norms_as_in(module: Any, look: Callable[[], object]) -> Iterator[None]:
    """Have every group norm of a module normalise by what it met in another call.

    Args:
        module: The model.
        look: Calls it, on as many pictures as the calls within will have.

    Source: "fast mode" of Tiled VAE (github.com/pkuliyi2015/multidiffusion-upscaler-for-automatic1111).
    """
    met: dict[torch.nn.GroupNorm, Affine] = {}
    norms = [part for part in module.modules() if isinstance(part, torch.nn.GroupNorm)]

    def note(norm: torch.nn.GroupNorm, inputs: tuple[torch.Tensor], _: torch.Tensor) -> None:
        met[norm] = _affine(norm, inputs[0])

    def apply(
        norm: torch.nn.GroupNorm, inputs: tuple[torch.Tensor], _: torch.Tensor
    ) -> torch.Tensor:
        scale, shift = (_like(part, inputs[0]) for part in met[norm])
        return torch.addcmul(shift, inputs[0], scale)

    with ExitStack() as noting:
        for norm in norms:
            noting.callback(norm.register_forward_hook(note).remove)
        look()
    with ExitStack() as applying:
        for norm in norms:
            applying.callback(norm.register_forward_hook(apply).remove)
        yield


def _affine(norm: torch.nn.GroupNorm, x: torch.Tensor) -> Affine:
    """Return the scale and shift `(B, c)` that a group norm comes to on ``x``."""
    groups = x.float().reshape(len(x), norm.num_groups, -1)
    variance, mean = torch.var_mean(groups, dim=-1, correction=0)
    width = norm.num_channels // norm.num_groups
    scale = torch.rsqrt(variance + norm.eps).repeat_interleave(width, dim=1)
    mean = mean.repeat_interleave(width, dim=1)
    if norm.affine:
        scale = scale * norm.weight.float()
        return scale, norm.bias.float() - mean * scale
    return scale, -mean * scale


def _like(values: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return values.to(x.dtype).view(*values.shape, *[1] * (x.ndim - 2))
