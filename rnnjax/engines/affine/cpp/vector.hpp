// Vectors by the extensions that GCC and Clang share. REAL is float or double.
#include <cmath>
#include <cstring>
#include <type_traits>

#if defined(__AVX512F__)
#define VBYTES 64
#elif defined(__AVX__)
#define VBYTES 32
#else
#define VBYTES 16
#endif
#if defined(__AVX512F__) || defined(__aarch64__)
#define REGISTERS 32
#else
#define REGISTERS 16
#endif
#define INLINE static inline __attribute__((always_inline))

typedef REAL real;
constexpr bool SINGLE = sizeof(real) == 4;
constexpr int VL = VBYTES / sizeof(real);
typedef real vf __attribute__((vector_size(VBYTES)));
typedef real vfu __attribute__((vector_size(VBYTES), aligned(sizeof(real)), may_alias));
typedef std::conditional_t<sizeof(real) == 4, int32_t, int64_t> integer;
typedef integer vi __attribute__((vector_size(VBYTES)));
constexpr int BU = 4, PW = BU * VL;  // a panel of cotangents: 4 vectors of units

INLINE vf vset(real x) { return x - vf{}; }
INLINE vf load(const real *p, int64_t n) {  // the first n lanes, zeros behind them
  if (__builtin_expect(n >= VL, 1)) return *(const vfu *)p;
  vf v{};
  for (int i = 0; i < n; i++) v[i] = p[i];
  return v;
}
INLINE void store(real *p, vf v, int64_t n) {
  if (__builtin_expect(n >= VL, 1)) { *(vfu *)p = v; return; }
  for (int i = 0; i < n; i++) p[i] = v[i];
}
INLINE int64_t up(int64_t a, int64_t b) { return (a + b - 1) / b; }
