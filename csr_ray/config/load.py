"""Reads a config: YAML, presets, `key.sub=value` overrides; and says in one line what is wrong with it.

`ConfigError` names the key, the value and what is allowed. Imports no heavy library and touches no file but the YAML
itself; paths are checked by `csr_ray.app.inputs`. What keys there are is `csr_ray.config.schema`.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args

import yaml
from pydantic import ValidationError

from csr_ray import __version__
from csr_ray.config.schema import Config, Decoding, Judge, MethodRounds, Section
from csr_ray.errors import ConfigError
from csr_ray.redaction import has_credentials, without_credentials

if TYPE_CHECKING:
    from rich.console import Console

# What a preset sets unless the user sets the key too. Sources: the paper (section 3.1, framework figure, appendix)
# and the released code (sample.py, score.py, construct.py); `default` is this project's own measurement.
# docs/reward.md has them side by side.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    "paper": {
        "search": {
            "expand": "diverse_greedy",
            "width": 5,
            "keep_worst": 2,
            "max_sentence_tokens": 74,
            "max_answer_tokens": 1024,
            "refuse_repeats": False,
        },
        "reward": {"weight": 0.9, "self_score": "product", "aggregate": "sum", "image_unit": "points"},
    },
    "reference": {
        "search": {
            "expand": "diverse_greedy",
            "width": 3,
            "keep_worst": 2,
            "keep_all_up_to": 4,
            "guide": "self_score",
            "sentence_end": "period_token",
            "eos": "continue",
            "merge_equal": False,
            "refuse_repeats": False,
            "max_sentences": 1024,
            "max_sentence_tokens": 70,
            "max_answer_tokens": 4096,
            "max_chars": 1024,
        },
        "reward": {
            "weight": 0.9,
            "self_score": "mean_logp",
            "count_penalty": True,
            "floor_image": False,
            "image_unit": "points",
            "blend": "sibling_ranks",
            "aggregate": "mean_with_root",
            "cleaning": "released",
        },
        "pairs": {"min_margin": None},
    },
}


# Besides its own errors PyYAML lets those of Python's constructors escape: the 99th of May, a list for a key. A text
# of a thousand opening brackets is too deep for its recursion.
YAML_ERRORS: Final = (yaml.YAMLError, ValueError, TypeError, AttributeError, OverflowError, RecursionError)

_KEY_TABLE_WIDTH: Final = 100
_MOST_VALUES: Final = 100_000
_MOST_LEVELS: Final = 20
_METHOD_KEYS: Final = "method_keys"
# Of `Config`, but no keys of a config: what `method` and the methods' own sections are read into.
_NO_KEYS: Final = (_METHOD_KEYS, "sequence")
_NO_METHODS: Final = ("__init__", "base", "sequence")


class _Loader(yaml.SafeLoader):
    """SafeLoader that also reads 5e-4 as a number (YAML 1.1 wants 5.0e-4) and keeps off/on/yes/no as booleans."""


def _unique_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping whose keys are unique: the second of two equal keys would silently win."""
    keys = [key.value for key, _ in node.value]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise yaml.constructor.ConstructorError(None, None, f"key {twice!r} is given twice", node.start_mark)
    loader.flatten_mapping(node)
    return {
        loader.construct_object(key, deep=True): loader.construct_object(value, deep=True)
        for key, value in node.value
    }


_Loader.add_constructor("tag:yaml.org,2002:map", _unique_mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$"),
    list("-+0123456789"),
)


def load_config(
    source: Path | str | Mapping[str, Any] | Config, *, overrides: Sequence[str] | Mapping[str, Any] = ()
) -> Config:
    """Read a config, apply overrides, fill the preset's values, validate.

    Args:
        source: path of a YAML file; or sections with their keys, as they stand in such a file; or a config.
        overrides: single keys, each as `key.sub=value` with the value in YAML; or as a mapping of dotted keys, or of
            sections, to values.

    Raises:
        ConfigError: the file is missing or not YAML, or a key or value is wrong; one line.
    """
    if isinstance(source, Config):
        tree = to_plain(source)
    elif isinstance(source, Mapping):
        tree = _plain(source)
    else:
        tree = _read_sections(Path(source))
    if isinstance(overrides, Mapping):
        _override_keys(tree, values=_plain(overrides))
    else:
        for override in overrides:
            _apply_override(tree, override=override)
    return parse_config(tree)


def load_config_of_run(path: Path) -> Config:
    """Read the `config.yaml` that a run has kept, which this version of the program may not have written.

    Raises:
        ConfigError: as `load_config`; says whose config that is, since a user should not mend what a run wrote.
    """
    try:
        return load_config(path)
    except ConfigError as error:
        raise ConfigError(
            f"{path}: csr_ray {__version__} would not write that; if another version has, use that one for this run "
            f"(csr-ray report and csr-ray watch read what they can): {error}"
        ) from None


def _read_sections(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise ConfigError(f"config {path}: a folder; name the YAML file in it (of a run: {path / 'config.yaml'})")
    if not path.is_file():
        hint = "; the config's file comes before what overrides it" if "=" in path.name else ""
        raise ConfigError(f"config {path}: no such file{hint}")
    try:
        tree = _read_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"config {path}: not YAML: {error}") from error
    except OSError as error:
        raise ConfigError(f"config {path}: cannot be read: {error.strerror}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"config {path}: expected sections (run, data, policy, ...), found {type(tree).__name__}")
    return tree


def _plain(value: Any) -> Any:
    """Values of a program as a YAML file would have them: no paths, tuples or mappings of other types."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _read_yaml(text: str) -> Any:
    """The plain values of a YAML text; whatever is wrong with it is a ValueError of one line."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader subclass: plain values only
    except YAML_ERRORS as error:
        raise ValueError(" ".join(str(error).split())[:500] or type(error).__name__) from error


def parse_config(tree: dict[str, Any]) -> Config:
    """Validate a tree of plain values. Raises ConfigError with one line."""
    _refuse_bombs(tree)
    _refuse_credentials(tree)
    tree = _with_methods(_with_preset(tree))
    try:
        return Config.model_validate(_lists_to_tuples(tree))
    except ValidationError as error:
        raise ConfigError(_one_line(error, section=Config)) from None


def parse_judge(tree: dict[str, Any], *, settings: Sequence[str] = ()) -> Judge:
    """Validate the keys of a judge.

    Args:
        settings: further keys, each as key=value.

    Raises:
        ConfigError: one line, in which a key is called judge.KEY. A value that may be a secret is not repeated.
    """
    tree = {**tree, **parse_settings("judge", settings=settings)}
    try:
        return Judge.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error":
            raise ConfigError(f"judge.{str(first['msg']).removeprefix('Value error, ')}") from None
        raise ConfigError(_one_line(error, section=Judge, prefix="judge.")) from None


def parse_settings(section: str, *, settings: Sequence[str]) -> dict[str, Any]:
    """The keys of a section, each given as key=value, with their values read as YAML but not validated.

    Raises:
        ConfigError: one line, in which a key is called SECTION.KEY. A value that may be a secret is not repeated.
    """
    sections: dict[str, type[Section]] = {"judge": Judge, "decoding": Decoding}
    fields = sections[section].model_fields
    tree = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key not in fields:
            raise ConfigError(f"{section}.{key}: expected key=value with a key out of {', '.join(fields)}")
        try:
            tree[key] = _read_yaml(value)
        except ValueError as error:
            raise ConfigError(f"{section}.{key}: value is not YAML: {error}") from error
    return tree


def to_plain(config: Config) -> dict[str, Any]:
    """The config as plain values, for YAML and for comparing two runs."""
    plain = config.model_dump(mode="json")
    for key in _NO_KEYS:
        plain.pop(key)
    if config.sequence:
        plain["method"] = [turn.name if turn.rounds is None else {turn.name: turn.rounds} for turn in config.sequence]
    for one in config.of_each_method:
        if keys := one.method_keys.model_dump(mode="json"):
            plain[one.method] = keys
    return plain


def method_names() -> list[str]:
    """Every method there is: a method is added by adding its file."""
    folder = Path(__file__).parent.parent / "methods"
    return sorted(path.stem for path in folder.glob("*.py") if path.stem not in _NO_METHODS)


def names_of_methods(method: object) -> list[str]:
    """The names in a plain config's value of `method`: one, or several in turn; none in what is no such value."""
    turns = method if isinstance(method, list) else [method]
    named = [next(iter(turn)) if isinstance(turn, dict) and turn else turn for turn in turns]
    return [name for name in named if isinstance(name, str)]


def method_section(method: str) -> type[Section]:
    """The class of the method's own keys. It is found by its name, because nothing but its file lists a method."""
    section: type[Section] = getattr(importlib.import_module(f"csr_ray.methods.{method}"), "Keys", Section)
    return section


def sections() -> Iterator[tuple[str, type[Section]]]:
    """Every section of a config by its name: those that all runs share in the schema's order, then those of methods.

    `method` is the one key that stands in no section. A method without keys of its own has no section.
    """
    for name, field in Config.model_fields.items():
        if name not in _NO_KEYS and (section := _section_of(field.annotation)) is not None:
            yield name, section
    for method in method_names():
        if (section := method_section(method)).model_fields:
            yield method, section


def _refuse_bombs(tree: Any) -> None:
    """YAML's aliases name one value many times, and a value that holds itself: small texts, endless trees."""
    num_left, level = _MOST_VALUES, [tree]
    for _ in range(_MOST_LEVELS):
        level = [
            item
            for value in level
            if isinstance(value, (dict, list, tuple))
            for item in (value.values() if isinstance(value, dict) else value)
        ]
        num_left -= len(level)
        if not level:
            return
        if num_left < 0:
            break
    raise ConfigError(
        f"config: more than {_MOST_VALUES} values, or values {_MOST_LEVELS} deep; write it without aliases (&, *)"
    )


def _refuse_credentials(value: Any, *, key: str = "") -> None:
    """The run folder keeps the config, and a run folder is shown to others."""
    if isinstance(value, dict):
        for name, item in value.items():
            _refuse_credentials(item, key=f"{key}.{name}" if key else str(name))
    elif isinstance(value, (list, tuple)):
        for item in value:
            _refuse_credentials(item, key=key)
    elif isinstance(value, str) and has_credentials(value):
        raise ConfigError(
            f"{key} = {without_credentials(value)!r}: a password, key or signature in a URL would stand in the run "
            "folder and in logs; give it to the machine (environment variables, or the store's own config file)"
        )


def _with_methods(tree: dict[str, Any]) -> dict[str, Any]:
    """The tree with what `method` and the sections of methods say as `Config` holds it."""
    tree = dict(tree)
    turns = _turns(tree.get("method", Config.model_fields["method"].default))
    names = [name for name, _ in turns]
    method = ", ".join(names)
    for other in method_names():
        if other not in names and other in tree:
            raise ConfigError(
                f"{other}: a section of method {other}, but method = {method}; leave it out, or set method={other}"
            )
    for key in _NO_KEYS:
        if key in tree:
            raise ConfigError(f"{key}: unknown key; the keys of a method stand in the section {names[0]}")
    keys = {name: _method_keys(name, given=tree.pop(name, None)) for name in dict.fromkeys(names)}
    tree["method"] = method
    if len(turns) == 1:
        tree[_METHOD_KEYS] = keys[method]
    else:
        # Of the last one's own number only the sum below takes notice: it has all rounds that are left.
        rounds = [num for _, num in turns[:-1]] + [None]
        tree["sequence"] = tuple(
            MethodRounds(name=name, rounds=num, keys=keys[name]) for name, num in zip(names, rounds, strict=True)
        )
    if any(num is not None for _, num in turns) and isinstance(tree.setdefault("run", {}), dict):
        tree["run"] = {"rounds": sum(num or 1 for _, num in turns), **tree["run"]}
    return tree


def _turns(given: Any) -> list[tuple[str, int | None]]:
    """The methods of a config in their order, and for how many rounds each; None: nothing is said of rounds.

    A name in a list of several has one round.
    """
    if not isinstance(given, list):
        return [(_known_method(given, given=given), None)]
    if not given:
        raise ConfigError("method = []: name at least one method, as in [sima, csr]")
    turns: list[tuple[str, int | None]] = []
    for turn in given:
        if not isinstance(turn, dict):
            turns.append((_known_method(turn, given=given), 1 if len(given) > 1 else None))
            continue
        if len(turn) != 1:
            raise ConfigError(f"method = {given!r}: {turn!r} is no method; write [{{sima: 1}}, {{csr: 2}}]")
        ((name, num),) = turn.items()
        if not isinstance(num, int) or isinstance(num, bool) or num < 1:
            raise ConfigError(f"method = {given!r}: {name} has {num!r} rounds; a whole number from 1 on is allowed")
        turns.append((_known_method(name, given=given), num))
    return turns


def _known_method(name: Any, *, given: Any) -> str:
    if isinstance(name, str) and name in method_names():
        return name
    what = "unknown" if name is given else f"{name!r} is unknown"
    raise ConfigError(f"method = {given!r}: {what}; allowed: {', '.join(map(repr, method_names()))}")


def _method_keys(method: str, *, given: Any) -> Section:
    section = method_section(method)
    try:
        return section.model_validate(_lists_to_tuples({} if given is None else given))
    except ValidationError as error:
        raise ConfigError(_one_line(error, section=section, prefix=f"{method}.")) from None


def differing_keys(left: dict[str, Any], right: dict[str, Any], *, prefix: str = "") -> list[str]:
    """Dotted keys whose values differ between two plain configs, as `key: left != right`."""
    rows: list[str] = []
    for key in sorted(set(left) | set(right)):
        a, b, name = left.get(key), right.get(key), f"{prefix}{key}"
        if isinstance(a, dict) and isinstance(b, dict):
            rows += differing_keys(a, b, prefix=f"{name}.")
        elif a != b:
            rows.append(f"{name}: {a!r} != {b!r}")
    return rows


def settings_that_differ(kept: dict[str, Any], *, config: Config) -> list[str]:
    """Where the plain config that a run was begun with says otherwise than `config`, as `key: kept != now`.

    Keys that may change under way are left out. A key younger than the run counts as set to its default, since a new
    key changes nothing before it is set.
    """
    rows = differing_keys(with_younger_keys(kept), to_plain(config))
    return [row for row in rows if not is_operational(row.split(":", 1)[0])]


def with_younger_keys(kept: dict[str, Any]) -> dict[str, Any]:
    """A plain config that was kept, with its defaults for keys that were not there then."""
    try:
        return to_plain(parse_config(kept))
    except ConfigError:
        return kept  # a key of then is there no more; a comparison tells which


def is_operational(key: str) -> bool:
    """Whether a dotted key may have another value when a run is started again; each is marked in the schema.

    A key that the schema does not know, such as a method's own or one of an earlier version, is not operational.
    """
    *sections, name = key.split(".")
    section: type[Section] = Config
    for part in sections:
        field = section.model_fields.get(part)
        inner = _section_of(field.annotation) if field is not None else None
        if inner is None:
            return False
        section = inner
    return name in section.model_fields and _is_marked(section, key=name)


def _is_marked(section: type[Section], *, key: str) -> bool:
    marks = [section.model_config.get("json_schema_extra"), section.model_fields[key].json_schema_extra]
    said = [mark["operational"] for mark in marks if isinstance(mark, dict) and "operational" in mark]
    return bool(said and said[-1])  # the key's own word counts more than its section's


def _apply_override(tree: dict[str, Any], *, override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r}: expected key.sub=value")
    try:
        parsed = _read_yaml(value)
    except ValueError as error:
        raise ConfigError(f"override {override!r}: value is not YAML: {error}") from error
    _set_key(tree, key=key, value=parsed, override=override)


def _override_keys(tree: dict[str, Any], *, values: Mapping[str, Any], prefix: str = "") -> None:
    """Apply overrides by dotted key; of a section only the keys that are given change."""
    for name, value in values.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            _override_keys(tree, values=value, prefix=f"{key}.")
        else:
            _set_key(tree, key=key, value=value, override=f"{key}={value!r}")


def _set_key(tree: dict[str, Any], *, key: str, value: Any, override: str) -> None:
    *sections, name = key.split(".")
    place = tree
    for part in sections:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise ConfigError(f"override {override!r}: {part} is a value, not a section")
    place[name] = value


def _with_preset(tree: dict[str, Any]) -> dict[str, Any]:
    search = tree.get("search") or {}
    name = search.get("preset", "default") if isinstance(search, dict) else None
    preset = PRESETS.get(name, {}) if isinstance(name, str) else {}
    merged = dict(tree)
    for section, values in preset.items():
        given = merged.get(section) or {}
        if isinstance(given, dict):
            merged[section] = {**values, **given}
    sections = {key for key, field in Config.model_fields.items() if _section_of(field.annotation)} - {
        "scorer",
        *_NO_KEYS,
        "judge",
    }
    return {key: ({} if value is None and key in sections else value) for key, value in merged.items()}


def _section_of(annotation: Any) -> type[Section] | None:
    """The section that a key holds, be it one that may be left out; None for a plain value."""
    kinds = (annotation, *get_args(annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)), None)


def _lists_to_tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists_to_tuples(item) for key, item in value.items()}
    return tuple(_lists_to_tuples(item) for item in value) if isinstance(value, list) else value


def _section_fields(location: Sequence[int | str], *, section: type[Section]) -> list[str]:
    for part in location:
        inner = _section_of(section.model_fields[str(part)].annotation)
        assert inner is not None, location
        section = inner
    return sorted(set(section.model_fields) - set(_NO_KEYS))


def _one_line(error: ValidationError, *, section: type[Section], prefix: str = "") -> str:
    errors = error.errors()
    first = errors[0]
    key = (prefix + ".".join(str(part) for part in first["loc"])).rstrip(".")
    value = first["input"]
    if first["type"] == "extra_forbidden":
        allowed = _section_fields(first["loc"][:-1], section=section)
        close = difflib.get_close_matches(str(first["loc"][-1]), allowed, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        line = f"{key} = {value!r}: unknown key; {hint}allowed here: {', '.join(allowed)}"
    elif first["type"] == "missing":
        line = f"{key}: missing; give it in the config or as {key}=..."
    elif first["type"] == "value_error":
        message = str(first["msg"]).removeprefix("Value error, ")
        line = (
            f"{key}: {message}" if key else message
        )  # no key: sections contradict each other, the message names them
    elif first["type"] == "tuple_type":
        line = f"{key} = {value!r}: expected a list, for example [{value}]"
    else:
        line = f"{key} = {value!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    return line + more


def keys_with_types() -> Iterator[tuple[str, Any]]:
    """Every dotted key of a config with the type of its value."""
    for name, field in Config.model_fields.items():
        section = _section_of(field.annotation)
        if section is not None and name not in _NO_KEYS:
            yield from ((f"{name}.{key}", entry.annotation) for key, entry in section.model_fields.items())
        elif name not in _NO_KEYS:
            yield name, field.annotation
    for method in method_names():
        yield from (
            (f"{method}.{key}", entry.annotation) for key, entry in method_section(method).model_fields.items()
        )


def print_keys(*, console: Console) -> None:
    """Every key with its default and meaning, section by section; operational ones have a star."""
    from rich.markup import escape

    method = Config.model_fields["method"]
    console.print(f"[bold]method[/bold] = {escape(f'{method.default!r}  {method.description}')}", markup=True)
    for name, section in sections():
        _print_section(name, section=section, console=console)
    console.print("* operational: may be another one each time a run is started", markup=False)


def _print_section(name: str, *, section: type[Section], console: Console) -> None:
    rows = []
    for key, entry in section.model_fields.items():
        default = "required" if entry.is_required() else yaml.safe_dump(entry.default).split("\n")[0]
        shown = list(entry.default) if isinstance(entry.default, tuple) else default
        mark = " *" if _is_marked(section, key=key) else ""
        rows.append((f"{name}.{key}{mark}", str(shown), entry.description or ""))
    print_key_rows(rows, title=name, console=console)


def print_key_rows(rows: Iterable[tuple[str, str, str]], *, title: str | None, console: Console) -> None:
    """Keys with their defaults and meanings: a table, and in a terminal too narrow for one a paragraph each."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    if console.width < _KEY_TABLE_WIDTH:
        if title is not None:
            console.print(title, style="italic", markup=False)
        for key, default, meaning in rows:
            console.print(f"{key}: {default}", markup=False, soft_wrap=True)
            console.print(Padding(Text(meaning), (0, 0, 0, 4)))
        return
    table = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
