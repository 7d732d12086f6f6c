"""What `csr-ray init` does: from a folder of photos to a config and a prompt file that a run can begin with.

Looks at the pictures and at the machine, chooses a model, writes two files, and says why. Starts nothing, fetches
nothing, and writes over nothing unless it is told to.
"""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import yaml
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from csr_ray.app.flags import named
from csr_ray.app.forecast import Asked as Planned
from csr_ray.app.forecast import make_forecast
from csr_ray.app.inputs import check_policy
from csr_ray.app.starter import LLAVA_7B, NAMES, QWEN_7B, TINY, Choice, choose, settings_of
from csr_ray.app.starting_files import QUESTIONS, common_folder, config_text, prompt_rows, rows_as_text
from csr_ray.config.load import load_config
from csr_ray.config.schema import Train
from csr_ray.data.gather import Gathered, gather
from csr_ray.errors import ConfigError, NoDataError
from csr_ray.machine.here import Place
from csr_ray.records import Rejection
from csr_ray.store.atomic import make_folder, storage_errors, write_atomically
from csr_ray.training.dose import LEAST_HELD_OUT, held_out_share

CONFIG, PROMPTS, SET_ASIDE = "config.yaml", "prompts.jsonl", "set_aside.jsonl"
# Decoding a photo of a phone takes a tenth of a second of a core.
_MOST_DECODED: Final = 1000
_MOST_REASONS: Final = 5
_GIB: Final = 2**30
_LARGE_PX: Final = 1_500_000
_INDENT: Final = (0, 0, 0, 2)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line says.

    Attributes:
        folder: that the files are written into.
        images: files and folders of pictures.
        questions: to ask about the pictures; none: those of `QUESTIONS`, or of the tiny model those that it knows.
        each: questions for a picture.
        model: that is wanted; None: what fits.
        overwrites: files that are there already are written over.
    """

    folder: Path
    images: tuple[str, ...]
    questions: tuple[str, ...] = ()
    each: int = 1
    model: str | None = None
    overwrites: bool = False


@dataclass(frozen=True, kw_only=True)
class OnCpu:
    """What a run would take on CPUs: hours, and bytes of main memory of its engine and its train worker together."""

    hours: float
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class Written:
    """What came of it.

    Attributes:
        config, prompts: the files.
        set_aside: the file that lists the pictures that were set aside; None: all are used.
        notes: what a person should know before the run, a paragraph each.
    """

    config: Path
    prompts: Path
    set_aside: Path | None
    num_prompts: int
    gathered: Gathered
    choice: Choice
    notes: tuple[str, ...]


def init(
    asked: Asked,
    *,
    place: Place,
    on_looked: Callable[[int, int], None] = lambda done, total: None,
    reckon_on_cpu: Callable[[int], OnCpu | None] = lambda num_prompts: None,
) -> Written:
    """Look at the pictures, choose, and write.

    Args:
        place: what the run would compute on.
        on_looked: called with how many pictures were looked at, of how many.
        reckon_on_cpu: what a run of a model for photos would take on this machine's CPUs, for so many prompts; None:
            not known. Asked only where there is no GPU.

    Raises:
        ConfigError: a file is there already, or the model that is wanted does not fit.
        NoDataError: not one picture can be used.
    """
    folder = Path(os.path.abspath(asked.folder.expanduser()))
    config, prompts, aside = (folder / name for name in (CONFIG, PROMPTS, SET_ASIDE))
    _refuse_what_is_there(folder, files=(config, prompts), overwrites=asked.overwrites)
    choice = choose(place, wanted=_model(asked.model))
    questions = _questions(asked, choice=choice)
    # Of many only the headers are read here; a picture that is damaged behind its header is set aside by the run.
    gathered = gather(asked.images, key="IMAGES", finds_twins=True, most_decoded=_MOST_DECODED, on_looked=on_looked)
    if not gathered.pictures:
        first = gathered.rejections[0] if gathered.rejections else None
        reason = f"; first reason: {first.source}: {first.reason}" if first else " (by the files' names)"
        raise NoDataError(f"IMAGES = {', '.join(asked.images)}: no picture that can be used{reason}")
    images = common_folder(gathered.pictures)
    rows = prompt_rows(gathered.pictures, folder=images, questions=questions, each=asked.each)
    on_cpu = reckon_on_cpu(len(rows)) if choice.is_rehearsal and not place.gpus else None
    notes = _notes(choice, place=place, gathered=gathered, num_prompts=len(rows), questions=questions, on_cpu=on_cpu)
    text = config_text(
        choice,
        folder=folder,
        prompts=prompts,
        images=images,
        num_prompts=len(rows),
        places=asked.images,
        notes=notes,
    )
    with storage_errors(folder):
        make_folder(folder)
    _write(prompts, text=rows_as_text(rows))
    _write(config, text=text)
    if gathered.rejections:
        _write(aside, text=rows_as_text({"source": one.source, "reason": one.reason} for one in gathered.rejections))
    else:
        aside.unlink(missing_ok=True)  # an earlier one's
    load_config(config)  # whatever is wrong with it is ours, and is to be seen now
    return Written(
        config=config,
        prompts=prompts,
        set_aside=aside if gathered.rejections else None,
        num_prompts=len(rows),
        gathered=gathered,
        choice=choice,
        notes=tuple(notes),
    )


def _refuse_what_is_there(folder: Path, *, files: Sequence[Path], overwrites: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"DIR = {str(folder)!r}: it is a file; name a folder")
    there = [path for path in files if path.exists()]
    if there and not overwrites:
        raise ConfigError(
            f"DIR = {str(folder)!r}: {there[0].name} is there already; name another folder, or give --force to write "
            "over it"
        )


def _model(wanted: str | None) -> str | None:
    """The model as the config is to name it: a folder by its absolute path."""
    if wanted is None or wanted in NAMES:
        return wanted
    with named({"policy.model": "--model"}):
        check_policy(wanted)
    folder = os.path.expanduser(wanted)
    return os.path.abspath(folder) if os.path.isdir(folder) else wanted


def _questions(asked: Asked, *, choice: Choice) -> Sequence[str]:
    if any(not question.strip() for question in asked.questions):
        raise ConfigError("--prompt: an empty question; leave it out, or say what is to be asked")
    questions = asked.questions or choice.starter.questions or QUESTIONS
    if asked.each > len(questions):
        raise ConfigError(
            f"--each = {asked.each}: there are {len(questions)} questions to ask; give more of them with "
            "--prompt, or ask fewer"
        )
    return questions


def _write(path: Path, *, text: str) -> None:
    write_atomically(path, write=lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _notes(
    choice: Choice,
    *,
    place: Place,
    gathered: Gathered,
    num_prompts: int,
    questions: Sequence[str],
    on_cpu: OnCpu | None,
) -> list[str]:
    notes = []
    if choice.is_rehearsal:
        notes.append(_what_a_rehearsal_is(questions))
        if not place.gpus:
            notes.append(
                "A CPU can rehearse, and it can evaluate and judge with small models. "
                + (f"{_on_cpu(on_cpu, place=place)} " if on_cpu is not None else "")
                + "On a machine with a GPU of 40 GB or more the same command writes a config for a real model."
            )
    if place.engine == "gpu" and not place.gpus:
        notes.append(
            "The installed engine (vllm) serves on GPUs only, and there is none here: not even the rehearsal runs "
            "before the one for CPUs is installed (make ENGINE=cpu install)."
        )
    if place.engine == "cpu" and place.gpus:
        notes.append(
            "The installed engine is one for CPUs, though there is a GPU: make ENGINE=gpu install before the run."
        )
    if place.engine == "none":
        notes.append("vLLM, the engine, is not installed here: make install before the run.")
    if held_out_share(num_prompts, share=Train().held_out) is None:
        notes.append(
            f"{num_prompts} questions are few: of their pairs none can be held out to find how long to train, so a "
            f"round passes over all of them once. {_how_to_have_more(len(gathered.pictures), len(questions))}"
        )
    if choice.starter.name == QWEN_7B.name:
        num = sum(one.width * one.height > _LARGE_PX for one in gathered.pictures)
        if num:
            notes.append(
                f"{num} of the pictures have more than 1.5 megapixels, for which policy.max_model_len may be too "
                f"short ({QWEN_7B.note}); those are set aside by the run."
            )
    return notes


def _what_a_rehearsal_is(questions: Sequence[str]) -> str:
    words = f"THIS IS A REHEARSAL. {TINY.name} has {TINY.note}"
    if set(questions) <= set(TINY.questions):
        return (
            f"{words}: every step of a run is done with your pictures, in minutes, and what it says about them means "
            "nothing. The questions are those that it knows."
        )
    known = " ".join(TINY.questions)
    return (
        f"{words}, and it knows these questions alone: {known} To others it says next to nothing, so that there may "
        "be nothing to train on."
    )


def _how_to_have_more(num_pictures: int, num_questions: int) -> str:
    needed = math.ceil(LEAST_HELD_OUT / Train().held_out)
    each = math.ceil(needed / num_pictures)
    if each <= num_questions:
        return f"{needed} are enough: more pictures, or --each {each} ({each} questions a picture)."
    return f"{needed} are enough: more pictures help, and more questions about each (--prompt, --each)."


def _on_cpu(on_cpu: OnCpu, *, place: Place) -> str:
    there = place.num_bytes
    words = (
        f"By arithmetic the run of {LLAVA_7B.name} on the {place.cores:g} cores of this machine takes "
        f"{_span(on_cpu.hours)}"
    )
    if on_cpu.num_bytes > there:
        return (
            f"{words}, and {on_cpu.num_bytes / _GIB:.0f} GiB of memory, of which it has {there / _GIB:.0f}: it does "
            "not run here."
        )
    return f"{words} and {on_cpu.num_bytes / _GIB:.0f} GiB of memory."


def _span(hours: float) -> str:
    days = hours / 24
    if days >= 730:
        return f"{days / 365:,.0f} years"
    if days >= 60:
        return f"{days / 30.4:.0f} months"
    return f"{days:.0f} days" if days >= 2 else f"{hours:.0f} hours"


def reckon_on_cpu(num_prompts: int) -> OnCpu | None:
    """What a run of the smallest model for photos would take on this machine's CPUs; takes two seconds.

    None: it is not to be reckoned.
    """
    settings = {name: dict(keys) for name, keys in settings_of(LLAVA_7B).items()}
    settings["cluster"] = {"layout": "cpu"}
    with TemporaryDirectory(prefix="csr-ray-init-") as folder:
        config = Path(folder, CONFIG)
        config.write_text(yaml.safe_dump({"data": {"prompts": "-"}, "run": {"dir": folder}, **settings}))
        planned = make_forecast(str(config), overrides=(), asked=Planned(num_prompts=num_prompts))
    if planned.best.forecast is None:
        return None
    memory = planned.best.choice.memory.values()
    return OnCpu(hours=planned.best.forecast.hours, num_bytes=sum(sum(parts.values()) for parts in memory))


def print_written(written: Written, *, console: Console) -> None:
    """What was found, what was chosen and why, and what to do next."""
    gathered, choice = written.gathered, written.choice
    num, num_aside = len(gathered.pictures), len(gathered.rejections)
    others = f", {gathered.num_others:,} other file{'s' * (gathered.num_others != 1)} passed over"
    others = others if gathered.num_others else ""
    line = f"{num:,} picture{'s' * (num != 1)}, {num_aside:,} set aside{others}"
    console.print(Text(line, style="bold"), soft_wrap=True)
    for one in gathered.rejections[:_MOST_REASONS]:
        console.print(Text(f"  {_reason(one)}"), soft_wrap=True)
    if num_aside > _MOST_REASONS:
        console.print(Text(f"  and {num_aside - _MOST_REASONS:,} more: {written.set_aside}"), soft_wrap=True)
    model = "a tiny model, to rehearse" if choice.is_rehearsal else choice.starter.model
    console.print(Text(f"model: {model}", style="bold"), soft_wrap=True)
    for why in choice.why:
        console.print(Padding(Text(why), _INDENT, expand=False))
    for note in written.notes:
        console.print(Padding(Text(note, style="yellow"), _INDENT, expand=False))
    console.print(Text("written", style="bold"))
    console.print(Text(f"  {written.config}"), soft_wrap=True)
    console.print(Text(f"  {written.prompts}  ({written.num_prompts:,} questions)"), soft_wrap=True)
    config = shlex.quote(_short(written.config))
    run_dir = shlex.quote(_short(written.config.parent / "run"))
    picture = shlex.quote(_short(Path(gathered.pictures[0].path)))
    console.print(Text("next", style="bold"))
    console.print(Text(f"  csr-ray run {config} --dry-run"), soft_wrap=True)
    console.print(Text(f"  csr-ray run {config}"), soft_wrap=True)
    question = shlex.quote(next(iter(choice.starter.questions or QUESTIONS)))
    console.print(Text(f"  csr-ray ask {run_dir} {picture} {question}"), soft_wrap=True)


def _reason(one: Rejection) -> str:
    return f"{one.source}: {one.reason}"


def _short(path: Path) -> str:
    """A path as one would type it here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
