"""Words of prompts, and which two prompts have in common. No torch: planning asks too."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

_PUNCTUATION = ".,;:!?\"'()[]"


def split_words(prompt: str) -> list[str]:
    """Split a prompt at white space."""
    return prompt.split()


def find_word(prompt: str, word: str) -> list[int]:
    """Return where a word stands in a prompt, whatever its case and the punctuation around it.

    Example:
        >>> find_word("A cat, a dog and a CAT.", "cat")
        [1, 6]
    """
    wanted = _bare(word)
    return [index for index, one in enumerate(split_words(prompt)) if _bare(one) == wanted]


def align(source: Sequence[Hashable], target: Sequence[Hashable]) -> list[tuple[int, int]]:
    """Pair the items of the longest common subsequence; of several, the one that pairs earliest.

    Returns:
        Pairs of an index into `source` and one into `target`, both ascending.

    Example:
        >>> align("a red car".split(), "a very red fast car".split())
        [(0, 0), (1, 2), (2, 4)]
    """
    # longest[i][j]: of source[i:] and target[j:].
    longest = [[0] * (len(target) + 1) for _ in range(len(source) + 1)]
    for i in reversed(range(len(source))):
        for j in reversed(range(len(target))):
            longest[i][j] = (
                1 + longest[i + 1][j + 1]
                if source[i] == target[j]
                else max(longest[i + 1][j], longest[i][j + 1])
            )
    pairs, i, j = [], 0, 0
    while i < len(source) and j < len(target):
        if source[i] == target[j]:
            pairs.append((i, j))
            i, j = i + 1, j + 1
        elif longest[i + 1][j] >= longest[i][j + 1]:
            i += 1
        else:
            j += 1
    return pairs


def _bare(word: str) -> str:
    return word.strip(_PUNCTUATION).casefold()
