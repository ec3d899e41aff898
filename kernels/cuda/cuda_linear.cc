// CudaLinear: see cuda_linear.h.
#include "kernels/cuda/cuda_linear.h"

#include <algorithm>

namespace quantd::QUANTD_CUDA_NS {
namespace {

// int32 sums kept at once; more rows go in chunks.
constexpr size_t kMaxSumsBytes = size_t{64} << 20;
constexpr int32_t kSlabStep = 16;  // rows of a slab are a multiple

FloatType TypeOf(Codec plain) {
  return plain == Codec::kF16    ? FloatType::kF16
         : plain == Codec::kBF16 ? FloatType::kBF16
                                 : FloatType::kF32;
}

size_t SizeOf(FloatType t) { return t == FloatType::kF32 ? 4 : 2; }

// Columns [first, first + count) of `m`.
Matrix Columns(Matrix m, int32_t first, int32_t count) {
  m.data = static_cast<std::byte*>(m.data) + static_cast<size_t>(first) * SizeOf(m.type);
  m.cols = count;
  return m;
}

// Rows [first, first + count) of `m`.
Matrix Rows(Matrix m, int32_t first, int32_t count) {
  m.data = static_cast<std::byte*>(m.data) + static_cast<size_t>(first * m.stride) * SizeOf(m.type);
  m.rows = count;
  return m;
}

// True when segment `i` lies in memory right behind the one before.
bool FollowsDirectly(const WeightView& w, int i, size_t element_bytes) {
  const WeightSegment& before = w.segments[i - 1];
  return w.segments[i].codes ==
         before.codes + static_cast<size_t>(before.rows) * static_cast<size_t>(w.k) * element_bytes;
}

// Calls body(codes, first_row, rows) for runs of segments that lie one behind the other.
template <typename Body>
void ForRuns(const WeightView& w, size_t element_bytes, const Body& body) {
  for (int i = 0; i < w.num_segments;) {
    int32_t rows = w.segments[i].rows;
    int end = i + 1;
    for (; end < w.num_segments && FollowsDirectly(w, end, element_bytes); ++end) {
      rows += w.segments[end].rows;
    }
    body(w.segments[i].codes, w.segments[i].first_row, rows);
    i = end;
  }
}

}  // namespace

CudaLinear::CudaLinear(DeviceContext& context, Scratch& scratch, CublasLt* cublaslt,
                       Determinism determinism, size_t slab_bytes)
    : context_(context),
      scratch_(scratch),
      inputs_(context),
      cublaslt_(cublaslt),
      determinism_(determinism),
      slab_bytes_(slab_bytes),
      free_{CreateEvent(), CreateEvent()},
      filled_{CreateEvent(), CreateEvent()},
      begun_(CreateEvent()) {}

CudaLinear::~CudaLinear() {
  for (Event event : {free_[0], free_[1], filled_[0], filled_[1], begun_}) DestroyEvent(event);
}

void CudaLinear::Run(const WeightView& w, const ActivationQuant& activation, Matrix x,
                     const float* bias, Matrix y) {
  const DeviceLimits& device = context_.limits;
  const LinearPolicy policy = {cublaslt_ != nullptr, determinism_,
                               cublaslt_ != nullptr && 10 * device.major + device.minor >= 89};
  LinearWay way = PlanLinear(w, activation, x, y, policy);
  if (!MultipliesCodes(way)) {
    if (!Prepare(w, activation, x)) return;
    way = PlanLinear(w, activation, x, y, policy);
  }
  switch (way) {
    case LinearWay::kGeneric:
      LinearGeneric(w, x, bias, y, activation.reference, context_.stream);
      break;
    case LinearWay::kMma: RunMma(w, x, bias, y); break;
    case LinearWay::kBytes: LinearBytes(w, x, bias, y, context_.stream); break;
    case LinearWay::kGemm: RunGemm(w, x, bias, y); break;
    case LinearWay::kDequantizeGemm: RunDequantizeGemm(w, x, bias, y); break;
    case LinearWay::kInt8Mma: RunInt8(w, activation, x, bias, y, /*gemm=*/false); break;
    case LinearWay::kInt8Gemm: RunInt8(w, activation, x, bias, y, /*gemm=*/true); break;
    case LinearWay::kFp8Gemm: RunFp8Gemm(w, activation, x, bias, y); break;
  }
}

bool CudaLinear::Prepare(const WeightView& w, const ActivationQuant& activation, Matrix& x) {
  const bool replaces = ReplacesInput(activation.kind), gathers = w.columns != nullptr;
  if (!replaces && !gathers) return true;
  Matrix to = x;
  to.stride = (x.cols + 7) / 8 * 8;  // rows aligned for every kernel
  const size_t bytes =
      AlignUp(static_cast<size_t>(x.rows) * static_cast<size_t>(to.stride) * SizeOf(x.type));
  Workspace workspace;
  if (!inputs_.Reserve((replaces && gathers ? 2 : 1) * bytes, 0, &workspace)) return false;
  to.data = workspace.data;
  if (replaces) {
    ReplaceInput(activation, x, to, context_.stream);
    x = to;
    to.data = static_cast<std::byte*>(to.data) + bytes;
  }
  if (gathers) {
    GatherColumns(x, w.columns, to, context_.stream);
    x = to;
  }
  return true;
}

void CudaLinear::RunMma(const WeightView& w, Matrix x, const float* bias, Matrix y) {
  Workspace workspace;
  if (!scratch_.Reserve(LinearMmaWorkspaceBytes(w, x.rows, context_.limits),
                        LinearMmaCounters(w, x.rows, context_.limits), &workspace)) {
    return;
  }
  LinearMma(w, x, bias, y, workspace, context_.limits, context_.stream);
}

void CudaLinear::RunGemm(const WeightView& w, Matrix x, const float* bias, Matrix y) {
  Workspace workspace;
  if (!scratch_.Reserve(CublasLt::kWorkspaceBytes, 0, &workspace)) return;
  ForRuns(w, SizeOf(x.type), [&](const uint8_t* codes, int32_t first_row, int32_t rows) {
    const Matrix weight = {TypeOf(w.codec), const_cast<uint8_t*>(codes), rows, w.k, w.k};
    context_.Note(
        cublaslt_->Gemm16(x, weight, Columns(y, first_row, rows), workspace.data, context_.stream));
  });
  if (bias != nullptr) AddBias(y, bias, context_.stream);
}

void CudaLinear::RunDequantizeGemm(const WeightView& w, Matrix x, const float* bias, Matrix y) {
  const size_t row_bytes = static_cast<size_t>(w.k) * SizeOf(x.type);
  const auto fitting = static_cast<int32_t>(slab_bytes_ / row_bytes) / kSlabStep * kSlabStep;
  const int32_t slab_rows = std::min(std::max(fitting, kSlabStep), w.n);
  const size_t slab_bytes = AlignUp(static_cast<size_t>(slab_rows) * row_bytes);
  Workspace workspace;
  const size_t num_slabs = slab_rows < w.n ? 2 : 1;
  if (!scratch_.Reserve(CublasLt::kWorkspaceBytes + num_slabs * slab_bytes, 0, &workspace)) return;
  auto* const slabs = static_cast<std::byte*>(workspace.data) + CublasLt::kWorkspaceBytes;

  // A slab is dequantized beside the product with the slab before, but for graphs, which keep to
  // one stream.
  const bool beside = !context_.capturing && slab_rows < w.n;
  const Stream dequantizing = beside ? context_.side : context_.stream;
  if (beside) {
    Record(begun_, context_.stream);  // what used the scratch before
    WaitOn(context_.side, begun_);
  }
  for (int32_t first = 0, i = 0; first < w.n; first += slab_rows, i ^= 1) {
    const int32_t rows = std::min(slab_rows, w.n - first);
    const Matrix slab = {x.type, slabs + static_cast<size_t>(i) * slab_bytes, rows, w.k, w.k};
    if (beside && first >= 2 * slab_rows) WaitOn(context_.side, free_[i]);
    Dequantize(w, first, slab, dequantizing);
    if (beside) {
      Record(filled_[i], context_.side);
      WaitOn(context_.stream, filled_[i]);
    }
    context_.Note(
        cublaslt_->Gemm16(x, slab, Columns(y, first, rows), workspace.data, context_.stream));
    if (beside) Record(free_[i], context_.stream);
  }
  if (bias != nullptr) AddBias(y, bias, context_.stream);
}

void CudaLinear::RunInt8(const WeightView& w, const ActivationQuant& activation, Matrix x,
                         const float* bias, Matrix y, bool gemm) {
  const size_t activation_bytes = AlignUp(Int8ActivationBytes(x.rows, w.k));
  const size_t sum_row_bytes = static_cast<size_t>(w.n) * sizeof(int32_t);
  const int32_t chunk_rows =
      std::min(x.rows, std::max(1, static_cast<int32_t>(kMaxSumsBytes / sum_row_bytes)));
  size_t more = 0;
  int32_t counters = 0;
  if (gemm) {
    more = CublasLt::kWorkspaceBytes + static_cast<size_t>(chunk_rows) * sum_row_bytes;
  } else {
    more = LinearInt8WorkspaceBytes(w, x.rows, context_.limits);
    counters = LinearInt8Counters(w, x.rows, context_.limits);
  }
  Workspace workspace;
  if (!scratch_.Reserve(activation_bytes + more, counters, &workspace)) return;
  auto* const rest = static_cast<std::byte*>(workspace.data) + activation_bytes;

  Int8Activations a = Int8ActivationsAt(workspace.data, x.rows, w.k);
  if (activation.kind == ActivationQuant::Kind::kInt8Outlier) {
    QuantizeInt8(x, activation.threshold, activation.scope == ActivationQuant::OutlierScope::kCall,
                 a, context_.stream);
  } else {
    a.divisor = 1.0f;
    QuantizeTokens(activation, x,
                   {reinterpret_cast<uint8_t*>(a.codes), a.scales, a.counts, a.padded_k},
                   context_.stream);
  }
  if (gemm) {
    Int8Gemm(w, a, x, bias, y, rest + CublasLt::kWorkspaceBytes, chunk_rows, rest);
    return;
  }
  const Workspace remaining = {rest, workspace.bytes - activation_bytes, workspace.counters,
                               workspace.num_counters};
  LinearInt8Mma(w, x, a, bias, y, remaining, context_.limits, context_.stream);
}

void CudaLinear::RunFp8Gemm(const WeightView& w, const ActivationQuant& activation, Matrix x,
                            const float* bias, Matrix y) {
  constexpr int32_t kRowStep = 16;  // the library takes multiples; what the others hold is not read
  const int32_t padded_rows = (x.rows + kRowStep - 1) / kRowStep * kRowStep;
  const size_t sum_row_bytes = static_cast<size_t>(w.n) * sizeof(float);
  const int32_t chunk_rows =
      std::min(padded_rows, std::max(kRowStep, static_cast<int32_t>(kMaxSumsBytes / sum_row_bytes) /
                                                   kRowStep * kRowStep));
  const size_t code_bytes = AlignUp(static_cast<size_t>(padded_rows) * static_cast<size_t>(w.k));
  const size_t scale_bytes = AlignUp(static_cast<size_t>(padded_rows) * sizeof(float));
  Workspace workspace;
  if (!scratch_.Reserve(CublasLt::kWorkspaceBytes + code_bytes + scale_bytes +
                            static_cast<size_t>(chunk_rows) * sum_row_bytes,
                        0, &workspace)) {
    return;
  }
  auto* const codes_at = static_cast<std::byte*>(workspace.data) + CublasLt::kWorkspaceBytes;
  auto* const codes = reinterpret_cast<uint8_t*>(codes_at);
  auto* const scales = reinterpret_cast<float*>(codes_at + code_bytes);
  auto* const sums = reinterpret_cast<float*>(codes_at + code_bytes + scale_bytes);
  QuantizeTokens(activation, x, {codes, scales, nullptr, w.k}, context_.stream);
  for (int32_t first = 0; first < x.rows; first += chunk_rows) {
    const int32_t rows = std::min(chunk_rows, padded_rows - first);
    ForRuns(w, 1, [&](const uint8_t* weight, int32_t first_row, int32_t weight_rows) {
      context_.Note(cublaslt_->GemmFp8(codes + static_cast<int64_t>(first) * w.k, w.k, weight, w.k,
                                       sums + first_row, w.n, rows, weight_rows, w.k,
                                       workspace.data, context_.stream));
    });
    RescaleFp8(w, scales + first, sums, w.n, bias, Rows(y, first, std::min(rows, x.rows - first)),
               context_.stream);
  }
}

void CudaLinear::Int8Gemm(const WeightView& w, const Int8Activations& a, Matrix x,
                          const float* bias, Matrix y, std::byte* sums_at, int32_t chunk_rows,
                          void* workspace) {
  auto* const sums = reinterpret_cast<int32_t*>(sums_at);
  for (int32_t first = 0; first < x.rows; first += chunk_rows) {
    const int32_t rows = std::min(chunk_rows, x.rows - first);
    Int8Activations part = a;
    part.codes += static_cast<int64_t>(first) * a.padded_k;
    part.scales += first;
    part.counts += first;
    part.columns += static_cast<int64_t>(first) * Int8Activations::kMaxOutliers;
    ForRuns(w, 1, [&](const uint8_t* codes, int32_t first_row, int32_t weight_rows) {
      context_.Note(cublaslt_->GemmInt8(
          part.codes, a.padded_k, reinterpret_cast<const int8_t*>(codes), w.k, sums + first_row,
          w.n, rows, weight_rows, w.k, workspace, context_.stream));
    });
    RescaleInt8(w, Rows(x, first, rows), part, sums, w.n, bias, Rows(y, first, rows),
                context_.stream);
  }
}

}  // namespace quantd::QUANTD_CUDA_NS
