// The micro-kernel that scales each weight as it is decoded: for blocks that cross rows or split a
// chunk, so that every lane has a scale of its own at every column, and for
// ActivationQuant::reference, which rounds each weight. Slow, straight from the codes, and each
// operation rounded as the format's formula says. Continues linear-inl.h, same rules of inclusion.

constexpr int64_t kElementPiece = 64;

/// Walks the blocks of a panel's sixteen rows, column by column.
struct BlockWalk {
  struct Lane {
    int64_t left;   // columns until the next block
    int64_t block;  // in the format's order
    int64_t at;     // where its scale is stored
    float scale;
    float zero;
  };
  const QuantFormat& format;
  const PackedSegment& segment;
  int64_t rows;   // lanes in use
  int64_t run;    // columns of a whole block
  int64_t step;   // between the scales of neighbouring blocks
  int64_t count;  // of all blocks: strided ones begin again
  Lane lanes[kPanelRows];

  explicit BlockWalk(const TileArgs& a)
      : format(a.call->weight->format()),
        segment(*a.segment),
        run(a.call->weight->k()),
        step(a.call->weight->panel_order() ? kPanelRows : 1) {
    const CpuPackedWeight& w = *a.call->weight;
    const BlockShape& shape = format.block;
    const int64_t first = a.panel * kPanelRows;
    rows = segment.rows - first < kPanelRows ? segment.rows - first : kPanelRows;
    count = shape.Count(segment.rows, w.k());
    if (shape.kind == BlockShape::Kind::kStrided) run = 1;
    if (shape.size > 0 && shape.kind != BlockShape::Kind::kStrided) run = shape.size;
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = first + r;
      const bool flat = shape.kind == BlockShape::Kind::kFlat;
      Lane& lane = lanes[r];
      lane.left = flat ? run - row * w.k() % run : run;
      lane.block = shape.IndexOf(segment.rows, w.k(), row, 0);
      lane.at = w.panel_order() ? a.panel * w.blocks_per_row() * kPanelRows + r : lane.block;
      Read(lane);
    }
  }

  void Read(Lane& lane) const {
    lane.scale = ReadScale(format, segment, lane.block, lane.at);
    lane.zero = ReadZero(format.zero, segment.zeros, lane.at);
  }

  /// Scales and zero points of the next `columns` columns: [columns][16] each.
  void Take(int64_t columns, float* scales, float* zeros) {
    for (int64_t r = 0; r < rows; ++r) {
      Lane& lane = lanes[r];
      for (int64_t c = 0; c < columns; ++c) {
        if (lane.left == 0) {
          lane.left = run;
          ++lane.block;
          lane.at += step;
          if (lane.block == count) lane.block = lane.at = 0;
          Read(lane);
        }
        --lane.left;
        scales[c * kPanelRows + r] = lane.scale;
        zeros[c * kPanelRows + r] = lane.zero;
      }
    }
  }
};

/// One chunk: acc += weights * x, step by step. `scales` and `zeros` are the chunk's.
template <class Decoder, int MR, int kStep = 0>
inline void ElementSteps(const LinearCall& call, const Decoder& d, const uint8_t* chunk, F centre,
                         const float* scales, const float* zeros, const uint8_t* x,
                         F (&acc)[1][MR]) {
  if constexpr (kStep < Decoder::kSteps) {
    const F code = Add(d.template Weight<kStep>(chunk), centre);
    const F scale = LoadF(scales + kStep * kPanelRows);
    const F zero = LoadF(zeros + kStep * kPanelRows);
    F w[1] = {IsAdded(call.weight->format().zero) ? Add(Mul(code, scale), zero)
                                                  : Mul(Sub(code, zero), scale)};
    if (call.rounds_steps) w[0] = RoundedTo(call.x_plain.dtype, w[0]);
    Decoder::template Multiply<MR, 1>(w, x + kStep * MR * 4, acc);
    ElementSteps<Decoder, MR, kStep + 1>(call, d, chunk, centre, scales, zeros, x, acc);
  }
}

/// MR rows x one panel over all of k. `Decoder` makes f32.
template <class Decoder, int MR>
void ElementsTile(const TileArgs& a) {
  const LinearCall& call = *a.call;
  const CpuPackedWeight& weight = *call.weight;
  const Decoder decoder(call);
  const float value = CodeCentre(weight.format().codec);
  const F centre = Broadcast(&value);
  const uint8_t* chunk = a.segment->codes + a.panel * weight.panel_bytes();
  const uint8_t* x = a.x;
  F master[MR];
  QUANTD_UNROLL
  for (int r = 0; r < MR; ++r) master[r] = Zero();
  BlockWalk walk(a);
  alignas(64) float scales[kElementPiece * kPanelRows] = {};
  alignas(64) float zeros[kElementPiece * kPanelRows] = {};
  for (int64_t column = 0; column < weight.k(); column += kElementPiece) {
    const int64_t left = weight.k() - column;
    const int64_t columns = left < kElementPiece ? left : kElementPiece;
    walk.Take(columns, scales, zeros);
    F acc[1][MR];
    QUANTD_UNROLL
    for (int r = 0; r < MR; ++r) acc[0][r] = Zero();
    for (int64_t c = 0; c < columns; c += Decoder::kSteps) {
      ElementSteps<Decoder, MR>(call, decoder, chunk, centre, scales + c * kPanelRows,
                                zeros + c * kPanelRows, x, acc);
      chunk += Decoder::kChunkBytes;
      x += Decoder::kSteps * MR * 4;
    }
    QUANTD_UNROLL
    for (int r = 0; r < MR; ++r) master[r] = Add(master[r], acc[0][r]);
  }
  for (int r = 0; r < MR; ++r) StoreOutputs(a, a.row + r, a.panel, master[r]);
}
