from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.editing import NUM_FRAMES
from tests.models import tiny
from tests.runs import make_clip


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """image, control, colour_control, t2i_adapter, inpaint, ip_adapter."""
    root = tmp_path_factory.mktemp("tiny")
    tiny.save_image_pipeline(root / "image")
    tiny.save_controlnet(root / "control")
    tiny.save_controlnet(root / "colour_control", seed=1, conditioning_channels=3)
    tiny.save_t2i_adapter(root / "t2i_adapter")
    tiny.save_inpaint_unet(root / "inpaint")
    tiny.save_ip_adapter(root / "ip_adapter")
    return root


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of frames of 16 x 16 pixels."""
    return make_clip(tmp_path_factory.mktemp("clips") / "clip.mp4", NUM_FRAMES, size=16)
