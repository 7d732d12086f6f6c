"""Answers side by side as one self-contained HTML file: pictures small, sentences coloured, no network, no script."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jinja2
from PIL import Image

from csr_ray.data.files import UnreadableError
from csr_ray.data.images import load_image
from csr_ray.report.asked import SCORE_IN_WORDS, AskedPicture, ScoredSentence, SideBySide
from csr_ray.report.gallery import NUM_COLOURS
from csr_ray.report.pictures import PIXELATED_BELOW_PX
from csr_ray.store.atomic import write_atomically

# The page shows them 200 wide, and screens have up to two dots for one.
_THUMBNAIL_PX: Final = 360
_MOST_NAME: Final = 44


def write_page(output: Path, *, found: SideBySide) -> None:
    """Write the page; it appears whole or not at all.

    Raises:
        UserError: it cannot be written there.
    """
    html = render(found)
    write_atomically(output, write=lambda unfinished: unfinished.write_text(html, encoding="utf-8"))


def render(found: SideBySide) -> str:
    """The page as a string."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("csr_ray.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["one_decimal"] = lambda value: "–" if value is None else f"{value:.1f}".replace("-", "−")
    values = {
        "found": found,
        "model": _shortened(found.model),
        "scorer": _shortened(found.scorer) if found.scorer is not None else "none, so nothing is coloured",
        "figures": found.figures(),
        "pictures": [_shown(picture, of=found) for picture in found.pictures],
        "colours": range(NUM_COLOURS),
        "score_in_words": SCORE_IN_WORDS,
        "has_new": any(
            one.is_new for picture in found.pictures for answer in picture.answers for one in answer.sentences
        ),
    }
    return environment.get_template("asked.html.j2").render(values)


def _shown(picture: AskedPicture, *, of: SideBySide) -> Mapping[str, Any]:
    answers = [
        {
            "label": version.label,
            "said": answer,
            "sentences": [(one, _colour(one, of=of)) for one in answer.sentences],
        }
        for answer, version in zip(picture.answers, of.versions, strict=True)
    ]
    return {"picture": picture, "image": _thumbnail(picture.path), "answers": answers}


def _shortened(name: str) -> str:
    """A model's name; of a long path its last two parts."""
    parts = [part for part in name.split("/") if part]
    return name if len(name) <= _MOST_NAME or len(parts) < 3 else "…/" + "/".join(parts[-2:])


def _colour(sentence: ScoredSentence, *, of: SideBySide) -> str:
    """The class of a sentence's colour; "" without a score."""
    if sentence.image_score is None or of.scale is None:
        return ""
    return f"c{of.scale.colour(sentence.image_score)}"


def _thumbnail(path: str) -> Mapping[str, Any] | None:
    """The picture as a data URI; None if it cannot be read any more."""
    try:
        image = load_image(path)
    except UnreadableError:
        return None
    is_tiny = max(image.size) < PIXELATED_BELOW_PX
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if is_tiny:  # shown enlarged, with its pixels kept sharp, so nothing may be lost
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=82, optimize=True)
    kind = "png" if is_tiny else "jpeg"
    return {
        "uri": f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}",
        "is_tiny": is_tiny,
    }
