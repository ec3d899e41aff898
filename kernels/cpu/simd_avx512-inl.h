// Sixteen lanes on AVX-512: the vocabulary linear-inl.h is written in. Included by
// linear_avx512*.cc after their target pragma; see simd_avx2-inl.h for the same names on AVX2.
//
// No include guard on purpose: the functions have internal linkage and each includer compiles its
// own.

using F = __m512;   // 16 f32, one output each
using I = __m512i;  // 16 dwords

inline F Zero() { return _mm512_setzero_ps(); }
inline I ZeroI() { return _mm512_setzero_si512(); }
inline F LoadF(const float* p) { return _mm512_loadu_ps(p); }
inline void StoreF(float* p, F v) { _mm512_storeu_ps(p, v); }
inline I LoadI(const void* p) { return _mm512_loadu_si512(p); }
inline F Broadcast(const float* p) { return _mm512_set1_ps(*p); }
inline I BroadcastI(const void* p) {
  int32_t v;
  __builtin_memcpy(&v, p, 4);
  return _mm512_set1_epi32(v);
}
inline F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
inline F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F Add(F a, F b) { return _mm512_add_ps(a, b); }
inline I AddI(I a, I b) { return _mm512_add_epi32(a, b); }
inline I SubI(I a, I b) { return _mm512_sub_epi32(a, b); }
inline F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
inline I MulI(I a, I b) { return _mm512_mullo_epi32(a, b); }
inline I AndI(I a, I b) { return _mm512_and_si512(a, b); }
inline F AsFloat(I v) { return _mm512_castsi512_ps(v); }
inline F ToFloat(I v) { return _mm512_cvtepi32_ps(v); }
template <int kBits>
inline I Shl(I v) {
  return _mm512_slli_epi32(v, kBits);
}
template <int kBits>
inline I ShrSigned(I v) {
  return _mm512_srai_epi32(v, kBits);
}
inline I ShrSignedBy(I v, int bits) { return _mm512_sra_epi32(v, _mm_cvtsi32_si128(bits)); }
inline I ShlBy(I v, int bits) { return _mm512_sll_epi32(v, _mm_cvtsi32_si128(bits)); }
inline bool AllEqual(I a, I b) { return _mm512_cmpneq_epi32_mask(a, b) == 0; }
inline F Gather(const float* base, I index) { return _mm512_i32gather_ps(index, base, 4); }
inline I LoadU8(const uint8_t* p) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline I LoadU16(const void* p) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
inline F LoadF16(const void* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
}
inline F EvenBF16(I v) { return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)); }
inline F OddBF16(I v) {
  return _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

/// Sixteen f32 by a 4-bit index.
struct Table {
  F values;
};
inline Table MakeTable(const float* values) { return {LoadF(values)}; }
/// Entry of bits kShift .. kShift + 3 of each dword; vpermps ignores the higher bits.
template <int kShift>
inline F Lookup(const Table& t, I v) {
  return _mm512_permutexvar_ps(_mm512_srli_epi32(v, kShift), t.values);
}

/// Entry of bits kShift and kShift + 1 of each dword in a table of four, repeated.
template <int kShift>
inline F Lookup4(const Table& t, I v) {
  return Lookup<kShift>(t, v);
}

/// Rounds to nearest even, NaN stays NaN: the arithmetic of BF16(float).
inline void StoreBF16(void* p, F v) {
  const __m512i u = _mm512_castps_si512(v);
  const __m512i lsb = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_add_epi32(u, _mm512_add_epi32(lsb, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  r = _mm512_mask_or_epi32(r, nan, u, _mm512_set1_epi32(0x400000));
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16)));
}
inline void StoreF16(void* p, F v) {
  _mm256_storeu_si256(static_cast<__m256i*>(p),
                      _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
