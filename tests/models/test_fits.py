"""What is said of shapes from configurations alone, against the shapes that diffusers computes."""

from __future__ import annotations

import pytest
import torch

from latentloom.models.adapter import T2IAdapter
from latentloom.models.fits import adapter_fault
from latentloom.models.pretrained import library

diffusers = library("diffusers")

DOWNSCALE = 4
SIDE = 64


@pytest.mark.parametrize(
    ("kind", "factor", "blocks"),
    [
        ("full_adapter", 4, ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]),
        ("light_adapter", 4, ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"]),
        ("full_adapter_xl", 8, ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]),
    ],
)
def test_features_of_an_adapter_that_fits_can_be_added(
    kind: str, factor: int, blocks: list[str]
) -> None:
    channels = [8, 16, 16]
    # A light one has a last level of its own.
    named = channels[:2] if kind == "light_adapter" else channels
    module = diffusers.T2IAdapter(
        in_channels=1,
        channels=named,
        num_res_blocks=1,
        downscale_factor=factor,
        adapter_type=kind,
    )
    unet = diffusers.UNet2DConditionModel(
        in_channels=4,
        out_channels=4,
        block_out_channels=channels,
        down_block_types=blocks,
        up_block_types=[one.replace("Down", "Up") for one in reversed(blocks)],
        cross_attention_dim=8,
        attention_head_dim=8,
        norm_num_groups=4,
    )
    assert adapter_fault(module.config, unet.config, DOWNSCALE) is None
    adapter = T2IAdapter(module, DOWNSCALE)
    side = SIDE // DOWNSCALE
    with torch.inference_mode():
        levels = module(torch.rand(1, 1, SIDE, SIDE))
        assert [tuple(level.shape[1:]) for level in levels] == list(
            adapter.feature_shapes(side, side)
        )
        latents, words = torch.zeros(1, 4, side, side), torch.zeros(1, 2, 8)
        unet(latents, 1, words, down_intrablock_additional_residuals=levels)


def test_an_adapter_of_another_layout_does_not_fit() -> None:
    unet = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    }
    adapter = {"channels": (8, 16), "downscale_factor": DOWNSCALE}
    fault = adapter_fault(adapter, unet, DOWNSCALE)
    assert fault is not None
    assert "[(8, 4), (16, 8)] against [(8, 8), (16, 8)]" in fault
