"""What can be changed to see what a model makes of it: the colours of objects, and tokens.

Pure functions on images (RGB in [0, 1]), features and masks; nothing here knows a model.
"""

from backsight.perturb.colour import (
    FILTERS,
    HUES,
    VISIBLE,
    chroma,
    colour_vector,
    hsv_to_rgb,
    hue_unit,
    recolour,
    region_mean,
    rgb_to_hsv,
    to_grey,
)
from backsight.perturb.tokens import NOISES, Noise, choose_tokens, generator_for, noise_tokens, tokens_at

__all__ = [
    "FILTERS",
    "HUES",
    "NOISES",
    "VISIBLE",
    "Noise",
    "choose_tokens",
    "chroma",
    "colour_vector",
    "generator_for",
    "hsv_to_rgb",
    "hue_unit",
    "noise_tokens",
    "recolour",
    "region_mean",
    "rgb_to_hsv",
    "to_grey",
    "tokens_at",
]
