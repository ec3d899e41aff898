// From a range of panels to micro-kernel calls, and the table of one instruction set; the last of
// the linear*-inl.h. The includer has defined kMaxRows and PanelsFor(rows).

/// Formats with zero points or without.
template <class Decoder, int MR, int NR>
void RunScaled(const TileArgs& a) {
  if (a.sums == nullptr) return FloatTile<Decoder, WidenedScale<false, NR>, MR, NR>(a);
  FloatTile<Decoder, WidenedScale<true, NR>, MR, NR>(a);
}

/// 4-bit codes, whose scales may be bitsandbytes'.
template <class Decoder, int MR, int NR>
void RunTable4(const TileArgs& a) {
  const CpuPackedWeight& w = *a.call->weight;
  if (a.sums == nullptr && w.panel_order()) {
    const ScaleType type = w.format().scale;
    if (type == ScaleType::kF32) return FloatTile<Decoder, F32Scale<NR>, MR, NR>(a);
    if (type == ScaleType::kNested) return FloatTile<Decoder, NestedScale<NR>, MR, NR>(a);
  }
  RunScaled<Decoder, MR, NR>(a);
}

/// As many times as there are panels, a micro-kernel that takes one.
template <int NR>
void RunSingles(void (*tile)(const TileArgs&), TileArgs a) {
  for (int p = 0; p < NR; ++p, ++a.panel) tile(a);
}

/// The micro-kernel of a path for MR rows and NR panels.
template <int MR, int NR>
void RunTile(LinearPath path, const TileArgs& a) {
  switch (path) {
    case LinearPath::kTable4F32: return RunTable4<TableF32<4>, MR, NR>(a);
    case LinearPath::kTable2F32: return FloatTile<TableF32<2>, WidenedScale<true, NR>, MR, NR>(a);
    case LinearPath::kE4M3F32: return FloatTile<E4M3ToF32, WidenedScale<false, NR>, MR, NR>(a);
    case LinearPath::kInt8F32: return RunScaled<Int8ToF32, MR, NR>(a);
    case LinearPath::kBF16F32: return FloatTile<BF16ToF32, NoScale, MR, NR>(a);
    case LinearPath::kF16F32: return FloatTile<F16ToF32, NoScale, MR, NR>(a);
    case LinearPath::kF32F32: return FloatTile<F32ToF32, NoScale, MR, NR>(a);
#ifdef QUANTD_BF16_DOT
    case LinearPath::kTable4Pairs: return RunTable4<TablePairs<4>, MR, NR>(a);
    case LinearPath::kTable2Pairs:
      return FloatTile<TablePairs<2>, WidenedScale<true, NR>, MR, NR>(a);
    case LinearPath::kE4M3Pairs: return FloatTile<E4M3Pairs, WidenedScale<false, NR>, MR, NR>(a);
    case LinearPath::kBF16Pairs: return FloatTile<BF16Pairs, NoScale, MR, NR>(a);
#else
    case LinearPath::kTable4Pairs:
    case LinearPath::kTable2Pairs:
    case LinearPath::kE4M3Pairs:
    case LinearPath::kBF16Pairs: QUANTD_CHECK(false, "no bf16 dot products here"); return;
#endif
    case LinearPath::kTable4Elements: return RunSingles<NR>(ElementsTile<TableF32<4>, MR>, a);
    case LinearPath::kTable2Elements: return RunSingles<NR>(ElementsTile<TableF32<2>, MR>, a);
    case LinearPath::kE4M3Elements: return RunSingles<NR>(ElementsTile<E4M3ToF32, MR>, a);
    case LinearPath::kInt8Elements: return RunSingles<NR>(ElementsTile<Int8ToF32, MR>, a);
    case LinearPath::kInt8Int8: return RunSingles<NR>(Int8Tile<MR>, a);
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
  const int64_t chunk = weight.chunk_columns();
  const bool plain = IsPlain(weight.format().codec);
  a.chunks = weight.padded_k() / chunk;
  a.block_chunks = plain ? a.chunks : weight.block_columns() / chunk;
  a.piece_chunks = (plain ? kPlainPiece : kScaledPiece) / chunk;
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
      a.sums = call.sums;
      for (int64_t row = 0; row < call.m; row += call.rows_per_tile, a.x += call.tile_bytes) {
        a.row = row;
        a.panel = p;
        const int64_t left = call.m - row;
        RunPanels(left < call.rows_per_tile ? left : call.rows_per_tile, call.path, a, count);
        if (a.sums != nullptr) a.sums += call.rows_per_tile * call.pieces;
      }
    }
  }
}
