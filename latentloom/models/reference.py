"""IP-Adapter: attention to the tokens of a reference image, beside those of the text (2308.06721).

The image's tokens travel at the end of the text's, since guidance takes others with the negative prompt.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Final

import torch

from latentloom.errors import ModelError
from latentloom.models.denoisers import DenoiserAround
from latentloom.models.image import ImageDenoiser, twin_of
from latentloom.models.offload import execution_device
from latentloom.models.pretrained import library
from latentloom.models.protocols import Denoiser

# What CLIP's pictures are normalised with.
MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
STD: Final = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True, eq=False)
class IPAdapter:
    """An image encoder, its projection to tokens, and the denoiser that attends to them."""

    denoiser: ImageDenoiser
    encoder: Any
    projection: Any

    @property
    def image_size(self) -> int:
        """Pixels along each side of the pictures that the encoder sees."""
        return int(self.encoder.config.image_size)

    @torch.inference_mode()
    def tokens(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the tokens of pictures, and those that stand for no picture.

        Args:
            pictures: `(F, 3, image_size, image_size)` in [0, 1].

        Returns:
            Two tensors `(F, n, D)`, float32.
        """
        if bool((pictures == pictures[:1]).all()):
            pictures, repeats = pictures[:1], len(pictures)
        else:
            repeats = 1
        device, dtype = execution_device(self.encoder), self.encoder.dtype
        shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
        pixels = ((pictures - shift) / scale).to(device, dtype)
        # One picture a call, so that no bit depends on the number of frames.
        seen = [self._encode(pixels[i : i + 1]) for i in range(len(pixels))]
        nothing = torch.zeros_like(seen[0]) if self._pools else self._encode(0 * pixels[:1])
        tokens = torch.cat([self._project(one) for one in seen])
        return (
            tokens.repeat(repeats, 1, 1),
            self._project(nothing).repeat(repeats * len(pixels), 1, 1),
        )

    @property
    def _pools(self) -> bool:
        """Tell the first IP-Adapter, of one embedding an image, from those that see its patches."""
        projection = library("diffusers").models.embeddings.ImageProjection
        return isinstance(self.projection.image_projection_layers[0], projection)

    def _encode(self, pixels: torch.Tensor) -> torch.Tensor:
        output = self.encoder(pixels, output_hidden_states=True)
        return torch.as_tensor(output.image_embeds if self._pools else output.hidden_states[-2])

    def _project(self, embeds: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.projection([embeds[:, None]])[0].flatten(1, 2).float())


@dataclasses.dataclass(frozen=True, eq=False)
class ReferencedDenoiser(DenoiserAround[Denoiser]):
    """A denoiser whose text ends with the tokens of an image; its `control` is the denoiser's."""

    num_tokens: int

    def predict(
        self,
        latents: torch.Tensor,
        timestep: int,
        text: torch.Tensor,
        *control: torch.Tensor,
    ) -> torch.Tensor:
        """Predict the noise; `text` is `(F, L + n, D)`, see `Denoiser.predict`."""
        words, tokens = text[:, : -self.num_tokens], text[:, -self.num_tokens :]
        return self.denoiser.predict(latents, timestep, words, *control, tokens)


class _AsTheyAre(torch.nn.Module):
    """Hand over tokens that were projected once, and not at every step."""

    def forward(self, tokens: list[torch.Tensor]) -> list[torch.Tensor]:
        return tokens


def attach(
    base: ImageDenoiser, encoder: Any, weights: dict[str, torch.Tensor], scale: float, where: Path
) -> IPAdapter:
    """Give a copy of a denoiser's UNet attention to images; weights are shared with the original.

    Args:
        base: The denoiser.
        encoder: `CLIPVisionModelWithProjection`.
        weights: `image_proj.*` and `ip_adapter.*`.
        scale: Factor of what attention to the image adds.
        where: Where the weights lie, for errors.

    Raises:
        ModelError: If the adapter was made for another UNet or encoder.
    """
    state: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in weights.items():
        part, _, rest = key.partition(".")
        if part in state:
            state[part][rest] = value
    unet = twin_of(base.module)
    pipeline = library("diffusers").StableDiffusionPipeline(
        *[None] * 3, unet, None, None, None, requires_safety_checker=False
    )
    try:
        pipeline.load_ip_adapter(state, subfolder="", weight_name="", image_encoder_folder=None)
    except (ValueError, RuntimeError, KeyError) as error:
        raise ModelError(f"the IP-Adapter {where} does not fit its base: {error}") from error
    pipeline.set_ip_adapter_scale(scale)
    # The projection reads what the encoder makes, and so is where that runs, whatever waits elsewhere.
    projection = unet.encoder_hid_proj.eval().to(execution_device(encoder))
    unet.encoder_hid_proj = _AsTheyAre()
    denoiser = dataclasses.replace(base, module=unet.eval(), reads_reference=True)
    return IPAdapter(denoiser, encoder, projection)
