"""YAML in which a key that stands twice is an error; PyYAML keeps the last one without a word."""

from typing import Any

import yaml


class StrictLoader(yaml.SafeLoader):
    """The safe loader with unique keys; a repeated one is a `yaml.YAMLError` with its line, like any other fault of a file."""


def _no_repeats(loader: StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = []
    for key_node, _ in node.value:
        key = loader.construct_object(key_node)
        if key in seen:
            problem = f"the key {key!r} stands twice in one mapping, again"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        seen.append(key)
    return loader.construct_mapping(node, deep=True)


StrictLoader.add_constructor("tag:yaml.org,2002:map", _no_repeats)
