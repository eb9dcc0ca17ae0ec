// The forward pass. Every block multiplies its U units' weights with all of h, step by step; h goes from block to block
// through `ex`, [T][HP / EPL][BP][EPL], where every 32-byte sector is written whole by one instruction. With CL > 1 the
// blocks of a group are a cluster, and h goes from one's shared memory to another's: see cluster.cu, which stands before.
//
// Rows of A: gates in groups of 4 (two m tiles for 8 units), then of 2 (one tile for 8 units), then 1 (one for 16), so
// that a lane holds several gates of one unit, and the partial sums of a unit lie together in shared memory.
#define NQ (G / 4)
#define NPR (G % 4 / 2)
#define NSG (G % 2)
#define MTF (U / 8 * (2 * NQ + NPR) + U / 16 * NSG)
#define SQ (NB * 4 + 4)
#define SP (NB * 2 + 2)
#define REDW (U * (NQ * SQ + NPR * SP + NSG * RS))  // floats of a warp
#define NCHF (HP / KC)
#if CL == 1
#define UNIT(i) ((i) % U)  // of pair i of the block
#define ROW(i) ((i) / U)
#endif
DEV int row_of(int m, int i) {  // of w^T
  if (m < U / 8 * 2 * NQ) { int o = m / (2 * NQ + !NQ), k = m % (2 * NQ + !NQ); return (2 * k + i / 8) * HP + 8 * o + i % 8; }
  m -= U / 8 * 2 * NQ;
  if (m < U / 8 * NPR) return (4 * NQ + i / 8) * HP + 8 * m + i % 8;
  return (G - 1) * HP + 16 * (m - U / 8 * NPR) + i;
}
extern "C" __global__ void __launch_bounds__(NTHR, 1)
#if CL > 1
__cluster_dims__(CL, 1, 1)
#endif
rnn_forward(
    const int* __restrict__ dims,       // T, B
    const ET* __restrict__ wt,          // [NETS][G][HP][HP], w_hh transposed
    const float* __restrict__ bias_g,   // [NETS][G][H]
    const float* __restrict__ zx,       // [T][B][G][H]
    const ET* __restrict__ first,       // [HP / EPL][BP][EPL], h0
    const float* __restrict__ state,    // [1 + S][B][H], h first
    const float* __restrict__ own_g,    // [NETS][NP][H]
    const u8* __restrict__ flags,       // [T][B], 1 valid, 2 restart before this step; with MASK or RESET
    const float* __restrict__ fresh_g,  // [1 + S][B][H]; with RESET
    const ET*, const u32*,              // what ex and err are made of
    ET* ex, u32* err, HT* ys, float* end,  // ys [T][B][H]; end [1 + S][B][H], the final state
    ET* zs, HT* hs, float* ss) {           // before each step: hs [T][B][H], ss [S][T][B][H]; with SAVE; zs [T][B][NS][H], with SAVE_SEEN
  const int T = dims[0], B = NETS * dims[1];
  const int group = blockIdx.x / P, u0 = blockIdx.x % P * U, tid = threadIdx.x;
  const int net = group / GROUPS, taken = group % GROUPS * NB, b0 = net * dims[1] + taken, rows = dims[1] - taken;
  const size_t BH = (size_t)B * H, exs = (size_t)HP * BP;
  u32* broken = (u32*)smem;
  float* bias = (float*)(smem + 16);  // [G][U]
#if CL == 1
  float* red = bias + G * U;          // [2][W][REDW]
  Mat<MTF, NCHF> mat;
  mat.load_weights((u32*)(red + 2 * W * REDW), broken, [&](int r) -> const ET* { return wt + ((size_t)net * G * HP + row_of(r / 16, r % 16) + u0) * HP; });
  const int lane = mat.lane, warp = mat.warp;
#pragma unroll
  for (int n = 0; n < NT; ++n) mat.ok[n] = n * 8 + (lane >> 2) < rows;
  const size_t lane_at = ((size_t)(mat.chunk0 * 4 + (lane & 3)) * BP + group * NB + (lane >> 2)) * EPL;
  const int js = 4 * BP * EPL, ns = 8 * EPL;
#else
  Cluster io;
  io.start((unsigned char*)(bias + G * U), broken, wt + (size_t)net * G * HP * HP, u0, rows, [&](int k, int row) {
    return k < H ? E::store(state[(size_t)(b0 + row) * H + k]) : (ET)0; });
#endif
  const long long dt = REV ? -1 : 1;
  const int t0 = REV ? T - 1 : 0;
  if (tid == 0) *broken = err[0];
  for (int i = tid; i < G * U; i += NTHR) bias[i] = u0 + i % U < H ? bias_g[(net * G + i / U) * H + u0 + i % U] : 0;
#if CL == 1
  __syncthreads();
#else
  io.open();
#endif

  float h[PP], y[PP], s[PP][SN], fresh[PP][SN + 1], own[PP][NPN], xc[PP][G], xn[PP][G], seen[PP][NS];
  bool real[PP], on[PP];  // pairs of a row that exists, and of those the ones of units that are no padding
  int at[PP], flag[PP], flag_n[PP];
#if CL == 1
  ET* pe[PP];
#endif
  EACH_PAIR {
    const int idx = tid + p * NTHR, u = u0 + UNIT(idx), b = b0 + ROW(idx);
    real[p] = idx < PW && ROW(idx) < rows;
    on[p] = real[p] && u < H;
    at[p] = b * H + u;
#if CL == 1
    pe[p] = ex + ((size_t)(u / EPL) * BP + group * NB + idx / U) * EPL + u % EPL;
#endif
    h[p] = y[p] = on[p] ? state[at[p]] : 0;
#pragma unroll
    for (int i = 0; i < SN; ++i) s[p][i] = S && on[p] ? state[(size_t)(i + 1) * BH + at[p]] : 0;
#pragma unroll
    for (int i = 0; i < NPN; ++i) own[p][i] = NP && on[p] ? own_g[(net * NP + i) * H + u] : 0;
#pragma unroll
    for (int i = 0; i <= SN; ++i) fresh[p][i] = RESET && on[p] && i <= S ? fresh_g[(size_t)i * BH + at[p]] : 0;
    flag[p] = flag_n[p] = (MASK || RESET) && on[p] ? flags[(size_t)t0 * B + b] : 1;
#pragma unroll
    for (int g = 0; g < G; ++g) {
      xc[p][g] = on[p] ? zx[((size_t)t0 * B + b) * G * H + g * H + u] + bias[g * U + UNIT(idx)] : 0;
      xn[p][g] = 0;
    }
#pragma unroll
    for (int g = 0; g < NS; ++g) seen[p][g] = 0;
  }
  // What is not urgent of step r, of which `seen` and y are, and of the state before step r + 1.
  auto save = [&](int r) {
    EACH_PAIR
      if (on[p]) {
        const int idx = tid + p * NTHR, u = u0 + UNIT(idx), b = b0 + ROW(idx);
        const size_t t = (size_t)(t0 + dt * r);
        if (r >= 0) {
          ys[t * BH + at[p]] = HF::store(y[p]);
          if (SAVE_SEEN)
#pragma unroll
            for (int g = 0; g < NS; ++g) zs[(t * B + b) * NS * H + g * H + u] = E::store(seen[p][g]);
        }
        if (SAVE && r + 1 < T) {
          hs[(t + dt) * BH + at[p]] = HF::store(h[p]);
          if (S)
#pragma unroll
            for (int i = 0; i < SN; ++i) ss[((size_t)i * T + t + dt) * BH + at[p]] = s[p][i];
        }
      }
  };
  for (int r = 0; r < T; ++r) {
    auto shadow = [&]() {  // while h is under way
      save(r - 1);
      EACH_PAIR
        if (r + 1 < T && on[p]) {
          const int idx = tid + p * NTHR, u = u0 + UNIT(idx), b = b0 + ROW(idx);
          const long long row = (long long)(t0 + dt * (r + 1)) * B + b;
          const float* x = zx + row * G * H + u;
#pragma unroll
          for (int g = 0; g < G; ++g) xn[p][g] = x[g * H];
          if (MASK || RESET) flag_n[p] = flags[row];
          if (r + 1 + PREF < T) {
#pragma unroll
            for (int g = 0; g < G; ++g) prefetch(x + dt * PREF * (long long)BH * G + g * H);
#if CL == 1
            prefetch(pe[p] + PREF * exs);
#endif
          }
        }
    };
#if CL == 1
    mat.run(r ? ex + (r - 1) * exs + lane_at : first + lane_at, js, ns, [&]() { if (PWW == W || warp < PWW) shadow(); });
    float* rd = red + (r & 1) * W * REDW;
    {
      const int q = lane & 3, row = lane >> 2;
      float* rw = rd + warp * REDW;
#pragma unroll
      for (int n = 0; n < NT; ++n) {
        const int col = n * 8 + 2 * q;
#pragma unroll
        for (int o = 0; o < U / 8; ++o)
#pragma unroll
          for (int k = 0; k < NQ; ++k) {
            const int m = o * 2 * NQ + 2 * k;
            float* d = rw + k * U * SQ + (8 * o + row) * SQ + col * 4;
            *(float4*)d = make_float4(mat.sum(m, n, 0), mat.sum(m, n, 2), mat.sum(m + 1, n, 0), mat.sum(m + 1, n, 2));
            *(float4*)(d + 4) = make_float4(mat.sum(m, n, 1), mat.sum(m, n, 3), mat.sum(m + 1, n, 1), mat.sum(m + 1, n, 3));
          }
        if (NPR)
#pragma unroll
          for (int o = 0; o < U / 8; ++o) {
            const int m = U / 8 * 2 * NQ + o;
            float* d = rw + NQ * U * SQ + (8 * o + row) * SP + col * 2;
            *(float2*)d = make_float2(mat.sum(m, n, 0), mat.sum(m, n, 2));
            *(float2*)(d + 2) = make_float2(mat.sum(m, n, 1), mat.sum(m, n, 3));
          }
        if (NSG)
#pragma unroll
          for (int o = 0; o < U / 16; ++o) {
            const int m = U / 8 * (2 * NQ + NPR) + o;
            float* d = rw + U * (NQ * SQ + NPR * SP) + (16 * o + row) * RS + col;
            *(float2*)d = make_float2(mat.sum(m, n, 0), mat.sum(m, n, 1));
            *(float2*)(d + 8 * RS) = make_float2(mat.sum(m, n, 2), mat.sum(m, n, 3));
          }
      }
    }
    if (warp >= PWW) { bar_arrive<NTHR>(1 + (r & 1)); bar_sync<NTHR>(GATE_WAIT); continue; }
    bar_sync<NTHR>(1 + (r & 1));
    const bool bad = *(volatile u32*)broken != 0;
#else
    const bool bad = io.run(r, shadow);
#endif
    EACH_PAIR {
      const int idx = tid + p * NTHR, u = UNIT(idx);
      if (PP > 1 && (idx & ~31) >= PW) continue;
      float zh[G], hn, sn[SN];
#pragma unroll
      for (int g = 0; g < G; ++g) zh[g] = 0;
#if CL == 1
      const int col = ROW(idx);
#pragma unroll
      for (int w = 0; w < W; ++w) {
        const float* rw = rd + w * REDW;
#pragma unroll
        for (int k = 0; k < NQ; ++k) {
          float4 d = *(const float4*)(rw + k * U * SQ + u * SQ + col * 4);
          zh[4 * k] += d.x; zh[4 * k + 1] += d.y; zh[4 * k + 2] += d.z; zh[4 * k + 3] += d.w;
        }
        if (NPR) { float2 d = *(const float2*)(rw + NQ * U * SQ + u * SP + col * 2); zh[NPR ? 4 * NQ : 0] += d.x; zh[NPR ? 4 * NQ + 1 : 0] += d.y; }
        if (NSG) zh[G - 1] += rw[U * (NQ * SQ + NPR * SP) + u * RS + col];
      }
#else
      io.sums(p, zh);
#endif
      cell_seen(xc[p], zh, seen[p]);
      cell_update(own[p], seen[p], h[p], s[p], hn, sn, y[p]);
      if (!MASK || flag[p] & 1) {
        h[p] = hn;
#pragma unroll
        for (int i = 0; i < S; ++i) s[p][i] = sn[i];
      }
      if (bad) h[p] = y[p] = NAN;
      if (r + 1 == T) {
        if (on[p]) {
          end[at[p]] = HF::load(HF::store(h[p]));
#pragma unroll
          for (int i = 0; i < S; ++i) end[(size_t)(i + 1) * BH + at[p]] = bad ? NAN : s[p][i];
        }
      } else if (RESET && flag_n[p] & 2) {
        h[p] = fresh[p][0];
#pragma unroll
        for (int i = 0; i < S; ++i) s[p][i] = fresh[p][i + 1];
        if (bad) h[p] = NAN;
      }
      h[p] = HF::load(HF::store(h[p]));
      const float out = on[p] ? h[p] : 0.0f;
#if CL > 1
      io.put(r, u, ROW(idx), out);
#elif ESZ == 2
      const float other = __shfl_xor_sync(FULL, out, 1);
      if (real[p] && !(u & 1)) store_word(pe[p], pack(other, out));
#else
      const u32 bits = __float_as_uint(out);
      if (real[p]) store_word(pe[p], bits == FULL ? 0x7fffffffu : bits);
#endif
#if CL == 1
      pe[p] += exs;
#endif
      flag[p] = flag_n[p];
#pragma unroll
      for (int g = 0; g < G; ++g) xc[p][g] = xn[p][g] + bias[g * U + u];
    }
#if CL == 1
    if (PWW < W) bar_arrive<NTHR>(GATE_WAIT);
#else
    if (r + 1 < T) io.send(r);
#endif
  }
#if CL == 1
  if (warp < PWW) save(T - 1);
#else
  save(T - 1);
  io.close();
#endif
  __syncthreads();
  if (tid == 0 && *(volatile u32*)broken) err[0] = 1;
}
