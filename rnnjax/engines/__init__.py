"""Implementations of `rnnjax.unroll`; each registers here, and others may register from outside."""

import functools

from rnnjax.engines.affine.fused import supports, unroll_fused
from rnnjax.engines.choice import (
    Controls,
    Implementation,
    UnrollFn,
    choose,
    implementations,
    register_unroll,
    registrations,
)
from rnnjax.engines.cudnn import supports_cudnn, unroll_cudnn
from rnnjax.engines.linear.associative import priority as linear_priority
from rnnjax.engines.linear.associative import supports as supports_linear
from rnnjax.engines.linear.associative import unroll_associative, unroll_hoisted
from rnnjax.engines.scan import unroll_scan
from rnnjax.engines.split import priority as split_priority
from rnnjax.engines.split import supports as supports_split
from rnnjax.engines.split import unroll_split

__all__ = [
    "Controls",
    "Implementation",
    "UnrollFn",
    "choose",
    "implementations",
    "register_unroll",
    "registrations",
    "unroll_associative",
    "unroll_cudnn",
    "unroll_fused",
    "unroll_hoisted",
    "unroll_scan",
    "unroll_split",
]

register_unroll("scan", unroll_scan, priority=0)
register_unroll("fused", unroll_fused, supports=supports, priority=5)
register_unroll("cudnn", unroll_cudnn, supports=supports_cudnn, priority=-1)
register_unroll("split", unroll_split, supports=supports_split, priority=split_priority)
for _name, _unroll in (("associative", unroll_associative), ("hoisted", unroll_hoisted)):
    register_unroll(_name, _unroll, supports=supports_linear, priority=functools.partial(linear_priority, _name))
