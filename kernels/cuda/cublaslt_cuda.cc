// CublasLt over the library itself, opened at run time: half a gigabyte that is neither linked nor
// shipped, but lies beside every PyTorch. Its header comes from the toolkit; its functions and
// structures used here are the same in versions 12 and 13.
//
// The heuristic, which takes long, is asked once for a bucket of m (powers of two from 16) and all
// that else matters; what it says for the bucket's largest m serves the others, and where the
// library refuses that, it is asked again for the very m.
#include "kernels/cuda/cublaslt.h"
#include "kernels/status.h"

#if __has_include(<cublasLt.h>)

#include <cublasLt.h>
#include <dlfcn.h>
#include <glob.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <string>
#include <tuple>
#include <vector>

namespace quantd::cuda {
namespace {

constexpr const char* kNames[] = {"libcublasLt.so.13", "libcublasLt.so.12"};

// The library's functions, by their own types.
struct Api {
// clang-format off
#define QUANTD_CUBLASLT_FUNCTIONS(F) \
  F(cublasLtCreate) \
  F(cublasLtDestroy) \
  F(cublasLtGetStatusString) \
  F(cublasLtMatmul) \
  F(cublasLtMatmulAlgoGetHeuristic) \
  F(cublasLtMatmulDescCreate) \
  F(cublasLtMatmulDescDestroy) \
  F(cublasLtMatmulDescSetAttribute) \
  F(cublasLtMatrixLayoutCreate) \
  F(cublasLtMatrixLayoutDestroy) \
  F(cublasLtMatmulPreferenceCreate) \
  F(cublasLtMatmulPreferenceDestroy) \
  F(cublasLtMatmulPreferenceSetAttribute)
// clang-format on
#define F(name) decltype(&::name) name = nullptr;
  QUANTD_CUBLASLT_FUNCTIONS(F)
#undef F

  /// Name of the first function the library lacks, or nullptr.
  const char* Load(void* library) {
#define F(name)                                                      \
  name = reinterpret_cast<decltype(&::name)>(dlsym(library, #name)); \
  if (name == nullptr) return #name;
    QUANTD_CUBLASLT_FUNCTIONS(F)
#undef F
    return nullptr;
  }
};

std::vector<std::string> Matches(const std::string& pattern) {
  glob_t found = {};
  std::vector<std::string> paths;
  if (glob(pattern.c_str(), 0, nullptr, &found) == 0) {
    paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  }
  globfree(&found);
  return paths;
}

std::string Environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

/// Folders (patterns of glob) that may hold the library, in the order they are tried; "" stands for
/// the loader's own search.
std::vector<std::string> Folders() {
  std::vector<std::string> folders = {""};
  for (const char* variable : {"CUDA_HOME", "CUDA_PATH"}) {
    const std::string home = Environment(variable);
    if (!home.empty()) folders.push_back(home + "/lib64");
  }
  folders.push_back("/usr/local/cuda/lib64");
  std::vector<std::string> roots;
  for (const char* variable : {"VIRTUAL_ENV", "CONDA_PREFIX"}) {
    if (!Environment(variable).empty()) roots.push_back(Environment(variable));
  }
  // The environment of the python3 that a shell would start.
  const std::string path = Environment("PATH");
  for (size_t begin = 0; begin < path.size();) {
    const size_t end = std::min(path.find(':', begin), path.size());
    const std::string bin = path.substr(begin, end - begin);
    if (access((bin + "/python3").c_str(), X_OK) == 0) {
      roots.push_back(bin + "/..");
      break;
    }
    begin = end + 1;
  }
  if (!Environment("HOME").empty()) roots.push_back(Environment("HOME") + "/.local");
  roots.insert(roots.end(), {"/usr/local", "/usr"});
  for (const std::string& root : roots) {
    folders.push_back(root + "/lib/python3*/*-packages/nvidia/*/lib");
  }
  return folders;
}

absl::StatusOr<void*> OpenLibrary() {
  std::vector<std::string> candidates;
  std::string searched;
  const std::string given = Environment("QUANTD_CUBLASLT");
  if (!given.empty()) {
    struct stat info = {};
    const bool folder = stat(given.c_str(), &info) == 0 && S_ISDIR(info.st_mode);
    for (const char* name : kNames) candidates.push_back(folder ? given + "/" + name : given);
    searched = "QUANTD_CUBLASLT=" + given;
  } else {
    for (const std::string& folder : Folders()) {
      for (const char* name : kNames) {
        if (folder.empty()) {
          candidates.emplace_back(name);
        } else {
          for (std::string& path : Matches(folder + "/" + name)) candidates.push_back(path);
        }
      }
      if (!searched.empty()) searched += ", ";
      searched += folder.empty() ? "the loader's path" : folder;
    }
  }
  std::string reason;
  for (const std::string& path : candidates) {
    // Kept open for good: a library of this kind does not unload cleanly.
    if (void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return library;
    const char* error = dlerror();
    if (error != nullptr) reason = error;
  }
  return Unavailable("cuBLASLt: neither {} nor {} can be opened; searched {} ({})", kNames[0],
                     kNames[1], searched, reason);
}

/// A product in the library's column-major view: D [n, m] = W^T [n, k] * X [k, m].
struct Product {
  cudaDataType_t in = CUDA_R_16BF;
  cudaDataType_t out = CUDA_R_16BF;
  int64_t m = 0, n = 0, k = 0;
  int64_t ldx = 0, ldw = 0, ldy = 0;

  bool is_int8() const { return in == CUDA_R_8I; }
};

class CublasLtLibrary final : public CublasLt {
 public:
  CublasLtLibrary(const Api& api, cublasLtHandle_t handle) : api_(api), handle_(handle) {}
  ~CublasLtLibrary() override { api_.cublasLtDestroy(handle_); }

  absl::Status Gemm16(Matrix x, Matrix w, Matrix y, void* workspace, Stream stream) override {
    RETURN_IF_ERROR(CheckGemm16(x, w, y, workspace));
    const cudaDataType_t in = x.type == FloatType::kF16 ? CUDA_R_16F : CUDA_R_16BF;
    return Run({in, y.type == FloatType::kF32 ? CUDA_R_32F : in, x.rows, w.rows, x.cols, x.stride,
                w.stride, y.stride},
               x.data, w.data, y.data, workspace, stream);
  }

  absl::Status GemmInt8(const int8_t* x, int64_t ldx, const int8_t* w, int64_t ldw, int32_t* y,
                        int64_t ldy, int32_t m, int32_t n, int32_t k, void* workspace,
                        Stream stream) override {
    RETURN_IF_ERROR(CheckGemmInt8(x, ldx, w, ldw, y, ldy, m, n, k, workspace));
    return Run({CUDA_R_8I, CUDA_R_32I, m, n, k, ldx, ldw, ldy}, x, w, y, workspace, stream);
  }

  absl::Status GemmFp8(const uint8_t* x, int64_t ldx, const uint8_t* w, int64_t ldw, float* y,
                       int64_t ldy, int32_t m, int32_t n, int32_t k, void* workspace,
                       Stream stream) override {
    RETURN_IF_ERROR(CheckGemmFp8(x, ldx, w, ldw, y, ldy, m, n, k, workspace));
    // Without pointers to scales these are 1, and without FAST_ACCUM sums are kept in f32.
    return Run({CUDA_R_8F_E4M3, CUDA_R_32F, m, n, k, ldx, ldw, ldy}, x, w, y, workspace, stream);
  }

 private:
  using Key = std::tuple<int64_t, int64_t, int64_t, int, int, int64_t, int64_t, int64_t>;

  // The library's descriptions of one product; destroyed with it.
  struct Description {
    explicit Description(const Api& functions) : api(functions) {}
    Description(const Description&) = delete;
    Description& operator=(const Description&) = delete;
    ~Description() {
      for (cublasLtMatrixLayout_t layout : {w, x, y}) {
        if (layout != nullptr) api.cublasLtMatrixLayoutDestroy(layout);
      }
      if (operation != nullptr) api.cublasLtMatmulDescDestroy(operation);
    }
    const Api& api;
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t w = nullptr, x = nullptr, y = nullptr;
  };

  absl::Status Check(cublasStatus_t status, const char* what, const Product& p) const {
    if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
    return Internal("cuBLASLt: {} of m {} n {} k {}: {}", what, p.m, p.n, p.k,
                    api_.cublasLtGetStatusString(status));
  }

  absl::Status Describe(const Product& p, Description& d) const {
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const auto check = [&](cublasStatus_t status) { return Check(status, "describing", p); };
    RETURN_IF_ERROR(check(api_.cublasLtMatmulDescCreate(
        &d.operation, p.is_int8() ? CUBLAS_COMPUTE_32I : CUBLAS_COMPUTE_32F,
        p.is_int8() ? CUDA_R_32I : CUDA_R_32F)));
    RETURN_IF_ERROR(check(api_.cublasLtMatmulDescSetAttribute(
        d.operation, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof(transposed))));
    const auto layout = [&](cublasLtMatrixLayout_t& to, cudaDataType_t type, int64_t rows,
                            int64_t cols, int64_t ld) {
      return check(api_.cublasLtMatrixLayoutCreate(&to, type, static_cast<uint64_t>(rows),
                                                   static_cast<uint64_t>(cols), ld));
    };
    RETURN_IF_ERROR(layout(d.w, p.in, p.k, p.n, p.ldw));
    RETURN_IF_ERROR(layout(d.x, p.in, p.k, p.m, p.ldx));
    return layout(d.y, p.out, p.n, p.m, p.ldy);
  }

  absl::StatusOr<cublasLtMatmulAlgo_t> AskHeuristic(const Product& p) const {
    Description d(api_);
    RETURN_IF_ERROR(Describe(p, d));
    cublasLtMatmulPreference_t preference = nullptr;
    RETURN_IF_ERROR(Check(api_.cublasLtMatmulPreferenceCreate(&preference), "a preference", p));
    const size_t bytes = kWorkspaceBytes;
    cublasLtMatmulHeuristicResult_t result = {};
    int found = 0;
    cublasStatus_t status = api_.cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof(bytes));
    if (status == CUBLAS_STATUS_SUCCESS) {
      status = api_.cublasLtMatmulAlgoGetHeuristic(handle_, d.operation, d.w, d.x, d.y, d.y,
                                                   preference, 1, &result, &found);
    }
    api_.cublasLtMatmulPreferenceDestroy(preference);
    RETURN_IF_ERROR(Check(status, "the heuristic", p));
    if (found == 0) return Internal("cuBLASLt: no kernel for m {} n {} k {}", p.m, p.n, p.k);
    return result.algo;
  }

  static Key KeyOf(const Product& p) {
    return {p.m, p.n, p.k, static_cast<int>(p.in), static_cast<int>(p.out), p.ldx, p.ldw, p.ldy};
  }

  absl::StatusOr<cublasLtMatmulAlgo_t> AlgorithmFor(const Product& p) {
    const auto at = algorithms_.find(KeyOf(p));
    if (at != algorithms_.end()) return at->second;
    ASSIGN_OR_RETURN(const cublasLtMatmulAlgo_t algorithm, AskHeuristic(p));
    algorithms_.emplace(KeyOf(p), algorithm);
    return algorithm;
  }

  absl::Status Run(const Product& p, const void* x, const void* w, void* y, void* workspace,
                   Stream stream) {
    if (p.m == 0) return absl::OkStatus();
    Description d(api_);
    RETURN_IF_ERROR(Describe(p, d));
    const float one = 1.0f, zero = 0.0f;
    const int32_t int_one = 1, int_zero = 0;
    const void* alpha = p.is_int8() ? static_cast<const void*>(&int_one) : &one;
    const void* beta = p.is_int8() ? static_cast<const void*>(&int_zero) : &zero;
    const auto run = [&](const cublasLtMatmulAlgo_t& algorithm) {
      return api_.cublasLtMatmul(handle_, d.operation, alpha, w, d.w, x, d.x, beta, y, d.y, y, d.y,
                                 &algorithm, workspace, kWorkspaceBytes, stream);
    };
    Product bucket = p;
    for (bucket.m = 16; bucket.m < p.m;) bucket.m *= 2;
    ASSIGN_OR_RETURN(const cublasLtMatmulAlgo_t usual, AlgorithmFor(bucket));
    const cublasStatus_t status = run(usual);
    if (status != CUBLAS_STATUS_NOT_SUPPORTED && status != CUBLAS_STATUS_INVALID_VALUE) {
      return Check(status, "the product", p);
    }
    ASSIGN_OR_RETURN(const cublasLtMatmulAlgo_t own, AlgorithmFor(p));
    return Check(run(own), "the product", p);
  }

  const Api api_;
  const cublasLtHandle_t handle_;
  std::map<Key, cublasLtMatmulAlgo_t> algorithms_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<CublasLt>> CublasLt::Open() {
  ASSIGN_OR_RETURN(void* const library, OpenLibrary());
  Api api;
  if (const char* missing = api.Load(library)) {
    return Unavailable("cuBLASLt: the library has no {}", missing);
  }
  cublasLtHandle_t handle = nullptr;
  const cublasStatus_t status = api.cublasLtCreate(&handle);
  if (status != CUBLAS_STATUS_SUCCESS) {
    return Unavailable("cuBLASLt: {}", api.cublasLtGetStatusString(status));
  }
  return std::make_unique<CublasLtLibrary>(api, handle);
}

}  // namespace quantd::cuda

#else

namespace quantd::cuda {

absl::StatusOr<std::unique_ptr<CublasLt>> CublasLt::Open() {
  return Unavailable("cuBLASLt: this program was built without cublasLt.h");
}

}  // namespace quantd::cuda

#endif
