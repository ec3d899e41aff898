// TensorView, Buffer, Tensor: what ops read and write. A view never owns; a Buffer is move-only
// memory of one backend, booked to a component of its MemoryAccount; a Tensor is a Buffer with its
// shape.
//
// One vocabulary of dimensions everywhere: m rows or tokens, n outputs, k inputs, h heads, d head
// size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>
#include <utility>

#include "kernels/check.h"
#include "kernels/memory_account.h"

namespace quantd {

enum class DType : uint8_t { kF32, kF16, kBF16, kI32, kI8, kU8 };

/// Bytes of one element.
constexpr size_t SizeOf(DType t) {
  switch (t) {
    case DType::kF32:
    case DType::kI32: return 4;
    case DType::kF16:
    case DType::kBF16: return 2;
    case DType::kI8:
    case DType::kU8: return 1;
  }
  return 0;
}

/// Hugging Face's name: "float32", "float16", "bfloat16", "int32", "int8", "uint8".
std::string_view ToString(DType t);
/// The inverse of ToString; nullopt for any other name.
std::optional<DType> ParseDType(std::string_view name);

/// A matrix [rows, cols] with contiguous rows, `stride` elements apart. Non-owning, freely copied.
struct TensorView {
  DType dtype = DType::kF32;
  void* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;  // elements from one row to the next, >= cols

  TensorView() = default;
  TensorView(DType t, void* p, int64_t r, int64_t c)
      : dtype(t), data(p), rows(r), cols(c), stride(c) {}

  template <typename T>
  T* Row(int64_t r) const {
    return static_cast<T*>(data) + r * stride;
  }
  size_t bytes() const { return static_cast<size_t>(rows * cols) * SizeOf(dtype); }

  /// Columns [first, first + count) of every row.
  TensorView Cols(int64_t first, int64_t count) const {
    QUANTD_CHECK(first >= 0 && first + count <= cols, "columns {}+{} of {}", first, count, cols);
    TensorView v = *this;
    v.data = static_cast<std::byte*>(data) + static_cast<size_t>(first) * SizeOf(dtype);
    v.cols = count;
    return v;
  }
  /// Rows [first, first + count).
  TensorView Rows(int64_t first, int64_t count) const {
    QUANTD_CHECK(first >= 0 && first + count <= rows, "rows {}+{} of {}", first, count, rows);
    TensorView v = *this;
    v.data = static_cast<std::byte*>(data) + static_cast<size_t>(first * stride) * SizeOf(dtype);
    v.rows = count;
    return v;
  }
};

/// Takes memory back that it has given to a Buffer.
class MemoryOwner {
 public:
  virtual void Free(void* data, size_t bytes) = 0;

 protected:
  ~MemoryOwner() = default;
};

/// Move-only memory of a backend, 64-byte aligned. Freed, and unbooked from its account, on
/// destruction.
class Buffer {
 public:
  using FreeFunction = void (*)(void* data, size_t bytes);

  Buffer() = default;
  /// Takes ownership of `data`; books `bytes` to `component`. `account` must outlive the buffer.
  Buffer(void* data, size_t bytes, FreeFunction free, MemoryAccount* account,
         MemoryComponent component)
      : data_(data), bytes_(bytes), free_(free), account_(account), component_(component) {
    if (account_ != nullptr) account_->Add(component_, static_cast<int64_t>(bytes_));
  }
  /// The same for memory that goes back to `owner`, which must outlive the buffer.
  Buffer(void* data, size_t bytes, MemoryOwner* owner, MemoryAccount* account,
         MemoryComponent component)
      : Buffer(data, bytes, static_cast<FreeFunction>(nullptr), account, component) {
    owner_ = owner;
  }
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    if (this != &other) {
      Reset();
      data_ = std::exchange(other.data_, nullptr);
      bytes_ = std::exchange(other.bytes_, 0);
      free_ = other.free_;
      owner_ = other.owner_;
      account_ = other.account_;
      component_ = other.component_;
    }
    return *this;
  }
  ~Buffer() { Reset(); }

  void* data() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  size_t bytes() const { return bytes_; }

 private:
  void Reset() {
    if (data_ == nullptr) return;
    if (account_ != nullptr) account_->Add(component_, -static_cast<int64_t>(bytes_));
    if (owner_ != nullptr) {
      owner_->Free(data_, bytes_);
    } else {
      free_(data_, bytes_);
    }
    data_ = nullptr;
    bytes_ = 0;
  }

  void* data_ = nullptr;
  size_t bytes_ = 0;
  FreeFunction free_ = nullptr;  // one of the two
  MemoryOwner* owner_ = nullptr;
  MemoryAccount* account_ = nullptr;
  MemoryComponent component_ = MemoryComponent::kWeights;
};

/// A Buffer with the shape of what is in it.
struct Tensor {
  Buffer buffer;
  TensorView view;
};

}  // namespace quantd
