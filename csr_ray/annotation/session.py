"""One start of `csr-ray annotate`: its items, what people said, and the page that each of them sees next.

Knows nothing of the network. Threads may share it: what changes is in `Annotations`, which has a lock.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from csr_ray.annotation.agreement import agreements
from csr_ray.annotation.items import NO_ANSWER, Item, SentenceScores, left_and_right
from csr_ray.annotation.page import ShownItem, ShownState, done_page, item_page
from csr_ray.annotation.verdicts import UNDO, Annotations, Verdict
from csr_ray.config.schema import Data
from csr_ray.report.pictures import DrawnPicture, PictureFinder, drawn
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.tables import picture_bytes

_MAX_SECONDS = 24 * 3600.0
_PICTURES_KEPT = 16
_MOST_PICTURE_PX = 1024
_PICTURE_QUALITY = 90
_ALONE = {"left": "accepted", "right": "refused", "tie": "neither", "skip": "skipped"}
_LAST = {"left": "left is better", "right": "right is better", "tie": "a tie", "skip": "skipped"}


class Session:
    """
    Args:
        items: in the order in which everybody is asked.
        data: section of the run's config, by which pictures are found; None: it cannot be read, and only pictures
            whose paths lead there as they are can be shown.
        shows_scores: colour the sentences by their image scores.
    """

    def __init__(
        self,
        run: RunFolder,
        *,
        items: Sequence[Item],
        annotations: Annotations,
        data: Data | None,
        seed: int,
        shows_scores: bool,
    ) -> None:
        self.run_name = run.name
        self.asks_of_one = any(item.is_alone for item in items)
        self.items = items
        self.annotations = annotations
        self._seed = seed
        self._finder = _finder(data, root=run.root)
        self._numbers = {item.key: number for number, item in enumerate(items)}
        self._scores = SentenceScores(list(dict.fromkeys(item.place for item in items)))
        self._shows_scores = shows_scores
        self._picture = lru_cache(_PICTURES_KEPT)(self._load_picture)

    def people(self) -> dict[str, int]:
        """By name, how many verdicts count."""
        return {name: len(verdicts) for name, verdicts in self.annotations.by_person().items()}

    def page(self, name: str, *, now_s: float, note: str = "") -> str:
        """What this person sees now: the first item that they have said nothing of, or that all are done."""
        state = self._state(name, note=note)
        judged = self.annotations.of(name)
        number = next((number for number, item in enumerate(self.items) if item.key not in judged), None)
        if number is None:
            return done_page(state=state)
        item = self.items[number]
        left, right = left_and_right(item, name=name, seed=self._seed)
        shown = ShownItem(
            number=number,
            id=item.example.id,
            where=str(item.place),
            question=item.example.ask.text,
            left=self._scores.sentences(item, target=left),
            right=[] if right is None else self._scores.sentences(item, target=right),
            is_alone=right is None,
            picture=self.picture(number),
            sent_at_s=round(now_s, 1),
        )
        return item_page(shown, state=state)

    def judge(self, name: str, *, number: int, verdict: str, sent: str | None, now_s: float) -> str:
        """Keep a verdict on the item of this number, unless this person has judged it already.

        Args:
            number: of an item that there is.
            sent: what the page says of when it was made, seconds since 1970.

        Returns:
            What the person has to know: that another verdict stands, as from a second tab. Empty if this one does.

        Raises:
            StorageError: it cannot be kept.
        """
        item = self.items[number]
        sides = left_and_right(item, name=name, seed=self._seed)
        seconds = _seconds_since(sent, now_s=now_s)
        line = Verdict.of(item, sides=sides, verdict=verdict, seconds=seconds, time=_utc(now_s))
        if self.annotations.add(name, verdict=line):
            return ""
        stands = self.annotations.of(name).get(item.key)
        if stands is None or stands.says_the_same_as(line):
            return ""
        id = item.example.id
        return f"{id} was judged already: {_in_words(stands)}. That stays; to change it, undo until {id} comes."

    def undo(self, name: str, *, now_s: float) -> None:
        """Take back what this person said last in this session's items, if they said anything.

        Raises:
            StorageError: that cannot be kept.
        """
        if (last := self._last(name)) is not None:
            item = self.items[self._numbers[last.key]]
            left, right = left_and_right(item, name=name, seed=self._seed)
            line = Verdict.of(item, sides=(left, right), verdict=UNDO, seconds=None, time=_utc(now_s))
            self.annotations.add(name, verdict=line)

    def picture(self, number: int) -> DrawnPicture | None:
        """The picture of the item of this number; None if there is none that can be read."""
        return self._picture(number) if number < len(self.items) else None

    def _state(self, name: str, *, note: str) -> ShownState:
        opinions = self.annotations.by_person()
        last = self._last(name)
        return ShownState(
            run=self.run_name,
            name=name,
            num_done=sum(key in self._numbers for key in opinions.get(name, ())),
            num_items=len(self.items),
            last="" if last is None else f"Noted of {last.id}: {_in_words(last)}. Undo takes it back.",
            people={name: len(verdicts) for name, verdicts in opinions.items()},
            agreements=agreements(opinions),
            scale=self._scores.scale if self._shows_scores else None,
            asks_of_one=self.asks_of_one,
            note=note,
        )

    def _last(self, name: str) -> Verdict | None:
        mine = [verdict for key, verdict in self.annotations.of(name).items() if key in self._numbers]
        return mine[-1] if mine else None

    def _load_picture(self, number: int) -> DrawnPicture | None:
        item = self.items[number]
        path = item.example.ask.picture.path
        image = self._finder.find(path)
        if image is None and item.place.pairs.is_file():
            # A run whose pictures others could not open by their names has them in its pairs.
            try:
                image = self._finder.find(picture_bytes(item.place.pairs, names={path}).get(path))
            except (OSError, ValueError, KeyError):
                image = None
        return None if image is None else drawn(image, most_px=_MOST_PICTURE_PX, quality=_PICTURE_QUALITY)


def _finder(data: Data | None, *, root: Path) -> PictureFinder:
    folders = [] if data is None else [*([Path(data.images)] if data.images else []), Path(data.prompts).parent]
    return PictureFinder(folders=[*folders, root], urls=data is not None and data.urls)


def _in_words(verdict: Verdict) -> str:
    return (_ALONE if verdict.right_digest == NO_ANSWER else _LAST)[verdict.verdict]


def _seconds_since(sent: str | None, *, now_s: float) -> float | None:
    try:
        seconds = now_s - float(sent or "")
    except ValueError:
        return None
    # What was sent is rounded, so it may seem to be a little later than now.
    return max(0.0, round(seconds, 1)) if -1.0 < seconds <= _MAX_SECONDS else None


def _utc(now_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s))
