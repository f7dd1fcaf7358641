"""IP-Adapters: which files they are, and where their parts run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from latentloom.errors import ModelError
from latentloom.models.dependents import load_ip_adapter
from latentloom.models.load import load_image_model
from latentloom.models.offload import Placement, Visit
from tests.models import tiny


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_image_pipeline(tmp_path_factory.mktemp("reference") / "image")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return tiny.save_ip_adapter(tmp_path / "ip_adapter")


@pytest.fixture
def _nobody_on_the_device() -> Iterator[None]:
    Visit.on_device.clear()
    yield
    Visit.on_device.clear()


@pytest.mark.usefixtures("_nobody_on_the_device")
def test_projection_is_where_the_encoder_runs_while_the_unet_waits(
    image: Path, adapter: Path
) -> None:
    base = dataclasses.replace(
        load_image_model(str(image)), placement=Placement(device="meta", offload=True)
    )
    loaded = load_ip_adapter(adapter, base=base, scale=1.0)
    assert loaded.encoder.device.type == loaded.denoiser.module.device.type == "cpu"
    shown, nothing = loaded.tokens(torch.rand(2, 3, 16, 16))
    assert {tokens.device.type for tokens in (shown, nothing)} == {"meta"}
    assert shown.shape == nothing.shape == (2, 4, tiny.TEXT_WIDTH)


def test_image_encoder_of_the_variant_is_loaded(image: Path, adapter: Path) -> None:
    base = load_image_model(str(image))
    weights = adapter / "image_encoder" / "model.safetensors"
    weights.rename(weights.with_suffix(".fp16.safetensors"))
    with pytest.raises(ModelError, match="image_encoder holds no safetensors weights"):
        load_ip_adapter(adapter, base=base, scale=1.0)
    loaded = load_ip_adapter(adapter, base=base, scale=1.0, variant="fp16")
    assert loaded.image_size == 16


def test_pickled_weights_are_refused(image: Path, adapter: Path) -> None:
    (adapter / "ip-adapter.safetensors").rename(adapter / "ip-adapter.bin")
    with pytest.raises(ModelError, match=r"holds only pickled weights \(ip-adapter\.bin\)"):
        load_ip_adapter(adapter, base=load_image_model(str(image)), scale=1.0)
