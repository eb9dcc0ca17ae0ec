// What the text of a kernel and emulation.cpp both know.
namespace emulation {
struct Barrier { int count = 0, turn = 0; };
struct Mbarrier { int parties = 0, pending = 0; long bytes = 0; int phase = 0; };
struct Warp { unsigned slot[2][32][8]; Barrier barrier; };
struct Block { unsigned char* memory; Barrier barriers[16]; Warp* warps; int id, left; };  // left: threads that run
struct Index { int x; };
struct Fiber { Index thread, block_index; Block* block; int shared = 0; };
extern Fiber* current;
extern Block* blocks;
extern int cluster;
extern int mute;  // a block whose messages get lost
extern long progress;
void hand_over();
void meet(Barrier& b, int parties, bool wait);
unsigned (*share(const unsigned* v, int k))[8];  // every lane gives k words; all see all
void complain(const char* what);
Mbarrier& mbarrier(Block& block, unsigned place);
Barrier& cluster_barrier(int which);
void store_late(void* to, unsigned v, Mbarrier* counts, const Block* block = nullptr);  // and counts the bytes, where something does
void turn_phase(Mbarrier& m);
static inline void aligned(const void* p, size_t to) { if ((size_t)p % to) complain("an address is not aligned"); }
// Calls body(arguments) on every thread. 0: done; 1: nobody gets on; 2: a rule of the protocol was broken. Block `absent`
// never starts (-1: all do); in clusters, whose blocks start together, it runs, but what it sends gets lost.
int run(void (*body)(void**), void** arguments, int grid, int threads, int bytes, int size, unsigned seed, int absent);
}
