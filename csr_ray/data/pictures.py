"""From a `Picture` to pixels: the image file, and what is done to it before any model looks at it.

Engine, scorer and trainer all read pictures through here, so they see the same pixels. Caches, and whatever decides
which actor gets a picture, know it by its `key`, which names the change, too.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from functools import cache
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance

from csr_ray.data.files import UnreadableError
from csr_ray.data.images import image_size, load_image
from csr_ray.records import Picture

NUM_NOISE_STEPS: Final = 1000
_MOST_SENT_PX: Final = 1024


def load_picture(picture: Picture) -> Image.Image:
    """Return the picture as RGB, 8 bit, changed as it says.

    Raises:
        UnreadableError: there is no usable image, or no such change; names the path and the reason.
    """
    image = load_image(picture.path)
    name, _, strength = picture.change.partition(":")
    return _change(picture)(image, strength, picture.seed) if name else image


def data_url(picture: Picture) -> str:
    """The picture as a data: URL, for a judge at an endpoint; of a large one a copy of a thousand pixels a side.

    Raises:
        UnreadableError: see `load_picture`.
    """
    image = load_picture(picture)
    image.thumbnail((_MOST_SENT_PX, _MOST_SENT_PX))
    content = io.BytesIO()
    image.save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"


def picture_size(picture: Picture) -> tuple[int, int]:
    """Width and height in pixels of the picture, from the header of its file: no change changes them.

    Raises:
        UnreadableError: there is no image, or no such change; names path and reason. Damage behind the header is
            not seen.
    """
    size = image_size(picture.path)
    if picture.change:
        _change(picture)
    return size


def _change(picture: Picture) -> Callable[[Image.Image, str, int], Image.Image]:
    name = picture.change.partition(":")[0]
    if name not in CHANGES:
        raise UnreadableError(f"picture {picture.path}: no change is called {name!r}; there are {', '.join(CHANGES)}")
    return CHANGES[name]


def noised(image: Image.Image, strength: str, seed: int) -> Image.Image:
    """Add diffusion noise to the raw pixels in 0..1, as after step `strength` of POVID's schedule.

    The schedule has 1000 steps; it is that of POVID's released vcd_add_noise.py. What leaves 0..1 is held at its
    ends; with `strength` "STEP,wrap" it is cast to bytes as in the released trainer, where 256 is 0 and -1 is 255.
    """
    step, _, overflow = strength.partition(",")
    signal, noise = noise_coefficients(int(step))
    pixels = np.asarray(image, dtype=np.float64) / 255.0
    drawn = np.random.default_rng(seed).standard_normal(pixels.shape)
    changed = signal * pixels + noise * drawn
    if overflow == "wrap":
        return Image.fromarray((np.trunc(255.0 * changed).astype(np.int64) % 256).astype(np.uint8))
    changed = np.clip(changed, 0.0, 1.0)
    return Image.fromarray(np.rint(255.0 * changed).astype(np.uint8))


def noise_coefficients(step: int) -> tuple[float, float]:
    """Coefficients of signal and noise at a step t, of x_t = sqrt(abar_t) x + sqrt(1 - abar_t) eps.

    Raises:
        ValueError: the step is not in 0..999.
    """
    if not 0 <= step < NUM_NOISE_STEPS:
        raise ValueError(f"noise step {step}: 0 to {NUM_NOISE_STEPS - 1} are there")
    kept = float(_kept_shares()[step])
    return math.sqrt(kept), math.sqrt(1.0 - kept)


@cache
def _kept_shares() -> np.ndarray:
    """abar [1000]: products of 1 - b_i with b_i = sigmoid(s_i) (0.005 - 1e-5) + 1e-5, s_i from -6 to 6."""
    places = np.linspace(-6.0, 6.0, NUM_NOISE_STEPS)
    betas = 1.0 / (1.0 + np.exp(-places)) * (0.005 - 1e-5) + 1e-5
    return np.cumprod(1.0 - betas)


def coarsened(image: Image.Image, strength: str, seed: int) -> Image.Image:
    """Shrink the image until its shorter side has `strength` pixels, and bring it back to its size.

    STIC's released generate_pref.py leaves it small, and the model's processor enlarges it. Here it has its own size
    again, because some processors refuse tiny images, and others give them fewer tokens than the clean one has.
    """
    width, height = image.size
    shrink = int(strength) / min(width, height)
    if shrink >= 1:
        return image
    small = image.resize((max(1, round(shrink * width)), max(1, round(shrink * height))), Image.Resampling.BILINEAR)
    return small.resize((width, height), Image.Resampling.BILINEAR)


def jittered(image: Image.Image, strength: str, seed: int) -> Image.Image:
    """Change brightness and hue at random, at most by `strength`, which is "BRIGHTNESS,HUE".

    Brightness is multiplied by something in 1 - BRIGHTNESS .. 1 + BRIGHTNESS, and the hue is turned by something in
    -HUE .. HUE of a whole turn, in an order that is drawn, too.
    """
    brightness, hue = map(float, strength.split(","))
    rng = np.random.default_rng(seed)
    factor = rng.uniform(max(0.0, 1.0 - brightness), 1.0 + brightness)
    turn = rng.uniform(-hue, hue)

    def brightened(picture: Image.Image) -> Image.Image:
        return ImageEnhance.Brightness(picture).enhance(factor)

    def turned(picture: Image.Image) -> Image.Image:
        pixels = np.array(picture.convert("HSV"))
        pixels[..., 0] += np.uint8(round(turn * 256) % 256)  # an angle: it goes on at 0 behind 255
        return Image.fromarray(pixels, mode="HSV").convert("RGB")

    for change in rng.permutation([0, 1]):
        image = (brightened, turned)[change](image)
    return image


def painted(image: Image.Image, strength: str, seed: int) -> Image.Image:
    """Draw a frame around each region of `strength`, which is "LEFT,TOP,RIGHT,BOTTOM,RRGGBB;..." in pixels.

    VANCL (arXiv 2310.14785) fills the boxes; a frame leaves the colours of what is inside as they are, because
    answers may name them. It is a 32nd of the image's shorter side wide, and lies inside the box.
    """
    drawn = image.copy()
    pen = ImageDraw.Draw(drawn)
    width_px = max(1, round(min(image.size) / 32))
    for region in strength.split(";"):
        *sides, colour = region.split(",")
        left, top, right, bottom = (round(float(side)) for side in sides)
        corners = (left, top, max(left, right - 1), max(top, bottom - 1))
        pen.rectangle(corners, outline=f"#{colour}", width=width_px)
    return drawn


CHANGES: Final[dict[str, Callable[[Image.Image, str, int], Image.Image]]] = {
    "noise": noised,
    "resize": coarsened,
    "jitter": jittered,
    "paint": painted,
}
