from __future__ import annotations

import pytest
import torch

from latentloom.ops.prompt2prompt import (
    Shared,
    Sharing,
    edited_area,
    refining,
    replacing,
    token_spans,
)

LENGTH = 8


def mapped(columns: torch.Tensor) -> list[int]:
    """Return which source token each target token takes its attention from."""
    return [int(column.argmax()) for column in columns.T]


def test_words_stand_after_the_start_mark_and_before_the_end_mark() -> None:
    assert token_spans([[5], [6, 7], [8, 9]], LENGTH) == [range(1, 2), range(2, 4), range(4, 6)]
    assert token_spans([[5, 5, 5], [6, 6, 6, 6], [7]], LENGTH)[1:] == [range(4, 7), range(7, 7)]


def test_replacing_equal_words_changes_no_place() -> None:
    tokens = replacing([[1], [2, 3], [4]], [[1], [8, 9], [4]], LENGTH)
    assert torch.equal(tokens.matrix, torch.eye(LENGTH))
    assert not tokens.own.any()


def test_word_of_more_tokens_shares_the_attention_of_the_word_it_replaces() -> None:
    matrix = replacing([[1], [2], [4]], [[1], [8, 9], [4]], LENGTH).matrix
    assert matrix[2].tolist() == [0, 0, 0.5, 0.5, 0, 0, 0, 0]
    assert matrix[3].tolist() == [0, 0, 0, 0, 1, 0, 0, 0]
    # End marks: the first follows the last word in both.
    assert matrix[4].argmax() == 5


@pytest.mark.parametrize("new", [[[1], [8, 9, 10], [4]], [[1], [8], [4] * 9], [[1] * 9, [2], [3]]])
def test_replacing_loses_no_attention(new: list[list[int]]) -> None:
    tokens = replacing([[1], [2, 3], [4]], new, LENGTH)
    assert torch.equal(tokens.matrix.sum(1), torch.ones(LENGTH))


def test_replacing_other_numbers_of_words_is_refused() -> None:
    with pytest.raises(ValueError, match="2 words by 1"):
        replacing([[1], [2]], [[1]], LENGTH)


def test_refining_keeps_common_tokens_and_leaves_new_ones_alone() -> None:
    tokens = refining([[1], [2], [3]], [[1], [9], [2], [3]], LENGTH)
    assert tokens.own.tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert mapped(tokens.matrix) == [0, 1, 0, 2, 3, 4, 5, 6]
    shorter = refining([[1], [9], [2]], [[1], [2]], LENGTH)
    assert mapped(shorter.matrix) == [0, 1, 3, 4, 5, 6, 7, 7]
    assert not shorter.own.any()


def test_refined_prompts_longer_than_the_context_are_mapped_within_it() -> None:
    tokens = refining([[n] for n in range(20)], [[n] for n in range(20)], LENGTH)
    assert torch.equal(tokens.matrix, torch.eye(LENGTH))


def test_attention_is_mapped_then_weighted() -> None:
    tokens = refining([[1], [2]], [[1], [9]], LENGTH).reweighted([1], 3.0)
    source, target = torch.rand(2, 4, LENGTH), torch.rand(2, 4, LENGTH)
    result = tokens.apply(source, target)
    assert torch.allclose(result[..., 1], 3 * source[..., 1])
    assert torch.equal(result[..., 2], target[..., 2])
    assert torch.equal(result[..., 3:], source[..., 3:])


def test_area_is_where_either_branch_is_warm() -> None:
    heat = torch.zeros(1, 2, 2, 2)
    heat[0, 0, 0] = torch.tensor([10.0, 4.0])
    heat[0, 1, 1] = torch.tensor([0.1, 0.02])
    assert edited_area(heat, 0.3).tolist() == [[[[True, True], [True, False]]]]
    assert not edited_area(torch.zeros(1, 2, 2, 2), 0.3).any()


def test_branches_share_until_their_steps() -> None:
    sharing = Sharing(cross_steps=3, self_steps=1)
    assert sharing.at(0) == Shared(True, True, False)
    assert sharing.at(2) == Shared(True, False, False)
    assert not sharing.at(3).anything
    assert Sharing(0, 0, threshold=0.3).at(9) == Shared(False, False, True)
