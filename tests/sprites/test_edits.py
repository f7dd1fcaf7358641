"""Edits change one thing, and are asked for in words that name it."""

from __future__ import annotations

import dataclasses

import pytest

from latentloom.sprites.edits import TASKS, Task, draw_edit, instructions
from latentloom.sprites.scene import Scene, Sprite, random_scene, recolour, reshape

ASKED: tuple[Task, ...] = ("recolour", "reshape", "background", "style")


@pytest.mark.parametrize("task", TASKS)
def test_an_edit_is_repeatable_and_changes_something(task: Task) -> None:
    assert draw_edit(task, 5) == draw_edit(task, 5)
    for seed in range(20):
        source, target = draw_edit(task, seed)
        assert source != target


@pytest.mark.parametrize(
    ("task", "field"), [("recolour", "colour"), ("reshape", "shape"), ("style", "style")]
)
def test_a_sprite_changes_in_one_attribute(task: Task, field: str) -> None:
    source, target = draw_edit(task, 11)
    old, new = (dataclasses.asdict(scene.sprites[0]) for scene in (source, target))
    assert [key for key in old if old[key] != new[key]] == [field]
    assert source.background == target.background


def test_inserting_and_removing_are_each_others_reverse() -> None:
    assert draw_edit("insert", 3) == draw_edit("remove", 3)[::-1]
    assert draw_edit("insert", 3)[1] == random_scene(3)


@pytest.mark.parametrize("task", ASKED)
def test_every_wording_names_what_is_wanted(task: Task) -> None:
    for seed in range(10):
        source, target = draw_edit(task, seed)
        sprite = target.sprites[0]
        wanted = {
            "recolour": sprite.colour,
            "reshape": sprite.shape,
            "style": sprite.style,
            "background": target.background.kind,
        }[task]
        texts = instructions(source, target)
        assert len(set(texts)) == len(texts) >= 2
        assert all(wanted in text.split() for text in texts)


def test_instructions_refuse_what_they_cannot_ask_for() -> None:
    one = Scene((Sprite("star", "red"),))
    for other in (one, reshape(recolour(one, "blue"), "circle"), Scene(())):
        with pytest.raises(ValueError, match="expected"):
            instructions(one, other)
