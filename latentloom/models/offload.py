"""Where models are, and what they compute in; they may wait in the machine's memory while others run.

Moving weights changes none of their bits, so results are those of a model that stays on the GPU.
"""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any, ClassVar, Final

import torch
from accelerate.hooks import (
    ModelHook,
    add_hook_to_module,
)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a model is, and what it computes in."""

    dtype: str = "float32"
    device: str = "cpu"
    offload: bool = False
    """Whether it is on the device only while it runs."""


ON_CPU: Final = Placement()
"""In float32 on the CPU."""


# accelerate ships no types: a subclass of its hook is one of Any.
class Visit(ModelHook):  # type: ignore[misc]
    """Brings a module to a device before it runs, and sends away the one that was there."""

    on_device: ClassVar[weakref.WeakSet[torch.nn.Module]] = weakref.WeakSet()
    """Modules of this process that are on the GPU for a visit: one, between two calls."""

    def __init__(self, device: torch.device) -> None:
        """Say where the module runs."""
        self.device = device

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Make room, and move in."""
        for other in [other for other in self.on_device if other is not module]:
            other.to("cpu")
            self.on_device.discard(other)
        if module not in self.on_device:
            module.to(self.device)
            self.on_device.add(module)
        return args, kwargs


def place(module: Any, placement: Placement) -> Any:
    """Move a module to its device, or with `offload` let it visit the device whenever it runs.

    A device without memory of its own (cpu) has nothing to be offloaded from.
    """
    device = torch.device(placement.device)
    if not placement.offload or device.type == "cpu":
        return module.to(device)
    return add_hook_to_module(module, Visit(device))


def execution_device(module: Any) -> torch.device:
    """Return where a module runs, which is where its inputs go."""
    hook = getattr(module, "_hf_hook", None)
    return hook.device if isinstance(hook, Visit) else torch.device(module.device)
