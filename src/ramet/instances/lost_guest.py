"""A guest that was lost while it was being talked to: what has become of its instance."""

from __future__ import annotations

from contextlib import suppress

from ramet import process
from ramet.errors import LockedError, NotFoundError, RametError, VmmDiedError
from ramet.guests.stream import SessionLostError
from ramet.instances import observe
from ramet.instances.context import Store
from ramet.model import Hypervisor, InstanceRecord
from ramet.store.locks import locked

VERB_ENDS_WITHIN_S = 3.0
"""How long the verb that has ended a VMM is waited for, to say what it has made of the instance."""


def told(store: Store, before: InstanceRecord, err: VmmDiedError) -> VmmDiedError:
    """The error for who has asked by name: what the instance is now, or what ``err`` says where nothing better is known.

    Nothing is changed. Only if the VMM has ended, the instance's lock is waited for, and taken for reading its record.
    """
    try:
        if before.vmm is not None:
            process.wait_gone(before.vmm, process.ENDS_WITHIN_S)  # its sockets are closed before it has ended
        now = observe.look(store, store.read(before.id))
        if observe.is_live(now) and now.vmm == before.vmm:
            return _of_one_that_lives(now, err)
        with (
            suppress(LockedError),
            locked(store.paths.locks, f"instance-{before.id}", exclusive=False, timeout_s=VERB_ENDS_WITHIN_S),
        ):
            now = observe.observed(store, store.read(before.id))
    except NotFoundError:
        return VmmDiedError(f"{before.name!r} was removed while its guest was being talked to.")
    except (RametError, OSError):  # it must not take the place of what happened
        return VmmDiedError(err.message, hint=err.hint)
    became = "has another VMM now" if observe.is_live(now) else f"is {now.state} now"
    if now.pending is not None:
        became = f"is in the hands of `{now.pending}`"
    return VmmDiedError(
        f"The VMM of {now.name!r} ended while its guest was being talked to; {now.name!r} {became}."
        + (f"\n{now.failure_detail}" if now.failure_detail else ""),
        hint=f"`ramet logs {now.name}` shows the guest's console, and with --vmm what its VMM said.",
    )


def _of_one_that_lives(now: InstanceRecord, err: VmmDiedError) -> VmmDiedError:
    if not isinstance(err, SessionLostError) or now.hypervisor is not Hypervisor.FIRECRACKER:
        return VmmDiedError(err.message, hint=err.hint)
    return VmmDiedError(
        f"The connection to the guest of {now.name!r} was lost, and its VMM runs on: the guest has reset its vsock, as after a "
        "capture and a restore.",
        hint=err.hint,
    )
