"""LoRA files in each published format change the weights as their formula says, and as diffusers does."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from latentloom.errors import ModelError
from latentloom.models import load
from latentloom.models.folders import find_lora
from latentloom.models.image import ImageDenoiser
from latentloom.models.lora import Lora
from latentloom.models.pretrained import library
from latentloom.models.text import CLIPText
from latentloom.models.video import VideoDenoiser

BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
UNET_LAYERS = {f"{BLOCK}.to_q": (8, 8), f"{BLOCK}.to_out.0": (8, 8)}
ATTENTION = "text_model.encoder.layers.0.self_attn"
TEXT_LAYERS = {f"{ATTENTION}.q_proj": (16, 16), f"{ATTENTION}.out_proj": (16, 16)}
RANK = 2

Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]


def draw_pairs(layers: dict[str, tuple[int, int]], seed: int) -> Pairs:
    """Draw (down, up) for layers with (inputs, outputs)."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(RANK, inputs, generator=generator) / 4,
            torch.randn(outputs, RANK, generator=generator) / 4,
        )
        for name, (inputs, outputs) in layers.items()
    }


UNET, TEXT = draw_pairs(UNET_LAYERS, 1), draw_pairs(TEXT_LAYERS, 2)


def in_peft_format(unet: Pairs, text: Pairs) -> dict[str, torch.Tensor]:
    return named(unet, "unet.", ".lora_A", ".lora_B") | named(
        text, "text_encoder.", ".lora_A", ".lora_B"
    )


def in_diffusers_format(unet: Pairs, text: Pairs) -> dict[str, torch.Tensor]:
    suffixes = (".lora_linear_layer.down", ".lora_linear_layer.up")
    return named(unet, "unet.", ".lora.down", ".lora.up") | named(text, "text_encoder.", *suffixes)


def in_kohya_format(unet: Pairs, text: Pairs) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    for prefix, pairs in (("lora_unet_", unet), ("lora_te_", text)):
        for name, (down, up) in pairs.items():
            stem = prefix + name.replace(".", "_")
            weights |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
            weights[f"{stem}.alpha"] = torch.tensor(float(RANK))
    return weights


def named(pairs: Pairs, prefix: str, down: str, up: str) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = {}
    for name, (a, b) in pairs.items():
        weights |= {f"{prefix}{name}{down}.weight": a, f"{prefix}{name}{up}.weight": b}
    return weights


def save(
    path: Path, weights: dict[str, torch.Tensor], metadata: dict[str, str] | None = None
) -> Path:
    safetensors.torch.save_file(weights, path, metadata)
    return path


def load_with(folder: Path, *loras: Lora, **options: Any) -> tuple[Any, Any]:
    """Return the UNet and text encoder of an image model with LoRAs."""
    model = load.load_image_model(folder, loras=loras, **options)
    assert isinstance(model.denoiser, ImageDenoiser)
    assert isinstance(model.text, CLIPText)
    return model.denoiser.module, model.text.module


def weight(module: Any, name: str) -> torch.Tensor:
    layer = module.get_submodule(name.removeprefix("text_model."))
    return torch.as_tensor(layer.weight.detach())


@pytest.mark.parametrize("form", [in_peft_format, in_diffusers_format, in_kohya_format])
def test_weights_grow_by_scale_times_up_times_down(
    tiny_folder: Path, tmp_path: Path, form: Any
) -> None:
    path = save(tmp_path / "lora.safetensors", form(UNET, TEXT))
    base = load_with(tiny_folder / "image")
    merged = load_with(tiny_folder / "image", Lora(path, 0.7))
    for before, after, pairs in zip(base, merged, (UNET, TEXT), strict=True):
        for name, (down, up) in pairs.items():
            expected = weight(before, name) + 0.7 * up @ down
            torch.testing.assert_close(weight(after, name), expected, atol=1e-6, rtol=0)
        changed = {name.removeprefix("text_model.") + ".weight" for name in pairs}
        others = dict(before.named_parameters())
        for name, parameter in after.named_parameters():
            assert name in changed or torch.equal(parameter, others[name])


def test_scale_zero_leaves_every_byte(tiny_folder: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "lora.safetensors", in_peft_format(UNET, TEXT))
    base, merged = (
        load_with(tiny_folder / "image"),
        load_with(tiny_folder / "image", Lora(path, 0.0)),
    )
    for before, after in zip(base, merged, strict=True):
        for one, other in zip(before.parameters(), after.parameters(), strict=True):
            assert torch.equal(one, other)


def test_kohya_alpha_scales_each_layer_by_alpha_over_rank(
    tiny_folder: Path, tmp_path: Path
) -> None:
    weights = in_kohya_format(UNET, TEXT)
    stem = "lora_te_" + f"{ATTENTION}.out_proj".replace(".", "_")
    weights[f"{stem}.alpha"] = torch.tensor(0.5)
    path = save(tmp_path / "lora.safetensors", weights)
    before, after = (
        load_with(tiny_folder / "image")[1],
        load_with(tiny_folder / "image", Lora(path))[1],
    )
    for name, factor in ((f"{ATTENTION}.q_proj", 1.0), (f"{ATTENTION}.out_proj", 0.25)):
        down, up = TEXT[name]
        expected = weight(before, name) + factor * up @ down
        torch.testing.assert_close(weight(after, name), expected, atol=1e-6, rtol=0)


def test_alpha_of_pefts_configuration_counts(tiny_folder: Path, tmp_path: Path) -> None:
    config = {"unet.r": RANK, "unet.lora_alpha": 1, "unet.alpha_pattern": {f"{BLOCK}.to_out.0": 6}}
    header = {"format": "pt", "lora_adapter_metadata": json.dumps(config)}
    path = save(tmp_path / "lora.safetensors", in_peft_format(UNET, {}), header)
    before, after = (
        load_with(tiny_folder / "image")[0],
        load_with(tiny_folder / "image", Lora(path))[0],
    )
    for name, factor in ((f"{BLOCK}.to_q", 0.5), (f"{BLOCK}.to_out.0", 3.0)):
        down, up = UNET[name]
        expected = weight(before, name) + factor * up @ down
        torch.testing.assert_close(weight(after, name), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("form", [in_peft_format, in_diffusers_format, in_kohya_format])
def test_predictions_are_those_of_diffusers_with_the_lora_active(
    tiny_folder: Path, tmp_path: Path, form: Any
) -> None:
    path = save(tmp_path / "lora.safetensors", form(UNET, TEXT))
    model = load.load_image_model(tiny_folder / "image", loras=(Lora(path, 0.8),))
    assert isinstance(model.text, CLIPText)
    unet, encoder = copy.deepcopy(load_with(tiny_folder / "image"))
    theirs = library("diffusers").loaders.StableDiffusionLoraLoaderMixin
    weights, alphas = theirs.lora_state_dict(safetensors.torch.load_file(path))
    theirs.load_lora_into_unet(weights, alphas, unet, adapter_name="it")
    theirs.load_lora_into_text_encoder(weights, alphas, encoder, lora_scale=0.8, adapter_name="it")
    unet.set_adapters(["it"], [0.8])
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = model.text.encode(["a car"])
    with torch.inference_mode():
        their_text = CLIPText(model.text.tokenizer, encoder).encode(["a car"])
        expected = unet(latents, 500, their_text).sample
    torch.testing.assert_close(text, their_text, atol=1e-5, rtol=0)
    ours = model.denoiser.predict(latents, 500, text)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    plain = load.load_image_model(tiny_folder / "image").denoiser.predict(latents, 500, text)
    assert (ours - plain).abs().max() > 1e-3


def test_convolutions_change_too(tiny_folder: Path, tmp_path: Path) -> None:
    name = "down_blocks.0.resnets.0.conv1"
    down, up = torch.randn(RANK, 8, 3, 3), torch.randn(8, RANK, 1, 1)
    path = save(
        tmp_path / "lora.safetensors", named({name: (down, up)}, "unet.", ".lora_A", ".lora_B")
    )
    before, after = (
        load_with(tiny_folder / "image")[0],
        load_with(tiny_folder / "image", Lora(path))[0],
    )
    change = torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down)
    expected = weight(before, name) + change
    torch.testing.assert_close(weight(after, name), expected, atol=1e-5, rtol=0)


def test_motion_model_inherits_its_bases_lora_and_has_its_own(
    tiny_folder: Path, tmp_path: Path
) -> None:
    of_base = save(tmp_path / "base.safetensors", in_peft_format(UNET, {}))
    motion = "down_blocks.0.motion_modules.0.transformer_blocks.0.attn1.to_q"
    pairs = draw_pairs({motion: (8, 8)}, 3)
    of_motion = save(tmp_path / "motion.safetensors", in_peft_format(pairs, {}))
    base = load.load_image_model(tiny_folder / "image", loras=(Lora(of_base),))
    plain = load.load_video_model(tiny_folder / "video", base=base)
    moved = load.load_video_model(tiny_folder / "video", base=base, loras=(Lora(of_motion),))
    assert isinstance(base.denoiser, ImageDenoiser)
    assert isinstance(plain.denoiser, VideoDenoiser)
    assert isinstance(moved.denoiser, VideoDenoiser)
    name = f"{BLOCK}.to_q"
    assert torch.equal(weight(moved.denoiser.module, name), weight(base.denoiser.module, name))
    down, up = pairs[motion]
    expected = weight(plain.denoiser.module, motion) + up @ down
    torch.testing.assert_close(weight(moved.denoiser.module, motion), expected, atol=1e-6, rtol=0)


def test_3d_unet_takes_a_lora(tiny_folder: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "lora.safetensors", in_peft_format(UNET, {}))
    plain = load.load_video_model(tiny_folder / "video3d")
    changed = load.load_video_model(tiny_folder / "video3d", loras=(Lora(path),))
    assert isinstance(plain.denoiser, VideoDenoiser)
    assert isinstance(changed.denoiser, VideoDenoiser)
    down, up = UNET[f"{BLOCK}.to_q"]
    name = f"{BLOCK}.to_q"
    expected = weight(plain.denoiser.module, name) + up @ down
    torch.testing.assert_close(weight(changed.denoiser.module, name), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (in_peft_format(draw_pairs({f"{BLOCK}.to_q": (12, 8)}, 1), {}), r"\(8, 12\) there"),
        (in_peft_format(draw_pairs({"nowhere.to_q": (8, 8)}, 1), {}), "nowhere.to_q"),
        ({"conv.weight": torch.zeros(2, 2)}, "neither a unet nor a text_encoder"),
        ({f"unet.{BLOCK}.to_q.lora_A.weight": torch.zeros(2, 8)}, "lora_B|half a pair"),
        ({f"unet.{BLOCK}.to_q.lokr_w1": torch.zeros(2, 8)}, "lokr_w1"),
        (
            in_peft_format(UNET, {}) | {f"unet.{BLOCK}.to_q.lora_magnitude_vector": torch.zeros(8)},
            "DoRA",
        ),
    ],
    ids=["another width", "another layer", "no LoRA", "half a pair", "LoKr", "DoRA"],
)
def test_what_does_not_fit_is_one_clear_error(
    tiny_folder: Path, tmp_path: Path, weights: dict[str, torch.Tensor], message: str
) -> None:
    path = save(tmp_path / "lora.safetensors", weights)
    with pytest.raises(ModelError, match=message):
        load_with(tiny_folder / "image", Lora(path))


def test_adapter_cannot_change_the_text_encoder_that_it_borrows(
    tiny_folder: Path, tmp_path: Path, image: load.ImageModel
) -> None:
    path = save(tmp_path / "lora.safetensors", in_peft_format({}, TEXT))
    with pytest.raises(ModelError, match="list it in the base's loras"):
        load.load_video_model(tiny_folder / "video", base=image, loras=(Lora(path),))


def test_lora_is_found_in_its_folder(tmp_path: Path) -> None:
    first = save(tmp_path / "a.safetensors", in_peft_format(UNET, {}))
    assert find_lora(tmp_path, None) == find_lora(first, None) == first
    shutil.copy(first, tmp_path / "b.safetensors")
    assert find_lora(tmp_path, "a.safetensors") == first
    with pytest.raises(ModelError, match=r"weight_name.*a\.safetensors, b\.safetensors"):
        find_lora(tmp_path, None)
    with pytest.raises(ModelError, match=r"no LoRA .*c\.safetensors"):
        find_lora(tmp_path, "c.safetensors")


def test_pickled_lora_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pytorch_lora_weights.bin"
    path.write_bytes(b"")
    for place in (tmp_path, path):
        with pytest.raises(ModelError, match="convert-model"):
            find_lora(place, None)


def test_damaged_lora_is_named(tiny_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"lora\.safetensors cannot be read"):
        load_with(tiny_folder / "image", Lora(path))
