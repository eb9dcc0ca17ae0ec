// XLA's side of the native loops: two handlers for all cells and dtypes. A cell is found by its name in a table that
// Python fills; which buffers there are follows from the cell and from the attributes.
#include <atomic>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include "xla/ffi/api/ffi.h"
namespace ffi = xla::ffi;
namespace {
typedef int (*Loop)(const Call *);
struct Known { const Cell *cell; Loop forward, backward; };
std::mutex known_lock;
std::map<std::string, Known, std::less<>> known;

// The threads of the pool that help in one call. They come when they can, stay to its end, since what follows comes
// sooner than a sleeping thread wakes up, and are never waited for: what none of them has taken, the caller does.
struct Phase { Job job; void *argument; int64_t n; std::atomic<int64_t> next{0}, done{0}; };
void work(Phase &phase) {
  for (int64_t i; (i = phase.next.fetch_add(1)) < phase.n;) {
    phase.job(phase.argument, i);
    phase.done.fetch_add(1, std::memory_order_release);
  }
}
void pause(int64_t spins) {
  if (spins % 4096 < 4095) relax(); else std::this_thread::yield();
}
struct Shared {
  std::mutex lock;
  std::shared_ptr<Phase> phase;
  std::atomic<int64_t> begun{0};  // phases; negative when the call is over
  Places places;
  const std::thread::id caller = std::this_thread::get_id();
};
struct Team {
  ffi::ThreadPool &pool;
  std::shared_ptr<Shared> shared;
  ~Team() { if (shared) shared->begun.store(-1, std::memory_order_release); }
};
void help(Shared &shared) {
  if (std::this_thread::get_id() == shared.caller) return;  // a pool whose queue is full runs a task where it is given
  shared.places.settle();
  for (int64_t seen = 0, spins = 0;; spins++) {
    const int64_t begun = shared.begun.load(std::memory_order_acquire);
    if (begun < 0) return;
    if (begun == seen) { pause(spins); continue; }
    seen = begun;
    std::shared_ptr<Phase> phase;
    { std::lock_guard<std::mutex> guard(shared.lock); phase = shared.phase; }
    work(*phase);
  }
}
// job(0) .. job(n - 1)
void parallel(void *pointer, int64_t threads, int64_t n, Job job, void *argument) {
  Team &team = *(Team *)pointer;
  auto phase = std::make_shared<Phase>();
  phase->job = job, phase->argument = argument, phase->n = n;
  const bool first = !team.shared;
  if (first) {
    team.shared = std::make_shared<Shared>();
    team.shared->places.settle();
  }
  { std::lock_guard<std::mutex> guard(team.shared->lock); team.shared->phase = phase; }
  team.shared->begun.fetch_add(1, std::memory_order_release);
  for (int64_t i = 1; first && i < threads; i++) team.pool.Schedule([shared = team.shared] { help(*shared); });
  if (first) team.shared->places.make_way();
  work(*phase);
  for (int64_t spins = 0; phase->done.load(std::memory_order_acquire) < n; spins++) pause(spins);
}
int64_t allowed_threads() {  // OMP_NUM_THREADS, as other libraries obey it; XLA's pool already knows the affinity
  static const int64_t count = [] {
    const char *text = std::getenv("OMP_NUM_THREADS");
    const long value = text ? std::strtol(text, nullptr, 10) : 0;
    return value > 0 ? (int64_t)value : (int64_t)1 << 20;
  }();
  return count;
}

ffi::Error wrong(const char *what) { return ffi::Error::InvalidArgument(std::string("rnnjax native: ") + what); }

struct Buffers {
  ffi::RemainingArgs args;
  ffi::RemainingRets rets;
  int32_t bytes;
  bool bad = false;
  size_t a = 0, r = 0;
  const void *in(int rank = -1, int64_t *dims = nullptr) {
    auto b = args.get<ffi::AnyBuffer>(a++);
    if (b.has_error()) { bad = true; return nullptr; }
    check(*b);
    if (rank >= 0) {
      if ((int)b->dimensions().size() != rank) { bad = true; return nullptr; }
      for (int i = 0; i < rank; i++) dims[i] = b->dimensions()[i];
    }
    return b->untyped_data();
  }
  const uint8_t *mask(int64_t T, int64_t B) {
    auto b = args.get<ffi::AnyBuffer>(a++);
    if (b.has_error() || b->element_type() != ffi::PRED || (int64_t)b->element_count() != T * B) { bad = true; return nullptr; }
    return (const uint8_t *)b->untyped_data();
  }
  void *out() {
    auto b = rets.get<ffi::AnyBuffer>(r++);
    if (b.has_error()) { bad = true; return nullptr; }
    check(**b);
    return (*b)->untyped_data();
  }
  void check(ffi::AnyBuffer b) { bad |= b.element_type() != (bytes == 4 ? ffi::F32 : ffi::F64); }
  bool complete() const { return !bad && a == args.size() && r == rets.size(); }
};

ffi::Error run(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, std::string_view name, int32_t flags,
               bool back) {
  Known entry;
  {
    std::lock_guard<std::mutex> guard(known_lock);
    auto found = known.find(name);
    if (found == known.end()) return wrong("this process has not loaded the cell");
    entry = found->second;
  }
  const Cell &c = *entry.cell;
  Buffers f{args, rets, c.bytes};
  Call q{};
  int64_t dims[3] = {}, size[2] = {};
  q.cell = &c;
  q.reverse = flags & 1, q.keep = flags >> 3 & 3;
  const bool valid = flags & 2, resets = flags & 4;
  q.xs = f.in(3, dims);
  q.T = dims[0], q.B = dims[1], q.I = dims[2];
  q.w_ih = f.in(2, size);
  q.H = size[1] / c.gates;
  if (c.recurrent) q.w_hh = f.in();
  q.b = f.in();
  if (c.own) q.own = f.in();
  if (valid) q.valid = f.mask(q.T, q.B);
  if (resets) q.resets = f.mask(q.T, q.B);
  for (int s = 0; s < c.states; s++) q.init[s] = f.in();
  for (int s = 0; s < c.states && resets; s++) q.fresh[s] = f.in();
  if (!back) {
    q.ys = f.out();
    for (int s = 0; s < c.states; s++) q.fin[s] = f.out();
    if (q.keep && !c.y_is_h) q.hs = f.out();
    if (q.keep == 1) q.saved = f.out();
    for (int s = 0; s < c.states && q.keep == 2; s++) if (s != c.h) q.olds[s] = f.out();
  } else {
    (c.y_is_h ? q.ys : q.hs) = (void *)f.in();
    if (q.keep == 1) q.saved = (void *)f.in();
    for (int s = 0; s < c.states && q.keep == 2; s++) if (s != c.h) q.olds[s] = (void *)f.in();
    q.d_ys = f.in();
    for (int s = 0; s < c.states; s++) q.d_fin[s] = f.in();
    if (!(flags & 32)) q.d_xs = f.out();
    q.d_w_ih = f.out();
    if (c.recurrent) q.d_w_hh = f.out();
    q.d_b = f.out();
    if (c.own) q.d_own = f.out();
    for (int s = 0; s < c.states; s++) q.d_init[s] = f.out();
    for (int s = 0; s < c.states && resets; s++) q.d_fresh[s] = f.out();
  }
  if (!f.complete()) return wrong("buffers of another number, rank or dtype than the cell's");
  q.threads = std::min<int64_t>(pool.num_threads(), allowed_threads());
  Team team{pool, nullptr};
  q.pool = &team;
  q.parallel = parallel;
  if ((back ? entry.backward : entry.forward)(&q)) return ffi::Error(ffi::ErrorCode::kResourceExhausted, "rnnjax native: no memory for the loops");
  return ffi::Error::Success();
}
ffi::Error forward(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, std::string_view name, int32_t flags) {
  return run(pool, args, rets, name, flags, false);
}
ffi::Error backward(ffi::ThreadPool pool, ffi::RemainingArgs args, ffi::RemainingRets rets, std::string_view name, int32_t flags) {
  return run(pool, args, rets, name, flags, true);
}
}  // namespace
#define BINDING ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().RemainingArgs().RemainingRets().Attr<std::string_view>("cell").Attr<int32_t>("flags")
XLA_FFI_DEFINE_HANDLER_SYMBOL(rnnjax_native_forward, forward, BINDING);
XLA_FFI_DEFINE_HANDLER_SYMBOL(rnnjax_native_backward, backward, BINDING);
extern "C" int rnnjax_native_add(const char *name, const void *cell, void *forward, void *backward) {
  const Cell *c = (const Cell *)cell;
  if (c->version != ABI_VERSION) return 1;
  std::lock_guard<std::mutex> guard(known_lock);
  known[name] = {c, (Loop)forward, (Loop)backward};
  return 0;
}
