// From a range of panels to micro-kernel calls, and the table of one instruction set; the last of
// the linear*-inl.h. The includer has defined kMaxRows and PanelsFor(rows).

/// 4-bit weights whose scale blocks cross rows: a lane's scale changes at its own columns, so each
/// weight is scaled as it is decoded. Slower, still straight from the codes.
template <int MR>
void FlatTile(const TileArgs& a) {
  const LinearCall& call = *a.call;
  const PackedSegment& s = *a.segment;
  const int64_t k = call.weight->k();
  const int64_t block = call.weight->format().block.size;
  const auto* words =
      reinterpret_cast<const uint32_t*>(s.codes + a.panel * call.weight->panel_bytes());
  const float* x = reinterpret_cast<const float*>(a.x);
  F master[MR];
  F acc[MR];
  QUANTD_UNROLL
  for (int r = 0; r < MR; ++r) master[r] = acc[r] = Zero();
  float scale[kPanelRows] = {};
  int64_t left[kPanelRows];  // columns until the lane's next block
  int64_t next[kPanelRows];  // that block
  for (int64_t r = 0; r < kPanelRows; ++r) {
    const int64_t flat = (a.panel * kPanelRows + r) * k;
    next[r] = flat / block;
    left[r] = -(flat % block);
  }
  alignas(64) float w[kPanelRows];
  for (int64_t c = 0; c < k; ++c) {
    const int shift = static_cast<int>(c % 2 * 16 + c % 8 / 2 * 4);
    for (int64_t r = 0; r < kPanelRows; ++r) {
      if (a.panel * kPanelRows + r >= s.rows) {
        w[r] = 0.0f;
        continue;
      }
      if (left[r] <= 0) {
        const int64_t b = next[r]++;
        left[r] += block;
        if (s.nested_codes != nullptr) {
          const float product = s.nested_map[s.nested_codes[b]] * s.nested_absmax[b / 256];
          scale[r] = product + s.nested_offset;
        } else {
          scale[r] = s.scales[b];
        }
      }
      --left[r];
      w[r] = call.table[words[c / 8 * kPanelRows + r] >> shift & 15] * scale[r];
    }
    const F weights = LoadF(w);
    QUANTD_UNROLL
    for (int r = 0; r < MR; ++r) acc[r] = Fma(weights, Broadcast(x + c * MR + r), acc[r]);
    if (c % 64 == 63 || c + 1 == k) {
      QUANTD_UNROLL
      for (int r = 0; r < MR; ++r) {
        master[r] = Add(master[r], acc[r]);
        acc[r] = Zero();
      }
    }
  }
  for (int r = 0; r < MR; ++r) StoreOutputs(a, a.row + r, a.panel, master[r]);
}

/// The micro-kernel of a path for MR rows and NR panels.
template <int MR, int NR>
void RunTile(LinearPath path, const TileArgs& a) {
  const bool nested = a.segment->nested_codes != nullptr;
  switch (path) {
    case LinearPath::kTable4F32:
      return nested ? FloatTile<Table4F32, NestedScale, MR, NR>(a)
                    : FloatTile<Table4F32, F32Scale, MR, NR>(a);
    case LinearPath::kBF16F32: return FloatTile<BF16ToF32, NoScale, MR, NR>(a);
    case LinearPath::kF16F32: return FloatTile<F16ToF32, NoScale, MR, NR>(a);
    case LinearPath::kF32F32: return FloatTile<F32ToF32, NoScale, MR, NR>(a);
    case LinearPath::kInt8F32: return FloatTile<Int8ToF32, NoScale, MR, NR>(a);
#ifdef QUANTD_BF16_DOT
    case LinearPath::kTable4Pairs:
      return nested ? FloatTile<Table4Pairs, NestedScale, MR, NR>(a)
                    : FloatTile<Table4Pairs, F32Scale, MR, NR>(a);
    case LinearPath::kBF16Pairs: return FloatTile<BF16Pairs, NoScale, MR, NR>(a);
#else
    case LinearPath::kTable4Pairs:
    case LinearPath::kBF16Pairs: QUANTD_CHECK(false, "no bf16 dot products here"); return;
#endif
    case LinearPath::kTable4Flat:
    case LinearPath::kInt8Int8: {
      TileArgs one = a;
      for (int p = 0; p < NR; ++p, ++one.panel) {
        path == LinearPath::kInt8Int8 ? Int8Tile<MR>(one) : FlatTile<MR>(one);
      }
      return;
    }
  }
}

using TileFunction = void (*)(LinearPath path, const TileArgs& a);
constexpr int PanelsOf(bool group, int rows) { return group ? PanelsFor(rows) : 1; }
/// RunTile for one to kMaxRows rows, of one panel or of as many as those rows like.
template <bool kGroup, class Rows = std::make_integer_sequence<int, kMaxRows>>
struct Tiles;
template <bool kGroup, int... kRow>
struct Tiles<kGroup, std::integer_sequence<int, kRow...>> {
  static constexpr TileFunction kRun[] = {RunTile<(kRow + 1), PanelsOf(kGroup, kRow + 1)>...};
};

/// `count` adjacent panels against one tile of `rows` rows.
inline void RunPanels(int64_t rows, LinearPath path, TileArgs a, int64_t count) {
  const int64_t group = PanelsFor(static_cast<int>(rows));
  for (int64_t p = 0; p < count;) {
    const bool whole = count - p >= group;
    (whole ? Tiles<true>::kRun : Tiles<false>::kRun)[rows - 1](path, a);
    const int64_t step = whole ? group : 1;
    p += step;
    a.panel += step;
  }
}

void Run(const LinearCall& call, int64_t first_panel, int64_t last_panel) {
  const CpuPackedWeight& weight = *call.weight;
  TileArgs a{};
  a.call = &call;
  a.chunks = weight.padded_k() / kPadK;
  const bool scaled = call.path == LinearPath::kTable4Pairs || call.path == LinearPath::kTable4F32;
  a.block_chunks = scaled ? weight.format().block.size / kPadK : 8;
  const int64_t group = PanelsFor(static_cast<int>(call.rows_per_tile));
  for (const PackedSegment& s : weight.packed_segments()) {
    const int64_t begin = first_panel > s.first_panel ? first_panel - s.first_panel : 0;
    const int64_t end =
        last_panel < s.first_panel + s.panels ? last_panel - s.first_panel : s.panels;
    a.segment = &s;
    // Panels outside, rows inside: a group of panels stays in cache while all rows pass over it.
    for (int64_t p = begin; p < end; p += group) {
      const int64_t count = end - p < group ? end - p : group;
      a.x = call.x;
      for (int64_t row = 0; row < call.m; row += call.rows_per_tile, a.x += call.tile_bytes) {
        a.row = row;
        a.panel = p;
        const int64_t left = call.m - row;
        RunPanels(left < call.rows_per_tile ? left : call.rows_per_tile, call.path, a, count);
      }
    }
  }
}
