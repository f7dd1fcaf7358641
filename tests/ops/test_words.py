from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from latentloom.ops.words import align, find_word, split_words

WORDS = st.lists(st.sampled_from("abc"), max_size=6)


def test_a_word_is_found_whatever_its_case_and_punctuation() -> None:
    assert find_word('A "Cat", a concat and a CAT.', "cat") == [1, 6]
    assert find_word("a dog", "cat") == []
    assert split_words("  a\tdog ") == ["a", "dog"]


@given(WORDS, WORDS)
def test_alignment_is_a_longest_common_subsequence(source: list[str], target: list[str]) -> None:
    pairs = align(source, target)
    assert all(source[i] == target[j] for i, j in pairs)
    for (i, j), (k, m) in itertools.pairwise(pairs):
        assert i < k
        assert j < m
    subsequences = {
        tuple(source[i] for i in range(len(source)) if chosen >> i & 1)
        for chosen in range(1 << len(source))
    }
    others = {
        tuple(target[j] for j in range(len(target)) if chosen >> j & 1)
        for chosen in range(1 << len(target))
    }
    assert len(pairs) == max(len(one) for one in subsequences & others)
