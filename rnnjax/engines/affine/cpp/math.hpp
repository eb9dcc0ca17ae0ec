// Elementary functions of vectors, by the names of the operations of a program.
INLINE vf v_max(vf a, vf b) { return ((a > b) | (a != a)) ? a : b; }
INLINE vf v_min(vf a, vf b) { return ((a < b) | (a != a)) ? a : b; }
INLINE vf v_abs(vf a) { return (vf)((vi)a & (SINGLE ? (integer)0x7fffffff : (integer)0x7fffffffffffffffLL)); }
INLINE vf v_sign(vf a) { return a > vset(0) ? vset(1) : (a < vset(0) ? vset(-1) : a); }
INLINE vi v_is_finite(vf a) { return v_abs(a) < vset((real)INFINITY); }
#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
#define QUICK  // an instruction where the text below needs several; the second operand wins over NaN
typedef float v16 __attribute__((vector_size(64)));
INLINE vf at_least(vf x, real lo) {
  if constexpr (SINGLE) return (vf)__builtin_ia32_maxps512_mask((v16)vset(lo), (v16)x, (v16)x, (unsigned short)-1, 4);
  return x < vset(lo) ? vset(lo) : x;
}
INLINE vf at_most(vf x, real hi) {
  if constexpr (SINGLE) return (vf)__builtin_ia32_minps512_mask((v16)vset(hi), (v16)x, (v16)x, (unsigned short)-1, 4);
  return x > vset(hi) ? vset(hi) : x;
}
#else
INLINE vf at_least(vf x, real lo) { return x < vset(lo) ? vset(lo) : x; }
INLINE vf at_most(vf x, real hi) { return x > vset(hi) ? vset(hi) : x; }
#endif
INLINE vf clamped(vf x, real lo, real hi) { return at_most(at_least(x, lo), hi); }

// n and p = expm1(r) of x = n ln 2 + r, |r| <= ln 2 / 2. `exact` reduces in two parts, for n that are large.
template <bool exact = true> INLINE void reduce(vf x, vi &n, vf &p) {
  const real magic = SINGLE ? (real)12582912.0 : (real)6755399441055744.0;  // 1.5 * 2^23, 1.5 * 2^52: rounds to integers
  const vf shifted = x * (real)1.4426950408889634 + magic, k = shifted - magic;
  n = (vi)shifted - (vi)vset(magic);
  vf r;
  if constexpr (exact || !SINGLE) {
    r = x - k * (SINGLE ? (real)0.693359375 : (real)0.693147180369123816490);
    r = r - k * (SINGLE ? (real)-2.12194440e-4 : (real)1.90821492927058770002e-10);
  } else {
    r = x - k * (real)0.69314718056;
  }
  // (expm1(r) - r) / r^2: the polynomial of the least error of p in float32 (1.4e-8 of p), else Taylor's
  constexpr int D = SINGLE ? 4 : 11;
  constexpr double best[5] = {0.5000000062086998, 0.16666542793809158, 0.041666281400120964, 0.00836661060658673,
      0.001394649689115502};
  constexpr double taylor[12] = {1. / 2, 1. / 6, 1. / 24, 1. / 120, 1. / 720, 1. / 5040, 1. / 40320, 1. / 362880,
      1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800.};
  vf q = vset((real)(SINGLE ? best[D % 5] : taylor[D]));
#pragma GCC unroll 16
  for (int i = D - 1; i >= 0; i--) q = q * r + (real)(SINGLE ? best[i % 5] : taylor[i]);
  p = q * (r * r) + r;
}
INLINE vf power_of_two(vi n) { return (vf)((n << (SINGLE ? 23 : 52)) + (vi)vset(1)); }
INLINE vf v_exp(vf x) {  // in two factors, so that it ends in infinity and in denormal numbers as it should
  vi n;
  vf p;
  reduce(clamped(x, SINGLE ? -105 : -747, SINGLE ? 90 : 711), n, p);
  const vi half = n >> 1;
  const vf s = power_of_two(half);
  return (s * p + s) * power_of_two(n - half);
}
INLINE vf divide(vf a, vf b) {  // for b far from 0 and from the largest number
#ifdef QUICK
  if constexpr (SINGLE) {  // 14 bits, then twice as many
    const vf r = (vf)__builtin_ia32_rcp14ps512_mask((v16)b, (v16)b, (unsigned short)-1), q = a * r;
    return q + r * (a - q * b);
  }
#endif
  return a / b;
}
INLINE vf v_logistic(vf x) {
  vi n;
  vf p;
  reduce(clamped(-x, SINGLE ? -80 : -700, SINGLE ? 87 : 700), n, p);
  const vf s = power_of_two(n);
  return divide(vset(1), (s * p + s) + (real)1);
}
INLINE vf v_expm1(vf x) {
  vi n;
  vf p;
  reduce(clamped(x, -50, SINGLE ? 90 : 711), n, p);
  const vi half = n >> 1;  // below: s * p + (s - 1), which is p where n is 0
  const vf a = power_of_two(half), s = power_of_two(n - half);
  return n > (SINGLE ? 126 : 1022) ? (a * p + a) * s : (a * s) * p + (a * s - (real)1);
}
INLINE vf v_tanh(vf x) {  // expm1(2x) / (expm1(2x) + 2)
  vi n;
  vf p;
  reduce<false>(clamped(x + x, -40, 40), n, p);
  const vf s = power_of_two(n), e = s * p + (s - (real)1);
  return divide(e, e + (real)2);
}
// The rest a lane at a time, by the C library.
#define LANES(name) INLINE vf v_##name(vf x) { for (int i = 0; i < VL; i++) x[i] = std::name(x[i]); return x; }
LANES(log) LANES(log1p) LANES(exp2) LANES(erf) LANES(erfc) LANES(cbrt) LANES(sqrt) LANES(sin) LANES(cos) LANES(tan)
LANES(asin) LANES(acos) LANES(atan) LANES(sinh) LANES(cosh) LANES(asinh) LANES(acosh) LANES(atanh) LANES(floor) LANES(ceil)
#undef LANES
INLINE vf v_rsqrt(vf x) { return (real)1 / v_sqrt(x); }
INLINE vf v_pow(vf a, vf b) { for (int i = 0; i < VL; i++) a[i] = std::pow(a[i], b[i]); return a; }
INLINE vf v_atan2(vf a, vf b) { for (int i = 0; i < VL; i++) a[i] = std::atan2(a[i], b[i]); return a; }
