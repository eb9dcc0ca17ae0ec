// Elementary functions of vectors, by the names of the operations of a program.
INLINE vf v_max(vf a, vf b) { return ((a > b) | (a != a)) ? a : b; }
INLINE vf v_min(vf a, vf b) { return ((a < b) | (a != a)) ? a : b; }
INLINE vf v_abs(vf a) { return (vf)((vi)a & (SINGLE ? (integer)0x7fffffff : (integer)0x7fffffffffffffffLL)); }
INLINE vf v_sign(vf a) { return a > vset(0) ? vset(1) : (a < vset(0) ? vset(-1) : a); }
INLINE vi v_is_finite(vf a) { return v_abs(a) < vset((real)INFINITY); }
INLINE vf clamped(vf x, real lo, real hi) { x = x < vset(lo) ? vset(lo) : x; return x > vset(hi) ? vset(hi) : x; }

// n and p = expm1(r) of x = n ln 2 + r, |r| <= ln 2 / 2
INLINE void reduce(vf x, vi &n, vf &p) {
  const real magic = SINGLE ? (real)12582912.0 : (real)6755399441055744.0;  // 1.5 * 2^23, 1.5 * 2^52: rounds to integers
  vf k = x * (real)1.4426950408889634 + magic;
  k -= magic;
  vf r = x - k * (SINGLE ? (real)0.693359375 : (real)0.693147180369123816490);
  r = r - k * (SINGLE ? (real)-2.12194440e-4 : (real)1.90821492927058770002e-10);
  constexpr int D = SINGLE ? 7 : 13;
  constexpr double inverse[15] = {1, 1, 1. / 2, 1. / 6, 1. / 24, 1. / 120, 1. / 720, 1. / 5040, 1. / 40320, 1. / 362880,
      1. / 3628800, 1. / 39916800, 1. / 479001600, 1. / 6227020800., 1. / 87178291200.};
  vf q = vset((real)inverse[D]);
#pragma GCC unroll 16
  for (int i = D - 1; i >= 2; i--) q = q * r + (real)inverse[i];  // Taylor
  p = q * (r * r) + r;
  n = __builtin_convertvector(k, vi);
}
INLINE vf power_of_two(vi n) { return (vf)((n + (SINGLE ? 127 : 1023)) << (SINGLE ? 23 : 52)); }
INLINE vf v_exp(vf x) {  // in two factors, so that it ends in infinity and in denormal numbers as it should
  vi n;
  vf p;
  reduce(clamped(x, SINGLE ? -105 : -747, SINGLE ? 90 : 711), n, p);
  const vi half = n >> 1;
  const vf s = power_of_two(half);
  return (s * p + s) * power_of_two(n - half);
}
INLINE vf divide(vf a, vf b) {  // for b far from 0 and from the largest number
#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
  if constexpr (SINGLE) {
    typedef float v16 __attribute__((vector_size(64)));
    vf r = (vf)__builtin_ia32_rcp14ps512_mask((v16)b, (v16)b, (unsigned short)-1);
    r = r + r * ((real)1 - b * r);
    const vf q = a * r;
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
  reduce(clamped(x + x, -40, 40), n, p);
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
