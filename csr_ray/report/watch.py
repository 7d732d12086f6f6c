"""Follows one run for `csr-ray watch`: reads what is new, makes parts of the page of it, gives pairs and trees.

Knows nothing of the network, and never writes. One thread follows; the threads of requests ask.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Protocol

from csr_ray.errors import ConfigError, UserError
from csr_ray.records import JsonDict
from csr_ray.report import page
from csr_ray.report.before_after import Cases, before_and_after
from csr_ray.report.embedded import facts_of
from csr_ray.report.gallery import Gallery, reward_scale
from csr_ray.report.live import Live, Seen, live_of, waiting_for
from csr_ray.report.pairs import READ_ERRORS, Query
from csr_ray.report.pictures import DrawnPicture, drawn, finder_of
from csr_ray.report.read import Run, RunReader
from csr_ray.store.pool_events import LOST, SERVES_AGAIN
from csr_ray.store.run_folder import RunFolder

_log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 1.0
_WHEN_OVER_S: Final = 5.0
_FIGURES_EVERY_S: Final = 3.0
_READ_AT_ONCE_S: Final = 0.5
_FIRST_LOOK_S: Final = 60.0
_MOST_NEWS: Final = 50
_MOST_PAIRS: Final = 100
_PICTURES_KEPT: Final = 256
_PICTURE_PX: Final = 320
# The parts that show what goes on right now; the others are made anew when something is committed.
_OF_NOW: Final = ("head", "now", "actors")
_NO_CASES: Final = Cases(lead="", what="", num_pictures=0, groups=())


class Source(Protocol):
    """Where a run is kept, as a watcher sees it.

    Attributes:
        folder: it, or a copy of it.
        most_units: of how many units the scores are read; None: as many as for a file.
    """

    folder: RunFolder
    most_units: int | None

    def refresh(self) -> None:
        """Bring what is new to the folder; raises UserError if that cannot be had now."""
        ...

    def need(self, path: Path) -> None:
        """Bring one file to the folder, if it is not there."""
        ...

    def seen(self) -> tuple[str, bool | None]:
        """Who holds the run's lock, in words ("": nobody), and whether that process lives (None: not to be seen)."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Snapshot:
    """What the page shows; `number` grows whenever something of it changes."""

    number: int
    run: Run | None
    live: Live
    parts: Mapping[str, str]
    facts: JsonDict
    changed: Mapping[str, int]
    facts_changed: int
    reading: str


class Watch:
    """One run, followed from `start` to `close`.

    Args:
        look_every_s: how often it is looked at.
    """

    def __init__(self, source: Source, *, look_every_s: float = LOOK_EVERY_S) -> None:
        self._source = source
        self._look_every_s = look_every_s
        self._reading = threading.RLock()  # the reader's tables and trees, and whoever asks for something of them
        self._changed = threading.Condition()
        self._snapshot: _Snapshot | None = None
        self._news: deque[tuple[int, str]] = deque(maxlen=_MOST_NEWS)
        self._is_over = threading.Event()
        self._picture = lru_cache(_PICTURES_KEPT)(self._load_picture)
        self._progress: tuple[Any, float] = (None, 0.0)
        self._figures_of: tuple[object, ...] = ()
        self._figures_s = float("-inf")
        self._cases_of: tuple[object, ...] = ()
        self._cases: Cases | None = None
        self._begin()
        self._thread = threading.Thread(target=self._follow, name="watch", daemon=True)

    @property
    def name(self) -> str:
        return self._source.folder.title

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * _READ_AT_ONCE_S)

    # ---- what requests ask for ----

    def page(self) -> str:
        """The whole page as it is now."""
        now = self._now()
        return page.served_page(now.run, name=self.name, live=now.live, facts=now.facts, parts=now.parts)

    def state(self, since: int) -> JsonDict:
        """What has changed behind a number that an earlier answer, or the page, had."""
        now = self._now()
        return {
            "number": now.number,
            "parts": {name: text for name, text in now.parts.items() if now.changed[name] > since},
            "facts": now.facts if now.facts_changed > since else None,
            "news": [text for number, text in self._news if number > since],
            "state": now.live.state,
            "title": f"{_STATES[now.live.state]} · {now.run.name if now.run else self.name} · csr_ray watch",
            "reading": now.reading,
        }

    def pairs(self, query: Query, *, first: int, num: int) -> JsonDict:
        """Some pairs, as the page's script wants them.

        Raises:
            ConfigError: they cannot be read.
        """
        gallery = self._gallery()
        with self._reading:
            try:
                total, named = gallery.pairs.find(query, start=max(0, first), num=max(0, min(_MOST_PAIRS, num)))
                return {"total": total, "pairs": gallery.pair_views(named)}
            except READ_ERRORS as error:
                raise ConfigError(f"the pairs cannot be read: {' '.join(str(error).split())}") from error

    def tree(self, number: int) -> JsonDict | None:
        """A tree by its number; None if there is none, or it cannot be read."""
        gallery = self._gallery()
        with self._reading:
            return gallery.tree_view(number)

    def picture_of_pair(self, table: int, *, row: int) -> DrawnPicture | None:
        return self._picture("pair", table, row)

    def picture_of_tree(self, number: int) -> DrawnPicture | None:
        return self._picture("tree", number, 0)

    def _load_picture(self, kind: str, number: int, row: int) -> DrawnPicture | None:
        run, gallery = self._now().run, self._gallery()
        if run is None:
            return None
        image: object = None
        with self._reading, contextlib.suppress(*READ_ERRORS):
            if kind == "tree":
                image = gallery.image_of_tree(number)
            elif number < len(gallery.pairs.tables) and row < gallery.pairs.tables[number].num:
                (image,) = gallery.pairs.tables[number].images([row])
        found = finder_of(run.config, root=run.folder).find(image)
        return None if found is None else drawn(found, most_px=_PICTURE_PX)

    def _gallery(self) -> Gallery:
        run = self._now().run
        if run is None:
            raise ConfigError("there is no run yet")
        return Gallery(pairs=run.pairs, trees=run.trees, scale=reward_scale(run.rewards))

    def _now(self) -> _Snapshot:
        with self._changed:
            self._changed.wait_for(lambda: self._snapshot is not None, _FIRST_LOOK_S)
            if self._snapshot is None:
                raise ConfigError(f"{self.name} has not been read yet; ask again")
            return self._snapshot

    # ---- following ----

    def _begin(self) -> None:
        source = self._source
        self._picture.cache_clear()
        self._reader = RunReader(source.folder, need=source.need, most_units=source.most_units)

    def _follow(self) -> None:
        while not self._is_over.is_set():
            began_s = time.monotonic()
            left = 0
            try:
                left = self.look()
            except Exception:  # the page says what it can; the next look may find more
                _log.exception("%s could not be looked at", self.name)
            snapshot = self._snapshot
            is_done = snapshot is not None and snapshot.live.state in ("finished", "stopped") and not left
            pause_s = 0.05 if left else _WHEN_OVER_S * self._look_every_s if is_done else self._look_every_s
            self._is_over.wait(max(0.05, pause_s - (time.monotonic() - began_s)))

    def look(self) -> int:
        """Look once at the run, and make of it what is new of the page; returns how many units are to be read yet."""
        trouble = ""
        try:
            self._source.refresh()
        except UserError as error:
            trouble = str(error)
        try:
            with self._reading:
                run = self._reader.read(loads_scores=False)
        except ConfigError:
            self._begin()  # it may come, or come again as another one
            self._show(None, live=waiting_for(self._source.folder.shown), reading="", trouble=trouble)
            return 0
        until_s = time.monotonic() + _READ_AT_ONCE_S
        left = self._reader.load_scores(go_on=lambda: time.monotonic() < until_s and not self._is_over.is_set())
        reading = f"the scores of {left:,} units are still to be read" if left else ""
        self._show(run, live=live_of(run, seen=self._seen(run)), reading=reading, trouble=trouble)
        return left

    def _seen(self, run: Run) -> Seen:
        holder, is_alive = "", None
        try:
            holder, is_alive = self._source.seen()
        except (UserError, OSError):
            holder = "somebody who cannot be seen from here"
        now_s = time.monotonic()
        known, since_s = self._progress
        if known != run.progress:
            since_s = now_s
            self._progress = (run.progress, now_s)
        return Seen(holder=holder, is_alive=is_alive, silent_s=now_s - since_s)

    def _show(self, run: Run | None, *, live: Live, reading: str, trouble: str) -> None:
        before = self._snapshot
        made = self._parts(run, live=live, before=before)
        if trouble and "head" in made:
            made["head"] += str(page.trouble_note(trouble))
        parts = {**(before.parts if before is not None else {}), **made}
        number = 0 if before is None else before.number
        changed = dict(before.changed) if before is not None else {}
        new = [name for name in parts if before is None or before.parts.get(name) != parts[name]]
        facts = self._facts(run)
        facts_are_new = before is None or {**before.facts, "number": 0} != {**facts, "number": 0}
        news = _news(
            before.live if before is not None else None,
            now=live,
            run=run,
            earlier=before.run if before is not None else None,
        )
        if new or facts_are_new or news:
            number += 1
        changed |= dict.fromkeys(new, number)
        self._news += [(number, text) for text in news]
        with self._changed:
            self._snapshot = _Snapshot(
                number=number,
                run=run,
                live=live,
                parts=parts,
                facts={**facts, "number": number},
                changed=changed,
                facts_changed=number if facts_are_new or before is None else before.facts_changed,
                reading=reading,
            )
            self._changed.notify_all()

    def _parts(self, run: Run | None, *, live: Live, before: _Snapshot | None) -> dict[str, str]:
        if run is None:
            self._figures_of = ()
            return {name: str(text) for name, text in page.parts(None, live=live, name=self.name).items()}
        figures_of = (
            id(run.pairs), run.summary, run.open_rounds, run.config_text, run.num_sampled_units, run.quarantine,
            tuple(id(one.answers) for one in run.evaluated), live.state,
        )  # fmt: skip
        is_due = time.monotonic() - self._figures_s >= _FIGURES_EVERY_S * self._look_every_s
        is_first = before is None or before.run is None
        only = () if figures_of != self._figures_of and (is_due or is_first) else _OF_NOW
        if not only:
            self._figures_of, self._figures_s = figures_of, time.monotonic()
        made = page.parts(run, live=live, only=only, cases=self._cases_now(run))
        return {name: str(text) for name, text in made.items()}

    def _cases_now(self, run: Run) -> Cases:
        """What stands before and after, with its pictures, made anew only where there are other answers."""
        made_of = (*(id(one.answers) for one in run.evaluated), len(run.summary.get("rounds") or ()))
        if self._cases is None or made_of != self._cases_of:
            self._cases, self._cases_of = before_and_after(run) or _NO_CASES, made_of
        return self._cases

    def _facts(self, run: Run | None) -> JsonDict:
        if run is None:
            return {"live": True, "num": 0, "places": [], "ends": None, "scale": None, "trees": {"num": 0, "of": 0}}
        return facts_of(run, scale=reward_scale(run.rewards))


_STATES: Final = {"waiting": "waiting", "running": "running", "stopped": "stopped", "finished": "over"}


def _news(before: Live | None, *, now: Live, run: Run | None, earlier: Run | None) -> list[str]:
    """What a listener is told: that the run begins or ends, another stage, a death, a replacement, a round."""
    if before is None:
        return []
    news = []
    if now.state != before.state:
        news.append(now.sentence)
    elif now.state == "running":
        stages = [live.stages[0].label if live.stages and live.stages[0].is_running else "" for live in (before, now)]
        if stages[1] and stages[0] != stages[1]:
            news.append(f"Now: {stages[1]}.")
    if run is not None and earlier is not None:
        for event in run.events[len(earlier.events) :]:
            if event["event"] in (LOST, SERVES_AGAIN):
                news.append(f"{event.get('replica')}: {event['event']}.")
        if _num_rounds(run) > _num_rounds(earlier):
            num = _num_rounds(run)
            news.append(f"{num} round{'s are' if num > 1 else ' is'} done.")
    return news


def _num_rounds(run: Run) -> int:
    entries = run.summary.get("rounds")
    return len(entries) if isinstance(entries, list) else 0
