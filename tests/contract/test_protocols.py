"""Every driver has what the contract of hypervisors/base.py names, with the same signatures. No VMM is run."""

from __future__ import annotations

import inspect

import pytest

from ramet.hypervisors.base import DirtySince, Driver, Monitor, SavesDeviceState, SavesMemory
from ramet.hypervisors.firecracker.api import FirecrackerMonitor
from ramet.hypervisors.firecracker.driver import FirecrackerDriver
from ramet.hypervisors.qemu.driver import QemuDriver
from ramet.hypervisors.qemu.qmp import QmpMonitor

DRIVERS: list[type[Driver]] = [QemuDriver, FirecrackerDriver]
MONITORS: list[tuple[type[Monitor], type]] = [(QmpMonitor, SavesDeviceState), (FirecrackerMonitor, SavesMemory)]


def members(protocol: type) -> list[str]:
    """The methods that a protocol names."""
    return [name for name, value in vars(protocol).items() if inspect.isfunction(value) and not name.startswith("_")]


def shape(function: object) -> list[tuple[str, object, object]]:
    """Names, kinds and defaults of the parameters: what a caller relies on."""
    assert inspect.isfunction(function)
    return [(found.name, found.kind, found.default) for found in inspect.signature(function).parameters.values()]


def test_the_contracts_are_not_empty() -> None:
    assert {"build", "boot", "load", "connect", "ended_by_guest"} <= set(members(Driver))
    assert {"stop_vcpus", "resume_vcpus", "vcpus_running"} <= set(members(Monitor))
    assert members(SavesDeviceState) == ["save_device_state"]
    assert members(SavesMemory) == ["create_snapshot"]


@pytest.mark.parametrize("name", members(Driver))
@pytest.mark.parametrize("driver", DRIVERS)
def test_a_driver_can_be_called_as_the_contract_says(driver: type[Driver], name: str) -> None:
    assert shape(getattr(driver, name)) == shape(getattr(Driver, name))


@pytest.mark.parametrize(("monitor", "kind"), MONITORS)
def test_a_monitor_can_be_called_as_the_contract_says(monitor: type[Monitor], kind: type) -> None:
    for name in [*members(Monitor), *members(kind), "__enter__", "__exit__"]:
        assert shape(getattr(monitor, name)) == shape(getattr(kind, name)), name


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_driver_says_what_its_dirty_pages_are_relative_to(driver: type[Driver]) -> None:
    assert isinstance(driver.dirty_since, DirtySince)


@pytest.mark.parametrize("name", members(Driver))
def test_the_contract_itself_says_what_each_member_guarantees(name: str) -> None:
    assert inspect.getdoc(getattr(Driver, name))
