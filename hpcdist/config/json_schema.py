"""The JSON Schema of `hpcdist.toml`, for editors."""

import re
from typing import Any

import msgspec

from hpcdist.config.job import JobSpec, Layout
from hpcdist.config.site import Site
from hpcdist.config.training import Training

_ATTRIBUTE = re.compile(r"^        ([a-z_, \n]+?): (.*?)(?=^        \S|\Z)", re.MULTILINE | re.DOTALL)
_KINDS = (Site, Layout, JobSpec, Training)


def build_schema() -> dict[str, Any]:
    """Return the schema: every key with its type, default and description, and profiles under `sites`."""
    _, components = msgspec.json.schema_components(_KINDS, ref_template="#/$defs/{name}")
    keys: dict[str, Any] = {}
    for kind in _KINDS:
        described = _read_descriptions(kind)
        for name, schema in components.pop(kind.__name__)["properties"].items():
            if name not in ("layout", "training"):
                keys[name] = {**schema, **({"description": described[name]} if name in described else {})}
    components["Profile"] = {"type": "object", "properties": keys, "additionalProperties": False}
    profiles = {
        "type": "object",
        "description": "Profiles of clusters, chosen by the cluster's name or --site; each goes before the rest.",
        "additionalProperties": {"$ref": "#/$defs/Profile"},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "hpcdist.toml",
        "type": "object",
        "properties": {**keys, "sites": profiles},
        "additionalProperties": False,
        "$defs": components,
    }


def _read_descriptions(kind: type) -> dict[str, str]:
    """Return what a type's docstring says of each of its attributes."""
    _, _, listed = (kind.__doc__ or "").partition("Attributes:\n")
    found = {}
    for names, text in _ATTRIBUTE.findall(listed + "\n"):
        for name in re.split(r",\s*", names):
            found[name.strip()] = " ".join(text.split())
    return found
