"""page"""

from ramet.bench.documents import BenchDocument


def encode(found: BenchDocument) -> bytes:
    """x"""
    return b""
