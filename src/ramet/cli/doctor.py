"""ramet doctor"""

from __future__ import annotations

from ramet.cli import output
from ramet.cli.context import App, verb


@verb("doctor", examples=["ramet doctor", "ramet doctor --json | jq '.[] | select(.available | not) | .mend'"])
def doctor(app: App) -> None:
    """Say what this host can do, and what mends the rest.

    Everything is probed, nothing is guessed from versions: KVM counts if guest code really runs, reflinks if a clone
    was made in the store. The status is 0 whatever the answers are. With --json: an array of {name available why
    meaning mend}.
    """
    host = app.host()
    with app.working("Probing"):
        capabilities = host.doctor()
    if app.json:
        output.json(capabilities)
        return
    width = max((len(capability.name) for capability in capabilities), default=0)
    indent = " " * (width + 7)
    for capability in capabilities:
        word = output.coloured("yes") if capability.available else output.coloured("no") + " "
        output.line(f"{word}  {capability.name.ljust(width)}  {capability.why}")
        output.line(f"{indent}{capability.meaning}")
        if capability.mend and not capability.available:
            output.line(f"{indent}Mend: {capability.mend}")
