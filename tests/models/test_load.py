from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from latentloom.errors import ModelError, PolicyError
from latentloom.models import dependents, folders, load
from latentloom.models.image import ImageDenoiser
from latentloom.models.offload import Placement
from latentloom.models.vae import KLAutoencoder
from tests.models import tiny


@pytest.fixture
def copy(tiny_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_folder / "image", tmp_path / "image"))


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_second_load_returns_the_same_model(tiny_folder: Path) -> None:
    loaded = load.load_image_model(tiny_folder / "image")
    assert load.load_image_model(tiny_folder / "image") is loaded


def test_loading_opens_no_connection(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert load.load_image_model(copy).text.encode(["a"]).shape == (1, 24, 16)


def test_loading_says_nothing(copy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load.load_image_model(copy)
    assert capfd.readouterr() == ("", "")


def test_adapter_shares_text_and_vae_with_its_base(
    image: load.ImageModel, video: load.VideoModel
) -> None:
    assert video.text is image.text
    assert video.vae is image.vae
    assert video.denoiser.windowed
    assert video.denoiser.sample_length == 8


def test_float16_weights_load_as_float32_and_back(tmp_path: Path, tiny_folder: Path) -> None:
    half = Path(shutil.copytree(tiny_folder / "image", tmp_path / "half"))
    for path in half.glob("*/*.safetensors"):
        weights = safetensors.torch.load_file(path)
        safetensors.torch.save_file(
            {k: v.half() for k, v in weights.items()}, path, {"format": "pt"}
        )
    model = load.load_image_model(half)
    assert isinstance(model.denoiser, ImageDenoiser)
    assert model.denoiser.module.dtype == torch.float32
    coarse = load.load_image_model(half, placement=Placement("bfloat16"))
    text = coarse.text.encode(["a"])
    assert text.dtype == torch.float32
    assert coarse.denoiser.predict(torch.zeros(1, 4, 8, 8), 1, text).dtype == torch.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_coarser_types_predict_nearly_the_same(
    tiny_folder: Path, image: load.ImageModel, video3d: load.VideoModel, dtype: str
) -> None:
    latents = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    frames = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    base = load.load_image_model(tiny_folder / "image", placement=Placement(dtype))
    pairs: list[tuple[Any, Any]] = [
        (image, base),
        (video3d, load.load_video_model(tiny_folder / "video3d", placement=Placement(dtype))),
    ]
    for fine, coarse in pairs:
        text = fine.text.encode(["a car"])
        expected = fine.denoiser.predict(latents, 501, text)
        found = coarse.denoiser.predict(latents, 501, coarse.text.encode(["a car"]))
        assert torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.999
    expected, found = image.vae.encode_latents(frames), base.vae.encode_latents(frames)
    assert torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.999


def test_vae_that_overflows_in_float16_stays_in_float32(tiny_folder: Path) -> None:
    vae = load.load_vae(tiny_folder / "image", placement=Placement("float16"))
    assert isinstance(vae, KLAutoencoder)
    assert vae.module.dtype == torch.float32


def test_variant_reads_its_own_files(copy: Path) -> None:
    for path in [*copy.glob("*/*.safetensors")]:
        path.rename(path.with_suffix(".fp16.safetensors"))
    with pytest.raises(ModelError, match="no safetensors weights"):
        load.load_image_model(copy)
    assert load.load_image_model(copy, variant="fp16").denoiser.channels == 4


def test_subfolder_holds_the_pipeline(copy: Path) -> None:
    assert load.load_image_model(copy.parent, subfolder="image").denoiser.channels == 4
    with pytest.raises(ModelError, match="leaves"):
        load.load_image_model(copy, subfolder="../image")


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no model folder .*nothing"):
        folders.resolve_folder(tmp_path / "nothing")
    with pytest.raises(ModelError, match="leaves"):
        folders.resolve_folder("embedded:../load")


@pytest.mark.parametrize(
    "part", ["unet/config.json", "scheduler/scheduler_config.json", "vae/config.json"]
)
def test_missing_part_is_named(copy: Path, part: str) -> None:
    (copy / part).unlink()
    with pytest.raises(ModelError, match=part):
        load.load_image_model(copy)


def test_pickled_weights_are_refused_and_convert_is_named(copy: Path) -> None:
    (copy / "unet" / "diffusion_pytorch_model.safetensors").rename(
        copy / "unet" / "diffusion_pytorch_model.bin"
    )
    with pytest.raises(ModelError, match="latentloom convert-model"):
        load.load_image_model(copy)


@pytest.mark.parametrize(
    ("file", "changes"),
    [
        ("unet/config.json", {"_class_name": "EvilModel"}),
        ("unet/config.json", {"auto_map": {"AutoModel": "evil.Model"}}),
        ("text_encoder/config.json", {"architectures": ["LlamaModel"]}),
        ("tokenizer/tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer"}),
        ("scheduler/scheduler_config.json", {"_class_name": "FlowMatchEulerDiscreteScheduler"}),
    ],
)
def test_classes_off_the_list_are_refused(copy: Path, file: str, changes: dict[str, Any]) -> None:
    rewrite(copy / file, **changes)
    with pytest.raises(PolicyError, match=r"allowed|refused|convert to DDIM"):
        load.load_image_model(copy)


def test_allowed_class_in_the_wrong_place_is_a_model_error(copy: Path) -> None:
    rewrite(copy / "unet" / "config.json", _class_name="MotionAdapter")
    with pytest.raises(ModelError, match="expected UNet2DConditionModel"):
        load.load_image_model(copy)


def test_truncated_weights_are_a_model_error(copy: Path) -> None:
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ModelError, match="cannot be loaded as UNet2DConditionModel"):
        load.load_image_model(copy)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_absent_weights_are_an_error_and_not_drawn_at_random(copy: Path, part: str) -> None:
    path = next((copy / part).glob("*.safetensors"))
    weights = safetensors.torch.load_file(path)
    weights.pop(sorted(weights)[0])
    safetensors.torch.save_file(weights, path, {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 weights|cannot be loaded"):
        load.load_image_model(copy)


def test_inpainting_unet_is_refused(copy: Path) -> None:
    tiny.new_unet(in_channels=9).save_pretrained(copy / "unet")
    with pytest.raises(ModelError, match="takes 9 channels, but its VAE makes 4"):
        load.load_image_model(copy)


def test_controlnet_must_fit_its_base(tmp_path: Path, image: load.ImageModel) -> None:
    tiny.save_controlnet(tmp_path / "wide", cross_attention_dim=32)
    with pytest.raises(ModelError, match=r"'cross_attention_dim': 32.* against .*16"):
        dependents.load_controlnet(tmp_path / "wide", base=image)


def test_adapter_must_fit_its_base(tmp_path: Path, image: load.ImageModel) -> None:
    tiny.save_motion_adapter(tmp_path / "wide", block_out_channels=(8, 24))
    with pytest.raises(ModelError, match=r"\(8, 24\).* against .*\(8, 16\)"):
        load.load_video_model(tmp_path / "wide", base=image)


def test_adapter_needs_a_base(tiny_folder: Path) -> None:
    with pytest.raises(ModelError, match="name it with `base`"):
        load.load_video_model(tiny_folder / "video")


def test_upsampler_must_take_two_latents(tmp_path: Path, image: load.ImageModel) -> None:
    tiny.save_upsampler(tmp_path / "up", in_channels=7)
    with pytest.raises(ModelError, match="maps 7 channels to 4"):
        dependents.load_upsampler(tmp_path / "up", base=image)


def test_video_pipeline_with_the_same_vae_shares_the_base_vae(
    tiny_folder: Path, image: load.ImageModel
) -> None:
    video = load.load_video_model(tiny_folder / "video3d", base=image)
    assert video.vae is image.vae
    assert video.text is not image.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"scaling_factor": 0.4}, "0.5 against .*0.4"), ({"seed": 5}, "cosine")],
)
def test_video_pipeline_with_another_latent_space_is_refused(
    tiny_folder: Path,
    tmp_path: Path,
    image: load.ImageModel,
    changes: dict[str, Any],
    message: str,
) -> None:
    other = Path(shutil.copytree(tiny_folder / "video3d", tmp_path / "other"))
    tiny.save_vae(other / "vae", **changes)
    with pytest.raises(ModelError, match=message):
        load.load_video_model(other, base=image)
    assert load.load_video_model(other, base=image, vae=image.vae).vae is image.vae


def test_cheap_modules_import_neither_torch_nor_diffusers() -> None:
    code = (
        "import sys, latentloom.ops.blend, latentloom.ops.metrics, latentloom.models.folders\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
