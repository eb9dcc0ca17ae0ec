// What the forward and the backward kernel share: number formats, functions, waiting, and the matmul of a warp.
//
// One launch runs a recurrence over all steps. The text before this one defines, as macros:
//
//   DT      what matmuls multiply: 0 bfloat16, 1 float16, 2 TF32, 3 float32 by three products in TF32
//   HDT     of h, y and their cotangents in memory: 0 bfloat16, 1 float16, 2 float32; all arithmetic is in float32
//   H, HP   units, and units with padding: a multiple of U and of KC
//   G, NS   gates; numbers that the update sees, of which NX = NS - G are of gates whose zx and zh it sees apart
//   S       leaves of the state besides h;  NP  parameters of the update, one number a unit
//   U, NB   units and rows of a block;  W  its warps;  NLR  how many chunks of weights a warp keeps in registers
//   CL      blocks of a cluster;  NETS  networks of the same cell, one after the other in all arrays
//   GROUPS  groups of NB rows of a network, each served by P = HP / U blocks
//   MASK, RESET, REV   whether there are invalid steps, restarts, and time runs down
//   SAVE, SAVE_SEEN    whether states, and what the update saw, are kept for the backward pass
//   SPIN    how often a warp looks for a value before it gives up
//
// and the functions of the cell (see cuda_cell.py). No header is included, so the compiler needs none.
typedef unsigned int u32;
typedef unsigned long long u64;
typedef unsigned short u16;
typedef unsigned char u8;
#ifdef HOSTEMU
#include "emulation.h"
#define DEV inline
#else
#define DEV __device__ __forceinline__
#endif
#define FULL 0xffffffffu
#define PREF 4  // steps that memory is asked for in advance

// ---------------------------------------------------------------- number formats
#ifndef HOSTEMU
DEV u32 pack_bf16(float hi, float lo) { u32 r; asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo)); return r; }
DEV u32 pack_f16(float hi, float lo) { u32 r; asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo)); return r; }
DEV float f16_to_float(u16 x) { float r; asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(x)); return r; }
#endif
template <int D> struct Format {  // float32
  typedef float T;
  static DEV float load(float x) { return x; }
  static DEV float store(float x) { return x; }
};
template <> struct Format<0> {
  typedef u16 T;
  static DEV float load(u16 x) { return __uint_as_float((u32)x << 16); }
  static DEV u16 store(float x) { return (u16)pack_bf16(0.0f, x); }
};
template <> struct Format<1> {
  typedef u16 T;
  static DEV float load(u16 x) { return f16_to_float(x); }
  static DEV u16 store(float x) { return (u16)pack_f16(0.0f, x); }
};
typedef Format<DT> E;     // of weights, of what blocks exchange, and of what the update saw
typedef Format<HDT> HF;   // of h and y
typedef E::T ET;
typedef HF::T HT;
#if DT <= 1
#define ESZ 2
DEV u32 pack(float hi, float lo) { return DT == 0 ? pack_bf16(hi, lo) : pack_f16(hi, lo); }
#else
#define ESZ 4
#endif
#define EPL (16 / ESZ)  // elements that a lane loads at once
#define KC (4 * EPL)    // k of a chunk: two k tiles of mma
#define NT (NB / 8)
#define NTHR (32 * W)
#define RS (NB + 2)
#define BP (NETS * GROUPS * NB)
#define P (HP / U)
#define NX (NS - G)
#define SN (S > 0 ? S : 1)  // arrays of no elements are not C++
#define NXN (NX > 0 ? NX : 1)
#define NPN (NP > 0 ? NP : 1)
#define PW (U * NB)                                    // (unit, row) pairs of a block
#define PWW ((PW + 31) / 32 < W ? (PW + 31) / 32 : W)  // warps that do pointwise work
#define PP ((PW + NTHR - 1) / NTHR)                    // pairs of a thread
#define EACH_PAIR _Pragma("unroll") for (int p = 0; p < PP; ++p)

// ---------------------------------------------------------------- functions of the cell's arithmetic
#ifndef HOSTEMU
#define NAN __uint_as_float(0x7fffffffu)
#define INFINITY __uint_as_float(0x7f800000u)
DEV float ex2(float x) { float r; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
DEV float rcp(float x) { float r; asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
#endif
#if DT == 0 && !defined(HOSTEMU)  // the hardware's own is as exact as what is multiplied: 11 bits
DEV float m_tanh(float x) { float r; asm("tanh.approx.f32 %0, %1;" : "=f"(r) : "f"(x)); return r; }
DEV float m_logistic(float x) { return fmaf(0.5f, m_tanh(0.5f * x), 0.5f); }
#else
DEV float m_logistic(float x) { return rcp(1.0f + ex2(-1.4426950408889634f * x)); }
DEV float m_tanh(float x) {
  float y = fmaf(-2.0f, rcp(1.0f + ex2(2.885390081777927f * x)), 1.0f);
#if DT >= 2  // near 0 that difference has few digits
  float q = x * x;
  float series = fmaf(x * q, fmaf(q, fmaf(q, -0.05396825f, 0.13333333f), -0.33333333f), x);
  y = q < 0.0625f ? series : y;
#endif
  return y;
}
#endif
DEV float m_max(float a, float b) { return a > b || a != a ? a : b; }
DEV float m_min(float a, float b) { return a < b || a != a ? a : b; }
DEV float m_sign(float x) { return x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x; }
DEV bool m_is_finite(float x) { return fabsf(x) < INFINITY; }
DEV float m_abs(float x) { return fabsf(x); }
DEV float m_pow(float a, float b) { return powf(a, b); }
DEV float m_atan2(float a, float b) { return atan2f(a, b); }
DEV float m_rsqrt(float x) { return 1.0f / sqrtf(x); }
#define FUNCTION(name) DEV float m_##name(float x) { return name##f(x); }
FUNCTION(exp) FUNCTION(exp2) FUNCTION(log) FUNCTION(log1p) FUNCTION(expm1) FUNCTION(sqrt) FUNCTION(cbrt) FUNCTION(erf)
FUNCTION(erfc) FUNCTION(sin) FUNCTION(cos) FUNCTION(tan) FUNCTION(asin) FUNCTION(acos) FUNCTION(atan) FUNCTION(sinh)
FUNCTION(cosh) FUNCTION(asinh) FUNCTION(acosh) FUNCTION(atanh) FUNCTION(floor) FUNCTION(ceil)
#undef FUNCTION

// ---------------------------------------------------------------- instructions
#ifndef HOSTEMU
DEV void mma(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
#if DT == 0
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#elif DT == 1
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
#endif
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}
DEV void load_relaxed(u32 (&v)[4], const void* p) {
  asm volatile("ld.relaxed.gpu.global.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "l"(p) : "memory");
}
DEV void load_constant(u32 (&v)[4], const void* p) {
  asm volatile("ld.global.nc.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3]) : "l"(p));
}
DEV void store_word(void* p, u32 v) { asm volatile("st.relaxed.gpu.global.b32 [%0], %1;" :: "l"(p), "r"(v) : "memory"); }
DEV void prefetch(const void* p) { asm volatile("prefetch.global.L2 [%0];" :: "l"(p)); }
template <int N> DEV void bar_sync(int id) { asm volatile("bar.sync %0, %1;" :: "r"(id), "n"(N) : "memory"); }
template <int N> DEV void bar_arrive(int id) { asm volatile("bar.arrive %0, %1;" :: "r"(id), "n"(N) : "memory"); }
DEV void breathe() {}
DEV u32 smem_addr(const void* p) { return (u32)__cvta_generic_to_shared(p); }
#if CL > 1
DEV u32 mapa(u32 a, u32 r) { u32 o; asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(o) : "r"(a), "r"(r)); return o; }
DEV void mbar_init(u32 a, u32 n) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(a), "r"(n) : "memory"); }
DEV void mbar_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
DEV void mbar_expect(u32 a, u32 n) { asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" :: "r"(a), "r"(n) : "memory"); }
DEV bool mbar_try(u32 a, u32 phase) {
  u32 ok;
  asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }" : "=r"(ok) : "r"(a), "r"(phase) : "memory");
  return ok;
}
DEV void store_async(u32 a, u32 bar, u32 v) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" :: "r"(a), "r"(v), "r"(bar) : "memory");
}
DEV void store_async4(u32 a, u32 bar, uint4 v) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];"
               :: "r"(a), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w), "r"(bar) : "memory");
}
DEV void cluster_sync() { asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory"); }
#endif
extern __shared__ __align__(16) unsigned char smem[];
#endif
#if DT == 3  // a float32 is the sum of two TF32 numbers but for its last bits
DEV u32 high(u32 a) { return a & 0xffffe000u; }
DEV u32 low(u32 a) { return __float_as_uint(__uint_as_float(a) - __uint_as_float(a & 0xffffe000u)); }
DEV void multiply_add(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  u32 p0 = high(b0), p1 = high(b1);
  mma(d, low(a0), low(a1), low(a2), low(a3), p0, p1);
  u32 h0 = high(a0), h1 = high(a1), h2 = high(a2), h3 = high(a3);
  mma(d, h0, h1, h2, h3, low(b0), low(b1));
  mma(d, h0, h1, h2, h3, p0, p1);
}
#else
#define multiply_add mma
#endif
#if DT == 2 && !defined(HOSTEMU)
DEV u32 round_weight(u32 a) { u32 r; asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(__uint_as_float(a))); return r; }
#else
DEV u32 round_weight(u32 a) { return a; }
#endif
DEV u32 umax2(u32 a, u32 b) { return a > b ? a : b; }
DEV u32 max4(const u32 (&v)[4]) { return umax2(umax2(v[0], v[1]), umax2(v[2], v[3])); }
DEV bool exhausted(u32& spins, volatile u32* broken) {  // the same answer in all lanes
  breathe();
  ++spins;
  return (spins & 255) == 0 && __any_sync(FULL, spins > SPIN || *broken);
}
#if CL > 1
DEV void mbar_wait(u32 bar, u32 phase, bool& dead, volatile u32* broken) {  // dead: the same in all lanes
  u32 spins = 0;
  while (!dead && !__all_sync(FULL, mbar_try(bar, phase)))
    if (exhausted(spins, broken)) { dead = true; *broken = 1; }
}
#endif

// ---------------------------------------------------------------- the matmul of a warp
// A (weights) lies in registers and shared memory. B (h or dz) comes from global memory straight into the registers of
// mma by 16-byte loads, with k permuted in the same way in both. What other blocks have not written yet is all ones:
// a pattern that no writer makes. Every word is looked at until it is something else, so no flag and no order between
// words is needed. A warp that has looked SPIN times sets `broken` and goes on with what is there, which is NaN.
//
// KW warps share k: each has NL of its NCH chunks.
template <int MT, int NCH, int KW = W>
struct Mat {
  static constexpr int NL = (NCH + KW - 1) / KW;
  static constexpr int NR = NLR < NL ? NLR : NL;
  static constexpr int KA = MT * NT >= 4 ? 1 : (MT * NT >= 2 ? 2 : 4);
  u32 wr[MT][NR][8];
  u32* ws;  // [NL - NR][MT][2][W][32][4]
  float acc[KA][MT][NT][4];
  int chunk0, lane, warp;
  bool ok[NT], dead = false;
  volatile u32* broken;

  template <class F> DEV void load_weights(u32* smem_w, u32* flag, F row_ptr) {  // row_ptr(row), or null
    lane = threadIdx.x & 31; warp = threadIdx.x >> 5; chunk0 = KW > 1 ? warp * NL : 0; ws = smem_w; broken = flag;
    const int q = lane & 3, r = lane >> 2;
#pragma unroll
    for (int m = 0; m < MT; ++m)
#pragma unroll
      for (int j = 0; j < NL; ++j) {
        u32 x[4] = {0, 0, 0, 0}, y[4] = {0, 0, 0, 0};
        const ET *px = row_ptr(m * 16 + r), *py = row_ptr(m * 16 + r + 8);
        if (chunk0 + j < NCH) {
          const int k = (chunk0 + j) * KC + q * EPL;
          if (px) load_constant(x, px + k);
          if (py) load_constant(y, py + k);
        }
        if (j < NR) {
#pragma unroll
          for (int i = 0; i < 4; ++i) { wr[m][j < NR ? j : 0][2 * i] = round_weight(x[i]); wr[m][j < NR ? j : 0][2 * i + 1] = round_weight(y[i]); }
        } else {
          u32* to = ws + ((((j - NR) * MT + m) * 2 * W + warp) * 32 + lane) * 4;
          *(uint4*)to = make_uint4(round_weight(x[0]), round_weight(y[0]), round_weight(x[1]), round_weight(y[1]));
          *(uint4*)(to + W * 128) = make_uint4(round_weight(x[2]), round_weight(y[2]), round_weight(x[3]), round_weight(y[3]));
        }
      }
  }
  DEV void load_b(u32 (&v)[NL][NT][4], const ET* base, int js, int ns) {
#pragma unroll
    for (int j = 0; j < NL; ++j)
#pragma unroll
      for (int n = 0; n < NT; ++n)
        if (ok[n] && (NCH % KW == 0 || chunk0 + j < NCH)) load_relaxed(v[j][n], base + j * js + n * ns);
        else v[j][n][0] = v[j][n][1] = v[j][n][2] = v[j][n][3] = 0;
  }
  DEV bool missing(const u32 (&v)[NL][NT][4]) {
    u32 m = 0;
#pragma unroll
    for (int j = 0; j < NL; ++j)
#pragma unroll
      for (int n = 0; n < NT; ++n) m = umax2(m, max4(v[j][n]));
    return __any_sync(FULL, m == FULL);
  }
  template <class F> DEV void multiply(F get) {  // get(j, v): of chunk j, what each tile of 8 rows multiplies
#pragma unroll
    for (int a = 0; a < KA; ++a)
#pragma unroll
      for (int m = 0; m < MT; ++m)
#pragma unroll
        for (int n = 0; n < NT; ++n)
#pragma unroll
          for (int i = 0; i < 4; ++i) acc[a][m][n][i] = 0;
#pragma unroll
    for (int j = 0; j < NL; ++j) {
      u32 v[NT][4];
      get(j, v);
#pragma unroll
      for (int m = 0; m < MT; ++m) {
        u32 a[8];
        if (j < NR) {
#pragma unroll
          for (int i = 0; i < 8; ++i) a[i] = wr[m][j < NR ? j : 0][i];
        } else {
          const u32* from = ws + ((((j - NR) * MT + m) * 2 * W + warp) * 32 + lane) * 4;
          uint4 x = *(const uint4*)from, y = *(const uint4*)(from + W * 128);
          a[0] = x.x; a[1] = x.y; a[2] = x.z; a[3] = x.w; a[4] = y.x; a[5] = y.y; a[6] = y.z; a[7] = y.w;
        }
#pragma unroll
        for (int n = 0; n < NT; ++n) {
          multiply_add(acc[(2 * j) % KA][m][n], a[0], a[1], a[2], a[3], v[n][0], v[n][1]);
          multiply_add(acc[(2 * j + 1) % KA][m][n], a[4], a[5], a[6], a[7], v[n][2], v[n][3]);
        }
      }
    }
  }
  DEV float sum(int m, int n, int i) const {
    float d = acc[0][m][n][i];
#pragma unroll
    for (int a = 1; a < KA; ++a) d += acc[a][m][n][i];
    return d;
  }
  // base: this lane's element of this warp's first chunk; js, ns: distances of chunks and of tiles of 8 rows.
  // shadow: work that is done before the first look, while others still compute what is looked for.
  template <class F> DEV void run(const ET* base, int js, int ns, F shadow) {
    u32 v[NL][NT][4], spins = 0;
    shadow();
    load_b(v, base, js, ns);
    while (!dead && missing(v)) {
      if (exhausted(spins, broken)) { dead = true; *broken = 1; }
#pragma unroll
      for (int j = 0; j < NL; ++j)
#pragma unroll
        for (int n = 0; n < NT; ++n)
          if (max4(v[j][n]) == FULL) load_relaxed(v[j][n], base + j * js + n * ns);
    }
    multiply([&](int j, u32 (&of)[NT][4]) {
#pragma unroll
      for (int n = 0; n < NT; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) of[n][i] = v[j][n][i];
    });
  }
};

// Warps without pointwise work sleep until their block has written its part: looking costs the others time.
#define GATE_WAIT 5
