// The backward pass, from the last step to the first. What blocks exchange is dz, the cotangents of zh, rounded:
// `ex` is [T][G HP / EPL][BP][EPL], slot r for step r in the order of the forward pass. Rows of A are units; k runs over
// the gates of all units. A cluster of CL blocks shares CL * U units: block k of it multiplies the k-th part of k for all
// of them, and partial sums go to their owners through distributed shared memory.
#define MROWS (CL * U)
#define MTB ((MROWS + 15) / 16)
#define KR (G * HP / CL)
#define NCHB (KR / KC)
extern "C" __global__ void __launch_bounds__(NTHR, 1)
#if CL > 1
__cluster_dims__(CL, 1, 1)
#endif
rnn_backward(
    const int* __restrict__ dims,       // T, B
    const ET* __restrict__ w,           // [NETS][HP][G][HP], w_hh
    const ET* __restrict__ zs,          // [T][B][NS][H], what the update saw
    const HT* __restrict__ hs,          // [T][B][H], before each step
    const float* __restrict__ ss,       // [S][T][B][H]
    const float* __restrict__ own_g,    // [NETS][NP][H]
    const u8* __restrict__ flags,       // [T][B]
    const HT* __restrict__ dys,         // [T][B][H]
    const float* __restrict__ d_end,    // [1 + S][B][H]
    const ET*, const u32*,              // what ex and err are made of
    ET* ex, u32* err, ET* dz, ET* dx,   // dz [T][B][G][H]; dx [T][B][NX][H], of gates whose zx the update sees apart
    float* d_state, float* down_g, float* d_fresh_g) {  // [1 + S][B][H], [NP][B][H], [1 + S][B][H]; the last with RESET
  const int T = dims[0], B = NETS * dims[1];
  const int group = blockIdx.x / P, blk = blockIdx.x % P, tid = threadIdx.x;
  const int net = group / GROUPS, taken = group % GROUPS * NB, b0 = net * dims[1] + taken, rows = dims[1] - taken;
  const int rank = blk % CL, ubase = (blk / CL) * MROWS, u0 = ubase + rank * U;
  const size_t BH = (size_t)B * H;
  u32* broken = (u32*)smem;
  u64* bars = (u64*)(smem + 16);
  float* red = (float*)(smem + 32);  // [2][W][MTB * 16][RS]
  constexpr int REDN = W * MTB * 16 * RS, XRN = CL > 1 ? CL * NB * U : 0;
  float* xr = red + 2 * REDN;  // [2][CL][NB][U]
  Mat<MTB, NCHB> mat;
  mat.load_weights((u32*)(xr + 2 * XRN), broken, [&](int r) -> const ET* {
    return r < MROWS ? w + (size_t)(net * HP + ubase + r) * G * HP + rank * KR : (const ET*)0; });
  const int lane = mat.lane, warp = mat.warp;
  if (tid == 0) *broken = err[0];
#if CL > 1
  const u32 bar_a = smem_addr(bars), xr_a = smem_addr(xr);
  if (tid == 0) { mbar_init(bar_a, 1); mbar_init(bar_a + 8, 1); mbar_fence(); }
  cluster_sync();
#endif
  __syncthreads();
#pragma unroll
  for (int n = 0; n < NT; ++n) mat.ok[n] = n * 8 + (lane >> 2) < rows;
  const size_t exs = (size_t)G * HP * BP, egs = (size_t)HP * BP;  // from step to step, from gate to gate
  const size_t lane_at = ((size_t)((rank * KR) / EPL + mat.chunk0 * 4 + (lane & 3)) * BP + group * NB + (lane >> 2)) * EPL;
  const int js = 4 * BP * EPL, ns = 8 * EPL;
  const int t0 = REV ? T - 1 : 0, dt = REV ? -1 : 1;

  float ds[PP][SN], dhd[PP], own[PP][NPN], down[PP][NPN], d_fresh[PP][SN + 1];
  float zn[PP][NS], sn[PP][SN], hn[PP], dyn[PP], dzh[PP][G], dzx[PP][NXN];
  bool real[PP], on[PP];
  int at[PP], flag[PP], flag_n[PP];
  ET* pe[PP];
  EACH_PAIR {
    const int idx = tid + p * NTHR, u = u0 + idx % U, b = b0 + idx / U;
    real[p] = idx < PW && idx / U < rows;
    on[p] = real[p] && u < H;
    at[p] = b * H + u;
    pe[p] = ex + (T - 1) * exs + ((size_t)(u / EPL) * BP + group * NB + idx / U) * EPL + u % EPL;
    flag[p] = flag_n[p] = 1;
    hn[p] = dyn[p] = 0;
    dhd[p] = on[p] ? d_end[at[p]] : 0;
#pragma unroll
    for (int i = 0; i < SN; ++i) { ds[p][i] = S && on[p] ? d_end[(size_t)(i + 1) * BH + at[p]] : 0; sn[p][i] = 0; }
#pragma unroll
    for (int i = 0; i < NPN; ++i) { down[p][i] = 0; own[p][i] = NP && on[p] ? own_g[(net * NP + i) * H + u] : 0; }
#pragma unroll
    for (int i = 0; i <= SN; ++i) d_fresh[p][i] = 0;
#pragma unroll
    for (int g = 0; g < NS; ++g) zn[p][g] = 0;
#pragma unroll
    for (int g = 0; g < G; ++g) dzh[p][g] = 0;
#pragma unroll
    for (int g = 0; g < NXN; ++g) dzx[p][g] = 0;
  }
  auto fetch = [&](int r) {  // what step r needs
    EACH_PAIR
      if (on[p]) {
        const int idx = tid + p * NTHR, u = u0 + idx % U, b = b0 + idx / U;
        const long long t = t0 + dt * r, back = PREF * dt * (long long)BH;
        const ET* z = zs + (t * B + b) * NS * H + u;
        const size_t here = t * BH + at[p];
#pragma unroll
        for (int g = 0; g < NS; ++g) zn[p][g] = E::load(z[g * H]);
        hn[p] = HF::load(hs[here]);
        dyn[p] = HF::load(dys[here]);
        if (MASK || RESET) flag_n[p] = flags[t * B + b];
#pragma unroll
        for (int i = 0; i < S; ++i) sn[p][i] = ss[(size_t)i * T * BH + here];
        if (r >= PREF) {
          prefetch(dys + here - back);
          prefetch(hs + here - back);
#pragma unroll
          for (int i = 0; i < S; ++i) prefetch(ss + (size_t)i * T * BH + here - back);
#pragma unroll
          for (int g = 0; g < NS; ++g) prefetch(z + g * H - back * NS);
#pragma unroll
          for (int g = 0; g < G; ++g) prefetch(pe[p] - PREF * exs + g * egs);
        }
      }
  };
  auto save = [&](int r) {
    EACH_PAIR
      if (on[p]) {
        const int idx = tid + p * NTHR, u = u0 + idx % U, b = b0 + idx / U;
        const size_t row = (size_t)(t0 + dt * r) * B + b;
#pragma unroll
        for (int g = 0; g < G; ++g) dz[row * G * H + g * H + u] = E::store(dzh[p][g]);
        if (NX)
#pragma unroll
          for (int g = 0; g < NXN; ++g) dx[row * NX * H + g * H + u] = E::store(dzx[p][g]);
      }
  };
  fetch(T - 1);
  EACH_PAIR flag[p] = flag_n[p];
  for (int i = 0; i <= T; ++i) {  // the last turn only finishes d_state
    const int r = T - 1 - i;
    Early early[PP];
    float dh[PP];
    int mask[PP];  // of step r
    EACH_PAIR {
      if (i < T) cell_early(own[p], zn[p], hn[p], sn[p], early[p]);
      dh[p] = dhd[p];
      mask[p] = flag_n[p];
    }
    float dy[PP];
    EACH_PAIR dy[p] = dyn[p];
    float* rd = red + (i & 1) * REDN;
    bool bad = false;
    if (i > 0) {
      mat.run(ex + (r + 1) * exs + lane_at, js, ns, [&]() {
        if (PWW < W && warp >= PWW) return;
        save(r + 1);
        if (r > 0) fetch(r - 1);
      });
      {
        const int q = lane & 3, row = lane >> 2;
#pragma unroll
        for (int m = 0; m < MTB; ++m)
#pragma unroll
          for (int n = 0; n < NT; ++n) {
            float* d = rd + (warp * MTB * 16 + m * 16 + row) * RS + n * 8 + 2 * q;
            *(float2*)d = make_float2(mat.sum(m, n, 0), mat.sum(m, n, 1));
            *(float2*)(d + 8 * RS) = make_float2(mat.sum(m, n, 2), mat.sum(m, n, 3));
          }
      }
#if CL > 1
      float* x = xr + (i & 1) * XRN;
      if (tid == 0) mbar_expect(bar_a + 8 * (i & 1), XRN * 4);
      __syncthreads();
#pragma unroll
      for (int q = 0; q < (MROWS * NB + NTHR - 1) / NTHR; ++q) {
        const int idx = tid + q * NTHR, row = idx % MROWS, col = idx / MROWS;
        if ((MROWS * NB) % NTHR && idx >= MROWS * NB) break;
        float a = 0, a2 = 0;
#pragma unroll
        for (int k = 0; k < W; k += 2) { a += rd[(k * MTB * 16 + row) * RS + col]; if (k + 1 < W) a2 += rd[((k + 1) * MTB * 16 + row) * RS + col]; }
        const u32 off = (u32)(((i & 1) * XRN + (rank * NB + col) * U + row % U) * 4);
        store_async(mapa(xr_a + off, row / U), mapa(bar_a + 8 * (i & 1), row / U), __float_as_uint(a + a2));
      }
      if (PWW < W && warp >= PWW) { bar_sync<NTHR>(GATE_WAIT); continue; }
      mbar_wait(bar_a + 8 * (i & 1), ((i - 1) >> 1) & 1, mat.dead, broken);
      bad = mat.dead;
#else
      if (warp >= PWW) { bar_arrive<NTHR>(1 + (i & 1)); bar_sync<NTHR>(GATE_WAIT); continue; }
      bar_sync<NTHR>(1 + (i & 1));
#endif
      bad = bad || *(volatile u32*)broken != 0;
      EACH_PAIR {
        const int idx = tid + p * NTHR, u = idx % U, col = idx / U;
        if (idx >= PW) continue;
        float a = 0, a2 = 0;
#if CL > 1
#pragma unroll
        for (int k = 0; k < CL; ++k) a += x[(k * NB + col) * U + u];
#else
#pragma unroll
        for (int k = 0; k < W; k += 2) { a += rd[(k * MTB * 16 + u) * RS + col]; if (k + 1 < W) a2 += rd[((k + 1) * MTB * 16 + u) * RS + col]; }
#endif
        dh[p] += a + a2;
        if (bad) dh[p] = NAN;
      }
    } else {
      if (r > 0) fetch(r - 1);
      bad = *(volatile u32*)broken != 0;
      if (PWW < W && warp >= PWW) { bar_sync<NTHR>(GATE_WAIT); continue; }
    }
    EACH_PAIR {
      const int idx = tid + p * NTHR, u = idx % U;
      if (PP > 1 && (idx & ~31) >= PW) continue;
      if (RESET && i > 0 && flag[p] & 2) {  // step r + 1 began anew
        d_fresh[p][0] += dh[p];
        dh[p] = 0;
#pragma unroll
        for (int k = 0; k < S; ++k) { d_fresh[p][k + 1] += ds[p][k]; ds[p][k] = 0; }
      }
      if (i == T) {
        if (on[p]) {
          d_state[at[p]] = dh[p];
#pragma unroll
          for (int k = 0; k < S; ++k) d_state[(size_t)(k + 1) * BH + at[p]] = ds[p][k];
        }
        continue;
      }
      flag[p] = mask[p];
      float d_own[NPN], d_old[SN];
      if (!MASK || mask[p] & 1) {
        cell_pull(own[p], early[p], dh[p], ds[p], dy[p], dzh[p], dzx[p], dhd[p], d_old, d_own);
#pragma unroll
        for (int k = 0; k < S; ++k) ds[p][k] = d_old[k];
#pragma unroll
        for (int k = 0; k < NP; ++k) down[p][k] += d_own[k];
      } else {  // nothing happened: all cotangents of the state pass by
        dhd[p] = dh[p];
#pragma unroll
        for (int g = 0; g < G; ++g) dzh[p][g] = 0;
#pragma unroll
        for (int g = 0; g < NXN; ++g) dzx[p][g] = 0;
      }
      if (bad)
#pragma unroll
        for (int g = 0; g < G; ++g) dzh[p][g] = NAN;
      if (!on[p])
#pragma unroll
        for (int g = 0; g < G; ++g) dzh[p][g] = 0;
#if ESZ == 2
      const bool odd = u & 1;  // even lanes write the first gate of two, odd lanes the second
#pragma unroll
      for (int g = 0; g < G; g += 2) {
        const float e0 = dzh[p][g], e1 = g + 1 < G ? dzh[p][g + 1 < G ? g + 1 : 0] : 0;
        const float got = __shfl_xor_sync(FULL, odd ? e0 : e1, 1);
        const u32 word = odd ? pack(e1, got) : pack(got, e0);
        if (real[p] && (g + 1 < G || !odd)) store_word(pe[p] + (odd ? (g + 1) * egs - 1 : g * egs), word);
      }
#else
#pragma unroll
      for (int g = 0; g < G; ++g) { const u32 bits = __float_as_uint(dzh[p][g]); if (real[p]) store_word(pe[p] + g * egs, bits == FULL ? 0x7fffffffu : bits); }
#endif
      pe[p] -= exs;
    }
    if (PWW < W) bar_arrive<NTHR>(GATE_WAIT);
  }
  if (warp < PWW)
    EACH_PAIR
      if (on[p]) {
#pragma unroll
        for (int i = 0; i < NP; ++i) down_g[(size_t)i * BH + at[p]] = down[p][i];
        if (RESET)
#pragma unroll
          for (int i = 0; i <= S; ++i) d_fresh_g[(size_t)i * BH + at[p]] = d_fresh[p][i];
      }
#if CL > 1
  __syncwarp();
  cluster_sync();
#endif
  __syncthreads();
  if (tid == 0 && *(volatile u32*)broken) err[0] = 1;
}
