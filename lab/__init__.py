"""A Linux with KVM on a host that has none: a command runs in it as if it ran here."""
