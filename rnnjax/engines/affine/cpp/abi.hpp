// What the three parts share: the handler (XLA's side), the loops (one library a dtype) and a cell (generated).
#include <cstdint>

constexpr int MAX_STATES = 8;

struct ForwardTile {       // the pointwise part of one step, for `rows` rows and one tile of units
  int64_t rows, unit, units;       // units [unit, unit + width of a tile) of H = units; the last ones may not exist
  const void *z;                   // [rows][slot][vector][lane]: what the update sees
  const void *const *own;          // parameters of the update, padded [Hp]
  const void *const *old;          // states before the step, [rows][ld]
  void *const *fresh;              // states after it
  int64_t ld;
  void *y, *h;                     // [rows][ldy]; h only where y is something else, else null
  int64_t ldy;
  void *save;                      // [vector][B][number][lane], from the first row on
  int64_t save_vector;             // elements from a vector to the next
  const uint8_t *valid;            // [rows], or null
};

struct BackwardTile {
  int64_t rows, unit, units;
  const void *const *own;
  void *const *d_own;              // sums over rows and steps, [Hp]
  void *const *d_state;            // [rows][ld]: cotangents of the state after the step, then of that before it
  int64_t ld;
  const void *d_y;                 // [rows][ldy]
  int64_t ldy;
  const void *save;
  int64_t save_vector;
  void *dz;                        // [slot][rows][4 vectors]
  int64_t dz_slot;                 // elements from a slot to the next
  const uint8_t *valid;
};

struct Cell {
  int32_t gates, slots, first_h;   // slots [x of loose gates, sums, h of loose gates]; those from first_h on see h
  int32_t states, own, saved;
  int32_t h;                       // which state is h
  int32_t y_is_h, recurrent, vectors, bytes;  // vectors of units in a forward tile, bytes of a number
  int32_t vector_bytes, version;
  const int32_t *gate_x, *gate_h;  // the gate of a slot, for x and (from first_h on) for h
  void (*forward)(const ForwardTile &);
  void (*forward_saving)(const ForwardTile &);
  void (*backward)(const BackwardTile &);
};

typedef void (*Job)(void *, int64_t);

struct Call {
  int64_t T, B, I, H;
  int32_t reverse, keep;           // keep: 0 nothing, 1 what the backward pass needs, 2 states only
  const Cell *cell;
  const void *xs, *w_ih, *w_hh, *b, *own;                   // own: [P, H]
  const void *init[MAX_STATES], *fresh[MAX_STATES];
  const uint8_t *valid, *resets;                            // [T, B], or null
  void *ys, *fin[MAX_STATES], *hs, *saved, *olds[MAX_STATES];  // results of the forward pass, and what it kept
  const void *d_ys, *d_fin[MAX_STATES];
  void *d_xs, *d_w_ih, *d_w_hh, *d_b, *d_own, *d_init[MAX_STATES], *d_fresh[MAX_STATES];
  int64_t threads;
  void *pool;
  void (*parallel)(void *pool, int64_t threads, int64_t n, Job job, void *argument);
};

constexpr int32_t ABI_VERSION = 1;

inline void relax() {  // in a loop that waits
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}
