// Sixteen lanes on AVX2, as two registers: the vocabulary linear-inl.h is written in. Included by
// linear_avx2.cc after its target pragma; see simd_avx512-inl.h for the same names on AVX-512.
//
// No include guard on purpose: the functions have internal linkage and each includer compiles its
// own.

struct F {  // 16 f32, one output each
  __m256 lo, hi;
};
struct I {  // 16 dwords
  __m256i lo, hi;
};

inline F Zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline I ZeroI() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline F LoadF(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void StoreF(float* p, F v) {
  _mm256_storeu_ps(p, v.lo);
  _mm256_storeu_ps(p + 8, v.hi);
}
inline I LoadI(const void* p) {
  const auto* q = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline F Broadcast(const float* p) {
  const __m256 v = _mm256_broadcast_ss(p);
  return {v, v};
}
inline I BroadcastI(const void* p) {
  int32_t bits;
  __builtin_memcpy(&bits, p, 4);
  const __m256i v = _mm256_set1_epi32(bits);
  return {v, v};
}
inline F Fma(F a, F b, F c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline F Mul(F a, F b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F Add(F a, F b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline I AddI(I a, I b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
inline I SubI(I a, I b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
inline F Sub(F a, F b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline I MulI(I a, I b) { return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)}; }
inline I AndI(I a, I b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
inline F AsFloat(I v) { return {_mm256_castsi256_ps(v.lo), _mm256_castsi256_ps(v.hi)}; }
inline F ToFloat(I v) { return {_mm256_cvtepi32_ps(v.lo), _mm256_cvtepi32_ps(v.hi)}; }
template <int kBits>
inline I Shl(I v) {
  return {_mm256_slli_epi32(v.lo, kBits), _mm256_slli_epi32(v.hi, kBits)};
}
template <int kBits>
inline I ShrSigned(I v) {
  return {_mm256_srai_epi32(v.lo, kBits), _mm256_srai_epi32(v.hi, kBits)};
}
inline I ShrSignedBy(I v, int bits) {
  const __m128i count = _mm_cvtsi32_si128(bits);
  return {_mm256_sra_epi32(v.lo, count), _mm256_sra_epi32(v.hi, count)};
}
inline I ShlBy(I v, int bits) {
  const __m128i count = _mm_cvtsi32_si128(bits);
  return {_mm256_sll_epi32(v.lo, count), _mm256_sll_epi32(v.hi, count)};
}
inline bool AllEqual(I a, I b) {
  const __m256i same =
      _mm256_and_si256(_mm256_cmpeq_epi32(a.lo, b.lo), _mm256_cmpeq_epi32(a.hi, b.hi));
  return _mm256_movemask_epi8(same) == -1;
}
inline F Gather(const float* base, I index) {
  return {_mm256_i32gather_ps(base, index.lo, 4), _mm256_i32gather_ps(base, index.hi, 4)};
}
inline I LoadU8(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
}
inline I LoadU16(const void* p) {
  const auto* q = static_cast<const __m128i*>(p);
  return {_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), _mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1))};
}
inline F LoadF16(const void* p) {
  const auto* q = static_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
inline F EvenBF16(I v) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(v.lo, 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(v.hi, 16))};
}
inline F OddBF16(I v) {
  const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm256_castsi256_ps(_mm256_and_si256(v.lo, mask)),
          _mm256_castsi256_ps(_mm256_and_si256(v.hi, mask))};
}

/// Sixteen f32 by a 4-bit index: vpermps has eight entries, so two of them and a blend on bit 3.
struct Table {
  __m256 low, high;
};
inline Table MakeTable(const float* values) {
  return {_mm256_loadu_ps(values), _mm256_loadu_ps(values + 8)};
}
inline __m256 LookupHalf(const Table& t, __m256i index, __m256i sign) {
  return _mm256_blendv_ps(_mm256_permutevar8x32_ps(t.low, index),
                          _mm256_permutevar8x32_ps(t.high, index), _mm256_castsi256_ps(sign));
}
/// Entry of bits kShift .. kShift + 3 of each dword.
template <int kShift>
inline F Lookup(const Table& t, I v) {
  return {LookupHalf(t, _mm256_srli_epi32(v.lo, kShift), _mm256_slli_epi32(v.lo, 28 - kShift)),
          LookupHalf(t, _mm256_srli_epi32(v.hi, kShift), _mm256_slli_epi32(v.hi, 28 - kShift))};
}

/// Entry of bits kShift and kShift + 1 of each dword in a table of four, repeated.
template <int kShift>
inline F Lookup4(const Table& t, I v) {
  return {_mm256_permutevar8x32_ps(t.low, _mm256_srli_epi32(v.lo, kShift)),
          _mm256_permutevar8x32_ps(t.low, _mm256_srli_epi32(v.hi, kShift))};
}

/// Rounds to nearest even, NaN stays NaN: the arithmetic of BF16(float). In the low half of each
/// dword.
inline __m256i RoundToBF16(__m256 v) {
  const __m256i u = _mm256_castps_si256(v);
  const __m256i lsb = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i r = _mm256_add_epi32(u, _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7fff)));
  const __m256i quiet = _mm256_or_si256(u, _mm256_set1_epi32(0x400000));
  const __m256 nan = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
  return _mm256_srli_epi32(_mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(r),
                                                                _mm256_castsi256_ps(quiet), nan)),
                           16);
}
inline void StoreBF16(void* p, F v) {
  const __m256i packed = _mm256_packus_epi32(RoundToBF16(v.lo), RoundToBF16(v.hi));
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
inline void StoreF16(void* p, F v) {
  auto* q = static_cast<__m128i*>(p);
  _mm_storeu_si128(q, _mm256_cvtps_ph(v.lo, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  _mm_storeu_si128(q + 1, _mm256_cvtps_ph(v.hi, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
