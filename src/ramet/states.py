"""The states of an instance and what each verb may start from: one table, guarded in one place.

``created → running ⇄ paused``, ``running|paused → standby → running``, ``running → stopped → running``, ``standby → parked →
running`` for the forks of a pool, which no verb on them but ``rm`` starts from, anything → deleted, and ``failed``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from ramet.errors import StateError
from ramet.model import InstanceRecord, State


class Verb(StrEnum):
    """Verbs that depend on, or change, the state."""

    EXEC = "exec"
    COPY = "cp"
    CONSOLE = "console"
    PAUSE = "pause"
    RESUME = "resume"
    STANDBY = "standby"
    RESTORE = "restore"
    STOP = "stop"
    START = "start"
    FORK = "fork"
    SNAPSHOT = "snapshot create"
    POOL = "pool"


START_STATES: Final[dict[Verb, frozenset[State]]] = {
    Verb.EXEC: frozenset({State.RUNNING}),
    Verb.COPY: frozenset({State.RUNNING}),
    Verb.CONSOLE: frozenset({State.RUNNING, State.PAUSED}),
    Verb.PAUSE: frozenset({State.RUNNING}),
    Verb.RESUME: frozenset({State.PAUSED}),
    Verb.STANDBY: frozenset({State.RUNNING, State.PAUSED}),
    Verb.RESTORE: frozenset({State.STANDBY}),
    Verb.STOP: frozenset({State.RUNNING, State.PAUSED}),
    Verb.START: frozenset({State.STOPPED, State.FAILED}),
    Verb.FORK: frozenset({State.RUNNING, State.PAUSED, State.STANDBY, State.STOPPED}),
    Verb.SNAPSHOT: frozenset({State.RUNNING, State.PAUSED, State.STANDBY}),
    Verb.POOL: frozenset({State.STANDBY}),
}
"""What a verb starts from. ``restore`` and ``stop`` start from more states when told to discard something."""

TARGET_STATE: Final[dict[Verb, State]] = {
    Verb.PAUSE: State.PAUSED,
    Verb.RESUME: State.RUNNING,
    Verb.STANDBY: State.STANDBY,
    Verb.RESTORE: State.RUNNING,
    Verb.STOP: State.STOPPED,
    Verb.START: State.RUNNING,
}
"""Where a verb leads. A verb whose target is already reached succeeds and says so."""

NEXT_STEP: Final[dict[State, str]] = {
    State.CREATED: "It was never booted to the end: remove it (ramet rm {name}).",
    State.RUNNING: "It is running: `ramet standby {name}` puts it to sleep, `ramet stop {name}` shuts it down.",
    State.PAUSED: "It is paused: `ramet resume {name}` lets it run on.",
    State.STANDBY: "It sleeps: `ramet restore {name}` wakes it.",
    State.PARKED: "It waits in a pool: `ramet fork {source} --from-pool` claims one, `ramet rm {name}` removes it.",
    State.STOPPED: "It is stopped: `ramet start {name}` boots it.",
    State.FAILED: "It failed (`ramet show {name}` says why): `ramet start {name}` boots its disk",
}
LAST_SLEEP: Final = (
    " and gives up its last sleep; `ramet restore {name} --discard-disk` goes back to that and gives up the disk"
)
"""What there is besides for one that failed and had slept."""


def is_reached(verb: Verb, actual: State) -> bool:
    """Whether ``verb`` has nothing to do."""
    return TARGET_STATE.get(verb) == actual


def next_step(record: InstanceRecord) -> str:
    """What can be done with an instance as it is: a sentence that names commands."""
    text = NEXT_STEP[record.state]
    if record.state is State.FAILED:
        text += f"{LAST_SLEEP if record.snapshot is not None else ''}."
    return text.format(name=record.name, source=record.pool_source)


def require(verb: Verb, record: InstanceRecord, *, name: str) -> None:
    """Raise unless ``verb`` may start from the state of ``record``, which was given as ``name``.

    Raises:
        StateError: naming the actual state, the required ones and the next step.
    """
    required = START_STATES[verb]
    actual = record.state
    if actual in required:
        return
    names = sorted(state.value for state in required)
    raise StateError(
        f"Cannot {verb.value} {name!r}: it is {actual.value}, and {verb.value} needs it {' or '.join(names)}.",
        actual=actual.value,
        required=names,
        hint=next_step(record),
    )
