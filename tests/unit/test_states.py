"""The table of states, against section 3 of the design: every pair of verb and state."""

from __future__ import annotations

import re

import pytest

from ramet.errors import StateError
from ramet.model import Ancestor, State
from ramet.states import NEXT_STEP, START_STATES, TARGET_STATE, Verb, is_reached, next_step, require
from tests.unit.snapshots.published import record

C, R, P, SB, ST, F = State.CREATED, State.RUNNING, State.PAUSED, State.STANDBY, State.STOPPED, State.FAILED

# created → running ⇄ paused, running|paused → standby → running, running → stopped → running; fork from running (paused for
# it), paused, standby and stopped; start also boots the disk of a failed one. `restore` and `stop` start from more states when
# they are told to discard something.
FROM: dict[Verb, set[State]] = {
    Verb.EXEC: {R},
    Verb.COPY: {R},
    Verb.CONSOLE: {R, P},
    Verb.PAUSE: {R},
    Verb.RESUME: {P},
    Verb.STANDBY: {R, P},
    Verb.RESTORE: {SB},
    Verb.STOP: {R, P},
    Verb.START: {ST, F},
    Verb.FORK: {R, P, SB, ST},
    Verb.SNAPSHOT: {R, P, SB},
    Verb.POOL: {SB},
}
TO: dict[Verb, State] = {
    Verb.PAUSE: P,
    Verb.RESUME: R,
    Verb.STANDBY: SB,
    Verb.RESTORE: R,
    Verb.STOP: ST,
    Verb.START: R,
}
POOL = "1" * 12
SOURCE = Ancestor(instance_id=POOL, name="web", snapshot_id=None)
PAIRS = [(verb, state) for verb in Verb for state in State]


@pytest.mark.parametrize(("verb", "state"), PAIRS, ids=str)
def test_a_verb_starts_from_the_states_of_the_design_and_from_no_other(verb: Verb, state: State) -> None:
    if state in FROM[verb]:
        require(verb, record(state=state, pool=POOL, lineage=(SOURCE,)), name="web-1")
        return
    with pytest.raises(StateError) as caught:
        require(verb, record(state=state, pool=POOL, lineage=(SOURCE,)), name="web-1")
    err = caught.value
    assert err.actual == state.value
    assert set(err.required) == {start.value for start in FROM[verb]}
    assert f"Cannot {verb.value} 'web-1': it is {state.value}" in err.message
    assert err.hint == next_step(record(state=state, pool=POOL, lineage=(SOURCE,)))


@pytest.mark.parametrize(("verb", "state"), PAIRS, ids=str)
def test_a_verb_has_nothing_to_do_exactly_where_it_leads(verb: Verb, state: State) -> None:
    assert is_reached(verb, state) is (TO.get(verb) is state)


@pytest.mark.parametrize("state", State)
def test_the_next_step_is_a_command_as_it_can_be_typed(state: State) -> None:
    said = next_step(record(state=state, pool=POOL, lineage=(SOURCE,), name="web-1"))
    assert said.endswith(".")
    commands = re.findall(r"ramet (\w+)((?: [\w-]+)*)", said)
    assert commands
    for verb, rest in commands:
        assert "web-1" in rest or (verb, rest) == ("fork", " web --from-pool"), said


def test_only_what_has_slept_can_go_back_to_its_sleep() -> None:
    assert "--discard-disk" not in next_step(record(state=State.FAILED))
    assert "--discard-disk" in next_step(record(state=State.FAILED, snapshot="a" * 12))


def test_the_tables_are_complete() -> None:
    assert set(START_STATES) == set(Verb)
    assert TARGET_STATE == TO
    assert set(NEXT_STEP) == set(State)


def test_no_verb_leads_to_where_it_starts_and_every_state_can_be_left() -> None:
    for verb, target in TARGET_STATE.items():
        assert target not in START_STATES[verb]
    left = {state for verb in TARGET_STATE for state in START_STATES[verb]}
    by_itself = {State.CREATED, State.PARKED}
    assert left == set(State) - by_itself, "created leads to running by itself, or to failed; a parked fork is claimed"
