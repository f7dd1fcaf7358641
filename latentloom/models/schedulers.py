"""One sampler over diffusers' DDIM and its inverse, and whether two models may share latents x_t.

Inverse step k goes where step N - 1 - k came from: sampling starts exactly where inversion ended.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

import torch

from latentloom.errors import ModelError, PolicyError
from latentloom.models.pretrained import library, read_config
from latentloom.ops.sampling import PredictionType

# Schedulers whose config holds betas, so that DDIM can be made from it.
CONVERTIBLE: Final = frozenset(
    {
        "DDIMScheduler",
        "DDIMInverseScheduler",
        "DDPMScheduler",
        "DEISMultistepScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "EulerAncestralDiscreteScheduler",
        "EulerDiscreteScheduler",
        "HeunDiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "LCMScheduler",
        "LMSDiscreteScheduler",
        "PNDMScheduler",
        "UniPCMultistepScheduler",
    }
)
SHARED_FIELDS: Final = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "set_alpha_to_one",
    "steps_offset",
    "rescale_betas_zero_snr",
)


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """The noise schedule that a model was trained on, from its scheduler's config."""

    config: Mapping[str, Any]

    @classmethod
    def from_folder(cls, folder: Path, changes: Mapping[str, Any] | None = None) -> Schedule:
        """Read `scheduler_config.json`.

        Args:
            folder: That has it.
            changes: Fields that replace the file's.

        Raises:
            ModelError: If it is missing or damaged.
            PolicyError: If it names a scheduler that DDIM cannot be made from.
        """
        config = read_config(folder / "scheduler_config.json")
        name = config.get("_class_name", "DDIMScheduler")
        if name not in CONVERTIBLE:
            raise PolicyError(
                f"{folder} names the scheduler {name}, which is not one of those that convert to "
                f"DDIM: {', '.join(sorted(CONVERTIBLE))}"
            )
        return cls(config | dict(changes or {}))

    def changed(self, changes: Mapping[str, Any]) -> Schedule:
        """Return a schedule with other values of some fields."""
        return Schedule({**self.config, **changes})

    @property
    def prediction_type(self) -> PredictionType:
        """What the model returns."""
        return cast(PredictionType, self.config.get("prediction_type", "epsilon"))

    def alphas_cumprod(self) -> torch.Tensor:
        """Return abar of every training timestep, float32."""
        return cast(torch.Tensor, self._ddim("DDIMScheduler").alphas_cumprod)

    def sampler(self, num_inference_steps: int) -> Sampler:
        """Return DDIM and its inverse with N steps.

        Raises:
            ModelError: If N is below 1 or above the training steps, or a timestep has no signal.
        """
        num_train = int(self.config.get("num_train_timesteps", 1000))
        if not 1 <= num_inference_steps <= num_train:
            raise ModelError(
                f"num_inference_steps {num_inference_steps} is not within 1..{num_train}"
            )
        forward, inverse = self._ddim("DDIMScheduler"), self._ddim("DDIMInverseScheduler")
        forward.set_timesteps(num_inference_steps)
        inverse.set_timesteps(num_inference_steps)
        timesteps = tuple(int(t) for t in forward.timesteps)
        if float(forward.alphas_cumprod[timesteps[0]]) <= 0:
            raise ModelError(
                "the schedule has no signal left at its last timestep (rescale_betas_zero_snr), so "
                "that noise predictions cannot be inverted there; use leading timestep_spacing"
            )
        return Sampler(forward=forward, inverse=inverse, timesteps=timesteps)

    def _ddim(self, name: str) -> Any:
        fields = {key: self.config[key] for key in SHARED_FIELDS if key in self.config}
        # The inverse knows leading and trailing only; both must walk the same timesteps.
        spacing = self.config.get("timestep_spacing", "leading")
        fields["timestep_spacing"] = spacing if spacing == "trailing" else "leading"
        # Denoisers hand over eps, whatever they were trained on. Both classes clip by default,
        # which ruins latents.
        return getattr(library("diffusers"), name)(
            **fields, prediction_type="epsilon", clip_sample=False
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Sampler:
    """DDIM with eta 0 and N steps, in both directions. Stateless; takes eps."""

    forward: Any
    inverse: Any
    timesteps: tuple[int, ...]

    @property
    def num_steps(self) -> int:
        """N."""
        return len(self.timesteps)

    def alpha_bar(self, i: int) -> float:
        """Return abar at `timesteps[i]`."""
        return float(self.forward.alphas_cumprod[self.timesteps[i]])

    def alpha_bar_after(self, i: int) -> float:
        """Return abar where step i leads, as DDIM counts: one N-th of the training timesteps below."""
        stride = self.forward.config.num_train_timesteps // self.num_steps
        timestep = self.timesteps[i] - stride
        table = self.forward.alphas_cumprod
        return float(table[timestep] if timestep >= 0 else self.forward.final_alpha_cumprod)

    def step(self, eps: torch.Tensor, i: int, z: torch.Tensor) -> torch.Tensor:
        """Go from timestep `timesteps[i]` to the next cleaner one; step 0 is the noisiest."""
        stepped = self.forward.step(eps, self.timesteps[i], z, eta=0.0, return_dict=False)
        return cast(torch.Tensor, stepped[0])

    def inverse_step(self, eps: torch.Tensor, k: int, z: torch.Tensor) -> torch.Tensor:
        """Go to timestep `timesteps[N - 1 - k]` from the next cleaner one; 0 is the cleanest."""
        timestep = self.timesteps[self.num_steps - 1 - k]
        return cast(torch.Tensor, self.inverse.step(eps, timestep, z, return_dict=False)[0])

    def start_index(self, strength: float) -> int:
        """Return the first step of an edit: 0 at strength 1, N at strength 0.

        An inversion for that edit takes `N - start_index(strength)` inverse steps.

        Raises:
            ModelError: If the strength is outside 0..1.
        """
        if not 0 <= strength <= 1:
            raise ModelError(f"strength {strength} is not within 0..1")
        return self.num_steps - int(self.num_steps * strength)

    def add_noise(self, clean: torch.Tensor, noise: torch.Tensor, k: int) -> torch.Tensor:
        """Noise clean latents to where k inverse steps lead: `sqrt(abar) z0 + sqrt(1 - abar) eps`.

        k = 0 returns them as they are; k = N is where sampling starts.
        """
        if k == 0:
            return clean
        alpha_bar = self.alpha_bar(self.num_steps - k)
        return math.sqrt(alpha_bar) * clean + math.sqrt(1 - alpha_bar) * noise.to(clean.device)

    def describe(self) -> str:
        """Return betas, timesteps and N in a line."""
        betas = self.forward.betas
        middle = len(betas) // 2
        signal = float(self.forward.alphas_cumprod[middle]) ** 0.5
        return (
            f"{self.forward.config.beta_schedule} betas {betas[0]:.5f}..{betas[-1]:.5f} "
            f"(sqrt(abar) {signal:.3f} at t={middle}), {self.num_steps} timesteps "
            f"{self.timesteps[0]}..{self.timesteps[-1]}, last abar "
            f"{float(self.forward.final_alpha_cumprod):.5f}"
        )


def check_agree(samplers: Mapping[str, Sampler]) -> None:
    """Check that models may exchange latents x_t: same betas, timesteps and N.

    Args:
        samplers: By the name of the model, for the message.

    Raises:
        ModelError: If two differ; it prints every schedule.
    """
    first, *others = samplers.values()
    if all(_same(first, other) for other in others):
        return
    lines = "".join(f"\n  {name}: {sampler.describe()}" for name, sampler in samplers.items())
    raise ModelError(
        f"the schedulers do not agree, so the models' latents cannot be fused:{lines}\n"
        "use models trained on the same noise schedule, or one scheduler config for both"
    )


def _same(first: Sampler, second: Sampler) -> bool:
    return (
        first.timesteps == second.timesteps
        and first.forward.betas.shape == second.forward.betas.shape
        and torch.allclose(first.forward.betas, second.forward.betas, rtol=1e-5, atol=0)
        and bool(first.forward.final_alpha_cumprod == second.forward.final_alpha_cumprod)
    )
