"""What all editors share: a chunk's frames as latents, where denoising starts, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from latentloom.models.load import ImageModel
from latentloom.models.schedulers import Sampler
from latentloom.ops.microbatch import in_micro_batches
from latentloom.ops.sampling import Predict, denoise
from latentloom.schemas.conditions import IPAdapterUse
from latentloom.schemas.edits import EditStage, ReferencedEdit
from latentloom.tasks.chunk import OpenChunk
from latentloom.tasks.conditioning import draw_noise
from latentloom.tasks.stepping import Denoise, denoise_chunk
from latentloom.tasks.tensors import Array, decode_to_array, frames_to_tensor, pad_to


@dataclass(frozen=True)
class Canvas:
    """The model of an editor, and the size at which it works.

    F frames, H x W pixels of the result, padded to a size that the model takes.
    """

    chunk: OpenChunk
    model: ImageModel
    height: int
    width: int
    reference: tuple[torch.Tensor, torch.Tensor] | None = None
    """Tokens of a reference image, and those that stand for none."""

    @classmethod
    def of(cls, chunk: OpenChunk, stage: EditStage) -> Canvas:
        """Load the model of a stage, shown its reference image, and choose the padded size."""
        model, reference = chunk.models.painter(stage.model), None
        if isinstance(stage, ReferencedEdit) and stage.ip_adapter is not None:
            model, reference = _shown(chunk, stage.ip_adapter, model)
        multiple = model.vae.downscale * chunk.plan.facts.models[stage.model].latent_multiple
        height, width = (-(-side // multiple) * multiple for side in chunk.stage.frame_shape[:2])
        return cls(chunk, model, height, width, reference)

    def padded(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pad pictures `(F, c, H, W)` by repeating their edge, on the model's device."""
        return pad_to(pictures, self.height, self.width).to(self.model.vae.device)

    def encode(self, frames: Array) -> torch.Tensor:
        """Encode frames `(F, H, W, 3)` as latents."""
        return self.encode_tensor(self.padded(frames_to_tensor(frames)))

    def encode_tensor(self, frames: torch.Tensor) -> torch.Tensor:
        """Encode padded float frames `(F, 3, H, W)` as latents."""
        return in_micro_batches(self.model.vae.encode_latents, self.chunk.micro_batch, frames)

    def noise(self) -> torch.Tensor:
        """Draw the noise of the chunk's frames, in the shape of latents."""
        factor, channels = self.model.vae.downscale, self.model.vae.channels
        shape = (channels, self.height // factor, self.width // factor)
        return draw_noise(self.chunk, shape).to(self.model.vae.device)

    def denoise(
        self,
        begin: Callable[[], torch.Tensor],
        predict: Predict,
        sampler: Sampler,
        *,
        start: int = 0,
        loop: Denoise = denoise,
    ) -> torch.Tensor:
        """Denoise the chunk's latents from its newest checkpoint or the start; see `denoise_chunk`."""
        device = self.model.vae.device
        return denoise_chunk(
            self.chunk, begin, predict, sampler, device=device, start=start, loop=loop
        )

    def decode(self, latents: torch.Tensor) -> Array:
        """Decode latents to frames, and cut off what was padded."""
        height, width, _ = self.chunk.stage.frame_shape
        return decode_to_array(
            self.model.vae, latents, (height, width), self.chunk.dtype, self.chunk.micro_batch
        )


def _shown(
    chunk: OpenChunk, use: IPAdapterUse, model: ImageModel
) -> tuple[ImageModel, tuple[torch.Tensor, torch.Tensor]]:
    adapter = chunk.models.ip_adapter(use.model, model, use.ip_adapter_scale)
    pictures = frames_to_tensor(chunk.reference_frames("ip_adapter", adapter.image_size))
    tokens = adapter.tokens((pictures + 1) / 2)
    return replace(model, denoiser=adapter.denoiser), tokens


def noised(canvas: Canvas, sampler: Sampler, strength: float) -> torch.Tensor:
    """Return where denoising starts: the frames' latents noised, or at strength 1 noise alone."""
    noise = canvas.noise()
    if strength == 1:
        return noise
    clean = canvas.encode(canvas.chunk.input_frames())
    return sampler.add_noise(clean, noise, sampler.num_steps - sampler.start_index(strength))
