from __future__ import annotations

import pytest
import torch

from latentloom.models.norms import norms_as_in

WIDE = torch.randn(2, 8, 12, 12, generator=torch.Generator().manual_seed(0)) * 3 + 1


def group_norm(*, affine: bool = True) -> torch.nn.GroupNorm:
    torch.manual_seed(1)
    norm = torch.nn.GroupNorm(4, 8, affine=affine)
    if affine:
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)
    return norm


@pytest.mark.parametrize("affine", [True, False])
@torch.inference_mode()
def test_a_part_is_normalised_as_it_is_in_the_whole(affine: bool) -> None:
    norm = group_norm(affine=affine)
    whole = norm(WIDE)
    with norms_as_in(norm, lambda: norm(WIDE)):
        part = norm(WIDE[..., :5, 3:9])
    torch.testing.assert_close(part, whole[..., :5, 3:9], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_each_picture_has_statistics_of_its_own() -> None:
    norm = group_norm()
    with norms_as_in(norm, lambda: norm(WIDE)):
        both = norm(WIDE[..., :4, :4])
    with norms_as_in(norm, lambda: norm(WIDE[:1])):
        one = norm(WIDE[:1, :, :4, :4])
    torch.testing.assert_close(both[:1], one)


@torch.inference_mode()
def test_afterwards_the_norm_is_its_own_again() -> None:
    norm = group_norm()
    before = norm(WIDE[..., :4, :4])
    with norms_as_in(norm, lambda: norm(WIDE)):
        pass
    assert torch.equal(norm(WIDE[..., :4, :4]), before)
