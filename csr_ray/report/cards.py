"""The cards of what a run gives away: the README.md of its model, of its adapters and of its pairs.

A card has the block of metadata that the Hugging Face hub reads, and says for people what the folder is, how it was
made, what was measured with which intervals, how it is loaded and served, and what all this does not show. All of it
comes from the run: summary.json, the config and the quarantine. No path of the machine gets into it, since cards are
read by strangers. Where one is missing it is written again, the same; one that somebody has changed is left alone.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import jinja2
import xxhash
import yaml

from csr_ray.config.load import to_plain
from csr_ray.config.schema import LORA_RANKS, OPERATIONAL, Config
from csr_ray.errors import ConfigError
from csr_ray.methods.base import About, AsksOtherwise, about_of, method_of
from csr_ray.policy.source import is_hub_id
from csr_ray.policy.visual_tokens import merging_classes
from csr_ray.records import JsonDict
from csr_ray.redaction import without_credentials
from csr_ray.report.figures import (
    Compared,
    RoundFigures,
    compared,
    ending,
    headline,
    number,
    percent,
    phase_in_words,
    points,
    round_figures,
    section,
)
from csr_ray.report.page import chair_note
from csr_ray.stages.close import summarise
from csr_ray.stages.publish import SWALLOWED_AT_MOST
from csr_ray.stages.state import RunState
from csr_ray.store.atomic import write_atomically
from csr_ray.store.objects import is_url
from csr_ray.store.run_folder import CARD

# What stands in a card for places that the run cannot know. `csr-ray push` puts the repository for the first one.
THIS_FOLDER: Final = "path/to/this/folder"
THE_BASE: Final = "path/to/the/base/model"
THE_RUN: Final = "path/to/the/run"
NO_LICENSE: Final = "# license: the run knows none; write one of the hub's identifiers here before you publish"

_WORLD: Final = "${world}"
_HUB_DATA: Final = re.compile(r"hf://datasets/([^/@]+/[^/@]+)")
_SEAL: Final = re.compile(r"<!-- written by csr_ray ([0-9a-f]{16}) -->\n\Z")
_SAMPLED: Final = "_t1"
# Key of an evaluation, what it is, and whether more (+1) or less (-1) of it is better.
_SHARES: Final = (
    ("chair_s", "answers that name something which is not in the picture (CHAIR_s)", -1),
    ("chair_i", "named objects that are not in the picture (CHAIR_i)", -1),
    ("recall", "objects of the picture that are named (recall)", 1),
    ("repeat", "answers that repeat themselves", -1),
    ("pope_acc", "yes/no questions answered right (POPE, accuracy)", 1),
    ("pope_f1", "F1 of the yes/no questions (POPE)", 1),
    ("pope_yes_ratio", "yes/no questions answered yes", 0),
)
_COUNTS: Final = (("sentences", "sentences an answer", 0),)
_BETTER: Final = {1: "more is better", -1: "less is better", 0: ""}
# The sections whose keys decide what a run computes; paths in them are cut to their names.
_SETTINGS: Final = ("search", "reward", "pairs", "train", "gate", "eval", "decoding")
_MOST_REASONS: Final = 8
_MOST_REASON_CHARS: Final = 60

Kind = Literal["model", "adapter", "adapters"]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a model card is of.

    Attributes:
        kind: "model": base and adapters merged; "adapter": the LoRA of one phase, which stands on those of the phases
            before it; "adapters": one LoRA that is the sum of all phases' up to this version.
        version: the policy version that this is, or that it makes on top of the ones before. Of a method that trains
            nothing it is 1, as in `RunState.version_after`.
        adapters: names within the run folder of the adapters of all phases up to this version, oldest first.
        rank: of the LoRA that it is; 0: it is none.
        leaves_start_to_tokenizer: see `csr_ray.policy.start_token`; None where that is not known.
    """

    kind: Kind
    version: int
    adapters: tuple[str, ...] = ()
    rank: int = 0
    leaves_start_to_tokenizer: bool | None = None


@dataclass(frozen=True, kw_only=True)
class FigureRow:
    """One figure of the base model and of what the card is of, in words."""

    name: str
    better: str
    before: str
    after: str
    change: str


@dataclass(frozen=True, kw_only=True)
class PhaseRow:
    """What one phase made and how it was trained, in words; empty where the run does not say it."""

    name: str
    prompts: str
    examples: str
    left_out: str
    trained_on: str
    steps: str
    learning_rate: str
    ended: str
    held_out: str
    checked: str


def write_cards(state: RunState, *, has_model: bool, config: Config) -> None:
    """Write the card of the adapter of every phase whose round is closed, and of the model.

    A card that somebody has changed is left as it is.

    Args:
        has_model: the model is that of the run's last policy, and so is the LoRA of all phases, if there is one.
        config: as the user gave it, which names the embedded world by `${world}` and not by a path.

    Raises:
        StorageError: a card cannot be written.
    """
    from csr_ray.policy.source import local_folder
    from csr_ray.policy.start_token import leaves_start_to_tokenizer

    summary = summarise(state)
    root = state.folder.root
    trained = [Path(adapter).relative_to(root).as_posix() for adapter in state.adapters]
    # Both have the same tokenizer; a run that is only looked at again has not settled where its base is.
    start = leaves_start_to_tokenizer(state.folder.model if has_model else local_folder(state.model))
    rank = config.train.lora_rank
    subjects: list[tuple[Path, Subject]] = []
    closed = max((number(entry.get("policy_version")) or 0 for entry in summary["rounds"]), default=0)
    for version, name in enumerate(trained, start=1):
        if has_model or version <= closed:  # else figures may still come
            of = Subject(
                kind="adapter",
                version=version,
                adapters=tuple(trained[:version]),
                rank=rank,
                leaves_start_to_tokenizer=start,
            )
            subjects.append((root / name, of))
    if has_model:
        num = min(len(trained), state.version_after(state.config.run.rounds - 1))
        of = Subject(
            kind="model",
            version=1 if state.is_training_free else num,
            adapters=tuple(trained[:num]),
            leaves_start_to_tokenizer=start,
        )
        subjects.append((state.folder.model, of))
        subjects.append((state.folder.adapter_of_all, replace(of, kind="adapters", rank=rank * num)))
    aside = set_aside(state.folder.quarantine)
    for folder, of in subjects:
        if folder.is_dir():
            text = model_card(summary, config=config, run_name=state.folder.title, of=of, aside=aside)
            write_card(folder / CARD, text=text)


def write_card(path: Path, *, text: str) -> None:
    """Write a card, unless there is one that somebody has changed, or that says the same already."""
    known = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None
    if known is None or (known != text and is_as_written(known)):
        write_atomically(path, write=lambda temporary: temporary.write_text(text, encoding="utf-8"))


def sealed(text: str) -> str:
    """A card with the line at its end by which `is_as_written` knows it."""
    return f"{text.rstrip()}\n\n<!-- written by csr_ray {xxhash.xxh3_64_hexdigest(text.rstrip().encode())} -->\n"


def is_as_written(text: str) -> bool:
    """Whether a card is as this program wrote it, and nobody has changed it since."""
    found = _SEAL.search(text)
    body = text[: found.start()].rstrip() if found else ""
    return found is not None and xxhash.xxh3_64_hexdigest(body.encode()) == found[1]


def set_aside(quarantine: Path) -> dict[str, int]:
    """How many inputs a run has set aside, by reason, most first; names of files are taken out of the reasons."""
    counts: Counter[str] = Counter()
    if quarantine.is_file():
        with quarantine.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                try:
                    counts[_general(json.loads(line)["reason"])] += 1
                except (ValueError, KeyError, TypeError, RecursionError):
                    counts["a line that cannot be read"] += 1
    ranked = counts.most_common()
    kept = dict(ranked[:_MOST_REASONS])
    if rest := sum(num for _, num in ranked[_MOST_REASONS:]):
        kept["other reasons"] = rest
    return kept


def model_card(
    summary: Mapping[str, Any], *, config: Config, run_name: str, of: Subject, aside: Mapping[str, int]
) -> str:
    """The card of a model or an adapter, as one text.

    Args:
        summary: the content of summary.json.
        config: as the user gave it (config.yaml).
        aside: see `set_aside`; only a card of the whole run speaks of them.
    """
    entries = _rounds_up_to(summary, version=of.version)
    base, row = _measured(summary, version=of.version)
    figures = [] if row is None else _figure_rows(base, row=row)
    hub_base = hub_id_of(config)
    methods = methods_in(config, entries=entries)
    index = _round_of(summary, version=of.version)
    text = card_template("model_card.md.j2").render(
        header=header_of(_metadata(config, of=of, methods=methods, run_name=run_name, base=base, row=row)),
        of=of,
        title=_title(config, of=of, run_name=run_name, index=index, num_rounds=len(entries)),
        base=base_in_words(config, summary=summary),
        base_id=hub_base or THE_BASE,
        is_hub_base=hub_base is not None,
        world=_world_command(config),
        this_folder=THIS_FOLDER,
        the_run=THE_RUN,
        round_number=None if index is None else index + 1,
        num_rounds=len(entries),
        methods=methods,
        headline="" if row is None else headline([base, *_rows_to(entries, last=row)], is_over=True),
        figures=figures,
        num_images=None if row is None else number(row.eval.get("num_images")),
        has_chair=row is not None and "chair_s" in row.eval,
        benchmarks=_benchmarks_in_words(config),
        chair=chair_note(section(summary, key="chair")),
        ways=_ways_to_ask(config),
        asked=_asked(config),
        phases=phase_rows(entries),
        imitates=any(known.imitates for known in round_figures({"rounds": entries})[1:]),
        aside=aside if of.kind != "adapter" else {},
        facts=facts_in(config),
        settings=settings_in(config),
        scorer=_scorer(config),
        seed=config.run.seed,
        dtype=config.policy.dtype,
        max_tokens=config.eval.max_tokens,
        merges=_merging_flag(config),
        visual_tokens=config.policy.visual_tokens,
        lora_rank=next((rank for rank in LORA_RANKS if rank >= of.rank), None),
        kept=_kept(summary, version=of.version),
        ended=ending(summary) if of.kind != "adapter" else "",
        is_world=config.policy.model.startswith(_WORLD),
        versions=section(summary, key="versions"),
    )
    return sealed(text)


def base_in_words(config: Config, *, summary: Mapping[str, Any]) -> str:
    """What a card calls the base model: a hub id with its revision, or a name without the folders before it."""
    model = config.policy.model
    if model.startswith(_WORLD):
        return (
            f"the tiny LLaVA of csr_ray's embedded world (variant {config.world.variant}, seed {config.world.seed})"
        )
    if hub_id_of(config) is not None:
        revision = section(summary, key="policy").get("revision")
        at = f" at revision `{revision}`" if revision else ""
        return f"[{model}](https://huggingface.co/{model}){at}"
    return f"`{_name_of(model)}` ({'a model at a URL' if is_url(model) else 'a local model folder'})"


def hub_id_of(config: Config) -> str | None:
    """The hub's id of the base model, by which anybody can find it; None of a folder or a URL."""
    model = config.policy.model
    return model if is_hub_id(model) and not model.startswith(_WORLD) else None


# ---- what was measured ----


def _measured(summary: Mapping[str, Any], *, version: int) -> tuple[RoundFigures, RoundFigures | None]:
    """The figures of the base, and of a policy version; None where that one was not evaluated."""
    base = round_figures({"base": section(summary, key="base")})[0]
    ended = section(summary, key="ended")
    known = [*rounds_in(summary), *([{**ended, "policy_version": ended.get("version")}] if ended else [])]
    entry = next((one for one in known if number(one.get("policy_version")) == version and one.get("eval")), None)
    if entry is None or version == 0:
        return base, None
    return base, round_figures({"rounds": [entry]})[1]


def _rows_to(entries: Sequence[Mapping[str, Any]], *, last: RoundFigures) -> list[RoundFigures]:
    """The rounds up to a version, of which the last one is `last`: it may have been measured once more."""
    return [*(row for row in round_figures({"rounds": list(entries)})[1:] if row.index != last.index), last]


def _figure_rows(base: RoundFigures, *, row: RoundFigures) -> list[FigureRow]:
    rows = []
    for key, name, better, is_share in _named_figures([base, row]):
        both = compared(base, row=row, key=key)
        if both.after is None:
            continue
        # The base's own interval is of all of its images, and not of those that both were asked about.
        ends = base.intervals.get(key) if both.num_images is None else None
        rows.append(
            FigureRow(
                name=name + both.of,
                better=_BETTER[better],
                before=_with_ends(both.before, ends, is_share=is_share),
                after=_with_ends(both.after, row.intervals.get(key), is_share=is_share),
                change=_change_in_words(both, is_share=is_share),
            )
        )
    return rows


def _named_figures(rows: Sequence[RoundFigures]) -> Iterator[tuple[str, str, int, bool]]:
    """Of each figure that any row has: its key, its name, whether more is better, and whether it is a share."""
    known = dict.fromkeys(key for row in rows for key in row.eval)
    plain = [(key, name, better, True) for key, name, better in _SHARES]
    plain += [(key, name, better, False) for key, name, better in _COUNTS]
    for key, name, better, is_share in plain:
        if key in known:
            yield key, name, better, is_share
        if key + _SAMPLED in known:
            yield key + _SAMPLED, f"{name}, sampled at temperature 1", better, is_share
    for key in known:
        split = re.fullmatch(r"pope_(acc|f1)_(?!of_)(\w+)", key)
        if split and not key.endswith(_SAMPLED):
            measure = {"acc": "accuracy", "f1": "F1"}[split[1]]
            yield key, f"POPE, {split[2]} questions, {measure}", 1, True
        elif key.startswith("pope_mean_f1_of_"):
            yield key, "POPE, mean F1 of its splits", 1, True


def _with_ends(value: float | None, ends: tuple[float, float] | None, *, is_share: bool) -> str:
    if value is None:
        return "–"
    shown = percent(value) if is_share else f"{value:.2f}"
    if ends is None:
        return shown
    low, high = (f"{100 * end:.1f}" if is_share else f"{end:.2f}" for end in ends)
    return f"{shown} ({low} to {high})"


def _change_in_words(both: Compared, *, is_share: bool) -> str:
    change = both.change
    if change is None:
        return "–"
    if change.difference == change.low == change.high == 0:
        return "none"

    def shown(value: float) -> str:
        return points(value) if is_share else f"{value:+.2f}".replace("-", "−")

    words = f"{shown(change.difference)}{' points' if is_share else ''} ({shown(change.low)} to {shown(change.high)})"
    return words if change.is_beyond_chance else f"{words}, within chance"


def _kept(summary: Mapping[str, Any], *, version: int) -> float | None:
    """The share of the update that rounding left, where that is so little that it has to be said."""
    for entry in _rounds_up_to(summary, version=version)[-1:]:
        published = section(entry, key="publish")
        swallowed, kept = number(published.get("swallowed")), number(published.get("kept"))
        if swallowed is not None and kept is not None and swallowed > SWALLOWED_AT_MOST:
            return kept
    return None


# ---- what was done ----


def rounds_in(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The closed rounds of a summary."""
    rounds = summary.get("rounds")
    return [entry for entry in rounds if isinstance(entry, Mapping)] if isinstance(rounds, list) else []


def _rounds_up_to(summary: Mapping[str, Any], *, version: int) -> list[Mapping[str, Any]]:
    """The rounds whose phases made this version, the one that it is in the middle of included."""
    found = []
    for entry in rounds_in(summary):
        found.append(entry)
        if (number(entry.get("policy_version")) or 0) >= version:
            break
    return found if version else []


def _round_of(summary: Mapping[str, Any], *, version: int) -> int | None:
    """The round in which a version was made; None of the base, and of one that is in no closed round."""
    for entry in rounds_in(summary):
        index, made = number(entry.get("round")), number(entry.get("policy_version"))
        if index is not None and made is not None and 0 < version <= made:
            return int(index)
    return None


def methods_in(config: Config, *, entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, About]]:
    """Every method that had a turn, with what it says of itself."""
    named = dict.fromkeys(str(entry["method"]) for entry in entries if entry.get("method"))
    names = list(named) or [config.method_of_round(0)]
    unknown = About(title="", source="", rollouts="", objective="")
    found = []
    for name in names:
        try:
            about = about_of(name)
        except ModuleNotFoundError:  # of another version of this program
            about = None
        found.append((name, about or unknown))
    return found


def phase_rows(entries: Sequence[Mapping[str, Any]]) -> list[PhaseRow]:
    """A row of each phase of these rounds of a summary."""
    rows = []
    for position, entry in enumerate(entries):
        index = number(entry.get("round"))
        phases = entry.get("phases")
        for phase in phases if isinstance(phases, list) and phases else [entry]:
            if isinstance(phase, Mapping):
                name = f"{(position if index is None else int(index)) + 1}{phase_in_words(phase.get('phase'))}"
                rows.append(_phase_row(name, phase))
    return rows


def _phase_row(name: str, phase: Mapping[str, Any]) -> PhaseRow:
    rollout, made, train = (section(phase, key=key) for key in ("rollout", "pairs", "train"))
    dose = section(train, key="dose")
    dropped = [(str(reason), number(num) or 0) for reason, num in section(made, key="dropped").items()]
    failed = number(rollout.get("failed")) or 0
    left_out = [
        (reason.replace("_", " ") if reason.isidentifier() else reason, num) for reason, num in dropped if num
    ]
    left_out += [("set aside", failed)] if failed else []
    rate = number(dose.get("learning_rate"))
    if rate is None:
        rate = number(section(train, key="metrics").get("learning_rate"))
    looks = dose.get("looks")
    best = number(dose.get("best_step"))
    taken = next(
        (look for look in (looks if isinstance(looks, list) else []) if number(look.get("step")) == best), None
    )
    verdicts = train.get("verdicts")
    judged = [one for one in (verdicts if isinstance(verdicts, list) else []) if isinstance(one, Mapping)]
    return PhaseRow(
        name=name,
        prompts=_count(rollout.get("prompts")),
        examples=_count(made.get("made")),
        left_out=", ".join(f"{num:,.0f} {reason}" for reason, num in left_out),
        trained_on=_count(train.get("pairs")),
        steps=_count(train.get("steps")),
        learning_rate="" if rate is None else f"{rate:.2g}",
        ended=str(dose.get("reason") or ""),
        held_out="" if taken is None else _held_out(taken),
        checked=_verdict_in_words(judged),
    )


def _held_out(look: Mapping[str, Any]) -> str:
    accuracy, num = number(look.get("accuracy")), number(look.get("num_pairs"))
    return "" if accuracy is None or num is None else f"{percent(accuracy)} of {num:,.0f}"


def _verdict_in_words(verdicts: Sequence[Mapping[str, Any]]) -> str:
    if not verdicts:
        return ""
    refused = sum(verdict.get("accepted") is not True for verdict in verdicts)
    return "passed" if not refused else f"passed after {refused} refused" if refused < len(verdicts) else "refused"


def _count(value: object) -> str:
    found = number(value)
    return "" if found is None else f"{found:,.0f}"


def facts_in(config: Config) -> list[tuple[str, str]]:
    """What the card says of a run in a few words each, by name."""
    train = config.train
    named = [
        ("image-text scorer", _scorer(config) or None),
        ("judge", None if config.judge is None else f"`{_model_name(config.judge.model)}`"),
        ("prompts", f"`{_name_of(config.data.prompts)}`"),
        ("LoRA", f"rank {train.lora_rank}, alpha {train.lora_alpha}, on {', '.join(train.lora_targets)}"),
        ("objective", f"`{train.objective}`, beta {train.beta:g}"),
        ("precision", f"{config.policy.dtype} served, {train.dtype} trained"),
        ("tokens of a picture", None if (kept := config.policy.visual_tokens) is None else f"{kept} kept"),
        ("seed", str(config.run.seed)),
    ]
    return [(name, value) for name, value in named if value is not None]


def _scorer(config: Config) -> str:
    """What a card calls the image-text model; empty without one."""
    if config.scorer is None:
        return ""
    model = config.scorer.model
    return "the tiny CLIP of csr_ray's embedded world" if model.startswith(_WORLD) else f"`{_model_name(model)}`"


def settings_in(config: Config) -> str:
    """The keys that decide what was computed, as YAML; how the run was carried out is left out, and so are paths."""
    plain = to_plain(config)
    own = [name for name in plain if name in (config.method, *(one.method for one in config.of_each_method))]
    tree: JsonDict = {"method": plain["method"]}
    for name in (*_SETTINGS, *own):
        if not isinstance(plain.get(name), dict):
            continue
        fields = type(getattr(config, name)).model_fields if hasattr(config, name) else {}
        kept = {
            key: _without_paths(value)
            for key, value in plain[name].items()
            if key not in fields or fields[key].json_schema_extra != OPERATIONAL
        }
        if kept:
            tree[name] = kept
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=100).rstrip()


def _without_paths(value: Any) -> Any:
    if isinstance(value, str):
        return _name_of(value) if "/" in value else value
    if isinstance(value, list):
        return [_without_paths(one) for one in value]
    if isinstance(value, dict):
        return {key: _without_paths(one) for key, one in value.items()}
    return value


def _ways_to_ask(config: Config) -> str:
    ways = []
    if config.decoding.kind != "plain":
        ways.append(f"decoded by `decoding.kind: {config.decoding.kind}`")
    if config.eval.ask != "plain":
        ways.append(f"asked with `eval.ask: {config.eval.ask}`")
    return " and ".join(ways)


def _asked(config: Config) -> str:
    """How the method asks a trained policy the question "QUESTION"; empty: as it is."""
    try:
        method = method_of(config)
    except (ConfigError, OSError):  # a file that it names is not on this machine
        return ""
    if not isinstance(method, AsksOtherwise):
        return ""
    asked = method.asked("QUESTION")
    return "" if asked == "QUESTION" else asked


def _benchmarks_in_words(config: Config) -> str:
    names = {
        "world": f"held-out scenes of csr_ray's embedded world (variant {config.world.variant})",
        "pope": "POPE",
        "chair": "CHAIR",
    }
    return " and ".join(names[name] for name in config.eval.benchmarks)


def _world_command(config: Config) -> str:
    """The command that makes the base model again; empty unless it is the embedded world's."""
    if not config.policy.model.startswith(_WORLD):
        return ""
    world = config.world
    flags = [f"--variant {world.variant}", f"--seed {world.seed}"]
    flags += [f"--clip-steps {world.clip_steps}"] if world.clip_steps is not None else []
    flags += ["--quick"] if world.quick else []
    return f"csr-ray world build DIR {' '.join(flags)}"


def _merging_flag(config: Config) -> str:
    """vLLM's flag for a model that keeps a part of a picture's tokens; empty for any other."""
    classes = merging_classes(config.policy.visual_tokens)
    return f" --model-class-overrides '{json.dumps(classes)}'" if classes else ""


# ---- names and reasons ----


def _name_of(place: str) -> str:
    """The last part of a path or URL, without what may be a secret."""
    return without_credentials(place).rstrip("/").rsplit("/", 1)[-1]


def _model_name(model: str) -> str:
    """What a model is called: a name of a hub or a library as it is, of a path or URL the last part."""
    is_path = "://" in model or model.startswith(("/", ".", "~", _WORLD)) or Path(model).exists()
    return _name_of(model) if is_path or model.count("/") > 1 else model


def _general(reason: object) -> str:
    """A reason of the quarantine without the name of the input, and without its numbers."""
    text = re.sub(r"^image \S.*?: ", "", str(reason))
    text = re.split(r"[:;(]", text, maxsplit=1)[0]
    text = re.sub(r"\d[\d,.]*", "n", text).strip()
    is_a_name = "/" in text or re.search(r"\w\.\w", text) is not None
    return text if text and not is_a_name and len(text) <= _MOST_REASON_CHARS else "other reasons"


# ---- the block of metadata ----


def _metadata(
    config: Config,
    *,
    of: Subject,
    methods: Sequence[tuple[str, About]],
    run_name: str,
    base: RoundFigures,
    row: RoundFigures | None,
) -> JsonDict:
    is_adapter = of.kind != "model"
    header: JsonDict = {}
    if (hub_base := hub_id_of(config)) is not None:
        header["base_model"] = hub_base
        header["base_model_relation"] = "adapter" if is_adapter else "finetune"
    header["library_name"] = "peft" if is_adapter else "transformers"
    header["pipeline_tag"] = "image-text-to-text"
    header["tags"] = list(
        dict.fromkeys(
            ["csr_ray", *(name for name, _ in methods), "vision-language", *(["lora"] if is_adapter else [])]
        )
    )
    if found := _HUB_DATA.match(config.data.prompts):
        header["datasets"] = [found[1]]
    if row is not None and (metrics := _metrics(base, row=row)):
        header["model-index"] = [
            {
                "name": run_name,
                "results": [
                    {
                        "task": {"type": "image-text-to-text"},
                        "dataset": {
                            "name": _benchmarks_in_words(config) or "held-out questions",
                            "type": "-".join(config.eval.benchmarks) or "held-out",
                        },
                        "metrics": metrics,
                    }
                ],
            }
        ]
    return header


def _metrics(base: RoundFigures, *, row: RoundFigures) -> list[JsonDict]:
    """The figures as fractions and counts, each with its 95 % interval where the run has it."""
    metrics = []
    for key, name, _, _ in _named_figures([base, row]):
        if (value := row.eval.get(key)) is None:
            continue
        metric: JsonDict = {"type": key, "name": name, "value": round(value, 6)}
        if (ends := row.intervals.get(key)) is not None:
            metric["args"] = {"interval_95": [round(end, 6) for end in ends]}
        metrics.append(metric)
    return metrics


def header_of(metadata: JsonDict) -> str:
    """The block of metadata at the top of a card, with a line that says where the license goes."""
    text = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True, width=10_000)
    return f"---\n{NO_LICENSE}\n{text}---"


def _title(config: Config, *, of: Subject, run_name: str, index: int | None, num_rounds: int) -> str:
    after = f"{num_rounds} round{'' if num_rounds == 1 else 's'}"
    if of.kind == "model":
        return f"{run_name}: the model after {after}" if of.version else f"{run_name}: the base model"
    if of.kind == "adapters":
        return f"{run_name}: {after} as one LoRA"
    where = f"phase {of.version}" if index is None else f"round {index + 1}"
    return f"{run_name}: the LoRA of {where}"


def card_template(name: str) -> jinja2.Template:
    """A template of this folder, with the filter `plain`; it is Markdown, so nothing is escaped but by that."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("csr_ray.report", "."),
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["plain"] = plain_text
    return environment.get_template(name)


def plain_text(text: object) -> str:
    """Words of the data as Markdown shows them as they are: on one line, in a cell of a table, and without markup."""
    line = " ".join(str(text).split())
    return re.sub(r"([\\`*_{}\[\]<>#|])", r"\\\1", line)
