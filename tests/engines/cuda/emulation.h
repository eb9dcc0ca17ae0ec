// What the CUDA kernels use, on the host: every CUDA thread is a fiber (ucontext), all blocks run side by side, and
// operations of a warp, a block or a cluster hand over until the others have come. Warps run in random order. A store
// that others may see becomes visible late and in random order, as on a GPU: this is what the protocol must stand.
// Compiled with every kernel, hence the light headers: what needs others is in emulation.cpp, compiled once.
#include <cmath>
#include <cstdint>
#include <cstring>
#define __global__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __device__
#define __forceinline__ inline
struct uint4 { unsigned x, y, z, w; };
struct float2 { float x, y; };
struct float4 { float x, y, z, w; };
inline uint4 make_uint4(unsigned a, unsigned b, unsigned c, unsigned d) { return {a, b, c, d}; }
inline float2 make_float2(float a, float b) { return {a, b}; }
inline float4 make_float4(float a, float b, float c, float d) { return {a, b, c, d}; }
inline float __uint_as_float(unsigned a) { float f; memcpy(&f, &a, 4); return f; }
inline unsigned __float_as_uint(float a) { unsigned f; memcpy(&f, &a, 4); return f; }
#include "emulation_state.h"
#define threadIdx (emulation::current->thread)
#define blockIdx (emulation::current->block_index)
#define smem (emulation::current->block->memory)
static inline u32 bf16_bits(float x) { u32 b = __float_as_uint(x); return x != x ? 0x7fff : (b + 0x7fff + ((b >> 16) & 1)) >> 16; }
static inline u32 f16_bits(float x) { if (x != x) return 0x7fff; _Float16 h = (_Float16)x; u16 r; memcpy(&r, &h, 2); return r; }
static inline u32 pack_bf16(float hi, float lo) { return bf16_bits(lo) | bf16_bits(hi) << 16; }
static inline u32 pack_f16(float hi, float lo) { return f16_bits(lo) | f16_bits(hi) << 16; }
static inline float f16_to_float(u16 x) { _Float16 h; memcpy(&h, &x, 2); return (float)h; }
static inline float ex2(float x) { return exp2f(x); }
static inline float rcp(float x) { return 1.0f / x; }
static inline void mma(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
  const u32 v[6] = {a0, a1, a2, a3, b0, b1};
  auto s = emulation::share(v, 6);
  const int lane = emulation::current->thread.x & 31, q = lane & 3, r = lane >> 2;
#if DT <= 1
  constexpr int K = 16;
  auto number = [](u32 w, int high) { u16 x = high ? w >> 16 : w & 0xffff; return DT == 0 ? __uint_as_float((u32)x << 16) : f16_to_float(x); };
  auto A = [&](int row, int k) { return number(s[(row & 7) * 4 + (k & 7) / 2][(row >> 3) + 2 * (k >> 3)], k & 1); };
  auto B = [&](int k, int n) { return number(s[n * 4 + (k & 7) / 2][4 + (k >> 3)], k & 1); };
#else
  constexpr int K = 8;
  auto A = [&](int row, int k) { return __uint_as_float(s[(row & 7) * 4 + (k & 3)][(row >> 3) + 2 * (k >> 2)] & 0xffffe000u); };
  auto B = [&](int k, int n) { return __uint_as_float(s[n * 4 + (k & 3)][4 + (k >> 2)] & 0xffffe000u); };
#endif
  for (int i = 0; i < 4; ++i) {
    const int row = r + 8 * (i >> 1), n = 2 * q + (i & 1);
    float a = 0;
    for (int k = 0; k < K; ++k) a += A(row, k) * B(k, n);
    d[i] += a;
  }
}
static inline bool __any_sync(u32, bool p) { u32 v = p; auto s = emulation::share(&v, 1); for (int i = 0; i < 32; ++i) if (s[i][0]) return true; return false; }
static inline bool __all_sync(u32, bool p) { return !__any_sync(0, !p); }
static inline u32 exchange_bits(u32 v, int mask) { auto s = emulation::share(&v, 1); return s[(emulation::current->thread.x & 31) ^ mask][0]; }
static inline float __shfl_xor_sync(u32, float v, int mask) { return __uint_as_float(exchange_bits(__float_as_uint(v), mask)); }
static inline void __syncwarp() { u32 v = 0; emulation::share(&v, 1); }
static inline void __syncthreads() { emulation::meet(emulation::current->block->barriers[0], 32 * W, true); }
template <int N> void bar_sync(int id) { emulation::meet(emulation::current->block->barriers[id], N, true); }
template <int N> void bar_arrive(int id) { emulation::meet(emulation::current->block->barriers[id], N, false); }
static inline void load_relaxed(u32 (&v)[4], const void* p) { emulation::aligned(p, 16); memcpy(v, p, 16); }
static inline void load_constant(u32 (&v)[4], const void* p) { emulation::aligned(p, 16); memcpy(v, p, 16); }
static inline void store_word(void* p, u32 v) {
  emulation::aligned(p, 4);
  if (v == 0xffffffffu) emulation::complain("the pattern of what is missing was written");
  if (*(u32*)p != 0xffffffffu) emulation::complain("a word was written twice");
  emulation::store_late(p, v, nullptr);
}
static inline void prefetch(const void*) {}
static inline void breathe() { emulation::hand_over(); }
static inline u32 smem_addr(const void* p) { return (u32)((unsigned char*)p - smem) | (u32)(emulation::current->block->id % emulation::cluster) << 24; }
static inline u32 mapa(u32 a, u32 r) { return (a & 0xffffff) | r << 24; }
static inline emulation::Block& block_of(u32 a) { return emulation::blocks[emulation::current->block->id / emulation::cluster * emulation::cluster + (a >> 24)]; }
static inline emulation::Mbarrier& mbarrier_of(u32 a) { return emulation::mbarrier(block_of(a), a & 0xffffff); }
static inline void mbar_init(u32 a, u32 n) { auto& m = mbarrier_of(a); m.parties = m.pending = n; }
static inline void mbar_fence() {}
static inline void mbar_expect(u32 a, u32 n) { auto& m = mbarrier_of(a); m.bytes += n; --m.pending; emulation::turn_phase(m); }
static inline bool mbar_try(u32 a, u32 phase) { return mbarrier_of(a).phase != (int)phase; }
static inline void store_async(u32 a, u32 bar, u32 v) {
  if (emulation::current->block->id == emulation::mute) return;
  emulation::store_late(block_of(a).memory + (a & 0xffffff), v, &mbarrier_of(bar), &block_of(a));
}
static inline void store_async4(u32 a, u32 bar, uint4 v) {
  if (a % 16) emulation::complain("a message is not aligned");
  store_async(a, bar, v.x); store_async(a + 4, bar, v.y); store_async(a + 8, bar, v.z); store_async(a + 12, bar, v.w);
}
static inline void cluster_sync() {
  emulation::meet(emulation::cluster_barrier(emulation::current->block->id / emulation::cluster), 32 * W * emulation::cluster, true);
}
