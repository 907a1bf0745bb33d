"""The fixtures of this room."""

# ruff: noqa: F401
from official_folders import cityscapes_folder, cityscapes_pair, own_cache, pet_folder, picture, recipe, write
