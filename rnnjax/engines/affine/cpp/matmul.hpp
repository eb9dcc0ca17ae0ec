// The matmul of everything here: c[r][j] = (init[j] or c[r][j]) + sum_k rows[r][k * stride] * b[k][j], for M rows and N
// vectors, which stay in registers. b holds N vectors for every k. The sum may go on over several segments, each
// `jump` behind the one before in the rows; the last one has `last` instead of K terms.
struct Product {
  const real *const *rows;
  int64_t stride, K, segments, last, jump;
  const real *b, *init;
  int64_t ldb;  // from a k to the next in b
  real *c;
  int64_t ldc;
  const real *next;  // what will be multiplied next: into the second-level cache
};

template <int M, int N> __attribute__((noinline)) void product(const Product &q) {
  vf acc[M][N];
#pragma GCC unroll 8
  for (int r = 0; r < M; r++)
#pragma GCC unroll 4
    for (int j = 0; j < N; j++) acc[r][j] = q.init ? ((const vf *)q.init)[j] : *(const vf *)(q.c + r * q.ldc + j * VL);
  const real *p[M];
#pragma GCC unroll 8
  for (int r = 0; r < M; r++) p[r] = q.rows[r];
  const real *b = q.b, *next = q.next;
  const int64_t stride = q.stride, ldb = q.ldb;
  auto step = [&](vf (&c)[M][N], int64_t at) __attribute__((always_inline)) {
    vf w[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; j++) w[j] = *(const vf *)(b + j * VL);
    b += ldb;
    if constexpr (M > 1) {
      __builtin_prefetch(next, 0, 2);
      __builtin_prefetch(next + 64 / sizeof(real), 0, 2);
      next += 128 / sizeof(real);
    }
#pragma GCC unroll 8
    for (int r = 0; r < M; r++) {
      const vf x = vset(p[r][at]);
#pragma GCC unroll 4
      for (int j = 0; j < N; j++) c[r][j] += x * w[j];
    }
  };
  for (int64_t s = 0; s < q.segments; s++) {
    const int64_t K = s + 1 < q.segments ? q.K : q.last;
    int64_t k = 0, at = 0;
    if constexpr (M * N < 8) {  // more chains of additions than these few
      vf other[M][N] = {};
      for (; k + 2 <= K; k += 2, at += 2 * stride) { step(acc, at); step(other, at + stride); }
#pragma GCC unroll 8
      for (int r = 0; r < M; r++)
#pragma GCC unroll 4
        for (int j = 0; j < N; j++) acc[r][j] += other[r][j];
    }
    for (; k < K; k++, at += stride) step(acc, at);
#pragma GCC unroll 8
    for (int r = 0; r < M; r++) p[r] += q.jump;
  }
#pragma GCC unroll 8
  for (int r = 0; r < M; r++)
#pragma GCC unroll 4
    for (int j = 0; j < N; j++) *(vf *)(q.c + r * q.ldc + j * VL) = acc[r][j];
}

constexpr int WIDEST = REGISTERS == 32 ? 4 : 3;   // vectors of a product; wider tiles take several
constexpr int MOST = 8;
constexpr int rows_of(int n) {                    // rows of a product of n vectors: all of it in registers
  const int m = (REGISTERS - 1 - n) / n;
  return m > MOST ? MOST : m;
}
typedef void (*Kernel)(const Product &);
template <int M, int N> constexpr Kernel kernel() {
  if constexpr (M <= rows_of(N) && N <= WIDEST) return product<M, N>; else return nullptr;
}
#define ROW(n) {nullptr, kernel<1, n>(), kernel<2, n>(), kernel<3, n>(), kernel<4, n>(), kernel<5, n>(), kernel<6, n>(), kernel<7, n>(), kernel<8, n>()}
static const Kernel KERNELS[5][MOST + 1] = {{}, ROW(1), ROW(2), ROW(3), ROW(4)};
#undef ROW

// How a tile of `width_of_all` vectors is cut into products of nearly equal width.
struct Pieces {
  int count, start[16], width[16];
  Pieces(int width_of_all, int most) : count((int)up(width_of_all, most)) {
    for (int i = 0; i < count; i++) {
      start[i] = width_of_all * i / count;
      width[i] = width_of_all * (i + 1) / count - start[i];
    }
  }
};
// Rows in groups of nearly equal size.
struct Groups {
  int64_t rows, count;
  Groups(int64_t rows, int n) : rows(rows), count(up(rows, rows_of(n))) {}
  int64_t start(int64_t g) const { return rows * g / count; }
};
