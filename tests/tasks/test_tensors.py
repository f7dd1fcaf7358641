"""Frames between whole numbers and floats."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from latentloom.tasks.tensors import frames_to_array, frames_to_tensor


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_every_value_of_a_pixel_comes_back(dtype: str) -> None:
    values = np.arange(np.iinfo(dtype).max + 1).astype(dtype)
    frames = np.stack([values, values[::-1], values], axis=-1).reshape(2, -1, 32, 3)
    tensor = frames_to_tensor(frames)
    assert tensor.shape == (2, 3, *frames.shape[1:3])
    assert (tensor.min().item(), tensor.max().item()) == (-1, 1)
    assert np.array_equal(frames_to_array(tensor, dtype), frames)


def test_floats_are_rounded_and_cut_off_and_left_as_they_are() -> None:
    levels = torch.tensor([-9.0, -1.0, 2.4 / 127.5 - 1, 2.6 / 127.5 - 1, 1.0, 9.0])
    frames = levels.expand(1, 3, 1, 6).contiguous()
    before = frames.clone()
    assert frames_to_array(frames, "uint8")[0, 0, :, 0].tolist() == [0, 0, 2, 3, 255, 255]
    assert torch.equal(frames, before)
