// Both passes of a cell without w_hh: no unit reads another one, so a thread has one unit of one row, from the first step
// to the last, and waits for nobody. What steps read does not depend on the state; it is asked for AHEAD steps before.
//
// Operands and results are those of forward.cu and backward.cu, of which `wt`, `w`, `first` and `ex` are not looked at.
#define AHEAD 4
#define EACH_AHEAD _Pragma("unroll") for (int k = 0; k < AHEAD; ++k)
#define EACH(i, n) _Pragma("unroll") for (int i = 0; i < (n); ++i)
extern "C" __global__ void __launch_bounds__(NTHR) rnn_forward(
    const int* __restrict__ dims, const ET*, const float* __restrict__ bias_g, const float* __restrict__ zx, const ET*, const float* __restrict__ state,
    const float* __restrict__ own_g, const u8* __restrict__ flags, const float* __restrict__ fresh_g, const ET*, const u32*,
    ET*, u32*, HT* ys, float* end, ET* zs, HT* hs, float* ss) {
  const int T = dims[0], B = NETS * dims[1];
  const size_t BH = (size_t)B * H, at = (size_t)blockIdx.x * NTHR + threadIdx.x, b = at / H, u = at % H, net = b / dims[1];
  if (at >= BH) return;
  float own[NPN], fresh[SN + 1], s[SN], h = state[at], bias[G], zh[G], x[AHEAD][G];
  int flag[AHEAD];
  EACH(i, NP) own[i] = own_g[(net * NP + i) * H + u];
  EACH(i, S) s[i] = state[(i + 1) * BH + at];
  EACH(i, S + 1) fresh[i] = RESET ? fresh_g[i * BH + at] : 0;
  EACH(g, G) { zh[g] = 0; bias[g] = bias_g[(net * G + g) * H + u]; }
  auto time = [&](int r) { return (size_t)(REV ? T - 1 - r : r); };
  auto fetch = [&](int r, int k) {
    const size_t row = time(r) * B + b;
    flag[k] = MASK || RESET ? flags[row] : 1;
    EACH(g, G) x[k][g] = zx[row * G * H + g * H + u];
  };
  EACH_AHEAD if (k < T) fetch(k, k);
  for (int r0 = 0; r0 < T; r0 += AHEAD) {
    EACH_AHEAD {
      const int r = r0 + k;
      if (r < T) {
        const size_t row = time(r) * B + b, here = time(r) * BH + at;
        if (RESET && r && flag[k] & 2) {  // one before the first step has been done
          h = HF::load(HF::store(fresh[0]));
          EACH(i, S) s[i] = fresh[i + 1];
        }
        if (SAVE) {
          hs[here] = HF::store(h);
          EACH(i, S) ss[(size_t)i * T * BH + here] = s[i];
        }
        float z[G], seen[NS], hn, sn[SN], y;
        EACH(g, G) z[g] = x[k][g] + bias[g];
        cell_seen(z, zh, seen);
        const bool valid = !MASK || flag[k] & 1;
        if (r + AHEAD < T) fetch(r + AHEAD, k);
        if (SAVE_SEEN) EACH(g, NS) zs[row * NS * H + g * H + u] = E::store(seen[g]);
        cell_update(own, seen, h, s, hn, sn, y);
        if (valid) {
          h = HF::load(HF::store(hn));
          EACH(i, S) s[i] = sn[i];
        }
        ys[here] = HF::store(y);
      }
    }
  }
  end[at] = h;
  EACH(i, S) end[(i + 1) * BH + at] = s[i];
}
extern "C" __global__ void __launch_bounds__(NTHR) rnn_backward(
    const int* __restrict__ dims, const ET*, const ET* __restrict__ zs, const HT* __restrict__ hs,
    const float* __restrict__ ss, const float* __restrict__ own_g, const u8* __restrict__ flags,
    const HT* __restrict__ dys, const float* __restrict__ d_end, const ET*, const u32*,
    ET*, u32*, ET* dz, ET*, float* d_state, float* down_g, float* d_fresh_g) {
  const int T = dims[0], B = NETS * dims[1];
  const size_t BH = (size_t)B * H, at = (size_t)blockIdx.x * NTHR + threadIdx.x, b = at / H, u = at % H, net = b / dims[1];
  if (at >= BH) return;
  float own[NPN], down[NPN], ds[SN], d_fresh[SN + 1], dh = d_end[at];
  float seen[AHEAD][NS], h[AHEAD], s[AHEAD][SN], dy[AHEAD];
  int flag[AHEAD];
  EACH(i, NP) { own[i] = own_g[(net * NP + i) * H + u]; down[i] = 0; }
  EACH(i, S) ds[i] = d_end[(i + 1) * BH + at];
  EACH(i, S + 1) d_fresh[i] = 0;
  auto time = [&](int r) { return (size_t)(REV ? r : T - 1 - r); };  // r counts from the last step
  auto fetch = [&](int r, int k) {
    const size_t row = time(r) * B + b, here = time(r) * BH + at;
    flag[k] = MASK || RESET ? flags[row] : 1;
    EACH(g, NS) seen[k][g] = E::load(zs[row * NS * H + g * H + u]);
    h[k] = HF::load(hs[here]);
    EACH(i, S) s[k][i] = ss[(size_t)i * T * BH + here];
    dy[k] = HF::load(dys[here]);
  };
  EACH_AHEAD if (k < T) fetch(k, k);
  for (int r0 = 0; r0 < T; r0 += AHEAD) {
    EACH_AHEAD {
      const int r = r0 + k;
      if (r < T) {
        const size_t row = time(r) * B + b;
        const int now = flag[k];
        const float d_out = dy[k];
        Early early;
        cell_early(own, seen[k], h[k], s[k], early);
        if (r + AHEAD < T) fetch(r + AHEAD, k);
        float dzh[G], dzx[NXN], d_h, d_old[SN], d_own[NPN];
        EACH(g, G) dzh[g] = 0;
        if (!MASK || now & 1) {
          cell_pull(own, early, dh, ds, d_out, dzh, dzx, d_h, d_old, d_own);
          dh = d_h;
          EACH(i, S) ds[i] = d_old[i];
          EACH(i, NP) down[i] += d_own[i];
        }
        EACH(g, G) dz[row * G * H + g * H + u] = E::store(dzh[g]);
        if (RESET && now & 2 && r + 1 < T) {  // the state before this step is that of a restart
          d_fresh[0] += dh;
          dh = 0;
          EACH(i, S) { d_fresh[i + 1] += ds[i]; ds[i] = 0; }
        }
      }
    }
  }
  d_state[at] = dh;
  EACH(i, S) d_state[(i + 1) * BH + at] = ds[i];
  EACH(i, NP) down_g[i * BH + at] = down[i];
  if (RESET) EACH(i, S + 1) d_fresh_g[i * BH + at] = d_fresh[i];
}
