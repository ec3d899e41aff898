// Scales and zero points of blocks as vectors of f32, whatever their types: the first of the
// linear*-inl.h, same rules of inclusion as linear-inl.h.
//
// A micro-kernel knows f32 scales and offsets only. What is stored otherwise is widened some blocks
// at a time, so that the choice of type is made outside the loops; bitsandbytes' two kinds of
// scales have loads of their own.

#define QUANTD_UNROLL _Pragma("GCC unroll 16")

/// What a micro-kernel reads: one tile of x against adjacent panels of one segment.
struct TileArgs {
  const LinearCall* call;
  const PackedSegment* segment;
  int64_t panel;         // in the segment
  const uint8_t* x;      // the tile
  const float* sums;     // its sums of columns; null without zero points
  int64_t row;           // of the tile's first row in the call
  int64_t chunks;        // of k, padded
  int64_t block_chunks;  // chunks of a scale block
  int64_t piece_chunks;  // chunks that are summed before they are scaled, at most
};

inline float ReadF32(const void* p) { return *static_cast<const float*>(p); }
inline float ReadF16(const void* p) { return _cvtsh_ss(*static_cast<const uint16_t*>(p)); }
inline float ReadBF16(const void* p) { return static_cast<float>(*static_cast<const BF16*>(p)); }

inline auto ReaderOf(DType t) -> float (*)(const void*) {
  return t == DType::kF32 ? ReadF32 : t == DType::kF16 ? ReadF16 : ReadBF16;
}

/// e4m3 codes in the top byte of each dword, exactly: as the bits of an f32 they are too small by
/// 2^120, subnormals included. No code of a weight is a NaN.
inline F FromE4M3(I v) {
  constexpr uint32_t kSignExponentFraction = 0x87f00000u;
  constexpr float kRebias = 0x1p120f;
  return Mul(AsFloat(AndI(ShrSigned<4>(v), BroadcastI(&kSignExponentFraction))),
             Broadcast(&kRebias));
}

/// `v` rounded to a 16-bit type.
inline F RoundedTo(DType type, F v) {
  alignas(64) uint16_t bits[kPanelRows];
  if (type == DType::kF16) {
    StoreF16(bits, v);
    return LoadF16(bits);
  }
  StoreBF16(bits, v);
  return AsFloat(Shl<16>(LoadU16(bits)));
}

// ---- one scale ----

/// The scale of block `block` of the segment, stored at `at`, by the format's formula.
inline float ReadScale(const QuantFormat& format, const PackedSegment& s, int64_t block,
                       int64_t at) {
  switch (format.scale) {
    case ScaleType::kNone: return 1.0f;
    case ScaleType::kF32: return ReadF32(s.scales + at * 4);
    case ScaleType::kAbsmax: return ReadF32(s.scales + at * 4) * kInt8Step;
    case ScaleType::kF16: return ReadF16(s.scales + at * 2);
    case ScaleType::kBF16: return ReadBF16(s.scales + at * 2);
    case ScaleType::kE4M3: return E4M3Codec::Decode(s.scales[at]) / s.global_scale;
    case ScaleType::kNested: {
      const float product = s.nested_map[s.scales[at]] * s.nested_absmax[block / 256];
      return product + s.nested_offset;
    }
  }
  return 0.0f;
}

inline float ReadZero(ZeroType type, const uint8_t* zeros, int64_t at) {
  switch (type) {
    case ZeroType::kNone: return 0.0f;
    case ZeroType::kU8: return zeros[at];
    case ZeroType::kF16: return ReadF16(zeros + at * 2);
    case ZeroType::kBF16:
    case ZeroType::kAddedBF16: return ReadBF16(zeros + at * 2);
    case ZeroType::kF32:
    case ZeroType::kAddedF32: return ReadF32(zeros + at * 4);
  }
  return 0.0f;
}

// ---- the blocks of a panel ----

constexpr int64_t kWidenBlocks = 4;

template <class Load>
inline void Widen(int64_t count, float* out, Load load) {
  for (int64_t i = 0; i < count; ++i) StoreF(out + i * kPanelRows, load(i));
}

/// Row `row`'s blocks of tiles start here.
inline int64_t FirstTile(const CpuPackedWeight& w, const PackedSegment& s, int64_t row) {
  const int64_t inside = row < s.rows ? row : s.rows - 1;
  return inside / w.format().block.rows * w.blocks_per_row();
}

/// Calls put(i, lane, at) for block first + i of every lane of the panel: where its tile is stored.
template <class Put>
inline void ForTiles(const CpuPackedWeight& w, const PackedSegment& s, int64_t panel, int64_t first,
                     int64_t count, Put put) {
  for (int64_t lane = 0; lane < kPanelRows; ++lane) {
    const int64_t at = FirstTile(w, s, panel * kPanelRows + lane) + first;
    for (int64_t i = 0; i < count; ++i) put(i, lane, at + i);
  }
}

/// Scales of blocks [first, first + count) of the panel's rows: `out` [count][16].
inline void WidenScales(const CpuPackedWeight& w, const PackedSegment& s, int64_t panel,
                        int64_t first, int64_t count, float* out) {
  const QuantFormat& format = w.format();
  if (format.block.kind == BlockShape::Kind::kTile) {
    ForTiles(w, s, panel, first, count, [&](int64_t i, int64_t lane, int64_t at) {
      out[i * kPanelRows + lane] = ReadScale(format, s, at, at);
    });
    return;
  }
  const int64_t at = (panel * w.blocks_per_row() + first) * kPanelRows;
  switch (format.scale) {
    case ScaleType::kNone:
    case ScaleType::kNested: QUANTD_CHECK(false, "no scales to widen"); return;
    case ScaleType::kF32: {
      const float* from = reinterpret_cast<const float*>(s.scales) + at;
      return Widen(count, out, [&](int64_t i) { return LoadF(from + i * kPanelRows); });
    }
    case ScaleType::kAbsmax: {
      const float* from = reinterpret_cast<const float*>(s.scales) + at;
      const F step = Broadcast(&kInt8Step);
      return Widen(count, out, [&](int64_t i) { return Mul(LoadF(from + i * kPanelRows), step); });
    }
    case ScaleType::kF16:
      return Widen(count, out,
                   [&](int64_t i) { return LoadF16(s.scales + (at + i * kPanelRows) * 2); });
    case ScaleType::kBF16:
      return Widen(count, out, [&](int64_t i) {
        return AsFloat(Shl<16>(LoadU16(s.scales + (at + i * kPanelRows) * 2)));
      });
    case ScaleType::kE4M3: {
      const float value = 1.0f / s.global_scale;
      const F inverse = Broadcast(&value);
      return Widen(count, out, [&](int64_t i) {
        return Mul(FromE4M3(Shl<24>(LoadU8(s.scales + at + i * kPanelRows))), inverse);
      });
    }
  }
}

/// What zero points come to for codes less their centre, w = scale * code + offset, of the same
/// blocks, whose scales are `scales`.
inline void WidenOffsets(const CpuPackedWeight& w, const PackedSegment& s, int64_t panel,
                         int64_t first, int64_t count, const float* scales, float* out) {
  const ZeroType type = w.format().zero;
  const float value = CodeCentre(w.format().codec);
  const F centre = Broadcast(&value);
  const int64_t at = (panel * w.blocks_per_row() + first) * kPanelRows;
  const auto offsets = [&](auto zero) {
    if (IsAdded(type)) {
      return Widen(count, out,
                   [&](int64_t i) { return Fma(centre, LoadF(scales + i * kPanelRows), zero(i)); });
    }
    return Widen(count, out, [&](int64_t i) {
      return Mul(Sub(centre, zero(i)), LoadF(scales + i * kPanelRows));
    });
  };
  if (w.format().block.kind == BlockShape::Kind::kTile) {
    alignas(64) float zeros[kWidenBlocks * kPanelRows];
    ForTiles(w, s, panel, first, count, [&](int64_t i, int64_t lane, int64_t tile) {
      zeros[i * kPanelRows + lane] = ReadZero(type, s.zeros, tile);
    });
    return offsets([&](int64_t i) { return LoadF(zeros + i * kPanelRows); });
  }
  switch (type) {
    case ZeroType::kNone: return;
    case ZeroType::kU8:
      return offsets([&](int64_t i) { return ToFloat(LoadU8(s.zeros + at + i * kPanelRows)); });
    case ZeroType::kF16:
      return offsets([&](int64_t i) { return LoadF16(s.zeros + (at + i * kPanelRows) * 2); });
    case ZeroType::kBF16:
    case ZeroType::kAddedBF16:
      return offsets([&](int64_t i) {
        return AsFloat(Shl<16>(LoadU16(s.zeros + (at + i * kPanelRows) * 2)));
      });
    case ZeroType::kF32:
    case ZeroType::kAddedF32: {
      const float* from = reinterpret_cast<const float*>(s.zeros) + at;
      return offsets([&](int64_t i) { return LoadF(from + i * kPanelRows); });
    }
  }
}

// ---- what a micro-kernel does with a piece's sum ----
// Of NR adjacent panels, 0 first. When a piece of block `block` has been summed, Load is called for
// panel p, then Apply with the panel's sums `acc` of the piece and the sums of the piece's x, one a
// row: one panel after the other, since all their accumulators are alive.

/// Plain formats.
struct NoScale {
  static constexpr bool kOffsets = false;
  explicit NoScale(const TileArgs&) {}
  void Load(int, int64_t) {}
  F Apply(int, F acc, const float*, int, F master) const { return Add(master, acc); }
};

/// f32 in panel order.
template <int NR>
struct F32Scale {
  static constexpr bool kOffsets = false;
  const float* scales[NR];
  F scale;

  explicit F32Scale(const TileArgs& a) {
    const int64_t stride = a.call->weight->blocks_per_row() * kPanelRows;
    for (int p = 0; p < NR; ++p) {
      scales[p] = reinterpret_cast<const float*>(a.segment->scales) + (a.panel + p) * stride;
    }
  }
  void Load(int p, int64_t block) { scale = LoadF(scales[p] + block * kPanelRows); }
  F Apply(int, F acc, const float*, int, F master) const { return Fma(scale, acc, master); }
};

/// scale = map[code] * absmax[flat block / 256] + offset. A row's flat blocks are adjacent, so the
/// statistic of a lane changes once in 256 blocks: it is kept, and gathered again only when it
/// changes.
template <int NR>
struct NestedScale {
  static constexpr bool kOffsets = false;
  const PackedSegment& segment;
  const uint8_t* codes[NR];
  I first[NR];  // flat index of each lane's first block
  I group[NR];  // whose statistic absmax holds
  F absmax[NR];
  F scale;

  explicit NestedScale(const TileArgs& a) : segment(*a.segment) {
    const int64_t blocks = a.call->weight->blocks_per_row();
    for (int p = 0; p < NR; ++p) {
      alignas(64) int32_t lanes[kPanelRows];
      for (int64_t r = 0; r < kPanelRows; ++r) {
        const int64_t row = (a.panel + p) * kPanelRows + r;
        lanes[r] = static_cast<int32_t>((row < segment.rows ? row : segment.rows - 1) * blocks);
      }
      codes[p] = segment.scales + (a.panel + p) * blocks * kPanelRows;
      first[p] = LoadI(lanes);
      group[p] = ShrSigned<8>(first[p]);
      absmax[p] = Gather(segment.nested_absmax, group[p]);
    }
  }
  void Load(int p, int64_t block) {
    const int32_t step = static_cast<int32_t>(block);
    const I now = ShrSigned<8>(AddI(first[p], BroadcastI(&step)));
    if (!AllEqual(now, group[p])) {
      group[p] = now;
      absmax[p] = Gather(segment.nested_absmax, now);
    }
    const F value = Gather(segment.nested_map, LoadU8(codes[p] + block * kPanelRows));
    scale = Add(Mul(value, absmax[p]), Broadcast(&segment.nested_offset));
  }
  F Apply(int, F acc, const float*, int, F master) const { return Fma(scale, acc, master); }
};

/// Scales of any other kind, and zero points.
template <bool kWithOffsets, int NR>
struct WidenedScale {
  static constexpr bool kOffsets = kWithOffsets;
  static constexpr int64_t kBlocks = kWidenBlocks;
  const TileArgs& args;
  int64_t widened = -1;  // blocks [widened * kBlocks, + kBlocks)
  int64_t at = 0;        // of the block among them
  alignas(64) float scales[NR][kBlocks * kPanelRows];
  alignas(64) float offsets[kWithOffsets ? NR : 1][kBlocks * kPanelRows];

  explicit WidenedScale(const TileArgs& a) : args(a) {}
  void Load(int p, int64_t block) {
    if (p != 0) return;
    if (block / kBlocks != widened) Refill(block / kBlocks);
    at = block % kBlocks * kPanelRows;
  }
  /// Out of line, and of all panels at once: a call spills every accumulator.
  __attribute__((noinline)) void Refill(int64_t which) {
    widened = which;
    const int64_t block = which * kBlocks;
    const CpuPackedWeight& w = *args.call->weight;
    const int64_t left = w.blocks_per_row() - block;
    const int64_t count = left < kBlocks ? left : kBlocks;
    for (int p = 0; p < NR; ++p) {
      WidenScales(w, *args.segment, args.panel + p, block, count, scales[p]);
      if constexpr (kWithOffsets) {
        WidenOffsets(w, *args.segment, args.panel + p, block, count, scales[p], offsets[p]);
      }
    }
  }
  F Apply(int p, F acc, const float* sums, int row, F master) const {
    master = Fma(LoadF(scales[p] + at), acc, master);
    if constexpr (kWithOffsets) master = Fma(LoadF(offsets[p] + at), Broadcast(sums + row), master);
    return master;
  }
};
