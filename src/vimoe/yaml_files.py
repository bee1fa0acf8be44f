"""YAML from people and from elsewhere: plain values only, with limits on size, depth and what aliases stand for.

Imports no torch.
"""

from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import Node

from vimoe.errors import UserError

# Far beyond every recipe and study; an alias counts as often as it is used.
MAX_BYTES, MAX_NODES, MAX_DEPTH = 1_000_000, 20_000, 50


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, which recurses once a level, with limits."""

    nodes = depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()
        before = self.nodes
        if isinstance(event, yaml.AliasEvent):
            self.nodes += self.weights.get(str(event.anchor), MAX_NODES)  # one that stands inside itself has no end
        self.nodes, self.depth = self.nodes + 1, self.depth + 1
        if self.nodes > MAX_NODES or self.depth > MAX_DEPTH + 1:
            raise yaml.YAMLError(f"more than {MAX_NODES} values, or more than {MAX_DEPTH} levels")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if getattr(event, "anchor", None):
            self.weights[event.anchor] = self.nodes - before
        return node

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.weights: dict[str, int] = {}


def _refuse(_: _Loader, node: Node) -> None:
    kind = node.tag.rpartition(":")[2]
    raise yaml.constructor.ConstructorError(
        None, None, f"a {kind} is no plain value; text that looks like one needs quotes", node.start_mark
    )


for _kind in ("binary", "timestamp", "set", "omap", "pairs"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _refuse)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: A number has too many digits.
        yaml.YAMLError: It is no YAML, holds what is no plain value, or goes beyond a limit.
    """
    return yaml.load(text, _Loader)


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file. Raises UserError if it cannot be read, or holds anything else."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path} is larger than {MAX_BYTES / 1e6:g} MB, which no recipe and no study is")
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except UserError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: thousands of digits
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} must hold keys and values, got {type(content).__name__}")
    return content
