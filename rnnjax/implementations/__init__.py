"""Implementations of `rnnjax.unroll`; each registers here, and others may register from outside."""

from rnnjax.implementations.fused import supports, unroll_fused
from rnnjax.implementations.registry import (
    Controls,
    Implementation,
    UnrollFn,
    choose,
    implementations,
    register_unroll,
    registrations,
)
from rnnjax.implementations.scan import unroll_scan

__all__ = [
    "Controls",
    "Implementation",
    "UnrollFn",
    "choose",
    "implementations",
    "register_unroll",
    "registrations",
    "unroll_fused",
    "unroll_scan",
]

register_unroll("scan", unroll_scan, priority=0)
register_unroll("fused", unroll_fused, supports=supports, priority=5)
