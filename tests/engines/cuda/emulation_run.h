// Runs a kernel; stands behind its text.
namespace emulation {
static void enter() { body(); current->done = true; ++progress; swapcontext(&current->context, &scheduler); }
// 0: done; 1: nobody gets on; 2: a rule of the protocol was broken. Block `absent` never starts (-1: all do).
static int run(int grid, int threads, int bytes, int size, unsigned start, int absent) {
  constexpr size_t STACK = 1 << 16;
  seed = start; cluster = size; errors = 0; progress = 0; late_stores.clear(); cluster_barriers.clear();
  blocks.assign(grid, Block());
  std::vector<Fiber> fibers((size_t)grid * threads);
  char* stacks = (char*)malloc(fibers.size() * STACK);
  for (int b = 0; b < grid; ++b) { blocks[b].memory.assign(bytes + 16, 0xa5); blocks[b].warps.resize(threads / 32); blocks[b].id = b; }
  for (size_t i = 0; i < fibers.size(); ++i) {
    Fiber& f = fibers[i];
    f.thread.x = i % threads; f.block_index.x = i / threads; f.block = &blocks[i / threads];
    f.done = f.block_index.x == absent; f.stack = stacks + i * STACK;
    getcontext(&f.context);
    f.context.uc_stack.ss_sp = f.stack; f.context.uc_stack.ss_size = STACK; f.context.uc_link = nullptr;
    makecontext(&f.context, (void (*)())enter, 0);
  }
  int left = fibers.size(), result = 0;
  long idle = 0;
  while (left) {
    const long before = progress;
    left = 0;
    const int warps = (int)fibers.size() / 32, offset = random_number() % warps, pick = 1 + random_number() % warps;
    int a = pick, b = warps;
    while (b) { int c = a % b; a = b; b = c; }
    const int step = a == 1 ? pick : 1;  // only a step that visits all
    for (int w = 0; w < warps; ++w) {
      const int base = (offset + (long)w * step) % warps * 32;
      const bool rests = random_number() % 4 == 0;
      for (int l = 0; l < 32; ++l) {
        Fiber& f = fibers[base + l];
        if (!f.done && !rests) { current = &f; swapcontext(&scheduler, &f.context); }
        left += !f.done;
      }
    }
    for (size_t i = 0; i < late_stores.size();)
      if (random_number() % 3 == 0) { auto f = late_stores[i]; late_stores[i] = late_stores.back(); late_stores.pop_back(); f(); } else ++i;
    idle = progress == before ? idle + 1 : 0;
    if (idle > 20000) { result = 1; break; }
  }
  for (auto& f : late_stores) f();
  late_stores.clear();
  free(stacks);
  return result ? result : errors ? 2 : 0;
}
template <class... A, size_t... I> static void set_body(void (*kernel)(A...), void** a, std::index_sequence<I...>) {
  body = [=] { kernel((A)a[I]...); };
}
template <class... A> static void set_body(void (*kernel)(A...), void** a) { set_body(kernel, a, std::index_sequence_for<A...>()); }
}
extern "C" int run_kernel(int grid, int threads, int bytes, int cluster, unsigned seed, int absent, void** arguments) {
  emulation::set_body(KERNEL, arguments);
  return emulation::run(grid, threads, bytes, cluster, seed, absent);
}
