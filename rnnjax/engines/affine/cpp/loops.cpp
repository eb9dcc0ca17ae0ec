// Both loops of any cell, for one dtype: plain C++, called by the handler. Nothing here knows XLA.
#include <algorithm>
#include <cstdlib>
#include <mutex>
#include <vector>
#ifdef __linux__
#include <sys/mman.h>
#endif
namespace {
constexpr int64_t KEPT_BYTES = 1 << 27;  // of scratch, for the next call
constexpr int64_t HUGE_PAGE = 1 << 21;

// Large memory that nobody has touched costs a page fault every 4 KiB; with huge pages one in 2 MiB.
void large_pages(void *p, int64_t bytes) {
#ifdef __linux__
  const uintptr_t first = ((uintptr_t)p + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE, end = ((uintptr_t)p + bytes) / HUGE_PAGE * HUGE_PAGE;
  if (end > first) madvise((void *)first, end - first, MADV_HUGEPAGE);
#endif
}

struct Kept { real *p; int64_t bytes; };
std::mutex kept_lock;
std::vector<Kept> kept;
int64_t kept_bytes = 0;

Memory::Memory(int64_t numbers) : p(nullptr), bytes(up(numbers * (int64_t)sizeof(real) + 64, 4096) * 4096) {
  {
    std::lock_guard<std::mutex> guard(kept_lock);
    size_t best = kept.size();
    for (size_t i = 0; i < kept.size(); i++)
      if (kept[i].bytes >= bytes && kept[i].bytes <= 2 * bytes && (best == kept.size() || kept[i].bytes < kept[best].bytes)) best = i;
    if (best < kept.size()) {
      p = kept[best].p, bytes = kept[best].bytes;
      kept_bytes -= bytes;
      kept[best] = kept.back();
      kept.pop_back();
      return;
    }
  }
  const int64_t alignment = bytes >= HUGE_PAGE ? HUGE_PAGE : 4096;
  bytes = up(bytes, alignment) * alignment;
  p = (real *)std::aligned_alloc(alignment, bytes);
  if (p) large_pages(p, bytes);
}
Memory::~Memory() {
  std::lock_guard<std::mutex> guard(kept_lock);
  if (p && kept_bytes + bytes <= KEPT_BYTES) {
    kept.push_back({p, bytes});
    kept_bytes += bytes;
  } else {
    std::free(p);
  }
}

template <class F> void parallel(const Call &q, int64_t n, F f) {
  if (!q.parallel || q.threads < 2 || n < 2) {
    for (int64_t i = 0; i < n; i++) f(i);
  } else {
    q.parallel(q.pool, q.threads, n, [](void *p, int64_t i) { (*(F *)p)(i); }, &f);
  }
}

// The only number of a row of inputs that is not zero: where it is, I if there is none, -1 if there are several.
int32_t only(const Call &q, int64_t row) {
  const real *x = (const real *)q.xs + row * q.I;
  vi count{}, place{}, here;
  for (int i = 0; i < VL; i++) here[i] = i;
  for (int64_t i = 0; i < q.I; i += VL, here += VL) {
    const vi some = load(x + i, q.I - i) != vf{};
    count -= some;
    place += some & here;
  }
  int64_t n = 0, at = 0;
  for (int i = 0; i < VL; i++) n += count[i], at += place[i];
  return n > 1 ? -1 : n == 1 ? (int32_t)at : (int32_t)q.I;
}
// Whether all rows of xs are symbols (one number that is not zero, or none). The product of such a row with w_ih is a row
// of w_ih, whose other rows need not be finite then. Two rows say it of inputs that are no symbols.
bool may_be_symbols(const Call &q) {
  return q.I >= 8 && q.I < INT32_MAX && q.T * q.B > 0 && only(q, 0) >= 0 && only(q, q.T * q.B - 1) >= 0;
}
bool find_symbols(const Call &q, int32_t *found) {
  std::atomic<bool> all{true};
  const int64_t rows = q.T * q.B, slices = std::max<int64_t>(1, q.threads);
  parallel(q, slices, [&](int64_t i) {
    for (int64_t r = rows * i / slices; r < rows * (i + 1) / slices && all; r++)
      if ((found[r] = only(q, r)) < 0) all = false;
  });
  return all;
}

int forward(const Call &given) {
  Call q = given;
  if (q.T * q.B * (q.I + q.H) * q.H < 200000) q.threads = 1;  // too little to hand over
  Forward f(q);
  const bool few = f.divides_units();
  const int64_t jobs = few ? 1 : std::max<int64_t>(1, std::min(q.threads, q.B));
  int64_t most = 0, offset = 0;
  std::vector<int64_t> z_at(jobs + 1);
  for (int64_t i = 0; i < jobs; i++) {
    z_at[i] = offset;
    const int64_t R = q.B * (i + 1) / jobs - q.B * i / jobs;
    offset += R ? up(f.z_size(R), 1024) * 1024 : 0;
    most = std::max(most, R);
  }
  const bool maybe = may_be_symbols(q);
  Memory packed(f.packed_size()), states(q.B * f.row_size()), z(offset), symbols(maybe ? q.T * q.B : 0);
  if (!packed.p || !states.p || !z.p || !symbols.p) return 1;
  if (maybe && find_symbols(q, (int32_t *)symbols.p)) f.symbols = (int32_t *)symbols.p;
  if (q.keep == 1) large_pages(q.saved, q.T * f.NU * q.B * q.cell->saved * VBYTES);
  large_pages(q.ys, q.T * q.B * q.H * (int64_t)sizeof(real));
  f.place(packed.p);
  parallel(q, f.pack_jobs(), [&](int64_t i) { f.pack(i); });
  if (few) {
    Gang gang;
    const int most = (int)std::min<int64_t>({q.threads, f.tiles, Gang::MOST_THREADS});
    parallel(q, most, [&](int64_t) {
      gang.join(most, [&](int me, int parties) { f.run(0, q.B, states.p, z.p, &gang, me, parties); });
    });
    return 0;
  }
  parallel(q, jobs, [&](int64_t i) {
    const int64_t r0 = q.B * i / jobs, r1 = q.B * (i + 1) / jobs;
    if (r1 > r0) f.run(r0, r1, states.p + r0 * f.row_size(), z.p + z_at[i]);
  });
  return 0;
}

int backward(const Call &given) {
  Call q = given;
  if (q.T * q.B * (q.I + q.H) * q.H < 200000) q.threads = 1;
  const Cell &c = *q.cell;
  Forward f(q);
  Backward b(q, f);
  const bool few = q.keep == 1 && b.divides_units();
  const int64_t jobs = few ? 1 : std::max<int64_t>(1, std::min(q.threads, q.B)), n = std::max<int64_t>(1, q.threads);
  const int64_t parts = std::min(n, b.weight_jobs()), most = up(q.B, jobs), rows = up(b.steps * q.B, n);
  const int64_t scratch_size = std::max({jobs * b.scratch_size(most), parts * b.copy_size(), n * b.inputs_size(rows)});
  const bool maybe = may_be_symbols(q);
  Memory symbols(maybe ? q.T * q.B : 0), packed(f.packed_size()), turned(b.packed_size()), states(b.S * q.B * b.ld), own(jobs * (b.P + 1) * b.Hp),
      chunk(b.chunk_size()), sums(b.gradient_size()), saved(b.saved_size()), scratch(scratch_size);
  if (!packed.p || !turned.p || !states.p || !own.p || !chunk.p || !sums.p || !saved.p || !scratch.p || !symbols.p)
    return 1;
  if (maybe && find_symbols(q, (int32_t *)symbols.p)) f.symbols = (int32_t *)symbols.p;
  f.place(packed.p);
  b.packed_x = turned.p, b.packed_h = turned.p + b.IT * b.G * b.H * PW;
  b.dz = chunk.p, b.sums = sums.p, b.saved = saved.p;
  std::memset(own.p, 0, sizeof(real) * jobs * (b.P + 1) * b.Hp);
  if (q.resets)
    for (int s = 0; s < b.S; s++) std::memset(q.d_fresh[s], 0, sizeof(real) * q.B * q.H);
  if (q.keep == 2) parallel(q, f.pack_jobs(), [&](int64_t i) { f.pack(i); });
  parallel(q, b.pack_jobs(), [&](int64_t i) { b.pack(i); });
  if (q.T == 0 || q.B == 0) std::memset(sums.p, 0, sizeof(real) * b.gradient_size());
  for (int64_t end = q.T; end > 0 || end == q.T; end = b.i0) {
    const int64_t done = b.i0, done_low = b.low;
    b.i0 = std::max<int64_t>(0, end - b.steps);
    b.now = end - b.i0;
    b.low = q.reverse ? q.T - b.i0 - b.now : b.i0;
    if (end < q.T) parallel(q, b.weight_jobs(), [&](int64_t i) { b.hand_over(i, done_low, done); });
    Gang gang;
    const int together = (int)std::min<int64_t>({q.threads, b.NT, Gang::MOST_THREADS});
    if (few) parallel(q, together, [&](int64_t) {
      gang.join(together, [&](int me, int parties) { b.run(0, q.B, states.p, own.p, nullptr, &gang, me, parties); });
    });
    else parallel(q, jobs, [&](int64_t i) {
      const int64_t r0 = q.B * i / jobs, r1 = q.B * (i + 1) / jobs;
      b.run(r0, r1, states.p + r0 * b.S * b.ld, own.p + i * (b.P + 1) * b.Hp, scratch.p + i * b.scratch_size(most));
    });
    if (q.T == 0 || q.B == 0) break;
    parallel(q, parts, [&](int64_t i) {
      b.weights(b.weight_jobs() * i / parts, b.weight_jobs() * (i + 1) / parts, scratch.p + i * b.copy_size());
    });
    const int64_t all = b.now * q.B, slices = q.d_xs ? std::min(n, all) : 0;
    parallel(q, slices, [&](int64_t i) {
      b.inputs(all * i / slices, all * (i + 1) / slices, scratch.p + i * b.inputs_size(rows));
    });
    if (b.i0 == 0) break;
  }
  parallel(q, b.write_jobs(), [&](int64_t i) { b.write(i); });
  for (int p = 0; p < c.own; p++)
    for (int64_t u = 0; u < q.H; u++) {
      real s = 0;
      for (int64_t i = 0; i < jobs; i++) s += own.p[(i * (b.P + 1) + p) * b.Hp + u];
      ((real *)q.d_own)[p * q.H + u] = s;
    }
  return 0;
}
}  // namespace

extern "C" int rnnjax_forward(const Call *q) { return forward(*q); }
extern "C" int rnnjax_backward(const Call *q) { return backward(*q); }
extern "C" int rnnjax_loops_version() { return ABI_VERSION * 1000 + VBYTES; }
