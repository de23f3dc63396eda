"""ramet tree"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from ramet.cli import output
from ramet.cli.context import App, verb
from ramet.cli.ls import NONE

if TYPE_CHECKING:
    from ramet.model import InstanceInfo, SnapshotInfo


class _Strokes(NamedTuple):
    branch: str
    last: str
    through: str
    blank: str


UNICODE = _Strokes("├─ ", "└─ ", "│  ", "   ")
ASCII = _Strokes("|- ", "`- ", "|  ", "   ")


@dataclass(slots=True, kw_only=True)
class Node:
    """An instance, a deleted instance that has forks, or a named snapshot."""

    kind: str
    id: str
    name: str
    state: str | None
    children: list[Node] = field(default_factory=list)

    @property
    def label(self) -> str:
        if self.kind == "snapshot":
            return f"snapshot:{self.name}"
        return f"{self.name} ({output.coloured(self.state) if self.state else 'deleted'})"


@verb("tree", examples=["ramet tree"])
def tree(app: App) -> None:
    """Show who was forked from whom.

    A source that was deleted is shown if it has forks. Named snapshots stand below the instance that they were taken
    of, and forks of them below them. With --json: nested {kind id name state children}.
    """
    host = app.host()
    roots = build(host.list(), host.snapshots())
    if app.json:
        output.json(roots)
        return
    if not roots:
        output.error_line(NONE)
    strokes = UNICODE if output.can_print("├└│─") else ASCII
    for root in roots:
        for text in drawn(root, strokes):
            output.line(text)


def build(instances: Sequence[InstanceInfo], snapshots: Sequence[SnapshotInfo]) -> list[Node]:
    """The forest of lineages. Each instance is in it once, whatever was deleted."""
    nodes = {
        info.id: Node(kind="instance", id=info.id, name=info.name, state=output.instance_state(info))
        for info in instances
    }
    roots: list[Node] = []
    named: dict[str, Node] = {}
    attached: set[str] = set()

    def attach(node: Node, chain: Sequence[tuple[str, str, str | None]]) -> None:
        """Put ``node`` below the last of ``chain`` (oldest first: id, name, snapshot); makes deleted ancestors."""
        if node.id in attached:
            return
        attached.add(node.id)
        if not chain:
            roots.append(node)
            return
        *older, (parent_id, name, snapshot_id) = chain
        parent = nodes.get(parent_id)
        if parent is None:
            parent = nodes[parent_id] = Node(kind="deleted", id=parent_id, name=name, state=None)
            attach(parent, older)
        (named.get(snapshot_id or "") or parent).children.append(node)

    for taken in snapshots:
        if taken.names:
            node = named[taken.id] = Node(kind="snapshot", id=taken.id, name=", ".join(taken.names), state=None)
            chains = [info for info in instances if info.id == taken.instance_id]
            older = [(a.instance_id, a.name, a.snapshot_id) for info in chains for a in info.lineage]
            attach(node, [*older, (taken.instance_id, taken.instance_name, None)])
    for info in instances:
        attach(nodes[info.id], [(a.instance_id, a.name, a.snapshot_id) for a in info.lineage])
    return roots


def drawn(node: Node, strokes: _Strokes, lead: str = "", below: str = "") -> Iterator[str]:
    """The lines of a tree."""
    yield lead + node.label
    for index, child in enumerate(node.children):
        is_last = index == len(node.children) - 1
        yield from drawn(
            child,
            strokes,
            below + (strokes.last if is_last else strokes.branch),
            below + (strokes.blank if is_last else strokes.through),
        )
