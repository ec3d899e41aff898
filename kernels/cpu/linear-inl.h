// The micro-kernels of Linear, written once over sixteen lanes (simd_*-inl.h) and compiled for each
// instruction set. See linear.h for idea and order of additions. Included inside a namespace of the
// instruction set, after its target pragma and its simd header. The includer defines
//   kMaxRows       rows of x one micro-kernel takes (registers: kMaxRows accumulators of F)
//   RowsToPanels   panels one micro-kernel takes, by its rows
// and, where the processor has them, QUANTD_BF16_DOT and QUANTD_INT8_DOT.
//
// No include guard on purpose: the functions have internal linkage and each includer compiles its
// own.

// ---- storing outputs ----

/// y[row, 16 columns of the panel] = v + bias, rounded once.
inline void StoreOutputs(const TileArgs& a, int64_t row, int64_t panel, F v) {
  const LinearCall& call = *a.call;
  const int64_t local = panel * kPanelRows;
  const int64_t column = a.segment->first_row + local;
  const int64_t valid = a.segment->rows - local;
  if (valid >= kPanelRows) {
    if (call.bias != nullptr) v = Add(v, LoadF(call.bias + column));
    switch (call.y.dtype) {
      case DType::kBF16: StoreBF16(call.y.Row<uint16_t>(row) + column, v); return;
      case DType::kF16: StoreF16(call.y.Row<uint16_t>(row) + column, v); return;
      default: StoreF(call.y.Row<float>(row) + column, v); return;
    }
  }
  alignas(64) float whole[kPanelRows];
  alignas(64) uint16_t half[kPanelRows];
  StoreF(whole, v);
  if (call.bias != nullptr) {
    for (int64_t i = 0; i < valid; ++i) whole[i] += call.bias[column + i];
  }
  const size_t count = static_cast<size_t>(valid);
  switch (call.y.dtype) {
    case DType::kBF16:
      StoreBF16(half, LoadF(whole));
      __builtin_memcpy(call.y.Row<uint16_t>(row) + column, half, count * 2);
      return;
    case DType::kF16:
      StoreF16(half, LoadF(whole));
      __builtin_memcpy(call.y.Row<uint16_t>(row) + column, half, count * 2);
      return;
    default: __builtin_memcpy(call.y.Row<float>(row) + column, whole, count * 4); return;
  }
}

// ---- decoding a chunk of columns ----
// A Decoder knows the bytes of one chunk of a panel: Weight<j> is the vector of step j (one column,
// or a pair), in ascending order of columns, and Multiply adds it times x, which has four bytes a
// row for each step.

template <int MR, int NR>
inline void MultiplyF32(const F (&w)[NR], const uint8_t* x, F (&acc)[NR][MR]) {
  const float* values = reinterpret_cast<const float*>(x);
  QUANTD_UNROLL
  for (int r = 0; r < MR; ++r) {
    const F value = Broadcast(values + r);
    QUANTD_UNROLL
    for (int p = 0; p < NR; ++p) acc[p][r] = Fma(w[p], value, acc[p][r]);
  }
}

/// Multiply of the decoders to f32.
struct F32Decoder {
  template <int MR, int NR>
  static void Multiply(const F (&w)[NR], const uint8_t* x, F (&acc)[NR][MR]) {
    MultiplyF32<MR, NR>(w, x, acc);
  }
};

/// Codes of kBits bits, 2 or 4.
template <int kBits>
struct TableF32 : F32Decoder {
  static constexpr int kChunkBytes = 64;
  static constexpr int kSteps = 32 / kBits;
  Table table;
  explicit TableF32(const LinearCall& call) : table(MakeTable(call.table)) {}
  template <int kStep>
  F Weight(const uint8_t* chunk) const {
    constexpr int kShift = kStep % 2 * 16 + kStep / 2 * kBits;
    if constexpr (kBits == 2) {
      return Lookup4<kShift>(table, LoadI(chunk));
    } else {
      return Lookup<kShift>(table, LoadI(chunk));
    }
  }
};

struct BF16ToF32 : F32Decoder {
  static constexpr int kChunkBytes = 256;
  static constexpr int kSteps = 8;
  explicit BF16ToF32(const LinearCall&) {}
  template <int kStep>
  F Weight(const uint8_t* chunk) const {
    const I v = LoadI(chunk + kStep / 2 * 64);
    return kStep % 2 == 0 ? EvenBF16(v) : OddBF16(v);
  }
};

struct F16ToF32 : F32Decoder {
  static constexpr int kChunkBytes = 256;
  static constexpr int kSteps = 8;
  explicit F16ToF32(const LinearCall&) {}
  template <int kStep>
  F Weight(const uint8_t* chunk) const {
    return LoadF16(chunk + kStep * 32);
  }
};

struct F32ToF32 : F32Decoder {
  static constexpr int kChunkBytes = 512;
  static constexpr int kSteps = 8;
  explicit F32ToF32(const LinearCall&) {}
  template <int kStep>
  F Weight(const uint8_t* chunk) const {
    return LoadF(reinterpret_cast<const float*>(chunk) + kStep * kPanelRows);
  }
};

struct Int8ToF32 : F32Decoder {
  static constexpr int kChunkBytes = 128;
  static constexpr int kSteps = 8;
  explicit Int8ToF32(const LinearCall&) {}
  template <int kStep>
  F Weight(const uint8_t* chunk) const {
    return ToFloat(ShrSigned<24>(Shl<24 - kStep % 4 * 8>(LoadI(chunk + kStep / 4 * 64))));
  }
};

struct E4M3ToF32 : F32Decoder {
  static constexpr int kChunkBytes = 128;
  static constexpr int kSteps = 8;
  explicit E4M3ToF32(const LinearCall&) {}
  template <int kStep>
  F Weight(const uint8_t* chunk) const {
    constexpr int kByte = kStep % 4 == 1 ? 2 : kStep % 4 == 2 ? 1 : kStep % 4;
    return FromE4M3(Shl<24 - kByte * 8>(LoadI(chunk + kStep / 4 * 64)));
  }
};

#ifdef QUANTD_BF16_DOT
template <int MR, int NR>
inline void MultiplyPairs(const F (&w)[NR], const uint8_t* x, F (&acc)[NR][MR]) {
  QUANTD_UNROLL
  for (int r = 0; r < MR; ++r) {
    const __m512bh value = reinterpret_cast<__m512bh>(BroadcastI(x + r * 4));
    QUANTD_UNROLL
    for (int p = 0; p < NR; ++p) {
      acc[p][r] = _mm512_dpbf16_ps(acc[p][r], reinterpret_cast<__m512bh>(w[p]), value);
    }
  }
}

/// Multiply of the decoders to pairs of bf16.
struct PairsDecoder {
  template <int MR, int NR>
  static void Multiply(const F (&w)[NR], const uint8_t* x, F (&acc)[NR][MR]) {
    MultiplyPairs<MR, NR>(w, x, acc);
  }
};

/// Pairs of columns: a word of the chunk shifted by kBits * j has the code of one bf16 weight in
/// its low bits. The lookup has 32 entries and repeats the table, so that the index needs no
/// masking.
template <int kBits>
struct TablePairs : PairsDecoder {
  static constexpr int kChunkBytes = 64;
  static constexpr int kSteps = 16 / kBits;
  I table;
  explicit TablePairs(const LinearCall& call) {
    alignas(64) uint16_t words[32];
    for (int i = 0; i < 32; ++i) words[i] = BF16(call.table[i % 16]).bits;
    table = LoadI(words);
  }
  template <int kStep>
  F Weight(const uint8_t* chunk) const {
    return _mm512_castsi512_ps(
        _mm512_permutexvar_epi16(_mm512_srli_epi16(LoadI(chunk), kStep * kBits), table));
  }
};

struct BF16Pairs : PairsDecoder {
  static constexpr int kChunkBytes = 256;
  static constexpr int kSteps = 4;
  explicit BF16Pairs(const LinearCall&) {}
  template <int kStep>
  F Weight(const uint8_t* chunk) const {
    return LoadF(reinterpret_cast<const float*>(chunk + kStep * 64));
  }
};

/// The magnitudes of e4m3 by code as bf16, which holds them exactly. (That of 0x7f, a NaN, is never
/// looked up.)
struct E4M3Magnitudes {
  alignas(64) uint16_t bits[128];
};
constexpr E4M3Magnitudes MakeE4M3Magnitudes() {
  E4M3Magnitudes m{};
  for (int code = 0; code < 128; ++code) {
    float value = static_cast<float>(code < 8 ? code : 8 + code % 8) * 0x1p-9f;
    for (int exponent = 1; exponent < code / 8; ++exponent) value *= 2.0f;
    m.bits[code] = static_cast<uint16_t>(std::bit_cast<uint32_t>(value) >> 16);
  }
  return m;
}
inline constexpr E4M3Magnitudes kE4M3Magnitudes = MakeE4M3Magnitudes();

/// Looked up, not computed: a bf16 dot product takes subnormals for zeros, so no exponent can be
/// corrected afterwards.
struct E4M3Pairs : PairsDecoder {
  static constexpr int kChunkBytes = 128;
  static constexpr int kSteps = 4;
  I table[4];
  explicit E4M3Pairs(const LinearCall&) {
    for (int i = 0; i < 4; ++i) table[i] = LoadI(kE4M3Magnitudes.bits + i * 32);
  }
  template <int kStep>
  F Weight(const uint8_t* chunk) const {
    I codes = LoadI(chunk + kStep / 2 * 64);  // in the low byte of each word
    if constexpr (kStep % 2 == 1) codes = _mm512_srli_epi16(codes, 8);
    const I low = _mm512_permutex2var_epi16(table[0], codes, table[1]);
    const I high = _mm512_permutex2var_epi16(table[2], codes, table[3]);
    const __mmask32 is_high = _mm512_test_epi16_mask(codes, _mm512_set1_epi16(0x40));
    const I magnitude = _mm512_mask_mov_epi16(low, is_high, high);
    constexpr int kOrAnd = 0xf8;  // a | (b & c)
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(magnitude, _mm512_slli_epi16(codes, 8),
                                  _mm512_set1_epi16(static_cast<int16_t>(0x8000)), kOrAnd));
  }
};
#endif  // QUANTD_BF16_DOT

/// One chunk: acc += weights * x, step by step.
template <class Decoder, int MR, int NR, int kStep = 0>
inline __attribute__((always_inline)) void Steps(const Decoder& d, const uint8_t* const (&w)[NR],
                                                 int64_t offset, const uint8_t* x,
                                                 F (&acc)[NR][MR]) {
  if constexpr (kStep < Decoder::kSteps) {
    F weights[NR];
    QUANTD_UNROLL
    for (int p = 0; p < NR; ++p) weights[p] = d.template Weight<kStep>(w[p] + offset);
    Decoder::template Multiply<MR, NR>(weights, x + kStep * MR * 4, acc);
    Steps<Decoder, MR, NR, kStep + 1>(d, w, offset, x, acc);
  }
}

// ---- floating-point micro-kernel ----

/// MR rows x NR panels over all of k. Not inlined: its registers are all taken.
template <class Decoder, class Scale, int MR, int NR>
__attribute__((noinline)) void FloatTile(const TileArgs& a) {
  const LinearCall& call = *a.call;
  const Decoder decoder(call);
  const int64_t panel_bytes = call.weight->panel_bytes();
  const uint8_t* w[NR];
  for (int p = 0; p < NR; ++p) w[p] = a.segment->codes + (a.panel + p) * panel_bytes;
  const uint8_t* x = a.x;
  F master[NR][MR];
  QUANTD_UNROLL
  for (int p = 0; p < NR; ++p) {
    QUANTD_UNROLL
    for (int r = 0; r < MR; ++r) master[p][r] = Zero();
  }
  Scale scales(a);
  const float* sums = a.sums;
  int64_t offset = 0;
  int64_t block = 0;
  for (int64_t chunk = 0; chunk < a.chunks; ++block) {
    const int64_t block_end = chunk + a.block_chunks < a.chunks ? chunk + a.block_chunks : a.chunks;
    while (chunk < block_end) {
      F acc[NR][MR];
      QUANTD_UNROLL
      for (int p = 0; p < NR; ++p) {
        QUANTD_UNROLL
        for (int r = 0; r < MR; ++r) acc[p][r] = Zero();
      }
      const int64_t end = chunk + a.piece_chunks < block_end ? chunk + a.piece_chunks : block_end;
      for (; chunk < end; ++chunk) {
        Steps<Decoder, MR, NR>(decoder, w, offset, x, acc);
        offset += Decoder::kChunkBytes;
        x += Decoder::kSteps * MR * 4;  // four bytes a row and step in every layout
      }
      QUANTD_UNROLL
      for (int p = 0; p < NR; ++p) {
        scales.Load(p, block);
        QUANTD_UNROLL
        for (int r = 0; r < MR; ++r) {
          master[p][r] = scales.Apply(p, acc[p][r], sums, r, master[p][r]);
        }
      }
      if constexpr (Scale::kOffsets) sums += MR;
    }
  }
  for (int p = 0; p < NR; ++p) {
    QUANTD_UNROLL
    for (int r = 0; r < MR; ++r) StoreOutputs(a, a.row + r, a.panel + p, master[p][r]);
  }
}
