// The micro-kernels of Linear, written once over sixteen lanes (simd_*-inl.h) and compiled for each
// instruction set. See linear.h for idea and order of additions. Included inside a namespace of the
// instruction set, after its target pragma and its simd header. The includer defines
//   kMaxRows       rows of x one micro-kernel takes (registers: kMaxRows accumulators of F)
//   RowsToPanels   panels one micro-kernel takes, by its rows
// and, where the processor has them, QUANTD_BF16_DOT and QUANTD_INT8_DOT.
//
// No include guard on purpose: the functions have internal linkage and each includer compiles its
// own.

#define QUANTD_UNROLL _Pragma("GCC unroll 16")

/// What a micro-kernel reads: one tile of x against adjacent panels of one segment.
struct TileArgs {
  const LinearCall* call;
  const PackedSegment* segment;
  int64_t panel;         // in the segment
  const uint8_t* x;      // the tile
  int64_t row;           // of the tile's first row in the call
  int64_t chunks;        // k / 8, padded
  int64_t block_chunks;  // chunks of a scale block
};

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

// ---- scales ----

/// Plain formats: blocks only bound the length of a chain of additions.
struct NoScale {
  void Start(const TileArgs&, int64_t) {}
  F Apply(F acc, F master) { return Add(master, acc); }
  void Next(int64_t) {}
};

struct F32Scale {
  const float* scales;
  F scale;
  void Start(const TileArgs& a, int64_t panel) {
    scales = a.segment->scales + panel * (a.chunks / a.block_chunks) * kPanelRows;
  }
  void Next(int64_t block) { scale = LoadF(scales + block * kPanelRows); }
  F Apply(F acc, F master) { return Fma(scale, acc, master); }
};

/// scale = map[code] * absmax[flat block / 256] + offset. A row's flat blocks are adjacent, so the
/// statistic of a lane changes once in 256 blocks: it is kept, and gathered again only when it
/// changes.
struct NestedScale {
  const PackedSegment* segment;
  const uint8_t* codes;
  I first;  // flat index of each lane's first block
  I group;  // whose statistic absmax holds
  F absmax;
  F scale;
  void Start(const TileArgs& a, int64_t panel) {
    segment = a.segment;
    const int64_t blocks = a.chunks / a.block_chunks;
    codes = segment->nested_codes + panel * blocks * kPanelRows;
    alignas(64) int32_t lanes[kPanelRows];
    for (int64_t r = 0; r < kPanelRows; ++r) {
      const int64_t row = panel * kPanelRows + r;
      lanes[r] = static_cast<int32_t>((row < segment->rows ? row : segment->rows - 1) * blocks);
    }
    first = LoadI(lanes);
    group = ShrSigned<8>(first);
    absmax = Gather(segment->nested_absmax, group);
  }
  void Next(int64_t block) {
    const int32_t b = static_cast<int32_t>(block);
    const I now = ShrSigned<8>(AddI(first, BroadcastI(&b)));
    if (!AllEqual(now, group)) {
      group = now;
      absmax = Gather(segment->nested_absmax, group);
    }
    const F value = Gather(segment->nested_map, LoadU8(codes + block * kPanelRows));
    scale = Add(Mul(value, absmax), Broadcast(&segment->nested_offset));
  }
  F Apply(F acc, F master) { return Fma(scale, acc, master); }
};

// ---- decoding eight columns ----
// A Decoder knows the bytes of one 8-column chunk of a panel: Weight<j> is the vector of step j
// (one column, or a pair), in ascending order of columns, and Multiply adds it times x, which has
// four bytes a row for each step.

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

struct Table4F32 {
  static constexpr int kChunkBytes = 64;
  static constexpr int kSteps = 8;
  Table table;
  explicit Table4F32(const LinearCall& call) : table(MakeTable(call.table)) {}
  template <int kStep>
  F Weight(const uint8_t* chunk) const {
    return Lookup<(kStep % 2) * 16 + (kStep / 2) * 4>(table, LoadI(chunk));
  }
  template <int MR, int NR>
  static void Multiply(const F (&w)[NR], const uint8_t* x, F (&acc)[NR][MR]) {
    MultiplyF32<MR, NR>(w, x, acc);
  }
};

struct BF16ToF32 {
  static constexpr int kChunkBytes = 256;
  static constexpr int kSteps = 8;
  explicit BF16ToF32(const LinearCall&) {}
  template <int kStep>
  F Weight(const uint8_t* chunk) const {
    const I v = LoadI(chunk + kStep / 2 * 64);
    return kStep % 2 == 0 ? EvenBF16(v) : OddBF16(v);
  }
  template <int MR, int NR>
  static void Multiply(const F (&w)[NR], const uint8_t* x, F (&acc)[NR][MR]) {
    MultiplyF32<MR, NR>(w, x, acc);
  }
};

struct F16ToF32 {
  static constexpr int kChunkBytes = 256;
  static constexpr int kSteps = 8;
  explicit F16ToF32(const LinearCall&) {}
  template <int kStep>
  F Weight(const uint8_t* chunk) const {
    return LoadF16(chunk + kStep * 32);
  }
  template <int MR, int NR>
  static void Multiply(const F (&w)[NR], const uint8_t* x, F (&acc)[NR][MR]) {
    MultiplyF32<MR, NR>(w, x, acc);
  }
};

struct F32ToF32 {
  static constexpr int kChunkBytes = 512;
  static constexpr int kSteps = 8;
  explicit F32ToF32(const LinearCall&) {}
  template <int kStep>
  F Weight(const uint8_t* chunk) const {
    return LoadF(reinterpret_cast<const float*>(chunk) + kStep * kPanelRows);
  }
  template <int MR, int NR>
  static void Multiply(const F (&w)[NR], const uint8_t* x, F (&acc)[NR][MR]) {
    MultiplyF32<MR, NR>(w, x, acc);
  }
};

struct Int8ToF32 {
  static constexpr int kChunkBytes = 128;
  static constexpr int kSteps = 8;
  explicit Int8ToF32(const LinearCall&) {}
  template <int kStep>
  F Weight(const uint8_t* chunk) const {
    return ToFloat(ShrSigned<24>(Shl<24 - kStep % 4 * 8>(LoadI(chunk + kStep / 4 * 64))));
  }
  template <int MR, int NR>
  static void Multiply(const F (&w)[NR], const uint8_t* x, F (&acc)[NR][MR]) {
    MultiplyF32<MR, NR>(w, x, acc);
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

/// Pairs of columns: a word of the chunk shifted by 4j has the code of one bf16 weight in its low
/// bits. The 32-entry lookup holds the table twice, so that the fifth index bit needs no masking.
struct Table4Pairs {
  static constexpr int kChunkBytes = 64;
  static constexpr int kSteps = 4;
  I table;
  explicit Table4Pairs(const LinearCall& call) {
    alignas(64) uint16_t words[32];
    for (int i = 0; i < 32; ++i) words[i] = BF16(call.table[i % 16]).bits;
    table = LoadI(words);
  }
  template <int kStep>
  F Weight(const uint8_t* chunk) const {
    return _mm512_castsi512_ps(
        _mm512_permutexvar_epi16(_mm512_srli_epi16(LoadI(chunk), kStep * 4), table));
  }
  template <int MR, int NR>
  static void Multiply(const F (&w)[NR], const uint8_t* x, F (&acc)[NR][MR]) {
    MultiplyPairs<MR, NR>(w, x, acc);
  }
};

struct BF16Pairs {
  static constexpr int kChunkBytes = 256;
  static constexpr int kSteps = 4;
  explicit BF16Pairs(const LinearCall&) {}
  template <int kStep>
  F Weight(const uint8_t* chunk) const {
    return LoadF(reinterpret_cast<const float*>(chunk + kStep * 64));
  }
  template <int MR, int NR>
  static void Multiply(const F (&w)[NR], const uint8_t* x, F (&acc)[NR][MR]) {
    MultiplyPairs<MR, NR>(w, x, acc);
  }
};
#endif  // QUANTD_BF16_DOT

template <class Decoder, int MR, int NR, int kStep>
inline void OneStep(const Decoder& d, const uint8_t* const (&w)[NR], int64_t offset,
                    const uint8_t* x, F (&acc)[NR][MR]) {
  if constexpr (kStep < Decoder::kSteps) {
    F weights[NR];
    QUANTD_UNROLL
    for (int p = 0; p < NR; ++p) weights[p] = d.template Weight<kStep>(w[p] + offset);
    Decoder::template Multiply<MR, NR>(weights, x + kStep * MR * 4, acc);
  }
}

// ---- floating-point micro-kernel ----

/// MR rows x NR panels over all of k.
template <class Decoder, class Scale, int MR, int NR>
void FloatTile(const TileArgs& a) {
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
  Scale scales[NR];
  QUANTD_UNROLL
  for (int p = 0; p < NR; ++p) scales[p].Start(a, a.panel + p);
  int64_t offset = 0;
  int64_t block = 0;
  for (int64_t chunk = 0; chunk < a.chunks; ++block) {
    F acc[NR][MR];
    QUANTD_UNROLL
    for (int p = 0; p < NR; ++p) {
      QUANTD_UNROLL
      for (int r = 0; r < MR; ++r) acc[p][r] = Zero();
    }
    const int64_t end = chunk + a.block_chunks < a.chunks ? chunk + a.block_chunks : a.chunks;
    for (; chunk < end; ++chunk) {
      OneStep<Decoder, MR, NR, 0>(decoder, w, offset, x, acc);
      OneStep<Decoder, MR, NR, 1>(decoder, w, offset, x, acc);
      OneStep<Decoder, MR, NR, 2>(decoder, w, offset, x, acc);
      OneStep<Decoder, MR, NR, 3>(decoder, w, offset, x, acc);
      OneStep<Decoder, MR, NR, 4>(decoder, w, offset, x, acc);
      OneStep<Decoder, MR, NR, 5>(decoder, w, offset, x, acc);
      OneStep<Decoder, MR, NR, 6>(decoder, w, offset, x, acc);
      OneStep<Decoder, MR, NR, 7>(decoder, w, offset, x, acc);
      offset += Decoder::kChunkBytes;
      x += Decoder::kSteps * MR * 4;  // four bytes a row and step in every layout
    }
    QUANTD_UNROLL
    for (int p = 0; p < NR; ++p) {
      scales[p].Next(block);
      QUANTD_UNROLL
      for (int r = 0; r < MR; ++r) {
        master[p][r] = scales[p].Apply(acc[p][r], master[p][r]);
      }
    }
  }
  for (int p = 0; p < NR; ++p) {
    QUANTD_UNROLL
    for (int r = 0; r < MR; ++r) {
      F v = master[p][r];
      if constexpr (__is_same(Decoder,
                              Int8ToF32)) {  // one scale a row: applied to the finished sum
        const F step = Broadcast(&kInt8Step);
        v = Mul(v, Mul(LoadF(a.segment->scales + (a.panel + p) * kPanelRows), step));
      }
      StoreOutputs(a, a.row + r, a.panel + p, v);
    }
  }
}
