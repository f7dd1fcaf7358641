"""Tiny random checkpoints in the real folder formats.

Layers that diffusers starts at zero are drawn at random: with them a ControlNet would do nothing
and a 3D UNet would ignore the order of frames.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from tokenizers import pre_tokenizers

from latentloom.models.pretrained import library

diffusers, transformers = library("diffusers"), library("transformers")

START, END = "<|startoftext|>", "<|endoftext|>"
MAX_TOKENS = 24
TEXT_WIDTH = 16
BLOCKS = (8, 16)
GROUPS = 4
DOWN_BLOCKS = ("CrossAttnDownBlock2D", "DownBlock2D")
UP_BLOCKS = ("UpBlock2D", "CrossAttnUpBlock2D")

SD_SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""The schedule of Stable Diffusion 1.x."""


def save_image_pipeline(folder: Path, *, seed: int = 0, **scheduler: Any) -> Path:
    """Save VAE (factor 2), UNet, text encoder, tokenizer and scheduler."""
    save_vae(folder / "vae", seed=seed)
    _save(new_unet(seed=seed), folder / "unet")
    save_text(folder, seed=seed)
    save_scheduler(folder / "scheduler", **scheduler)
    index = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def save_instruct_pipeline(folder: Path, *, seed: int = 0) -> Path:
    """Save an InstructPix2Pix pipeline, its VAE without statistics like the published ones."""
    save_image_pipeline(folder, seed=seed)
    save_vae(folder / "vae", seed=seed, latents_mean=None, latents_std=None)
    _save(new_unet(seed=seed, in_channels=8), folder / "unet")
    index = folder / "model_index.json"
    pipeline = {"_class_name": "StableDiffusionInstructPix2PixPipeline"}
    index.write_text(json.dumps(json.loads(index.read_text()) | pipeline))
    return folder


def save_vae(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Save a VAE with statistics of its latents."""
    torch.manual_seed(seed)
    settings = {
        "block_out_channels": BLOCKS,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": GROUPS,
        "latent_channels": 4,
        "scaling_factor": 0.5,
        "latents_mean": [0.1, -0.2, 0.3, 0.0],
        "latents_std": [0.5, 1.0, 2.0, 1.5],
        "sample_size": 16,
    }
    return _save(diffusers.AutoencoderKL(**(settings | changes)), folder)


def new_unet(*, seed: int = 0, **changes: Any) -> Any:
    """Return an untrained UNet."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": DOWN_BLOCKS,
        "up_block_types": UP_BLOCKS,
        "block_out_channels": BLOCKS,
        "layers_per_block": 1,
        "cross_attention_dim": TEXT_WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": GROUPS,
    }
    return diffusers.UNet2DConditionModel(**(settings | changes))


def save_text(folder: Path, *, seed: int = 0) -> None:
    """Save a text encoder and a tokenizer that knows bytes alone."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), START, END]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder / "tokenizer")
    torch.manual_seed(seed)
    config = transformers.CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=MAX_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    _save(transformers.CLIPTextModel(config), folder / "text_encoder")


def save_scheduler(folder: Path, **changes: Any) -> Path:
    """Save the scheduler of SD 1.x; `clip_sample` keeps diffusers' ruinous default."""
    settings = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
    diffusers.DDIMScheduler(**(settings | changes)).save_pretrained(folder)
    return folder


def save_motion_adapter(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Save an adapter that fits `save_image_pipeline`'s UNet, 8 frames long."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "block_out_channels": BLOCKS,
        "motion_layers_per_block": 1,
        "motion_mid_block_layers_per_block": 1,
        "motion_num_attention_heads": 2,
        "motion_norm_num_groups": GROUPS,
        "motion_max_seq_length": 8,
    }
    return _save(diffusers.MotionAdapter(**(settings | changes)), folder)


def save_video_pipeline(folder: Path, *, seed: int = 0, **scheduler: Any) -> Path:
    """Save a ZeroScope-like pipeline with text encoder and VAE of its own."""
    save_vae(folder / "vae", seed=seed)
    torch.manual_seed(seed)
    unet = diffusers.UNet3DConditionModel(
        sample_size=8,
        block_out_channels=BLOCKS,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=GROUPS,
    )
    _save(unet, folder / "unet")
    save_text(folder, seed=seed)
    save_scheduler(folder / "scheduler", **scheduler)
    return folder


def save_controlnet(
    folder: Path, *, seed: int = 0, conditioning_channels: int = 1, **changes: Any
) -> Path:
    """Save a ControlNet for `save_image_pipeline`'s UNet, at factor 2."""
    unet = new_unet(seed=seed, **changes)
    control_net = diffusers.ControlNetModel.from_unet(
        unet,
        conditioning_channels=conditioning_channels,
        conditioning_embedding_out_channels=(4, 8),
    )
    return _save(control_net, folder)


def save_t2i_adapter(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Save a T2I-Adapter for `save_image_pipeline`'s UNet, one channel at factor 2."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {
        "in_channels": 1,
        "channels": list(BLOCKS),
        "num_res_blocks": 1,
        "downscale_factor": 2,
    }
    return _save(diffusers.T2IAdapter(**(settings | changes)), folder)


def save_ip_adapter(folder: Path, *, seed: int = 0, text_width: int = TEXT_WIDTH) -> Path:
    """Save an IP-Adapter for `save_image_pipeline`'s UNet, and its image encoder of 16 pixels."""
    torch.manual_seed(seed)
    config = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        projection_dim=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    _save(transformers.CLIPVisionModelWithProjection(config), folder / "image_encoder")
    weights = {
        "image_proj.proj.weight": torch.randn(4 * text_width, 12),
        "image_proj.proj.bias": torch.randn(4 * text_width),
        "image_proj.norm.weight": torch.ones(text_width),
        "image_proj.norm.bias": torch.zeros(text_width),
    }
    names = [n for n in new_unet().attn_processors if n.endswith("attn2.processor")]
    for index, name in enumerate(names):
        width = BLOCKS[-1] if name.startswith("mid") else BLOCKS[0]
        for part in ("to_k_ip", "to_v_ip"):
            weights[f"ip_adapter.{2 * index + 1}.{part}.weight"] = torch.randn(width, text_width)
    safetensors.torch.save_file(weights, folder / "ip-adapter.safetensors")
    return folder


def save_inpaint_unet(folder: Path, *, seed: int = 0) -> Path:
    """Save an inpainting UNet that reads mask and masked latents beside its own."""
    _save(new_unet(seed=seed, in_channels=9), folder / "unet")
    return folder


def save_upsampler(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Save an upsampler that is told the level of its condition's noise."""
    settings = {"in_channels": 8, "class_embed_type": "timestep"}
    _save(new_unet(seed=seed, **(settings | changes)), folder / "unet")
    save_scheduler(folder / "scheduler", prediction_type="v_prediction")
    return folder


def save_interpolator(folder: Path, *, seed: int = 2, **changes: Any) -> Path:
    """Save an adapter whose first convolution also takes the mask and what is known."""
    settings = {"conv_in_channels": 9, "motion_max_seq_length": 5}
    return save_motion_adapter(folder, seed=seed, **(settings | changes))


def save_contrastive(folder: Path, *, seed: int = 0) -> Path:
    """Save a CLIP model of 16-pixel pictures, with the statistics of the published ones."""
    save_text(folder / "parts", seed=seed)
    text = transformers.CLIPTextModel.from_pretrained(folder / "parts/text_encoder").config
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    }
    torch.manual_seed(seed)
    config = transformers.CLIPConfig(
        text_config=text.to_dict(), vision_config=vision, projection_dim=8
    )
    _save(transformers.CLIPModel(config), folder)
    transformers.CLIPTokenizer.from_pretrained(folder / "parts/tokenizer").save_pretrained(folder)
    processor = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def save_upscaler(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Save a pipeline like the x4 upscaler's: VAE of factor 4, frames beside latents, noise levels."""
    save_vae(
        folder / "vae",
        seed=seed,
        block_out_channels=(4, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        scaling_factor=0.08333,
        latents_mean=None,
        latents_std=None,
    )
    settings = {"in_channels": 7, "num_class_embeds": 1000, "use_linear_projection": True}
    _save(new_unet(seed=seed, **(settings | changes)), folder / "unet")
    save_text(folder, seed=seed)
    betas = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "scaled_linear"}
    save_scheduler(folder / "scheduler", prediction_type="v_prediction", clip_sample=False, **betas)
    diffusers.DDPMScheduler(**betas).save_pretrained(folder / "low_res_scheduler")
    return folder


def _save(module: Any, folder: Path) -> Path:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if not parameter.any() and not name.endswith("norm.bias"):
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    module.save_pretrained(folder)
    return folder
