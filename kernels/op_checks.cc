// Argument checks of the ops; see op_checks.h.
#include "kernels/op_checks.h"

#include "kernels/status.h"

namespace quantd {
namespace {

void CheckActivation(const TensorView& x, std::string_view what) {
  QUANTD_CHECK(IsFloat(x.dtype), "{} is {}, allowed: float32, float16, bfloat16", what,
               ToString(x.dtype));
  QUANTD_CHECK(x.rows >= 0 && x.cols > 0 && x.stride >= x.cols, "{} is [{}, {}] with stride {}",
               what, x.rows, x.cols, x.stride);
  QUANTD_CHECK(x.data != nullptr || x.rows == 0, "{} [{}, {}] has no memory", what, x.rows, x.cols);
}

void CheckShape(const TensorView& x, int64_t rows, int64_t cols, std::string_view what) {
  CheckActivation(x, what);
  QUANTD_CHECK(x.rows == rows && x.cols == cols, "{} is [{}, {}], expected [{}, {}]", what, x.rows,
               x.cols, rows, cols);
}

void CheckSameDType(const TensorView& a, const TensorView& b, std::string_view what) {
  QUANTD_CHECK(a.dtype == b.dtype, "{}: {} and {}", what, ToString(a.dtype), ToString(b.dtype));
}

void CheckSpec(const AttentionSpec& spec) {
  QUANTD_CHECK(
      spec.num_kv_heads > 0 && spec.num_heads > 0 && spec.num_heads % spec.num_kv_heads == 0,
      "{} heads over {} KV heads", spec.num_heads, spec.num_kv_heads);
  QUANTD_CHECK(spec.head_dim > 0 && spec.head_dim % 2 == 0, "head_dim is {}", spec.head_dim);
  QUANTD_CHECK(spec.rotary_dim >= 0 && spec.rotary_dim <= spec.head_dim && spec.rotary_dim % 2 == 0,
               "rotary_dim is {} of {}", spec.rotary_dim, spec.head_dim);
  QUANTD_CHECK(spec.window >= 0 && spec.softcap >= 0.0f, "window {}, softcap {}", spec.window,
               spec.softcap);
}

void CheckCache(const AttentionSpec& spec, const KvLayer& cache) {
  CheckSpec(spec);
  QUANTD_CHECK(cache.num_kv_heads == spec.num_kv_heads && cache.head_dim == spec.head_dim,
               "the cache has {} heads of {}, the spec {} of {}", cache.num_kv_heads,
               cache.head_dim, spec.num_kv_heads, spec.head_dim);
  const bool is_int8 = cache.dtype == DType::kI8;
  QUANTD_CHECK(is_int8 || IsFloat(cache.dtype),
               "the cache is {}, allowed: float32, float16, bfloat16, int8", ToString(cache.dtype));
  QUANTD_CHECK((cache.k_scales != nullptr) == is_int8 && (cache.v_scales != nullptr) == is_int8,
               "a cache of {} with {} scales", ToString(cache.dtype),
               (cache.k_scales != nullptr) + (cache.v_scales != nullptr));
  QUANTD_CHECK(
      cache.num_blocks > 0 && cache.block_size > 0 && cache.k != nullptr && cache.v != nullptr,
      "the cache has {} blocks of {}", cache.num_blocks, cache.block_size);
}

absl::Status CheckLength(size_t have, int64_t want, std::string_view what,
                         const RowSegment& segment) {
  if (static_cast<int64_t>(have) == want) return absl::OkStatus();
  return InvalidArgument("{}: {} has {} entries, expected {}", segment.module, what, have, want);
}

/// A permutation of 0 .. k - 1.
absl::Status CheckColumns(const QuantizedMatrix& matrix, const RowSegment& segment) {
  RETURN_IF_ERROR(CheckLength(matrix.columns.size(), matrix.k, "columns", segment));
  std::vector<bool> seen(matrix.columns.size());
  for (const int32_t c : matrix.columns) {
    if (c < 0 || c >= matrix.k || seen[static_cast<size_t>(c)]) {
      return InvalidArgument("{}: column {} is out of range or occurs twice", segment.module, c);
    }
    seen[static_cast<size_t>(c)] = true;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckCreatePacked(const QuantFormat& format, int64_t k,
                               const std::vector<RowSegment>& segments) {
  RETURN_IF_ERROR(format.Check());
  if (k < 1) return InvalidArgument("a weight with {} inputs, allowed: at least 1", k);
  if (segments.empty()) return InvalidArgument("a weight without modules");
  for (const RowSegment& s : segments) {
    if (s.rows < 1) return InvalidArgument("{}: {} rows, allowed: at least 1", s.module, s.rows);
  }
  return absl::OkStatus();
}

absl::Status CheckPackRows(const PackedWeight& weight, size_t segment,
                           const QuantizedMatrix& matrix) {
  QUANTD_CHECK(segment < weight.segments().size(), "segment {} of {}", segment,
               weight.segments().size());
  const RowSegment& s = weight.segments()[segment];
  const QuantFormat& format = weight.format();
  if (!(matrix.format == format)) {
    return InvalidArgument("{}: a {} matrix cannot fill a {} weight", s.module,
                           matrix.format.ToString(), format.ToString());
  }
  if (matrix.n != s.rows || matrix.k != weight.k()) {
    return InvalidArgument("{}: the matrix is [{}, {}], expected [{}, {}]", s.module, matrix.n,
                           matrix.k, s.rows, weight.k());
  }
  const int64_t elements = matrix.n * matrix.k;
  const int64_t code_bytes = IsPlain(format.codec) ? BitsOf(format.codec) / 8 : 1;
  RETURN_IF_ERROR(CheckLength(matrix.codes.size(), elements * code_bytes, "codes", s));
  if (format.scale == ScaleType::kNone) return absl::OkStatus();
  const int64_t blocks = format.block.Count(matrix.n, matrix.k);
  if (format.block.kind == BlockShape::Kind::kStrided && elements % format.block.size != 0) {
    return InvalidArgument("{}: {} elements are no multiple of the block of {}", s.module, elements,
                           format.block.size);
  }
  if (format.scale != ScaleType::kNested) {
    RETURN_IF_ERROR(CheckLength(matrix.scales.size(), blocks, "scales", s));
  } else {
    constexpr int64_t kNested = QuantizedMatrix::kNestedBlock;
    RETURN_IF_ERROR(CheckLength(matrix.nested_codes.size(), blocks, "nested_codes", s));
    RETURN_IF_ERROR(CheckLength(matrix.nested_map.size(), 256, "nested_map", s));
    RETURN_IF_ERROR(CheckLength(matrix.nested_absmax.size(), (blocks + kNested - 1) / kNested,
                                "nested_absmax", s));
  }
  if (format.zero != ZeroType::kNone) {
    RETURN_IF_ERROR(CheckLength(matrix.zeros.size(), blocks, "zeros", s));
  }
  return format.reordered ? CheckColumns(matrix, s) : absl::OkStatus();
}

void CheckEmbed(const PackedWeight& table, std::span<const int32_t> ids, const TensorView& out) {
  QUANTD_CHECK(IsPlain(table.format().codec), "an embedding table is {}",
               table.format().ToString());
  CheckShape(out, static_cast<int64_t>(ids.size()), table.k(), "Embed: out");
}

void CheckRmsNorm(const TensorView& x, const float* weight, const TensorView& out) {
  CheckActivation(x, "RmsNorm: x");
  CheckShape(out, x.rows, x.cols, "RmsNorm: out");
  CheckSameDType(x, out, "RmsNorm: x and out");
  QUANTD_CHECK(weight != nullptr, "RmsNorm without weight");
}

void CheckAddRmsNorm(const TensorView& residual, const TensorView& x, const float* weight,
                     const TensorView& out) {
  CheckRmsNorm(residual, weight, out);
  CheckShape(x, residual.rows, residual.cols, "AddRmsNorm: x");
  CheckSameDType(residual, x, "AddRmsNorm: residual and x");
}

void CheckLinear(const PackedWeight& w, const ActivationQuant& activation, const TensorView& x,
                 const TensorView& y) {
  CheckActivation(x, "Linear: x");
  QUANTD_CHECK(x.cols == w.k(), "Linear: x has {} columns, the weight {} inputs", x.cols, w.k());
  CheckShape(y, x.rows, w.n(), "Linear: y");
  QUANTD_CHECK(y.dtype == x.dtype || y.dtype == DType::kF32, "Linear: x is {}, y is {}",
               ToString(x.dtype), ToString(y.dtype));
  if (activation.kind == ActivationQuant::Kind::kInt8Outlier) {
    QUANTD_CHECK(w.format() == QuantFormat::Int8Row(), "LLM.int8 over a {} weight",
                 w.format().ToString());
    QUANTD_CHECK(activation.threshold >= 0.0f, "an outlier threshold of {}", activation.threshold);
  } else if (activation.kind == ActivationQuant::Kind::kFp8Group) {
    QUANTD_CHECK(activation.group > 0, "activations in groups of {}", activation.group);
  }
}

void CheckNormHeads(const TensorView& q, const TensorView& k, const float* q_weight,
                    const float* k_weight, const AttentionSpec& spec) {
  CheckSpec(spec);
  CheckShape(q, q.rows, static_cast<int64_t>(spec.num_heads) * spec.head_dim, "NormHeads: q");
  CheckShape(k, q.rows, static_cast<int64_t>(spec.num_kv_heads) * spec.head_dim, "NormHeads: k");
  CheckSameDType(q, k, "NormHeads: q and k");
  QUANTD_CHECK(q_weight != nullptr && k_weight != nullptr, "NormHeads without weights");
}

void CheckRopeAndStoreKv(const TensorView& q, const TensorView& k, const TensorView& v,
                         const float* cos_sin, const AttentionSpec& spec,
                         const AttentionBatch& batch, const KvLayer& cache) {
  CheckCache(spec, cache);
  const int64_t d = spec.head_dim;
  CheckShape(q, q.rows, spec.num_heads * d, "RopeAndStoreKv: q");
  CheckShape(k, q.rows, spec.num_kv_heads * d, "RopeAndStoreKv: k");
  CheckShape(v, q.rows, spec.num_kv_heads * d, "RopeAndStoreKv: v");
  CheckSameDType(q, k, "RopeAndStoreKv: q and k");
  CheckSameDType(q, v, "RopeAndStoreKv: q and v");
  QUANTD_CHECK(cos_sin != nullptr, "RopeAndStoreKv without a table");
  const size_t rows = static_cast<size_t>(q.rows);
  QUANTD_CHECK(batch.positions.size() == rows && batch.slots.size() == rows,
               "{} rows, {} positions, {} slots", rows, batch.positions.size(), batch.slots.size());
}

void CheckAttention(const TensorView& q, const AttentionSpec& spec, const AttentionBatch& batch,
                    const KvLayer& cache, const TensorView& out) {
  CheckCache(spec, cache);
  CheckShape(q, q.rows, static_cast<int64_t>(spec.num_heads) * spec.head_dim, "Attention: q");
  CheckShape(out, q.rows, q.cols, "Attention: out");
  CheckSameDType(q, out, "Attention: q and out");
  const size_t rows = static_cast<size_t>(q.rows);
  QUANTD_CHECK(batch.positions.size() == rows && batch.seq_of_row.size() == rows,
               "{} rows, {} positions, {} sequences of rows", rows, batch.positions.size(),
               batch.seq_of_row.size());
  const int64_t table = static_cast<int64_t>(batch.num_seqs) * batch.max_blocks;
  QUANTD_CHECK(static_cast<int64_t>(batch.block_tables.size()) >= table,
               "{} block table entries for {} sequences of {} blocks", batch.block_tables.size(),
               batch.num_seqs, batch.max_blocks);
}

void CheckGatedActivation(const TensorView& gate_up, const TensorView& out) {
  CheckActivation(out, "GatedActivation: out");
  CheckShape(gate_up, out.rows, 2 * out.cols, "GatedActivation: gate_up");
  CheckSameDType(gate_up, out, "GatedActivation: gate_up and out");
}

void CheckSoftCap(const TensorView& x, float cap) {
  CheckActivation(x, "SoftCap: x");
  QUANTD_CHECK(x.dtype == DType::kF32, "SoftCap: x is {}", ToString(x.dtype));
  QUANTD_CHECK(cap > 0.0f, "SoftCap: a cap of {}", cap);
}

void CheckGatherRows(const TensorView& x, std::span<const int32_t> rows, const TensorView& out) {
  CheckActivation(x, "GatherRows: x");
  CheckShape(out, static_cast<int64_t>(rows.size()), x.cols, "GatherRows: out");
  CheckSameDType(x, out, "GatherRows: x and out");
}

void CheckFeedBackTokens(std::span<const int32_t> ids, std::span<const int32_t> source) {
  QUANTD_CHECK(ids.size() == source.size(), "{} ids, {} sources", ids.size(), source.size());
}

void CheckSample(const TensorView& logits, std::span<const SampleParams> params,
                 std::span<const int32_t> sampled, std::span<const SampleResult> results) {
  CheckActivation(logits, "Sample: logits");
  QUANTD_CHECK(logits.dtype == DType::kF32, "Sample: logits are {}", ToString(logits.dtype));
  const size_t rows = static_cast<size_t>(logits.rows);
  QUANTD_CHECK(params.size() == rows && sampled.size() == rows && results.size() == rows,
               "{} rows, {} parameters, {} sampled, {} results", rows, params.size(),
               sampled.size(), results.size());
  const auto vocab = static_cast<int32_t>(logits.cols);
  for (const SampleParams& p : params) {
    const size_t words = static_cast<size_t>(vocab + 31) / 32;
    QUANTD_CHECK(p.allowed_mask.empty() || p.allowed_mask.size() == words,
                 "Sample: a mask of {} words, allowed: {}", p.allowed_mask.size(), words);
    QUANTD_CHECK(p.forced_id < vocab, "Sample: forced_id {} of {}", p.forced_id, vocab);
    for (const LogitEdit& edit : p.edits) {
      QUANTD_CHECK(edit.token_id >= 0 && edit.token_id < vocab, "Sample: an edit of id {} of {}",
                   edit.token_id, vocab);
    }
  }
}

void CheckIds(std::span<const int32_t> ids, int64_t limit, std::string_view what) {
  for (size_t i = 0; i < ids.size(); ++i) {
    QUANTD_CHECK(ids[i] >= 0 && ids[i] < limit, "{}[{}] is {}, allowed: 0 to {}", what, i, ids[i],
                 limit - 1);
  }
}

void CheckSlotIds(const AttentionBatch& batch, const KvLayer& cache) {
  CheckIds(batch.slots, static_cast<int64_t>(cache.num_blocks) * cache.block_size, "slots");
}

void CheckAttentionIds(const AttentionBatch& batch, const KvLayer& cache) {
  CheckIds(batch.seq_of_row, batch.num_seqs, "seq_of_row");
  CheckIds(batch.positions, static_cast<int64_t>(batch.max_blocks) * cache.block_size, "positions");
}

}  // namespace quantd
