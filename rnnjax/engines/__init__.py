"""Engines: the ways in which `rnnjax.unroll` runs a cell; each registers here, and others may register from outside."""

import functools

from rnnjax.engines.affine.cuda import CudaLoops
from rnnjax.engines.affine.cuda import rank as cuda_rank
from rnnjax.engines.affine.native import NativeLoops
from rnnjax.engines.affine.native import rank as native_rank
from rnnjax.engines.affine.pallas_tpu import PallasLoops
from rnnjax.engines.affine.recurrence import affine_engine
from rnnjax.engines.affine.xla import XlaLoops
from rnnjax.engines.choice import (
    Controls,
    Engine,
    Job,
    UnfitError,
    choose,
    engine,
    engines,
    implementations,
    make_job,
    register,
)
from rnnjax.engines.cudnn import CudnnLoops
from rnnjax.engines.cudnn import rank as cudnn_rank
from rnnjax.engines.linear.associative import fits as linear_fits
from rnnjax.engines.linear.associative import rank as linear_rank
from rnnjax.engines.linear.associative import unroll_associative, unroll_hoisted
from rnnjax.engines.scan import no_named_remat, unroll_scan
from rnnjax.engines.split import split_over_devices

__all__ = [
    "Controls",
    "Engine",
    "Job",
    "UnfitError",
    "affine_engine",
    "choose",
    "engine",
    "engines",
    "implementations",
    "make_job",
    "register",
    "split_over_devices",
]

register(Engine("scan", unroll_scan, fits=no_named_remat, rank=lambda job: 0))
register(affine_engine("fused", XlaLoops(), rank=5))
register(affine_engine("cuda", CudaLoops(), rank=cuda_rank))
register(affine_engine("native", NativeLoops(), rank=native_rank))
register(affine_engine("pallas", PallasLoops(), rank=-1))
register(affine_engine("cudnn", CudnnLoops(), rank=cudnn_rank))
for _name, _unroll in (("associative", unroll_associative), ("hoisted", unroll_hoisted)):
    register(Engine(_name, _unroll, fits=linear_fits, rank=functools.partial(linear_rank, _name)))
