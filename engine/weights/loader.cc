// The second half of loading: packing what weight_check.cc has planned. A value that no writer
// makes ends the packing; the values of what is left are then still checked, so that a user sees
// all such faults in one message, as those of names and shapes.
#include "engine/weights/loader.h"

#include <algorithm>
#include <cstring>

#include "engine/weights/value_scan.h"
#include "engine/weights/weight_check.h"
#include "kernels/fault_list.h"
#include "kernels/quant/float_types.h"

namespace quantd {
namespace {

int64_t BytesOf(const QuantizedMatrix& m) {
  return static_cast<int64_t>(m.codes.size() + m.nested_codes.size() +
                              sizeof(float) * (m.scales.size() + m.zeros.size() +
                                               m.nested_map.size() + m.nested_absmax.size()) +
                              sizeof(int32_t) * m.columns.size());
}

// A stored tensor as a matrix. Points into the mapping where that is aligned, else to a copy.
struct SourceMatrix {
  TensorView view;
  std::vector<uint64_t> copy;  // of 8-byte units, so that any element is aligned

  int64_t copy_bytes() const { return static_cast<int64_t>(copy.size() * sizeof(uint64_t)); }
};

SourceMatrix ViewOf(const StoredTensor& t, int64_t rows, int64_t cols) {
  const DType dtype = *ToDType(t.dtype);
  SourceMatrix m;
  const void* data = t.data.data();
  if (reinterpret_cast<uintptr_t>(data) % SizeOf(dtype) != 0) {
    m.copy.resize((t.data.size() + 7) / 8);
    std::memcpy(m.copy.data(), data, t.data.size());
    data = m.copy.data();
  }
  m.view = TensorView(dtype, const_cast<void*>(data), rows, cols);  // only read
  return m;
}

class Packer {
 public:
  Packer(const Checkpoint& checkpoint, const WeightLoaderOptions& options, const WeightsPlan& plan,
         Backend& backend)
      : checkpoint_(checkpoint),
        options_(options),
        plan_(plan),
        backend_(backend),
        base_bytes_(backend.memory().Total()) {}

  absl::StatusOr<LoadedWeights> Run(const ExpectedWeights& expected) {
    ASSIGN_OR_RETURN(LoadedGroup embedding,
                     PackGroup({plan_.embedding}, MemoryComponent::kEmbedding));
    result_.embedding = std::move(embedding.front());
    for (const auto& group : plan_.groups) {
      ASSIGN_OR_RETURN(LoadedGroup packed, PackGroup(group, MemoryComponent::kWeights));
      result_.groups.push_back(std::move(packed));
    }
    if (plan_.head) {
      ASSIGN_OR_RETURN(result_.head, PackGroup({*plan_.head}, MemoryComponent::kHead));
    }
    for (const ExpectedVector& v : expected.vectors) RETURN_IF_ERROR(LoadVector(v));
    RETURN_IF_ERROR(faults_.ToStatus(absl::StatusCode::kDataLoss));
    result_.accepted_extras = plan_.accepted_extras;
    return std::move(result_);
  }

 private:
  // False once a fault was found: from then on values are checked and nothing is kept.
  bool packing() const { return faults_.empty(); }

  // Notes a fault of the checkpoint's values, so that those of other tensors are found too; what
  // else goes wrong ends the load, unless a fault to be told of came before it.
  absl::Status Note(const absl::Status& status) {
    if (status.ok() || (packing() && !absl::IsDataLoss(status))) return status;
    if (packing()) result_ = LoadedWeights();  // the memory of what will not be used
    faults_.Add(status);
    return absl::OkStatus();
  }

  absl::StatusOr<LoadedGroup> PackGroup(const std::vector<ModulePlan>& modules,
                                        MemoryComponent component) {
    LoadedGroup parts;
    for (const std::span<const ModulePlan> run : FusedRuns(modules)) {
      ASSIGN_OR_RETURN(LoadedLinear part, PackFused(run, component));
      parts.push_back(std::move(part));
    }
    return parts;
  }

  absl::StatusOr<LoadedLinear> PackFused(std::span<const ModulePlan> modules,
                                         MemoryComponent component) {
    std::vector<RowSegment> segments;
    int64_t rows = 0;
    for (const ModulePlan& m : modules) {
      segments.push_back({m.shape.module, rows, m.shape.n});
      rows += m.shape.n;
    }
    const ModulePlan& first = modules.front();
    LoadedLinear linear;
    linear.activation = first.activation;
    if (packing()) {
      auto created =
          backend_.CreatePacked(first.format, first.shape.k, std::move(segments), component);
      if (!created.ok()) return Annotate(created.status(), first.shape.module);
      linear.weight = std::move(created).value();
    }
    if (packing() && !first.bias.empty()) {
      ASSIGN_OR_RETURN(linear.bias, backend_.Allocate(static_cast<size_t>(rows) * sizeof(float),
                                                      MemoryComponent::kNorms));
      result_.resident_bytes += static_cast<int64_t>(linear.bias.bytes());
    }
    int64_t first_row = 0;
    for (size_t i = 0; i < modules.size(); ++i) {
      const ModulePlan& m = modules[i];
      RETURN_IF_ERROR(Note(
          Annotate(packing() ? PackModule(m, i, *linear.weight) : CheckValues(m), m.shape.module)));
      if (!first.bias.empty()) {
        RETURN_IF_ERROR(Note(UploadVector(m.bias, m.shape.n, first_row, 0.0f, linear.bias)));
        result_.parameters += m.shape.n;
      }
      first_row += m.shape.n;
      for (const std::string& name : m.sources) checkpoint_.DropPages(*checkpoint_.Find(name));
      Done(m.shape.module, m.source_bytes);
    }
    if (packing()) Report(first, static_cast<int64_t>(modules.size()), *linear.weight);
    return linear;
  }

  // Names the file, too: of a model in shards it is the one to fetch again.
  absl::Status CheckFinite(const TensorView& view, const std::string& tensor) const {
    const auto bad = FindNonFinite(view);
    if (!bad) return absl::OkStatus();
    return DataLoss("{}: tensor {}: element [{}, {}] is NaN or infinite",
                    checkpoint_.file_name(checkpoint_.Find(tensor)->file), tensor, *bad / view.cols,
                    *bad % view.cols);
  }

  // What PackModule finds wrong with a checkpoint's values.
  absl::Status CheckValues(const ModulePlan& plan) const {
    if (plan.import != nullptr) {
      return plan.import->Load(checkpoint_, plan.shape, plan.options).status();
    }
    const SourceMatrix source = ViewOf(*checkpoint_.Find(plan.tensor), plan.shape.n, plan.shape.k);
    return CheckFinite(source.view, plan.tensor);
  }

  absl::Status PackModule(const ModulePlan& plan, size_t segment, PackedWeight& weight) {
    if (plan.import == nullptr) {
      const StoredTensor& stored = *checkpoint_.Find(plan.tensor);
      if (backend_.QuantizesRows(weight.format(), *ToDType(stored.dtype))) {
        const SourceMatrix source = ViewOf(stored, plan.shape.n, plan.shape.k);
        RETURN_IF_ERROR(CheckFinite(source.view, plan.tensor));
        absl::Status by_format =
            MethodOf(plan.options).CheckQuantizeRows(source.view, plan.options);
        if (by_format.ok()) {
          NoteMatrix(source.copy_bytes());
          return backend_.QuantizeRows(weight, segment, source.view);
        }
        if (!absl::IsUnimplemented(by_format)) return by_format;
      }
    }
    ASSIGN_OR_RETURN(const QuantizedMatrix matrix, Matrix(plan));
    NoteMatrix(BytesOf(matrix));
    return backend_.PackRows(weight, segment, matrix);
  }

  absl::StatusOr<QuantizedMatrix> Matrix(const ModulePlan& plan) {
    if (plan.import != nullptr) return plan.import->Load(checkpoint_, plan.shape, plan.options);
    const SourceMatrix source = ViewOf(*checkpoint_.Find(plan.tensor), plan.shape.n, plan.shape.k);
    RETURN_IF_ERROR(CheckFinite(source.view, plan.tensor));
    auto matrix =
        MethodOf(plan.options).Quantize(source.view, plan.options, options_.compute_dtype);
    if (matrix.ok()) NoteMatrix(BytesOf(*matrix) + source.copy_bytes());
    return matrix;
  }

  absl::Status LoadVector(const ExpectedVector& v) {
    Buffer buffer;
    if (packing()) {
      ASSIGN_OR_RETURN(buffer, backend_.Allocate(static_cast<size_t>(v.size) * sizeof(float),
                                                 MemoryComponent::kNorms));
    }
    RETURN_IF_ERROR(Note(UploadVector(v.tensor, v.size, 0, v.offset, buffer)));
    result_.resident_bytes += static_cast<int64_t>(buffer.bytes());
    result_.vectors.push_back(std::move(buffer));
    result_.parameters += v.size;
    Done(v.tensor, static_cast<int64_t>(checkpoint_.Find(v.tensor)->data.size()));
    return absl::OkStatus();
  }

  // Rounds a stored vector to f32, adds `offset` and puts it at element `first` of `buffer`, while
  // packing.
  absl::Status UploadVector(const std::string& tensor, int64_t size, int64_t first, float offset,
                            const Buffer& buffer) {
    const SourceMatrix source = ViewOf(*checkpoint_.Find(tensor), 1, size);
    RETURN_IF_ERROR(CheckFinite(source.view, tensor));
    if (!packing()) return absl::OkStatus();
    std::vector<float> values(static_cast<size_t>(size));
    for (int64_t i = 0; i < size; ++i) {
      switch (source.view.dtype) {
        case DType::kBF16:
          values[static_cast<size_t>(i)] = static_cast<float>(source.view.Row<BF16>(0)[i]);
          break;
        case DType::kF16:
          values[static_cast<size_t>(i)] = static_cast<float>(source.view.Row<F16>(0)[i]);
          break;
        default: values[static_cast<size_t>(i)] = source.view.Row<float>(0)[i];
      }
      values[static_cast<size_t>(i)] += offset;
    }
    backend_.Upload(values.data(), values.size() * sizeof(float), buffer.as<float>() + first);
    return absl::OkStatus();
  }

  void NoteMatrix(int64_t in_flight) {
    const int64_t packed = backend_.memory().Total() - base_bytes_;
    result_.peak_bytes = std::max(result_.peak_bytes, packed + in_flight);
    result_.largest_matrix_bytes = std::max(result_.largest_matrix_bytes, in_flight);
  }

  void Report(const ModulePlan& plan, int64_t modules, const PackedWeight& weight) {
    result_.modules.push_back(
        {plan.label, weight.format(), modules, weight.n() * weight.k(), weight.bytes()});
    result_.parameters += weight.n() * weight.k();
    result_.resident_bytes += weight.bytes();
  }

  void Done(const std::string& what, int64_t bytes) {
    done_bytes_ += bytes;
    if (options_.on_progress) options_.on_progress(done_bytes_, plan_.source_bytes, what);
  }

  const Checkpoint& checkpoint_;
  const WeightLoaderOptions& options_;
  const WeightsPlan& plan_;
  Backend& backend_;
  const int64_t base_bytes_;  // of the backend before loading
  int64_t done_bytes_ = 0;
  FaultList faults_;  // of values
  LoadedWeights result_;
};

}  // namespace

absl::StatusOr<LoadedWeights> LoadWeights(const Checkpoint& checkpoint,
                                          const ExpectedWeights& expected,
                                          const WeightLoaderOptions& options, Backend& backend) {
  ASSIGN_OR_RETURN(const WeightsPlan plan, PlanWeights(checkpoint, expected, options));
  return LoadPlannedWeights(checkpoint, expected, options, plan, backend);
}

absl::StatusOr<LoadedWeights> LoadPlannedWeights(const Checkpoint& checkpoint,
                                                 const ExpectedWeights& expected,
                                                 const WeightLoaderOptions& options,
                                                 const WeightsPlan& plan, Backend& backend) {
  return Packer(checkpoint, options, plan, backend).Run(expected);
}

}  // namespace quantd
