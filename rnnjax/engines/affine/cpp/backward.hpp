// The backward loop, in chunks of steps: the loop over the chunk makes the cotangents dz of what the update sees, and
// the gradients of the weights and of xs take them while they are in the cache. Layouts:
//   dz               [slot][panel of 4 vectors of units][position][row][4 * VL]; position 1 is the chunk's first time,
//                    and at its end, or at 0 when time runs backwards, stands the step that the loop did before
//   packed w^T       [panel of rows of w][gate][unit][4 * VL]
//   gradients of w   [slot][panel][row of w][4 * VL], written out at the end
constexpr int64_t DZ_BYTES = 4194304;
constexpr int64_t SUM_ROWS = 128;  // rows of dz at a time, in the gradients of the weights

struct Backward : Sizes {
  const Forward &forward;  // of the same call: to compute again what was not kept
  int64_t NT, IT, steps, positions;
  int64_t i0 = 0, now = 0, low = 0;  // the chunk: steps [i0, i0 + now), times [low, low + now)
  real *dz, *packed_h, *packed_x, *sums, *saved;

  Backward(const Call &q, const Forward &forward) : Sizes(q), forward(forward) {
    NT = up(NU, BU);
    IT = q.d_xs ? up(I, PW) : 0;
    const int64_t row = (NS * NT * PW + (q.keep == 2 ? NU * c.saved * VL : 0)) * (int64_t)sizeof(real);
    steps = std::max<int64_t>(1, std::min<int64_t>(T, DZ_BYTES / std::max<int64_t>(1, row * B)));
    positions = steps + 2;
  }
  int64_t chunk_size() const { return NS * NT * positions * B * PW; }
  int64_t packed_size() const { return ((c.recurrent ? NT : 0) + IT) * G * H * PW; }
  int64_t gradient_size() const { return G * NT * PW * (I + 1 + (c.recurrent ? H : 0)); }
  int64_t saved_size() const { return q.keep == 2 ? steps * B * NU * c.saved * VL : 0; }
  int64_t position(int64_t t) const { return t - low + 1; }
  real *panel(int slot, int64_t tile, int64_t position) const { return dz + ((slot * NT + tile) * positions + position) * B * PW; }

  int64_t pack_jobs() const { return (c.recurrent ? NT : 0) + IT; }
  void pack(int64_t job) const {
    const bool x = job < IT;
    const int64_t tile = x ? job : job - IT, rows = x ? I : H, n = std::min<int64_t>(PW, rows - tile * PW);
    const real *w = (const real *)(x ? q.w_ih : q.w_hh);
    real *out = (x ? packed_x : packed_h) + tile * G * H * PW;
    if (n < PW) std::memset(out, 0, sizeof(real) * G * H * PW);
    for (int g = 0; g < G; g++) {
      const int gate = x ? c.gate_x[g] : c.gate_h[g];
      for (int64_t k0 = 0; k0 < H; k0 += PW)
        for (int64_t i = 0; i < n; i++) {
          const real *from = w + (tile * PW + i) * G * H + gate * H;
          real *to = out + g * H * PW + i;
          for (int64_t k = k0; k < std::min<int64_t>(H, k0 + PW); k++) to[k * PW] = from[k];
        }
    }
  }

  // c[row][4 vectors] (+)= sum of dz over G slots and their units, times w^T; `at(r)` is a row of dz
  // in the first panel of the first slot
  template <class At> void pull(const real *w, bool add, real *out, int64_t ldc, int64_t count, At at) const {
    constexpr int64_t PANELS = 128 / PW > 0 ? 128 / PW : 1;  // a block of weights in the first-level cache
    const int64_t jump = positions * B * PW;
    static const vf zeros[BU] = {};
    const int n = BU > WIDEST || (count > rows_of(BU) && count <= MOST) ? 2 : BU;  // 7 or 8 rows at once
    const Groups groups(count, n);
    for (int g = 0; g < G; g++)
      for (int64_t p0 = 0; p0 < NT; p0 += PANELS) {
        const int64_t p1 = std::min(NT, p0 + PANELS), last = std::min<int64_t>(PW, H - (p1 - 1) * PW);
        const int64_t k = (p1 - p0 - 1) * PW + last;
        const real *b = w + (g * H + p0 * PW) * PW;
        for (int64_t m = 0; m < groups.count; m++) {
          const int64_t a = groups.start(m), e = groups.start(m + 1);
          const real *rows[MOST];
          for (int64_t r = a; r < e; r++) rows[r - a] = at(r) + ((int64_t)g * NT + p0) * jump;
          // First the next block of weights, a half each time, then rows of dz that follow, in one panel after the other.
          const int64_t turn = m * (BU / n);
          const real *init = g == 0 && p0 == 0 && !add ? (const real *)zeros : nullptr;
          for (int i = 0; i < BU / n; i++) {
            const real *next = turn + i < 2 ? b + k * PW + (turn + i) * k * 2 * LINE
                             : e < count ? at(e) + ((int64_t)g * NT + p0 + m % (p1 - p0)) * jump : b;
            KERNELS[n][e - a]({rows, 1, PW, p1 - p0, last, jump, b + i * n * VL, init, PW, out + a * ldc + i * n * VL, ldc, next});
          }
        }
      }
  }

  // ---- the loop over the rows [r0, r1) of the chunk, by one thread, or by several that divide the tiles and wait for
  // each other; states: S arrays [R][ld] of cotangents, kept between chunks
  void run(int64_t r0, int64_t r1, real *states, real *own_sums, real *scratch, Gang *gang = nullptr, int me = 0,
           int parties = 1) const {
    const int64_t R = r1 - r0, tile0 = NT * me / parties, tile1 = NT * (me + 1) / parties;
    int64_t turn = 0;
    real *d[MAX_STATES];
    for (int s = 0; s < S; s++) {
      d[s] = states + s * R * ld;
      if (i0 + now == T && me == 0)
        for (int64_t r = 0; r < R; r++) forward.take(d[s] + r * ld, q.d_fin[s], r0 + r);
    }
    if (q.keep == 2) recompute(r0, r1, scratch);
    for (int64_t i = i0 + now - 1; i >= i0; i--) {
      const int64_t t = time(i);
      if (parties > 1) gang->wait(me, parties, ++turn);
      if (i < T - 1) through(i + 1, r0, R, d, tile0, tile1);
      for (int64_t tile = tile0; tile < tile1; tile++) {
        const int64_t unit = tile * PW;
        const void *owns[64];
        void *sums[64], *ds[MAX_STATES];
        for (int p = 0; p < P; p++) owns[p] = forward.own[p] + unit, sums[p] = own_sums + p * Hp + unit;
        for (int s = 0; s < S; s++) ds[s] = d[s] + unit;
        const real *kept = q.keep == 2 ? saved + (((t - low) * NU + tile * BU) * B + r0) * c.saved * VL
                                       : (const real *)q.saved + ((t * NU + tile * BU) * B + r0) * c.saved * VL;
        c.backward({R, unit, H, owns, sums, ds, ld, (const real *)q.d_ys + (t * B + r0) * H + unit, H, kept, B * c.saved * VL,
                    panel(0, tile, position(t)) + r0 * PW, NT * positions * B * PW, q.valid ? q.valid + t * B + r0 : nullptr});
      }
    }
    if (i0 == 0) {
      if (parties > 1) gang->wait(me, parties, ++turn);
      if (T > 0) through(0, r0, R, d, tile0, tile1);
      if (parties > 1) gang->wait(me, parties, ++turn);
      for (int s = 0; s < S && me == 0; s++)
        for (int64_t r = 0; r < R; r++) std::memcpy((real *)q.d_init[s] + (r0 + r) * H, d[s] + r * ld, sizeof(real) * H);
    }
  }
  // From the step i to the one before it: through the matmul, and where the state was fresh, away.
  void through(int64_t i, int64_t r0, int64_t R, real *const *d, int64_t tile0, int64_t tile1) const {
    const int64_t at = position(time(i));
    if (c.recurrent)
      for (int64_t tile = tile0; tile < tile1; tile++)
        pull(packed_h + tile * G * H * PW, true, d[c.h] + tile * PW, ld, R,
             [&](int64_t r) { return panel(HS, 0, at) + (r0 + r) * PW; });
    if (q.resets)
      for (int64_t r = 0; r < R; r++)
        if (resets(i, r0 + r))
          for (int s = 0; s < S; s++) {
            real *total = (real *)q.d_fresh[s] + (r0 + r) * H, *here = d[s] + r * ld;
            for (int64_t u = 0; u < H; u++) total[u] += here[u];
            std::memset(here, 0, sizeof(real) * ld);
          }
  }
  // h before the step at time t, of one row of the batch.
  const real *before(int64_t t, int64_t row) const {
    const int64_t i = time(t);  // its own inverse
    if (resets(i, row)) return state(q.fresh[c.h], row);
    return i == 0 ? state(q.init[c.h], row) : (const real *)(q.hs ? q.hs : q.ys) + (time(i - 1) * B + row) * H;
  }
  int64_t scratch_size(int64_t R) const {  // of recompute; whole lines, since that of another thread follows
    return q.keep == 2 ? 2 * S * R * ld + R * up(NU, UB) * NS * UB * VL + up(R * H, LINE) * LINE : 0;
  }
  void recompute(int64_t r0, int64_t r1, real *scratch) const {
    const int64_t R = r1 - r0, size = NS * UB * VL;
    real *old[MAX_STATES], *fresh[MAX_STATES];
    for (int s = 0; s < S; s++) old[s] = scratch + 2 * s * R * ld, fresh[s] = old[s] + R * ld;
    real *z = scratch + 2 * S * R * ld, *y = z + R * forward.tiles * size;
    for (int64_t i = i0; i < i0 + now; i++) {
      const int64_t t = time(i);
      for (int64_t r = 0; r < R; r++)
        for (int s = 0; s < S; s++) {
          std::memcpy(old[s] + r * ld, s == c.h ? before(t, r0 + r) : (const real *)q.olds[s] + (t * B + r0 + r) * H, sizeof(real) * H);
          std::memset(old[s] + r * ld + H, 0, sizeof(real) * (ld - H));
        }
      forward.project(i, i + 1, r0, R, z, 1, 0, forward.tiles);
      for (int64_t tile = 0; tile < forward.tiles; tile++)
        forward.step(c.forward_saving, tile, R, z + tile * R * size, old, fresh, y + tile * UB * VL, nullptr,
                     saved + (((t - low) * NU + tile * UB) * B + r0) * c.saved * VL, B * c.saved * VL,
                     q.valid ? q.valid + t * B + r0 : nullptr);
    }
  }

  // ---- gradients of the weights, from the chunk: a job is a panel of a slot
  real *gradient(bool x, int slot, int64_t tile) const {  // [rows of w (and for x the bias)][4 vectors]
    const int64_t job = (x ? slot : slot - HS) * NT + tile;
    return x ? sums + job * (I + 1) * PW : sums + G * NT * (I + 1) * PW + job * H * PW;
  }
  int64_t weight_jobs() const { return NS * NT; }
  int64_t copy_size() const { return SUM_ROWS * (up(I, LINE) + up(H, LINE)) * LINE; }
  void weights(int64_t job0, int64_t job1, real *copy) const {
    const int64_t all = now * B;
    real *copy_h = copy + SUM_ROWS * up(I, LINE) * LINE;
    const bool any_h = c.recurrent && job1 > HS * NT, any_x = job0 < G * NT && !forward.symbols;
    for (int64_t k0 = 0; k0 < all; k0 += SUM_ROWS) {
      const int64_t K = std::min(SUM_ROWS, all - k0);
      const bool first = i0 + now == T && k0 == 0;
      // Copied, a line of columns after the other, so that what a product reads lies together.
      for (int64_t k = 0; k < K; k++) {
        const int64_t t = low + (k0 + k) / B, row = (k0 + k) % B;
        if (any_x) spread(copy + k * LINE, K, (const real *)q.xs + (t * B + row) * I, I);
        if (any_h) spread(copy_h + k * LINE, K, before(t, row), H);
      }
      for (int64_t job = job0; job < job1; job++) {
        const int slot = (int)(job / NT);
        const int64_t tile = job % NT;
        const real *b = panel(slot, tile, 1) + k0 * PW;
        const real *after = job + 1 < job1 ? panel((int)((job + 1) / NT), (job + 1) % NT, 1) + k0 * PW : b;
        if (slot < G) {
          real *sum = gradient(true, slot, tile);
          if (forward.symbols) scatter(low * B + k0, b, K, sum, first);
          else accumulate(copy, I, b, K, sum, first, c.recurrent && slot >= HS ? b : after);
          vf total[BU];
          for (int u = 0; u < BU; u++) total[u] = first ? vf{} : ((vf *)(sum + I * PW))[u];
          for (int64_t k = 0; k < K; k++)
            for (int u = 0; u < BU; u++) total[u] += *(const vf *)(b + k * PW + u * VL);
          for (int u = 0; u < BU; u++) ((vf *)(sum + I * PW))[u] = total[u];
        }
        if (c.recurrent && slot >= HS) accumulate(copy_h, H, b, K, gradient(false, slot, tile), first, after);
      }
    }
  }
  static void spread(real *to, int64_t K, const real *from, int64_t n) {
    int64_t i = 0;
    for (; i + LINE <= n; i += LINE, to += K * LINE) std::memcpy(to, from + i, sizeof(real) * LINE);
    for (int64_t j = i; j < n; j++) to[j - i] = from[j];
  }
  // out[m][4 vectors] (+)= sum_k a[m / LINE][k][m % LINE] * b[k]
  void accumulate(const real *a, int64_t M, const real *b, int64_t K, real *out, bool first, const real *after) const {
    static const vf zeros[BU] = {};
    constexpr int n = BU > WIDEST ? 2 : BU;
    const Groups groups(M, n);
    for (int64_t g = 0; g < groups.count; g++) {
      const int64_t m = groups.start(g), e = groups.start(g + 1);
      const real *rows[MOST];
      for (int64_t r = m; r < e; r++) rows[r - m] = a + r / LINE * K * LINE + r % LINE;
      const real *init = first ? (const real *)zeros : nullptr;
      // Brings in the next sums; at the end what will be multiplied next, a half each time.
      const int64_t left = groups.count - 1 - g;
      const real *next = left < 2 && after != b ? after + (1 - left) * K * 2 * LINE : out + e * PW;
      for (int i = 0; i < BU; i += n)
        KERNELS[n][e - m]({rows, LINE, K, 1, K, 0, b + i * VL, init, PW, out + m * PW + i * VL, PW, next});
    }
  }
  // The same for symbols, from the row `row` of xs on.
  void scatter(int64_t row, const real *b, int64_t K, real *out, bool first) const {
    if (first) std::memset(out, 0, sizeof(real) * I * PW);
    for (int64_t k = 0; k < K; k++) {
      const int32_t m = forward.symbols[row + k];
      if (m == I) continue;
      const vf x = vset(((const real *)q.xs)[(row + k) * I + m]);
      for (int u = 0; u < BU; u++) ((vf *)(out + m * PW))[u] += x * ((const vf *)(b + k * PW))[u];
    }
  }
  // What the panels hold, into the gradients as they are asked for; a job is a gate and a matrix.
  int64_t write_jobs() const { return G * (1 + c.recurrent) * NT; }
  void write(int64_t job) const {
    const int64_t tile = job % NT;
    const int g = (int)(job / NT % G);
    const bool x = job < G * NT;
    const int gate = x ? c.gate_x[g] : c.gate_h[g];
    const real *from = gradient(x, x ? g : HS + g, tile);
    const int64_t rows = x ? I : H, at = gate * H + tile * PW, n = std::min<int64_t>(PW, H - tile * PW);
    real *to = (real *)(x ? q.d_w_ih : q.d_w_hh) + at;
    for (int64_t r = 0; r < rows; r++) std::memcpy(to + r * G * H, from + r * PW, sizeof(real) * n);
    if (x) std::memcpy((real *)q.d_b + at, from + I * PW, sizeof(real) * n);
  }

  // ---- the gradient of xs, for the rows [k0, k1) of the chunk
  int64_t inputs_size(int64_t rows) const { return rows * PW; }
  void inputs(int64_t k0, int64_t k1, real *out) const {
    for (int64_t tile = 0; tile < IT; tile++) {
      pull(packed_x + tile * G * H * PW, false, out, PW, k1 - k0, [&](int64_t k) { return panel(0, 0, 1) + (k0 + k) * PW; });
      const int64_t n = std::min<int64_t>(PW, I - tile * PW);
      for (int64_t k = k0; k < k1; k++)
        std::memcpy((real *)q.d_xs + (low * B + k) * I + tile * PW, out + (k - k0) * PW, sizeof(real) * n);
    }
  }
  // Between chunks: the step that the loop did last, where the next chunk looks for it.
  void hand_over(int64_t panel_index, int64_t done_low, int64_t done_first) const {
    real *p = dz + panel_index * positions * B * PW;
    const int64_t from = time(done_first) - done_low + 1, to = time(done_first) - low + 1;
    if (from != to) std::memmove(p + to * B * PW, p + from * B * PW, sizeof(real) * B * PW);
  }
};
