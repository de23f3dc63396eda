"""Firecracker, on hosts with KVM."""
