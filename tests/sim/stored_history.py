"""One history of a whole run: the real loop, journal, units and store, on a simulated pool and a disk that fails.

A run is started again and again. Each start meets a trouble that is drawn from the history's seed: the power goes at
a write, writes fail, somebody wants it to stop, the lock is lost, the trainer or the hand-over fails, or the pool
itself gives up, or it dies at an instant around a hand-over and its verdict. Some trainings make a worse policy,
which the gate has to refuse (`gate_referee`). Between two starts rows come into the prompt file, leave it or move.
After every start the folder is held to what docs/architecture.md promises, and at the end the verdicts and the model
to those of a run of the same seed that nothing happened to.
"""

from __future__ import annotations

import contextlib
import errno
import json
import random
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from failing_storage import PowerCut, Storage, failing
from fakes import FakeMachinery, FakeTrainer, tiny_config
from forgetful_disk import ForgetfulDisk
from gate_referee import GateReferee, Weights, harms_of
from PIL import Image
from simulated_generators import AROUND_A_VERSION, GOES_BACK, ServingPool, Trouble, WatchedGenerators, generators_of
from simulated_pool import Scenario

from csr_ray import loop
from csr_ray.app.check import check_run
from csr_ray.data.prompts import PromptFile
from csr_ray.errors import ActorFailure, LockLost, NoDataError, StorageError
from csr_ray.evaluation.suite import Suite
from csr_ray.policy import weights
from csr_ray.records import JsonDict, TrainOrder, TrainResult
from csr_ray.stages.recover import finish_again, recover, set_aside
from csr_ray.stages.state import RunState
from csr_ray.stages.view import Progress
from csr_ray.store.atomic import new_folder
from csr_ray.store.journal import Journal
from csr_ray.store.quarantine import quarantine_line
from csr_ray.store.run_folder import RunFolder

REFUSED = "behind the line of: again"
TRAINER_WENT_BACK = "after the trainer went back"
MOST_STARTS = 12
# Behind these nothing goes wrong any more.
TROUBLED_STARTS = 7
_ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS)
_TROUBLES = {
    "none": 2,
    "power": 6,
    "storage": 3,
    "storage for a moment": 2,
    "stop": 3,
    "signal": 2,
    "lock": 1,
    "trainer": 2,
    "hand-over": 1,
    "way back": 1,
    "instant": 6,
}
# Where the power may go, beside at any write.
_INSTANTS = (
    *(f"behind the line of: {kind}" for kind in ("examples", "train", "publish", "probe", "verdict", "round")),
    REFUSED,
    REFUSED,
    *AROUND_A_VERSION,
    TRAINER_WENT_BACK,
    TRAINER_WENT_BACK,
)
Key = tuple[int, str]


class StoredHistory:
    """A history; `play` starts the run until it is finished.

    Args:
        folder: an empty folder for prompt file and run.
        is_calm: nothing goes wrong but what a training makes.

    Attributes:
        tally: what was seen, by name.
        trace: a line for each start, and for what was changed before it.
    """

    def __init__(self, seed: int, *, folder: Path, is_calm: bool = False) -> None:
        rng = self._random = random.Random(f"run {seed}")
        self._images = folder / "images"
        self.tally: Counter[str] = Counter()
        self.trace: list[str] = []
        self._seed = seed
        self._is_calm = is_calm
        self._place = folder
        self._source = folder / "prompts.jsonl"
        self._num_rows = 0
        self._rows: list[dict[str, str]] = []
        self._add_rows(rng.choice((1, 3, 10, 12, 14, 16)), calm=True)
        self._add_rows(rng.choice((0, 0, 1, 3)))
        rng.shuffle(self._rows)
        self._write_rows()
        tree = {
            "run": {"rounds": rng.choice((1, 2)), "unit": rng.choice((1, 2, 3, 5))},
            "data": {"prompts": str(self._source), "per_round": rng.choice((None, None, 3))},
            "train": {"streaming": rng.random() < 0.4},
            "gate": {"prompts": rng.choice((10, 64)), "retries": rng.choice((0, 1, 2, 2))},
        }
        self._config = tiny_config(folder / "run", **tree)
        self._folder = RunFolder(folder / "run")
        self._folder.root.mkdir()
        plain = {"method": "csr", "policy": {"model": "model"}, "scorer": {"model": "clip"}, **tree}
        plain["run"] = {**tree["run"], "dir": str(self._folder.root)}
        self._folder.config.write_text(yaml.safe_dump(plain))
        # Our own books: which prompt is committed in which phase, True if it has a rollout.
        self._committed: dict[Key, dict[str, bool]] = {}
        self._decided: set[Key] = set()
        self._trained: set[Key] = set()
        self._num_lines = 0
        self.harms = harms_of(seed, num_versions=tree["run"]["rounds"])
        self.made: dict[str, Weights] = {}  # by digest
        self.gate = self._new_gate()
        self._results: Counter[tuple[int, str]] = Counter()  # how often a prompt of a round came to an end

    # ---- starts ----

    def play(self) -> StoredHistory:
        """Start the run until it is finished.

        Raises:
            AssertionError: a promise is broken; the message tells the history.
        """
        try:
            for number in range(TROUBLED_STARTS if self._is_calm else 0, MOST_STARTS):
                ended = self._start(number)
                if ended == "finished":
                    self._at_the_end()
                    self._judge_by_a_calm_one()
                    return self
                if number >= TROUBLED_STARTS and ended in ("NoDataError", "ActorFailure"):
                    self._judge_hopeless()
                    return self
                if not self._is_calm and self._random.random() < 0.4:
                    self._change_rows()
            raise AssertionError(f"not finished after {MOST_STARTS} starts, the last {MOST_STARTS - number} calm")
        except Exception as error:
            where = "" if isinstance(error, AssertionError) else traceback.format_exc()
            raise AssertionError(
                "\n".join([*self.trace, where, f"seed {self._seed}: {type(error).__name__}: {error}"])
            ) from error

    def _start(self, number: int) -> str:
        """One process of the driver. Returns how it ended: "finished", if the run is."""
        rng = self._random
        trouble = "none"
        if number < TROUBLED_STARTS:
            trouble = rng.choices(list(_TROUBLES), weights=list(_TROUBLES.values()))[0]
        stop = SimulatedStop(grace=rng.choice((0, 1, 3, 100)))
        storage = self._storage(trouble, stop)
        start = _Start(self, number, trouble=trouble, stop=stop, storage=storage)
        ended = "finished"
        with failing(storage):
            try:
                start.run()
            except PowerCut:
                ended = "power"
            except KeyboardInterrupt:
                ended = "stopped"
            except (StorageError, LockLost, ActorFailure, NoDataError) as error:
                ended = type(error).__name__
                assert "\n" not in str(error), f"not one line: {error}"
                self.trace.append(f"    {error}")
        if storage.disk is not None:
            storage.disk.forget() if ended == "power" else storage.disk.close()
            num_lines = len(_whole_lines(self._folder.journal))
            assert num_lines >= start.num_lines, f"{start.num_lines} lines were committed, {num_lines} are there"
        self.tally["starts"] += 1
        self.tally[f"a start ended: {ended}"] += 1
        if storage.hit is not None:
            self.tally[f"{trouble} at: {storage.hit}"] += 1
        if storage.disk is not None:
            trouble += ", and what was not synced is forgotten"
        self.trace.append(
            f"start {number}: {trouble}{f' ({storage})' if storage.at < 10**9 else ''}, ended: {ended}; "
            f"drawn {[(index, work.drawn) for index, work in start.work.items()]}; "
            f"handed on {[(index, work.handed_on) for index, work in start.work.items()]}"
        )
        self._judge(start, ended=ended)
        return ended

    def _storage(self, trouble: str, stop: SimulatedStop) -> Storage:
        rng = self._random
        at = rng.randint(1, rng.choice((10, 40, 150)))
        match trouble:
            case "power":
                disk = ForgetfulDisk(self._folder.root) if rng.random() < 0.5 else None
                return Storage(at, is_done=rng.random() < 0.5, disk=disk)
            case "storage" | "storage for a moment":
                lasts = 10**9 if trouble == "storage" else rng.choice((1, 1, 2, 5))
                return Storage(at, "error", rng.random() < 0.5, error=rng.choice(_ERRORS), lasts=lasts)
            case "signal":
                return Storage(at, "signal", on_signal=stop.ask)
            case "instant":
                return Storage(10**9, disk=ForgetfulDisk(self._folder.root) if rng.random() < 0.5 else None)
        return Storage(10**9)

    def pool(self, *, is_rough: bool) -> ServingPool:
        rng = self._random
        calm = Scenario(
            num_generators=rng.choice((1, 2, 3)),
            num_scorers=rng.choice((0, 1, 2)),
            num_items=0,
            num_images=1,
            in_flight=rng.choice((1, 2, 4)),
            restarts=30,
            remembered=256,
            start_s=100.0,  # as long as it may take to be brought up in several steps
        )
        if is_rough:
            calm = Scenario(
                **{
                    **vars(calm),
                    "deaths_per_s": rng.choice((0.0, 0.01, 0.05)),
                    "hangs_per_s": rng.choice((0.0, 0.005)),
                    "stalls_per_s": rng.choice((0.0, 0.005)),
                    "breaks_per_s": rng.choice((0.0, 0.01)),
                    "num_joiners": rng.choice((0, 1)),
                    "num_more_generators": rng.choice((0, 2)),
                    "idle_s": rng.choice((2.0, 20.0)),
                    "most_room": rng.choice((0, 2)),
                    "num_leavers": rng.choice((0, 1)),
                    "failed_start_share": rng.choice((0.0, 0.2)),
                    "stale_share": rng.choice((0.0, 0.1)),
                    "lost_share": rng.choice((0.0, 0.03)),
                    "restarts": rng.choice((1, 5, 30)),
                    "tries": rng.choice((1, 2, 3)),
                    "call_s": rng.choice((25.0, 200.0)),
                    "start_s": rng.choice((40.0, 100.0)),
                }
            )
        trouble = Trouble(wrong_share=0.1, uncounted_share=0.05, silent_share=0.05) if is_rough else Trouble()
        return ServingPool(calm, seed=rng.randrange(2**32), harms=self.harms, trouble=trouble)

    @property
    def journal(self) -> Path:
        return self._folder.journal

    @property
    def random(self) -> random.Random:
        return self._random

    def state(
        self,
        *,
        stop: SimulatedStop,
        before_commit: Callable[[], None],
        after_commit: Callable[[Sequence[JsonDict], bytes], None],
    ) -> RunState:
        journal = Journal(self._folder.journal)
        journal.before_commit, journal.after_commit = before_commit, after_commit
        return RunState(
            config=self._config, folder=self._folder, journal=journal, model="model", versions={}, stop=stop
        )

    def prompts(self, state: RunState) -> PromptFile:
        data = self._config.data
        return PromptFile(data.prompts, images=data.images, limit=data.limit, refuses=state.method.refuses)

    # ---- the prompt file ----

    def _add_rows(self, num: int, *, calm: bool = False) -> None:
        kinds = ("good", "good", "bad", "poison", "stuck", "cursed", "unreadable", "mute", "broken")
        for _ in range(num):
            kind = "good" if calm else self._random.choice(kinds)
            self._num_rows += 1
            image = f"{self._random.randrange(1 + self._num_rows // 2)}.png"
            picture = self._images / image
            if not picture.exists():  # the rollout looks whether the last good one can still be read
                picture.parent.mkdir(exist_ok=True)
                Image.new("RGB", (8, 8)).save(picture)
            row = {"id": f"{kind}{self._num_rows}", "image": image, "prompt": "Describe."}
            if kind == "broken":
                del row["prompt"]
            self._rows.insert(self._random.randrange(len(self._rows) + 1), row)

    def _change_rows(self) -> None:
        """Rows come, go and change places; the first good one stays, so that there is always something to do."""
        rng = self._random
        how = rng.choice(("added", "removed", "reordered"))
        if how == "added":
            self._add_rows(rng.choice((1, 1, 4)))
        elif how == "removed":
            stays = next(row for row in self._rows if row["id"].startswith("good"))
            gone = rng.sample(self._rows, min(len(self._rows), rng.choice((1, 2))))
            self._rows = [row for row in self._rows if row not in gone or row is stays]
        else:
            rng.shuffle(self._rows)
        self.tally[f"rows {how}"] += 1
        self._write_rows()
        self.trace.append(f"rows {how}: {[row['id'] for row in self._rows]}")

    def _write_rows(self) -> None:
        self._source.write_text("".join(json.dumps(row) + "\n" for row in self._rows))

    def _usable_ids(self) -> list[str]:
        return [row["id"] for row in self._rows if "prompt" in row]

    # ---- promises ----

    def committed_of(self, key: Key) -> dict[str, bool]:
        """What is committed of a phase now, by our own reading of the journal."""
        self._read_journal()
        return self._committed.get(key, {})

    def gate_now(self) -> GateReferee:
        """What the journal says of trainings and verdicts now."""
        self._read_journal()
        return self.gate

    def _new_gate(self) -> GateReferee:
        retries = self._config.gate.retries
        return GateReferee(harms=self.harms, retries=retries, made=self.made, tally=self.tally)

    def _read_journal(self) -> None:
        """Take in the lines that are new. A line that is there once stays; a prompt is in a phase once."""
        entries = [json.loads(line) for line in _whole_lines(self._folder.journal)]
        assert len(entries) >= self._num_lines, "lines of the journal are gone"
        for entry in entries[self._num_lines :]:
            self._take_in(entry)
        self._num_lines = len(entries)

    def _take_in(self, entry: dict[str, Any]) -> None:
        key = (entry.get("round", -1), entry.get("phase", ""))
        known = self._committed.setdefault(key, {}) if key[0] >= 0 and key[1] else {}
        self.gate.take_in(entry)
        match entry["kind"]:
            case "rollout":
                assert key not in self._decided, f"a unit comes behind the examples of {key}"
                rejected = {item["id"] for item in entry["rejected"]}
                for prompt_id in entry["ids"]:
                    assert prompt_id not in known, f"{prompt_id} is committed twice in {key}"
                    known[prompt_id] = prompt_id not in rejected
            case "again" if entry["what"] == "train":
                self._trained.remove(key)
            case "again":
                assert entry["what"] == "prompts", f"nothing was damaged, and yet {entry}"
                assert key not in self._decided
                for prompt_id in entry["ids"]:
                    assert known.pop(prompt_id) is False, f"the rollout of {prompt_id} is voided"
                self.tally["prompts tried again after the machine's or the policy's fault"] += len(entry["ids"])
            case "examples":
                assert key not in self._decided, f"{key} is decided twice"
                self._decided.add(key)
                self._judge_decided(key, known, entry)
            case "train":
                assert key in self._decided and key not in self._trained, f"{key} is trained twice, or too soon"
                self._trained.add(key)
            case "lost":
                raise AssertionError(f"lost: {entry}")

    def _judge_decided(self, key: Key, known: dict[str, bool], entry: dict[str, Any]) -> None:
        ids = self._usable_ids()
        per_round = self._config.data.per_round
        if per_round is None or per_round >= len(ids):
            missing = set(ids) - set(known)
            assert not missing, f"{key} is closed without {missing}"
        else:
            assert len(known) >= per_round, f"{key} is closed with {len(known)} prompts of {per_round}"
        rolled_out = sum(known.values())
        assert entry["made"] == rolled_out, f"{key} has {entry['made']} examples of {rolled_out} rollouts"
        self.tally["prompts rolled out"] += rolled_out
        self.tally["prompts set aside"] += len(known) - rolled_out

    def _judge(self, start: _Start, *, ended: str) -> None:
        """A power cut may leave half a line at the end of a file, which the checker notes, and no damage."""
        self._read_journal()
        if not self._folder.journal.exists():
            return
        Journal(self._folder.journal)
        report = check_run(self._folder.root)
        assert not report.damage, report.damage
        self._judge_pairs()
        for index, work in start.work.items():
            self._judge_work(index, start, ended=ended)
            for prompt_id in work.handed_on:
                self._results[index, prompt_id] += 1
        if ended == "finished":
            self._judge_quarantine()
            rests = [path for path in self._folder.root.rglob(".*")]
            assert not rests, f"left behind: {rests}"

    def _judge_work(self, index: int, start: _Start, *, ended: str) -> None:
        """What was handed to the driver is committed; a sudden end costs open units and the one being written.

        It also costs those of prompts that are at fault, which are held back until a picture can be read.
        """
        work, size = start.work[index], self._config.run.unit
        known = self._committed.get((index, "main"), {})
        open_ids = [prompt_id for prompt_id in work.handed_on if prompt_id not in known]
        self.tally["results"] += len(work.handed_on)
        self.tally["results done again"] += len(open_ids)
        if ended not in ("power", "StorageError", "LockLost"):
            assert not open_ids, f"round {index}: {open_ids} had results, and are not committed"
        units = [work.drawn[at : at + size] for at in range(0, len(work.drawn), size)]
        whole = [unit for unit in units if len(unit) == size and set(unit) <= set(work.handed_on)]
        whole = [unit for unit in whole if work.at_fault.isdisjoint(unit)]
        uncommitted = [unit for unit in whole if not set(unit) <= set(known)]
        assert len(uncommitted) <= 1, f"round {index}: units {uncommitted} are whole, and not committed"

    def _judge_pairs(self) -> None:
        for index, phase in self._decided:
            rolled_out = sorted(one for one, has in self._committed[index, phase].items() if has)
            path = self._folder.round(index) / "pairs.parquet"
            pairs = sorted(pq.read_table(path, columns=["id"]).column("id").to_pylist())
            assert pairs == rolled_out, f"round {index}: pairs of {pairs}, rollouts of {rolled_out}"

    def _judge_quarantine(self) -> None:
        """One line for each prompt that was set aside, and for each row that cannot be used: no more, no less."""
        journal = Journal(self._folder.journal)
        lines = [quarantine_line(rejection) for _, rejection in journal.rejections()]
        path = self._folder.quarantine
        there = [line.decode() for line in _whole_lines(path)]
        assert set(lines) <= set(there), f"not in the quarantine: {set(lines) - set(there)}"
        assert len(there) == len(set(there)), "a line is in the quarantine twice"
        known = {prompt_id for phase in self._committed.values() for prompt_id in phase}
        rolled_out = {prompt_id for phase in self._committed.values() for prompt_id, has in phase.items() if has}
        for line in set(there) - set(lines):
            entry = json.loads(line)
            assert entry["id"] not in known - rolled_out, f"{line}: another line speaks of it"
            assert str(entry["id"]).startswith("broken"), f"{line}: nobody set it aside"

    def _judge_hopeless(self) -> None:
        """A cycle without a single good prompt that is still there is for the user to change, and nobody else."""
        known = next(reversed(self._committed.values()), {})
        rolled_out = {prompt_id for prompt_id, has in known.items() if has}
        there = rolled_out & {row["id"] for row in self._rows}
        assert not there, f"the run does not go on, although there are rollouts of {there}"
        self.tally["runs of hopeless prompts alone"] += 1

    def _at_the_end(self) -> None:
        report = check_run(self._folder.root)
        assert report.next.startswith(("nothing: the run is finished", "nothing: the run ended early")), report.next
        assert not report.damage, report.damage
        summary = json.loads(self._folder.summary.read_text())
        assert summary["finished"], "the summary does not say that the run is finished"
        num_rounds = self._config.run.rounds
        if (version := self.gate.ended_before) is not None:
            num_rounds = version - 1
            assert (summary["ended"]["round"], summary["ended"]["version"]) == (num_rounds, num_rounds)
        assert (summary["ended"] is None) == (version is None), summary["ended"]
        assert len(summary["rounds"]) == num_rounds == len(self._trained) == self.gate.num_accepted
        self.gate.saved(json.loads((self._folder.model / "model.safetensors").read_bytes()))
        self.tally["runs finished"] += 1

    def _judge_by_a_calm_one(self) -> None:
        """Where verdicts were about enough prompts, they do not depend on what died, and neither does the model."""
        if self._is_calm or not self.gate.outcome.is_judged:
            return
        folder = self._place / "calm"
        folder.mkdir()
        calm = StoredHistory(self._seed, folder=folder, is_calm=True).play()
        if calm.gate.outcome.is_judged:
            assert self.gate.outcome == calm.gate.outcome, f"nothing died, and it is {calm.gate.outcome}"
            self.tally["runs like one that nothing happened to"] += 1


class _Start:
    """One process of the driver, as `csr_ray.app.run` is one."""

    def __init__(
        self, history: StoredHistory, number: int, *, trouble: str, stop: SimulatedStop, storage: Storage
    ) -> None:
        rng = history.random
        self._history = history
        self._trouble = trouble
        self._stop = stop
        self.num_lines = 0  # of the journal, when a line was about to follow them
        self._pool: ServingPool | None = None
        self._generators: WatchedGenerators | None = None
        self._storage = storage
        self._is_rough = number < TROUBLED_STARTS and rng.random() < 0.6
        self._stop_after = rng.randint(1, rng.choice((12, 40))) if trouble == "stop" else None
        self._lock_after: int | None = None  # so many more lines
        self._lock_lost_at = ""  # or at this instant
        if trouble == "lock" and rng.random() < 0.5:
            self._lock_lost_at = rng.choice(_INSTANTS)
        elif trouble == "lock":
            self._lock_after = rng.randint(0, 14)
        self._dies = (rng.choice(_INSTANTS), rng.choice((1, 1, 2))) if trouble == "instant" else None
        self._instants: Counter[str] = Counter()
        fails_at = ("check", "begin", "offer", "finish", "withdraw")
        self._trainer_fails = rng.choice(fails_at) if trouble == "trainer" else None

    @property
    def work(self) -> dict[int, Any]:
        return self._generators.work if self._generators else {}

    def run(self) -> None:
        history = self._history
        state = history.state(stop=self._stop, before_commit=self._before_commit, after_commit=self._after_commit)
        recover(state, view=Silent())
        self._machine_is_asked_again(state)
        if state.is_finished:
            finish_again(state, rejections=lambda: history.prompts(state).rejections(), view=Silent())
            return
        if state.journal.find("model") is None:  # as every start does before anything is rolled out
            state.journal.commit("model", name="model", revision=None)
        prompts = history.prompts(state)
        set_aside(state, prompts.rejections())
        with saved_without_weights():
            loop.run(state, prompts=prompts, suite=Suite(), start_machinery=self._machinery, view=Silent())

    def _machine_is_asked_again(self, state: RunState) -> None:
        for index in range(state.config.run.rounds):
            if state.journal.find("examples", round=index, phase="main") is None:
                known = self._history.committed_of((index, "main"))
                rejections = [one for entry, one in state.journal.rejections() if entry["round"] == index]
                assert all(one.fault == "input" for one in rejections), rejections
                assert {one.id for one in rejections} == {one for one, has in known.items() if not has}

    def _machinery(self, adapters: Iterable[str]) -> FakeMachinery:
        history, folders = self._history, list(adapters)
        history.gate_now().starts_with([Weights.read(Path(folder)) for folder in folders])
        self._pool = history.pool(is_rough=self._is_rough)
        if self._trouble == "hand-over":
            self._pool.break_hand_overs()
        ahead = history.random.choice((0, 0, 2, 20))
        generators = generators_of(self._pool, adapters=folders, config=history._config, ahead=ahead)
        self._generators = WatchedGenerators(
            generators,
            pool=self._pool,
            on_result=self._on_result,
            committed=lambda index: history.committed_of((index, "main")),
            served=lambda version, is_probing: history.gate_now().served(version=version, is_probing=is_probing),
            instant=self._instant,
        )
        trainer = SimulatedTrainer(
            self._pool, history=history, adapters=folders, fails_at=self._trainer_fails, instant=self._instant
        )
        return Machinery(self._generators, trainer, self._pool, history.tally)  # type: ignore[arg-type]

    def _on_result(self) -> None:
        if self._stop_after is not None:
            self._stop_after -= 1
            if self._stop_after == 0:
                self._stop.ask()

    def _instant(self, what: str) -> None:
        """The power may go here, or what brings generators back may break."""
        if self._trouble == "way back" and what == GOES_BACK:
            assert self._pool is not None
            self._pool.break_hand_overs()
        self._instants[what] += 1
        if what == self._lock_lost_at:
            self._lock_after = 0
        if self._dies == (what, self._instants[what]):
            self._storage.hit = what
            raise PowerCut

    def _before_commit(self) -> None:
        self.num_lines = len(_whole_lines(self._history.journal))
        if self._is_lock_lost:
            raise LockLost("another process has taken over this run")
        self._stop.check()

    def _after_commit(self, entries: Sequence[JsonDict], data: bytes) -> None:
        assert not self._is_lock_lost, f"another process has the run, and this one writes {entries}"
        if self._lock_after is not None:
            self._lock_after -= 1
        for entry in entries:
            self._instant(f"behind the line of: {entry['kind']}")

    @property
    def _is_lock_lost(self) -> bool:
        return self._lock_after is not None and self._lock_after <= 0


class SimulatedStop:
    """A wish to stop, as `csr_ray.app.stop` hears it, with a grace that is counted in results."""

    def __init__(self, *, grace: int) -> None:
        self.is_asked = False
        self._left = grace
        self._in_grace = False

    def ask(self) -> None:
        self.is_asked = True
        self.check()

    def check(self) -> None:
        if self.is_asked and not self._in_grace:
            self.now()

    def now(self) -> None:
        raise KeyboardInterrupt("stopped")

    @contextlib.contextmanager
    def graceful(self) -> Iterator[None]:
        self.check()
        self._in_grace = True
        try:
            yield
        finally:
            self._in_grace = False

    def until_grace_ends(self, results: Iterable[Any]) -> Iterator[Any]:
        with contextlib.closing(iter(results)) as iterator:  # type: ignore[type-var]
            while True:
                if self.is_asked:
                    self._left -= 1
                    if self._left < 0:
                        return
                try:
                    result = next(iterator)
                except StopIteration:
                    return
                yield result


class Machinery(FakeMachinery):
    def __init__(self, generators: Any, trainer: Any, pool: ServingPool, tally: Counter[str]) -> None:
        super().__init__(generators, trainer)
        self._pool = pool
        self._tally = tally

    def close(self) -> None:
        counted = ("generator died", "scorer died", "Kill", "Cancel", "Retry", "Replace", "GiveUp", "alone")
        tally = self._pool.referee.tally
        self._tally.update({name: num for name, num in tally.items() if name in counted or "version" in name})
        super().close()


class SimulatedTrainer(FakeTrainer):
    """While it trains time goes by, in which replicas die and come back. It may fail wherever it is called.

    Args:
        adapters: folders of the phases that are trained, oldest first.
        instant: told of moments at which the driver may die; may raise.
    """

    def __init__(
        self,
        pool: ServingPool,
        *,
        history: StoredHistory,
        adapters: list[str],
        fails_at: str | None,
        instant: Callable[[str], None],
    ) -> None:
        super().__init__(version=len(adapters))
        self._pool = pool
        self._history = history
        self._adapters = adapters
        self._fails_at = fails_at
        self._instant = instant

    def check(self) -> None:
        self._fail("check")

    def begin(self, order: TrainOrder) -> None:
        self._fail("begin")
        chain = [Weights.read(Path(folder)) for folder in self._adapters]
        version = order.cycle.policy_version + 1
        self._history.gate_now().trains(chain, version=version, scale=order.scale)
        super().begin(order)

    def offer(self, files: Iterable[str]) -> None:
        self._fail("offer")
        super().offer(list(files))

    def finish(self, *, on_step: Callable[[int, int, float], None]) -> TrainResult:
        self._fail("finish")
        offered = [one for call in self.offered[self.orders[-1].cycle.policy_version] for one in call]
        assert len(offered) == len(set(offered)), f"trained twice on an example: {offered}"
        end_s = self._pool.now_s + self._pool.draw_s(1, 300)
        while self._pool.now_s < end_s and not self._pool.referee.gave_up:
            self._pool.turn(until_s=end_s)
        trained = super().finish(on_step=on_step)
        self._adapters = [*self._adapters, trained.adapter]
        logp = Weights.read(Path(trained.adapter)).logp
        return replace(trained, probes=tuple(replace(probe, logp=logp) for probe in trained.probes))

    def weights(self, order: TrainOrder) -> bytes:
        """No two trainings make the same bytes."""
        made = Weights(
            version=order.cycle.policy_version + 1, scale=order.scale, nonce=self._history.random.getrandbits(40)
        )
        self._history.made[made.digest] = made
        return made.to_bytes()

    def withdraw(self, version: int) -> None:
        self._fail("withdraw")
        super().withdraw(version)
        self._adapters = self._adapters[:-1]
        self._instant(TRAINER_WENT_BACK)

    def _fail(self, where: str) -> None:
        if self._fails_at == where:
            self._history.tally[f"the trainer failed at: {where}"] += 1
            raise ActorFailure(f"the trainer failed at {where}")


class Silent:
    """A `View` that shows nothing."""

    @contextlib.contextmanager
    def stage(self, name: str, *, total: int | None, unit: str, round_index: int | None) -> Iterator[Progress]:
        yield Progress(name=name, unit=unit, total=total, on_change=lambda _: None)

    def say(self, line: str, *, is_warning: bool = False) -> None:
        pass

    def watch(self, health: Callable[[], str]) -> None:
        pass

    def metrics(self, *, version: int, metrics: dict[str, float]) -> None:
        pass


@contextlib.contextmanager
def saved_without_weights() -> Iterator[None]:
    """There are no weights to merge, so the model says which adapters it is made of."""

    def save(base: Path, *, adapters: list[Path], output: Path, config_lines: JsonDict) -> weights.Rounding:
        made_of = [Weights.read(adapter).digest for adapter in adapters]
        with new_folder(output) as staging:
            (staging / "model.safetensors").write_bytes(json.dumps(made_of).encode())
        return weights.Rounding()

    real = weights.save_merged
    weights.save_merged = save  # type: ignore[assignment]
    try:
        yield
    finally:
        weights.save_merged = real


def _whole_lines(path: Path) -> list[bytes]:
    return [line for line in path.read_bytes().split(b"\n")[:-1] if line] if path.exists() else []
