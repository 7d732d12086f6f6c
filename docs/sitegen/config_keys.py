"""The pages of the config's keys, from `csr_ray.config.schema` and the methods' own sections: one page a section."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

import yaml

from csr_ray.config.load import PRESETS, is_operational, method_names, sections
from csr_ray.config.schema import Config, Section
from sitegen.markdown_text import code, prose, sentence, table, with_values_as_code

FOLDER = "reference/config"
_METHOD = "method"
_INTRO = """\
# Config keys

A run is described by one YAML file with a section for each concern, and any key can be set on the command line as
`section.key=value`, which counts more than the file. Everything that you leave out has the default given here. A key
that does not exist, a value of another type or out of range, and two keys that contradict each other are refused
before anything starts, in one line that names the key and what is allowed there.

`csr-ray config` prints the same on a terminal. [The configs of this project](../configs.md) show keys in use.

An **operational** key says how a run is carried out, not what it computes. It may be another one each time the run is
started; if any other key differs from what the run folder was begun with, the start is refused
([stop and resume](../../howto/resume.md)).

In all values `${world}` stands for the folder of the embedded world, if `world.enabled` is true
([the embedded world](../../world.md)).
"""
_PRESET_NOTE = (
    "The key [`search.preset`](search.md#search.preset) sets several keys of `search`, `reward` and `pairs` at once. "
    "Where a preset has another default for a key, it stands beside the key's own. A key that you set yourself "
    "counts more than the preset."
)


def pages() -> dict[str, str]:
    """Every page by its place on the site: the overview and one for each section."""
    found = {f"{FOLDER}/index.md": _overview()}
    for name, section in sections():
        found[f"{FOLDER}/{name}.md"] = _page(name, section=section)
    return found


def nav() -> list[Any]:
    """The entries of the navigation, in the schema's order."""
    return [f"{FOLDER}/index.md", *({name: f"{FOLDER}/{name}.md"} for name, _ in sections())]


def sources() -> dict[str, str]:
    """The file of the schema leads to the overview, and with a key behind it (#run.seed) to that key."""
    schema = "csr_ray/config/schema.py"
    keys = {f"{schema}#{name}.{key}": (name, key) for name, section in sections() for key in section.model_fields}
    return {
        schema: f"{FOLDER}/index.md",
        **{path: f"{FOLDER}/{name}.md#{name}.{key}" for path, (name, key) in keys.items()},
    }


def _overview() -> str:
    method = Config.model_fields[_METHOD]
    shared = [(name, section) for name, section in sections() if name not in method_names()]
    own = [(name, section) for name, section in sections() if name in method_names()]
    parts = [
        _INTRO,
        f"## `method` {{ #method }}\n\nText or a list, by default {code(str(method.default))}.\n\n"
        + prose(sentence(method.description or "")),
        "## Sections that every method shares",
        _list_of_keys(shared),
        "## Sections of single methods",
        "These keys stand in a section that bears the method's name. A section of another method than the run's is "
        "refused.",
        _list_of_keys(own),
    ]
    return "\n\n".join(parts) + "\n"


def _list_of_keys(named: list[tuple[str, type[Section]]]) -> str:
    parts = []
    for name, section in named:
        keys = _properties(section)
        rows = [
            (
                f"[`{name}.{key}`]({name}.md#{name}.{key})",
                _default(section, key=key),
                "yes" if is_operational(f"{name}.{key}") else "",
            )
            for key in keys
        ]
        parts.append(f"### [`{name}`]({name}.md)\n\n" + table(("key", "default", "operational"), rows))
    return "\n\n".join(parts)


def _page(name: str, *, section: type[Section]) -> str:
    parts = [f"# `{name}`", _about(name, section=section)]
    if any(name in preset for preset in PRESETS.values()):
        parts.append(_PRESET_NOTE)
    for key, schema in _properties(section).items():
        parts.append(_key(name, key=key, section=section, schema=schema))
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(name: str, *, section: type[Section]) -> str:
    """What the section's class says of itself, which is nothing where a key says it all."""
    said = section.__dict__.get("__doc__")
    if name in method_names():
        return f"Keys of the method `{name}`; [methods](../methods.md#{name}) says what it is."
    return prose(" ".join(inspect.cleandoc(said).split())) if said else ""


def _key(name: str, *, key: str, section: type[Section], schema: Mapping[str, Any]) -> str:
    dotted = f"{name}.{key}"
    facts = [_allowed(schema, all_of=section), "default " + _default(section, key=key)]
    if section.model_fields[key].is_required():
        facts[1] = "**required**"
    for preset, values in PRESETS.items():
        if key in values.get(name, {}):
            facts.append(f"preset `{preset}`: {_value(values[name][key])}")
    if is_operational(dotted):
        facts.append("[operational](index.md)")
    lines = [f"## `{dotted}` {{ #{dotted} }}", " · ".join(facts) + "\n{ .facts }"]
    lines.append(_meaning(section, key=key, schema=schema))
    lines.append(_inner_keys(schema, section=section))
    return "\n\n".join(line for line in lines if line)


def _meaning(section: type[Section], *, key: str, schema: Mapping[str, Any]) -> str:
    """A key's description, which may begin with what another key has to be: "blend = values: in what ..."."""
    text = section.model_fields[key].description or ""
    values = [str(value) for one in (schema, schema.get("items", {})) for value in one.get("enum", ())]
    text = with_values_as_code(text, values=[*values, "null", "true", "false"])
    keys = "|".join(map(re.escape, section.model_fields))
    text = re.sub(rf"(?<![\w.`])((?:{keys}) = [a-z0-9_]+)", r"`\1`", text)
    return prose(sentence(f"with {text}" if re.match(r"`\w+ = ", text) else text))


def _default(section: type[Section], *, key: str) -> str:
    field = section.model_fields[key]
    return "**required**" if field.is_required() else _value(field.get_default(call_default_factory=True))


def _value(value: object) -> str:
    """A value as it is written in YAML."""
    shown = list(value) if isinstance(value, tuple) else value
    written = yaml.safe_dump(shown, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
    return code(written)


def _properties(section: type[Section]) -> dict[str, Any]:
    found: dict[str, Any] = section.model_json_schema().get("properties", {})
    return found


def _allowed(schema: Mapping[str, Any], *, all_of: type[Section]) -> str:
    """What a key takes, in words."""
    if "anyOf" in schema:
        return " or ".join(_allowed(one, all_of=all_of) for one in schema["anyOf"])
    if "enum" in schema:
        return "one of " + ", ".join(code(str(value)) for value in schema["enum"])
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return ("whole number" if kind == "integer" else "number") + _range(schema)
    if kind == "array":
        return _list(schema, all_of=all_of)
    return {
        "boolean": "`true` or `false`",
        "string": "text" if "minLength" not in schema else "text that is not empty",
        "null": "`null`",
        "object": "a mapping from names to the keys below",
    }[str(kind)]


def _range(schema: Mapping[str, Any]) -> str:
    bounds = (
        ("minimum", "at least"),
        ("exclusiveMinimum", "above"),
        ("maximum", "at most"),
        ("exclusiveMaximum", "below"),
    )
    said = [f"{words} {_number(schema[name])}" for name, words in bounds if name in schema]
    return "".join(f", {one}" for one in said)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def _list(schema: Mapping[str, Any], *, all_of: type[Section]) -> str:
    if "prefixItems" in schema:
        kinds = {_allowed(item, all_of=all_of) for item in schema["prefixItems"]}
        return f"a list of {len(schema['prefixItems'])}, each {' or '.join(sorted(kinds))}"
    least = " that is not empty" if schema.get("minItems") else ""
    return f"a list{least}, each {_allowed(schema['items'], all_of=all_of)}"


def _inner_keys(schema: Mapping[str, Any], *, section: type[Section]) -> str:
    """The keys of each entry, where a key is a mapping from names to such entries."""
    entry = schema.get("additionalProperties")
    if not isinstance(entry, dict) or "$ref" not in entry:
        return ""
    inner = section.model_json_schema()["$defs"][entry["$ref"].rsplit("/", 1)[-1]]
    rows = [
        (code(key), _allowed(one, all_of=section), _value(one.get("default")), prose(sentence(one["description"])))
        for key, one in inner["properties"].items()
    ]
    return table(("key of an entry", "takes", "default", "meaning"), rows)
