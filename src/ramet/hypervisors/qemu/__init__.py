"""QEMU's microvm machine, with or without KVM."""
