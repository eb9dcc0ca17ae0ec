// The forward loop. Layouts (a vector has VL lanes; W = gates * vectors of a tile; Hp = H rounded up to vectors):
//   packed weights   [x, h][tile][piece of W][k][vectors of the piece]
//   z                [tile][step][row][slot][vector of the tile]
//   saved            [T][vector of units][B][number]
//   states           [row][Hp + a line], of a thread's rows, before and after a step
constexpr int64_t BLOCK_BYTES = 32768;  // of weights at a time: they stay in the first-level cache
constexpr int64_t MANY_BYTES = 524288;  // weights of the state that do not stay in the second-level cache
constexpr int64_t Z_BYTES = 262144;   // projections are made for as many steps as fit here
constexpr int64_t LINE = 64 / sizeof(real);

struct Memory {  // scratch, kept for the next call (see loops.cpp)
  real *p;
  int64_t bytes;
  explicit Memory(int64_t numbers);
  ~Memory();
  Memory(const Memory &) = delete;
};

// Threads that run a loop together. Who has not come when the first one has waited for some microseconds stays away.
struct Gang {
  static constexpr int MOST_THREADS = 16;
  struct alignas(128) Place { std::atomic<int64_t> turn{0}; };  // of a thread, on a line of its own
  std::atomic<int> arrived{0}, parties{0};
  Place places[MOST_THREADS];
  template <class F> void join(int most, F run) {
    constexpr int CLOSED = 1 << 20;
    const int me = arrived.fetch_add(1);
    if (me >= CLOSED) return;
    if (me == 0) {
      for (int spins = 0; spins < 2000 && arrived.load() < most; spins++) relax();
      parties.store(arrived.exchange(CLOSED), std::memory_order_release);
    }
    while (!parties.load(std::memory_order_acquire)) relax();
    run(me, parties.load());
  }
  void wait(int me, int count, int64_t turn) {  // until all are there; turns grow
    places[me].turn.store(turn, std::memory_order_release);
    for (int i = 0; i < count; i++)
      for (int64_t spins = 1; places[i].turn.load(std::memory_order_acquire) < turn; spins++)
        if (spins % 65536 == 0) std::this_thread::yield();
        else if (spins > 256) relax();
  }
};

struct Sizes {
  const Call &q;
  const Cell &c;
  int64_t T, B, I, H, NU, Hp, ld;
  int G, NS, HS, UB, S, P;
  explicit Sizes(const Call &q)
      : q(q), c(*q.cell), T(q.T), B(q.B), I(q.I), H(q.H), NU(up(q.H, VL)), Hp(NU * VL), G(c.gates), NS(c.slots),
        HS(c.first_h), UB(c.vectors), S(c.states), P(c.own) {
    ld = up(NU, BU) * PW + LINE;  // the backward pass works on 4 vectors of units; a line more: no rows on the same sets
  }
  int64_t time(int64_t i) const { return q.reverse ? T - 1 - i : i; }  // of the i-th step
  // Few rows with much to do in a step: threads divide the units, and wait for each other at every step. That takes 0.7
  // microseconds on two cores of a virtual machine, as much as half a step of an LSTM with one row and H = 128.
  bool divides_units() const {
    return q.threads > 1 && B < 4 && NU >= 2 * BU && !q.resets && c.recurrent && B * G * H * H > 131072;
  }
  bool resets(int64_t i, int64_t row) const {
    const int64_t at = time(i) * B + row;
    return q.resets && q.resets[at] && (!q.valid || q.valid[at]);
  }
  const real *state(const void *p, int64_t row) const { return (const real *)p + row * H; }
};

struct Forward : Sizes {
  const Pieces pieces_x, pieces_h;
  int64_t tiles, panel_x, panel_h;
  const int32_t *symbols = nullptr;  // [T, B]: the only input of a row that is not zero, I for none; null if there are more
  real *packed_x, *packed_h, *bias, *zero;
  const real *own[64];

  explicit Forward(const Call &q) : Sizes(q), pieces_x(q.cell->gates * q.cell->vectors, WIDEST),
        pieces_h(q.cell->gates * q.cell->vectors, widest_h()) {
    tiles = up(NU, UB);
    panel_x = I * W() * VL;
    panel_h = c.recurrent ? H * W() * VL : 0;
  }
  int W() const { return G * UB; }
  int widest_h() const {  // weights that come from afar every step are read once for 8 rows, which leaves 2 or 3 vectors
    return G * H * H * (int64_t)sizeof(real) <= MANY_BYTES ? WIDEST : W() % 2 ? 3 : 2;
  }
  int64_t packed_size() const { return tiles * (panel_x + panel_h + W() * VL) + W() * VL + P * Hp; }
  void place(real *p) {  // of packed_size() numbers
    packed_x = p;
    packed_h = packed_x + tiles * panel_x;
    bias = packed_h + tiles * panel_h;
    zero = bias + tiles * W() * VL;
    std::memset(zero, 0, sizeof(real) * W() * VL);
    real *o = zero + W() * VL;
    for (int i = 0; i < P; i++, o += Hp) {
      std::memset(o, 0, sizeof(real) * Hp);
      std::memcpy(o, (const real *)q.own + i * H, sizeof(real) * H);
      own[i] = o;
    }
  }

  static constexpr int64_t PACK_ROWS = 16;
  int64_t pack_jobs() const { return up(I + (c.recurrent ? H : 0), PACK_ROWS) + 1; }
  void pack(int64_t job) const {  // 16 rows of w_ih or w_hh, read along the row; the last job packs the bias
    const int64_t all = I + (c.recurrent ? H : 0), k0 = job * PACK_ROWS, k1 = std::min(all, k0 + PACK_ROWS);
    if (job == pack_jobs() - 1) {
      for (int64_t tile = 0; tile < tiles; tile++)
        for (int j = 0; j < W(); j++) put(bias + (tile * W() + j) * VL, (const real *)q.b, c.gate_x[j / UB], tile * UB + j % UB);
      return;
    }
    for (int64_t k = k0; k < k1; k++) {
      const bool x = k < I;
      const Pieces &pieces = x ? pieces_x : pieces_h;
      const int64_t row = x ? k : k - I, rows = x ? I : H;
      const real *from = (const real *)(x ? q.w_ih : q.w_hh) + row * G * H;
      for (int64_t tile = 0; tile < tiles; tile++)
        for (int i = 0; i < pieces.count; i++) {
          real *to = (x ? packed_x + tile * panel_x : packed_h + tile * panel_h) + (pieces.start[i] * rows + row * pieces.width[i]) * VL;
          for (int j = pieces.start[i]; j < pieces.start[i] + pieces.width[i]; j++, to += VL)
            put(to, from, x ? c.gate_x[j / UB] : c.gate_h[j / UB], tile * UB + j % UB);
        }
    }
  }
  void put(real *to, const real *row, int gate, int64_t vector) const {
    *(vf *)to = vector < NU ? load(row + gate * H + vector * VL, H - vector * VL) : vf{};
  }

  // z[row][slots from `slot` on] (+)= rows @ weights of a tile, for `count` rows
  template <class Row> void multiply(int64_t tile, bool x, int slot, const real *init, real *z, int64_t count, Row row) const {
    const int64_t K = x ? I : H, size = NS * UB * VL;
    const Pieces &pieces = x ? pieces_x : pieces_h;
    for (int i = 0; i < pieces.count; i++) {
      const int n = pieces.width[i];
      const Groups groups(count, n);
      const real *w = (x ? packed_x + tile * panel_x : packed_h + tile * panel_h) + pieces.start[i] * K * VL;
      const int64_t whole = BLOCK_BYTES / (n * VBYTES);
      for (int64_t k0 = 0; k0 < K || k0 == 0; k0 += whole) {
        const int64_t k = std::min(K - k0, whole), block = k * n * VL;
        for (int64_t g = 0; g < groups.count; g++) {
          const int64_t a = groups.start(g), e = groups.start(g + 1);
          const real *rows[MOST];
          for (int64_t r = a; r < e; r++) rows[r - a] = row(r) + k0;
          const real *here = w + k0 * n * VL;
          // The first two groups bring in the next block, a half each.
          const real *next = g < 2 ? here + block + g * k * 2 * LINE : here;
          const real *from = k0 || !init ? nullptr : init + pieces.start[i] * VL;
          KERNELS[n][e - a]({rows, 1, k, 1, k, 0, here, from, n * VL, 
                             z + a * size + (slot * UB + pieces.start[i]) * VL, size, next});
        }
      }
    }
  }

  // b + x @ w_ih of a tile for one row of a symbol: a row of the weights.
  void look_up(int64_t tile, int64_t row, real *z) const {
    const vf *b = (const vf *)(bias + tile * W() * VL);
    const int32_t k = symbols[row];
    const vf x = k < I ? vset(((const real *)q.xs)[row * I + k]) : vf{};
    for (int i = 0; i < pieces_x.count; i++) {
      const int start = pieces_x.start[i], n = pieces_x.width[i];
      const vf *w = (const vf *)(packed_x + tile * panel_x + (start * I + (k < I ? k : 0) * n) * VL);
      for (int j = 0; j < n; j++) ((vf *)z)[start + j] = k < I ? b[start + j] + x * w[j] : b[start + j];
    }
  }
  // b + x @ w_ih of the tiles [tile0, tile1) for the steps [i0, i1) and rows [r0, r0 + R): z [tile][steps, R]
  void project(int64_t i0, int64_t i1, int64_t r0, int64_t R, real *z, int64_t steps, int64_t tile0, int64_t tile1) const {
    const int64_t size = NS * UB * VL, count = (i1 - i0) * R;
    for (int64_t tile = tile0; tile < tile1; tile++) {
      real *here = z + tile * steps * R * size;
      const auto row = [&](int64_t n) { return time(i0 + n / R) * B + r0 + n % R; };
      if (symbols)
        for (int64_t n = 0; n < count; n++) look_up(tile, row(n), here + n * size);
      else
        multiply(tile, true, 0, bias + tile * W() * VL, here, count,
                 [&](int64_t n) { return (const real *)q.xs + row(n) * I; });
      if (NS > G)
        for (int64_t n = 0; n < count; n++) std::memset(here + n * size + G * UB * VL, 0, sizeof(real) * (NS - G) * UB * VL);
    }
  }
  int64_t steps_at_once(int64_t R) const {
    return std::max<int64_t>(1, std::min<int64_t>(T, Z_BYTES / (int64_t)sizeof(real) / (R * tiles * NS * UB * VL)));
  }

  void take(real *to, const void *from, int64_t row) const {
    std::memcpy(to, state(from, row), sizeof(real) * H);
    std::memset(to + H, 0, sizeof(real) * (ld - H));
  }
  int64_t row_size() const { return 2 * S * ld; }  // of the states of a row, before and after
  int64_t z_size(int64_t R) const { return steps_at_once(R) * R * tiles * NS * UB * VL; }

  // One step of a tile, for R rows; z holds the projections, `old` and `fresh` the states.
  void step(void (*function)(const ForwardTile &), int64_t tile, int64_t R, real *z, real *const *old, real *const *fresh,
            real *y, real *h, real *save, int64_t save_vector, const uint8_t *valid) const {
    const int64_t unit = tile * UB * VL;
    if (c.recurrent) multiply(tile, false, HS, nullptr, z, R, [&](int64_t r) { return old[c.h] + r * ld; });
    const void *olds[MAX_STATES], *owns[64];
    void *freshs[MAX_STATES];
    for (int s = 0; s < S; s++) olds[s] = old[s] + unit, freshs[s] = fresh[s] + unit;
    for (int p = 0; p < P; p++) owns[p] = own[p] + unit;
    function({R, unit, H, z, owns, olds, freshs, ld, y, h, H, save, save_vector, valid});
  }

  // All steps of the rows [r0, r1), by one thread, or by several that divide the tiles and wait for each other.
  void run(int64_t r0, int64_t r1, real *states, real *z, Gang *gang = nullptr, int me = 0, int parties = 1) const {
    const int64_t R = r1 - r0, size = NS * UB * VL, steps = steps_at_once(R);
    const auto function = q.keep == 1 ? c.forward_saving : c.forward;
    const int64_t tile0 = tiles * me / parties, tile1 = tiles * (me + 1) / parties;
    real *old[MAX_STATES], *fresh[MAX_STATES];
    for (int s = 0; s < S; s++) {
      old[s] = states + 2 * s * R * ld;
      fresh[s] = old[s] + R * ld;
      for (int64_t r = 0; r < R && me == 0; r++) {
        take(old[s] + r * ld, q.init[s], r0 + r);
        std::memset(fresh[s] + r * ld, 0, sizeof(real) * ld);
      }
    }
    for (int64_t i = 0; i < T; i++) {
      const int64_t first = i / steps * steps, t = time(i);
      if (i == first) project(first, std::min(T, first + steps), r0, R, z, steps, tile0, tile1);
      if (parties > 1) gang->wait(me, parties, i + 1);
      if (q.resets)
        for (int64_t r = 0; r < R; r++)
          if (resets(i, r0 + r))
            for (int s = 0; s < S; s++) take(old[s] + r * ld, q.fresh[s], r0 + r);
      if (q.keep == 2)
        for (int s = 0; s < S && me == 0; s++)
          for (int64_t r = 0; r < R && s != c.h; r++)
            std::memcpy((real *)q.olds[s] + (t * B + r0 + r) * H, old[s] + r * ld, sizeof(real) * H);
      for (int64_t tile = tile0; tile < tile1; tile++) {
        const int64_t out = (t * B + r0) * H + tile * UB * VL;
        real *save = q.keep == 1 ? (real *)q.saved + ((t * NU + tile * UB) * B + r0) * c.saved * VL : nullptr;
        step(function, tile, R, z + (tile * steps + i - first) * R * size, old, fresh, (real *)q.ys + out,
             q.hs ? (real *)q.hs + out : nullptr, save, B * c.saved * VL, q.valid ? q.valid + t * B + r0 : nullptr);
      }
      for (int s = 0; s < S; s++) std::swap(old[s], fresh[s]);
    }
    if (parties > 1) gang->wait(me, parties, T + 1);
    for (int s = 0; s < S && me == 0; s++)
      for (int64_t r = 0; r < R; r++) std::memcpy((real *)q.fin[s] + (r0 + r) * H, old[s] + r * ld, sizeof(real) * H);
  }
};
