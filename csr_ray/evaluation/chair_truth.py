"""What is in COCO's images as the published CHAIR scripts have it: what is labelled and what five captions name.

Knows the forms of COCO's annotation files of 2014 and of a synonym file; does not know answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from csr_ray.errors import ConfigError
from csr_ray.evaluation.chair_official import OfficialChair, official_chair
from csr_ray.evaluation.chair_words import FORMS, Form
from csr_ray.evaluation.json_members import members
from csr_ray.store.objects import local_path

_YEAR = 2014
_IMAGE_NAME = re.compile(r"(?:^|[^0-9])([0-9]{1,12})$")


@dataclass(frozen=True, kw_only=True)
class OfficialFiles:
    """The files that the published scripts read, by their paths.

    Attributes:
        synonyms: the synonym file.
        instances, captions: COCO's annotations; several, where images of train and val are asked for.
        keys: what the user calls the three, for what is said of them.
    """

    synonyms: str
    instances: tuple[str, ...]
    captions: tuple[str, ...]
    form: Form
    keys: tuple[str, str, str]

    @property
    def named(self) -> dict[str, str]:
        """What a result says of its table."""
        return {"table": "official", "form": self.form}

    def chair(self) -> OfficialChair:
        """Read the synonym file.

        Raises:
            ConfigError: there is none, or it is none.
        """
        where = f"{self.keys[0]} = {self.synonyms!r}"
        try:
            text = local_path(self.synonyms).read_text("utf-8")
        except (OSError, ValueError) as error:
            raise _unreadable(where, error) from error
        return official_chair(text, form=self.form, key=where)


OWN_TABLE = {"table": "own", "form": "original"}
"""What a result says of this package's own table."""


def official_files(
    *,
    synonyms: str | None,
    instances: Sequence[str],
    captions: Sequence[str],
    form: str,
    keys: tuple[str, str, str, str],
) -> OfficialFiles | None:
    """The official files, where they are named; None where none of them is, and the own table is meant.

    Args:
        keys: what the user calls the four.

    Raises:
        ConfigError: some are named and others are not, or there is no such form.
    """
    if form not in FORMS:
        raise ConfigError(f"{keys[3]} = {form!r}: allowed: {', '.join(FORMS)}")
    given = [bool(synonyms), bool(instances), bool(captions)]
    if not any(given):
        if form != "original":
            raise ConfigError(
                f"{keys[3]} = {form}: the package's own table has the original form only; name {', '.join(keys[:3])}"
            )
        return None
    lacking = [key for key, is_given in zip(keys[:3], given, strict=True) if not is_given]
    if lacking or synonyms is None:
        raise ConfigError(
            f"{lacking[0]}: missing; the published CHAIR needs the synonym file, COCO's instances and COCO's captions"
        )
    return OfficialFiles(
        synonyms=synonyms, instances=tuple(instances), captions=tuple(captions), form=form, keys=keys[:3]
    )


def coco_image_id(name: str) -> str:
    """The number of a COCO image by an id or a file name, such as COCO_val2014_000000391895.jpg.

    Raises:
        ValueError: there is no number in it.
    """
    found = _IMAGE_NAME.search(PurePosixPath(name).stem if "." in name else name)
    if found is None:
        raise ValueError("no number of a COCO image")
    return str(int(found.group(1)))


def coco_truth(image_ids: Set[str], *, files: OfficialFiles, chair: OfficialChair) -> dict[str, list[str]]:
    """The classes in each image, sorted, for those of `image_ids` that both kinds of files know.

    Args:
        image_ids: as `coco_image_id` gives them.

    Raises:
        ConfigError: a file is missing, is not COCO's of 2014, or has a category that the synonym file has not; or the
            files know none of the images.
    """
    wanted = {int(image_id) for image_id in image_ids}
    present: dict[int, set[str]] = {image_id: set() for image_id in wanted}
    labelled, described = set(), set()
    for path in files.instances:
        labelled |= _add_instances(path, present=present, chair=chair, key=files.keys[1])
    for path in files.captions:
        described |= _add_captions(path, present=present, chair=chair, key=files.keys[2])
    known = wanted & labelled & described
    if wanted and not known:
        raise ConfigError(
            f"{files.keys[1]}, {files.keys[2]}: not one of the {len(wanted)} images is in both (the first is "
            f"{min(wanted)}); name COCO's annotations of the split that the images are of, or of train and val"
        )
    return {str(image_id): sorted(present[image_id]) for image_id in sorted(known)}


def _add_instances(path: str, *, present: Mapping[int, set[str]], chair: OfficialChair, key: str) -> set[int]:
    """Add what is labelled; returns the images of the file that were asked for."""
    found: dict[int, set[int]] = {}
    names: dict[int, str] = {}

    def take(member: str, entry: Any) -> None:
        if member == "categories":
            names[entry["id"]] = entry["name"]
        elif member == "images":
            if entry["id"] in present:
                found.setdefault(entry["id"], set())
        elif member == "annotations" and entry["image_id"] in present:
            found.setdefault(entry["image_id"], set()).add(entry["category_id"])

    where = _read(path, key=key, take=take, kind="instances")
    if not names:
        raise ConfigError(f"{where}: it has no categories; name COCO's instances_val2014.json")
    for image_id, categories in found.items():
        for category in categories:
            name = names.get(category, "")
            if name not in chair.canonical:
                raise ConfigError(
                    f"{where}: category {name or category} is not in the synonym file; the two belong together"
                )
            present[image_id].add(chair.canonical[name])
    return set(found)


def _add_captions(path: str, *, present: Mapping[int, set[str]], chair: OfficialChair, key: str) -> set[int]:
    """Add what people name; returns the images of the file that were asked for."""
    found: set[int] = set()

    def take(member: str, entry: Any) -> None:
        if member == "images" and entry["id"] in present:
            found.add(entry["id"])
        elif member == "annotations" and entry["image_id"] in present:
            found.add(entry["image_id"])
            present[entry["image_id"]].update(chair.objects(entry["caption"]))

    _read(path, key=key, take=take, kind="captions")
    return found


def _read(path: str, *, key: str, take: Callable[[str, Any], None], kind: str) -> str:
    """Give each member of a file to `take`; returns how the file is named in messages."""
    where = f"{key} = {path!r}"
    remedy = f"name COCO's {kind}_val{_YEAR}.json or {kind}_train{_YEAR}.json"
    try:
        with local_path(path).open(encoding="utf-8") as file:
            for member, entry in _checked(members(file), where=where, remedy=remedy):
                take(member, entry)
    except ConfigError:
        raise
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{where}: not COCO's {kind} ({error!r} of an entry); {remedy}") from error
    except (OSError, ValueError) as error:
        raise _unreadable(where, error) from error
    return where


def _checked(entries: Iterator[tuple[str, Any]], *, where: str, remedy: str) -> Iterator[tuple[str, Any]]:
    for member, entry in entries:
        year = entry.get("year") if member == "info" else None
        if year not in (None, _YEAR):
            raise ConfigError(f"{where}: of {year}, but published figures are of {_YEAR}; {remedy}")
        yield member, entry


def _unreadable(where: str, error: OSError | ValueError) -> ConfigError:
    if isinstance(error, FileNotFoundError):
        return ConfigError(f"{where}: no such file")
    said = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
    return ConfigError(f"{where}: cannot be read: {said}; fetch the file again")
