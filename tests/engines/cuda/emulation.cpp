// Runs a kernel: the threads, how they hand over, and stores that become visible late. See emulation.h.
#include <ucontext.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <utility>
#include <vector>
#include "emulation_state.h"
namespace emulation {
struct Thread : Fiber { ucontext_t context; char* stack; bool done; };
Fiber* current;
Block* blocks;
int cluster = 1, mute = -1;
long progress = 0;
static int errors = 0;
static unsigned seed = 1;
static ucontext_t scheduler;
static void (*body)(void**);
static void** arguments;
static std::vector<std::function<void()>> late_stores;
static std::map<int, Barrier> cluster_barriers;
static std::map<std::pair<int, unsigned>, Mbarrier> mbarriers;
static unsigned random_number() { return seed = seed * 1664525u + 1013904223u, seed >> 8; }
void hand_over() { swapcontext(&((Thread*)current)->context, &scheduler); }
void meet(Barrier& b, int parties, bool wait) {
  const int turn = b.turn;
  if (++b.count == parties) { b.count = 0; ++b.turn; ++progress; return; }
  if (wait) while (b.turn == turn) hand_over();
}
unsigned (*share(const unsigned* v, int k))[8] {
  Fiber* f = current; Warp& w = f->block->warps[f->thread.x / 32]; const int side = f->shared++ & 1;
  memcpy(w.slot[side][f->thread.x % 32], v, 4 * k);
  meet(w.barrier, 32, true);
  return w.slot[side];
}
void complain(const char* what) { if (!errors++) printf("emulation: %s\n", what); }
Mbarrier& mbarrier(Block& block, unsigned place) { return mbarriers[{block.id, place}]; }
Barrier& cluster_barrier(int which) { return cluster_barriers[which]; }
void turn_phase(Mbarrier& m) { if (m.pending == 0 && m.bytes == 0) { m.phase ^= 1; m.pending = m.parties; ++progress; } }
void store_late(void* to, unsigned v, Mbarrier* counts, const Block* block) {
  late_stores.push_back([=] {
    if (block && !block->left) complain("a message came after its block had left");
    if (block && !counts->parties) complain("a message came before its mbarrier was made");
    memcpy(to, &v, 4);
    if (counts) { counts->bytes -= 4; turn_phase(*counts); }
    ++progress;
  });
}
static void enter() { body(arguments); Thread* t = (Thread*)current; t->done = true; --t->block->left; ++progress; swapcontext(&t->context, &scheduler); }
int run(void (*function)(void**), void** given, int grid, int threads, int bytes, int size, unsigned start, int absent) {
  constexpr size_t STACK = 1 << 16;
  body = function; arguments = given; seed = start; cluster = size; mute = size > 1 ? absent : -1; errors = 0; progress = 0; late_stores.clear(); cluster_barriers.clear();
  mbarriers.clear();
  std::vector<Block> all(grid);
  std::vector<std::vector<unsigned char>> memory(grid, std::vector<unsigned char>(bytes + 16, 0xa5));
  std::vector<Warp> warps_of_all((size_t)grid * threads / 32);
  blocks = all.data();
  std::vector<Thread> fibers((size_t)grid * threads);
  char* stacks = (char*)malloc(fibers.size() * STACK);
  for (int b = 0; b < grid; ++b) { blocks[b].memory = memory[b].data(); blocks[b].warps = &warps_of_all[(size_t)b * threads / 32]; blocks[b].id = b; }
  for (size_t i = 0; i < fibers.size(); ++i) {
    Thread& f = fibers[i];
    f.thread.x = i % threads; f.block_index.x = i / threads; f.block = &blocks[i / threads];
    f.done = size == 1 && f.block_index.x == absent; f.block->left += !f.done; f.stack = stacks + i * STACK;
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
        Thread& f = fibers[base + l];
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
}
