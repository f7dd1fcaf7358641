from __future__ import annotations

import torch

from latentloom.models import load


def test_embedding_does_not_depend_on_other_prompts(image: load.ImageModel) -> None:
    together = image.text.encode(["a red circle", "", "b"])
    assert together.shape == (3, 24, 16)
    for index, prompt in enumerate(["a red circle", "", "b"]):
        assert torch.equal(together[index : index + 1], image.text.encode([prompt]))


def test_what_the_context_drops_is_returned(image: load.ImageModel) -> None:
    assert image.text.dropped("a red circle") == ""
    # 24 tokens, two of them marks, and one letter a token.
    assert image.text.dropped("abcdefghijklmnopqrstuvwxyz") == "wxyz"
    kept, cut = image.text.encode(["abcdefghijklmnopqrstuv", "abcdefghijklmnopqrstuvwxyz"])
    # Each token sees those before it alone; the 22nd letter ends a word in one of them.
    assert torch.equal(kept[:22], cut[:22])
