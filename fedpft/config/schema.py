"""The config as JSON Schema, by which editors complete keys and show what they mean."""

from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from fedpft.config.parts import KEY, SECTIONS
from fedpft.config.run import Config

PART = {"type": "string", "description": "A part: the name of a file SECTION/NAME.yaml beside the config."}


def config_schema() -> dict[str, Any]:
    """Return the schema of a config file: every key with type, default and meaning, from the dataclasses."""
    for section in _sections(Config):
        section.__pydantic_config__ = ConfigDict(use_attribute_docstrings=True, extra="forbid")  # where pydantic looks
    schema = TypeAdapter(Config).json_schema()
    for name in SECTIONS:
        schema["properties"][name] = {"anyOf": [schema["properties"][name], PART]}
    words = {"type": "object", "properties": dict.fromkeys(SECTIONS, PART), "additionalProperties": False}
    schema["properties"][KEY] = {"description": "Parts beside keys of their sections.", **words}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _sections(kind: Any) -> list[Any]:
    """Return a dataclass and all below it."""
    below = [entry.default_factory for entry in fields(kind) if is_dataclass(entry.default_factory)]
    return [kind, *(found for section in below for found in _sections(section))]
