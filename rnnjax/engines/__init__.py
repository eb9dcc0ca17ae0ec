"""Engines: the ways in which `rnnjax.unroll` runs a cell; each registers here, and others may register from outside."""

import dataclasses

from rnnjax.engines.affine.cuda import CudaLoops
from rnnjax.engines.affine.cuda import rank as cuda_rank
from rnnjax.engines.affine.native import NativeLoops
from rnnjax.engines.affine.native import rank as native_rank
from rnnjax.engines.affine.newton import Newton
from rnnjax.engines.affine.pallas_tpu import PallasLoops
from rnnjax.engines.affine.recurrence import affine_engine
from rnnjax.engines.affine.xla import XlaLoops
from rnnjax.engines.choice import Controls, Engine, Job, choose, engine, implementations, register
from rnnjax.engines.cudnn import CudnnLoops
from rnnjax.engines.cudnn import rank as cudnn_rank
from rnnjax.engines.linear.over_devices import unroll_over
from rnnjax.engines.linear.recurrence import linear_engine
from rnnjax.engines.linear.scans import Associative, Hoisted
from rnnjax.engines.scan import no_named_remat, unroll_scan

__all__ = [
    "Controls",
    "Engine",
    "Job",
    "Newton",
    "affine_engine",
    "choose",
    "engine",
    "implementations",
    "linear_engine",
    "register",
    "unroll_over",
]

register(Engine("scan", unroll_scan, fits=no_named_remat, rank=lambda job: 0))
register(affine_engine("fused", XlaLoops(), rank=5))
register(affine_engine("cuda", CudaLoops(), rank=cuda_rank))
register(affine_engine("native", NativeLoops(), rank=native_rank))
register(affine_engine("pallas", PallasLoops(), rank=-1))
register(affine_engine("cudnn", CudnnLoops(), rank=cudnn_rank))
# How long it takes depends on the parameters: never a default.
register(dataclasses.replace(affine_engine("newton", Newton(), rank=-1), iterative=True))
# On a CPU the loop is sequential anyway, and the associative scan does twice the arithmetic and passes over memory
# log2(T) times; on an accelerator a loop of T tiny kernels leaves the device idle.
register(linear_engine("associative", Associative(), rank=lambda job: -1 if job.backend == "cpu" else 8))
register(linear_engine("hoisted", Hoisted(), rank=5))
