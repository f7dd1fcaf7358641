from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentloom.models import load
from tests.models import tiny


@pytest.fixture(autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """image, v_image, video (adapter), video3d, control, upsample, upsample_video, interpolate."""
    root = tmp_path_factory.mktemp("tiny")
    tiny.save_image_pipeline(root / "image")
    tiny.save_motion_adapter(root / "video")
    tiny.save_video_pipeline(root / "video3d")
    tiny.save_controlnet(root / "control")
    tiny.save_upsampler(root / "upsample")
    tiny.save_motion_adapter(root / "upsample_video", seed=3)
    tiny.save_interpolator(root / "interpolate")
    return root


@pytest.fixture(scope="session")
def image(tiny_folder: Path) -> load.ImageModel:
    return load.load_image_model(tiny_folder / "image")


@pytest.fixture(scope="session")
def video(tiny_folder: Path, image: load.ImageModel) -> load.VideoModel:
    return load.load_video_model(tiny_folder / "video", base=image)


@pytest.fixture(scope="session")
def video3d(tiny_folder: Path) -> load.VideoModel:
    return load.load_video_model(tiny_folder / "video3d")
