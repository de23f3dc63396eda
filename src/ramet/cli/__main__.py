"""``python -m ramet.cli``, for where the ``ramet`` script is not on the path."""

from ramet.cli.main import main

main()
