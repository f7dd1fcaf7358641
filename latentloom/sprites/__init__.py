"""The procedural world of moving sprites: scenes, rendering, captions, ground truth, scoring."""
