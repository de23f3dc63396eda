"""One thin function per syscall: raises OSError only, knows nothing of Ramet's objects."""
