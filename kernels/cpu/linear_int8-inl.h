// int8 x int8 micro-kernel and activation packing; continues linear-inl.h, same rules of inclusion.
//
// int8 x int8 sums are exact in int32, so only the epilogue has an order: scaled sum, then
// LLM.int8's outlier columns in ascending order, then bias. Bytes per weight: 1.

/// Sum over the row's outlier columns of x * q, columns ascending.
inline F OutlierSum(const TileArgs& a, int64_t row, const uint8_t* panel,
                    float (*read)(const void*)) {
  const LinearCall& call = *a.call;
  const Int8Activations& q = call.int8;
  const uint64_t* mask = q.outliers + (q.shared_mask ? 0 : row * q.mask_words);
  const int64_t bytes = static_cast<int64_t>(SizeOf(call.x_plain.dtype));
  const uint8_t* x = call.x_plain.Row<uint8_t>(0) + row * call.x_plain.stride * bytes;
  F sum = Zero();
  for (int64_t word = 0; word < q.mask_words; ++word) {
    for (uint64_t bits = mask[word]; bits != 0; bits &= bits - 1) {
      const int64_t column = word * 64 + __builtin_ctzll(bits);
      const float value = read(x + column * bytes);
      const I quad = LoadI(panel + column / 4 * 64);
      const int shift = 24 - static_cast<int>(column % 4) * 8;
      sum = Fma(ToFloat(ShrSigned<24>(ShlBy(quad, shift))), Broadcast(&value), sum);
    }
  }
  return sum;
}

#ifdef QUANTD_INT8_DOT
/// acc += 4 products a lane; x is q + 128 (the instruction wants one unsigned side).
template <int MR>
inline void Int8Quad(const uint8_t* w, const uint8_t* x, I (&acc)[MR]) {
  const I weights = LoadI(w);
  QUANTD_UNROLL
  for (int r = 0; r < MR; ++r) {
    acc[r] = _mm512_dpbusd_epi32(acc[r], BroadcastI(x + r * 4), weights);
  }
}
constexpr int kXQuadBytes = 4;
constexpr int32_t kXOffset = 128;
#else
/// Widened to int16: the byte instruction (maddubs) saturates its sums of two.
template <int MR>
inline void Int8Quad(const uint8_t* w, const uint8_t* x, I (&acc)[MR]) {
  const I quad = LoadI(w);
  const I even = EvenInt8(quad);
  const I odd = OddInt8(quad);
  QUANTD_UNROLL
  for (int r = 0; r < MR; ++r) {
    acc[r] = AddI(acc[r], MultiplyAddPairs(even, BroadcastI(x + r * 8)));
    acc[r] = AddI(acc[r], MultiplyAddPairs(odd, BroadcastI(x + r * 8 + 4)));
  }
}
constexpr int kXQuadBytes = 8;
constexpr int32_t kXOffset = 0;
#endif

/// MR rows x one panel over all of k, int8 on both sides.
template <int MR>
void Int8Tile(const TileArgs& a) {
  const LinearCall& call = *a.call;
  const uint8_t* panel = a.segment->codes + a.panel * call.weight->panel_bytes();
  const uint8_t* w = panel;
  const uint8_t* x = a.x;
  I acc[MR];
  QUANTD_UNROLL
  for (int r = 0; r < MR; ++r) acc[r] = ZeroI();
  for (int64_t chunk = 0; chunk < a.chunks; ++chunk) {
    Int8Quad<MR>(w, x, acc);
    Int8Quad<MR>(w + 64, x + MR * kXQuadBytes, acc);
    w += 128;
    x += 2 * MR * kXQuadBytes;
  }
  alignas(64) float widened[kPanelRows];
  WidenScales(*call.weight, *a.segment, a.panel, 0, 1, widened);  // one block a row
  const F scale = LoadF(widened);
  const I row_sums = LoadI(a.segment->row_sums + a.panel * kPanelRows);
  // A copy, so that only it is indexed at run time and acc stays in registers.
  I sums[MR];
  QUANTD_UNROLL
  for (int r = 0; r < MR; ++r) sums[r] = acc[r];
  for (int r = 0; r < MR; ++r) {
    const int64_t row = a.row + r;
    const int32_t zero = kXOffset + call.int8.row_zeros[row];
    const I sum = SubI(sums[r], MulI(BroadcastI(&zero), row_sums));
    const F row_scale = Broadcast(call.int8.row_scales + row);
    F v;
    if (call.rounds_steps) {
      v = Mul(RoundedTo(call.x_plain.dtype, Mul(ToFloat(sum), row_scale)), scale);
    } else {
      v = Mul(ToFloat(sum), Mul(row_scale, scale));
    }
    v = Add(v, Zero());  // -0 becomes 0, as when a bias of 0 is added
    if (call.int8.any_outlier[row]) {
      v = Fma(OutlierSum(a, row, panel, ReaderOf(call.x_plain.dtype)), scale, v);
    }
    StoreOutputs(a, row, a.panel, v);
  }
}

// ---- activations ----

/// Row `row` of x as f32 [padded_k], zeros behind k.
inline void RowToFloats(const TensorView& x, int64_t row, int64_t padded_k, float* out) {
  const int64_t k = x.cols;
  int64_t c = 0;
  switch (x.dtype) {
    case DType::kF32:
      __builtin_memcpy(out, x.Row<float>(row), static_cast<size_t>(k) * 4);
      c = k;
      break;
    case DType::kF16: {
      const uint16_t* src = x.Row<uint16_t>(row);
      for (; c + kPanelRows <= k; c += kPanelRows) StoreF(out + c, LoadF16(src + c));
      for (; c < k; ++c) out[c] = _cvtsh_ss(src[c]);
      break;
    }
    default: {
      const BF16* src = x.Row<BF16>(row);
      for (; c < k; ++c) out[c] = static_cast<float>(src[c]);
      break;
    }
  }
  for (; c < padded_k; ++c) out[c] = 0.0f;
}

void PackFloats(const TensorView& x, int64_t row, int64_t rows, XLayout layout, int64_t padded_k,
                uint8_t* tile) {
  const int64_t k = x.cols;
  for (int64_t r = 0; r < rows; ++r) {
    if (layout == XLayout::kBF16Pairs) {
      const uint16_t* src = x.Row<uint16_t>(row + r);
      uint8_t* out = tile + r * 4;
      for (int64_t c = 0; c + 2 <= k; c += 2) __builtin_memcpy(out + c / 2 * rows * 4, src + c, 4);
      if (k % 2 != 0) {
        const uint32_t last = src[k - 1];
        __builtin_memcpy(out + k / 2 * rows * 4, &last, 4);
      }
      const uint32_t zero = 0;
      for (int64_t c = (k + 1) / 2; c < padded_k / 2; ++c)
        __builtin_memcpy(out + c * rows * 4, &zero, 4);
      continue;
    }
    float* out = reinterpret_cast<float*>(tile) + r;
    constexpr int64_t kPiece = 256;  // stays in L1 between the two passes
    alignas(64) float piece[kPiece];
    for (int64_t c = 0; c < padded_k; c += kPiece) {
      const int64_t count = c + kPiece <= padded_k ? kPiece : padded_k - c;
      TensorView part = x;
      part.data = static_cast<uint8_t*>(x.data) + c * static_cast<int64_t>(SizeOf(x.dtype));
      part.cols = k - c < count ? k - c : count;
      RowToFloats(part, row + r, count, piece);
      for (int64_t i = 0; i < count; ++i) out[(c + i) * rows] = piece[i];
    }
  }
}

/// Sums of the columns of each piece of rows [row, row + rows) of x: [pieces][rows], in an order
/// that is a function of `block` (columns of a scale block) and k.
void SumColumns(const TensorView& x, int64_t row, int64_t rows, int64_t block, float* sums) {
  constexpr int64_t kChains = 8;
  alignas(64) float values[kScaledPiece];
  for (int64_t r = 0; r < rows; ++r) {
    float* out = sums + r;
    for (int64_t first = 0; first < x.cols; first += block) {
      const int64_t block_end = first + block < x.cols ? first + block : x.cols;
      for (int64_t c = first; c < block_end; c += kScaledPiece) {
        TensorView part = x;
        part.data = static_cast<uint8_t*>(x.data) + c * static_cast<int64_t>(SizeOf(x.dtype));
        part.cols = block_end - c < kScaledPiece ? block_end - c : kScaledPiece;
        const int64_t padded = (part.cols + kChains - 1) / kChains * kChains;
        RowToFloats(part, row + r, padded, values);
        float chains[kChains] = {};
        for (int64_t i = 0; i < padded; i += kChains) {
          for (int64_t j = 0; j < kChains; ++j) chains[j] += values[i + j];
        }
        *out = ((chains[0] + chains[1]) + (chains[2] + chains[3])) +
               ((chains[4] + chains[5]) + (chains[6] + chains[7]));
        out += rows;
      }
    }
  }
}
