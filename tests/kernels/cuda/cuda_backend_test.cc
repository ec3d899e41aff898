// CudaBackend beyond its ops: transfers, tickets, graphs, lack of memory, failure, quantization on
// load.
#include "kernels/cuda/cuda_backend.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <random>

#include "kernels/cuda/emulation/testing.h"
#include "kernels/cuda/packed_weight.h"
#include "kernels/cuda/step_graphs.h"
#include "kernels/quant/quantize.h"
#include "tests/kernels/cuda/weight_on_device.h"

namespace quantd::cuda_emulated {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr auto kWorkspace = MemoryComponent::kWorkspace;

Buffer Allocate(Backend& backend, size_t bytes) {
  auto buffer = backend.Allocate(bytes, kWorkspace);
  EXPECT_TRUE(buffer.ok()) << buffer.status();
  return std::move(*buffer);
}

template <typename T>
Buffer OnDevice(Backend& backend, const std::vector<T>& values) {
  Buffer buffer = Allocate(backend, values.size() * sizeof(T));
  backend.Upload(values.data(), values.size() * sizeof(T), buffer.data());
  return buffer;
}

template <typename T>
std::vector<T> Read(Backend& backend, const void* device, size_t count) {
  std::vector<T> values(count);
  backend.Download(device, count * sizeof(T), values.data());
  return values;
}

// ---- transfers

TEST(CudaTransfers, HostMemoryMayBeReusedAtOnceAndRingsWrap) {
  const auto backend = on_device::MakeBackend();
  constexpr size_t kCount = 300, kUploads = 200;
  const Buffer device = Allocate(*backend, kUploads * kCount * sizeof(int32_t));
  std::vector<int32_t> host(kCount);
  for (size_t i = 0; i < kUploads; ++i) {
    std::iota(host.begin(), host.end(), static_cast<int32_t>(i * kCount));
    backend->Upload(host.data(), kCount * sizeof(int32_t), device.as<int32_t>() + i * kCount);
  }
  const auto values = Read<int32_t>(*backend, device.data(), kUploads * kCount);
  for (size_t i = 0; i < values.size(); ++i) ASSERT_EQ(values[i], static_cast<int32_t>(i));
}

TEST(CudaTransfers, LargeOnesGoInPiecesBothWays) {
  const auto backend = on_device::MakeBackend();
  std::vector<uint8_t> host(200001);
  for (size_t i = 0; i < host.size(); ++i) host[i] = static_cast<uint8_t>(i * 31 / 7);
  const Buffer device = OnDevice(*backend, host);
  EXPECT_EQ(Read<uint8_t>(*backend, device.data(), host.size()), host);
}

// ---- tickets

struct SampleCall {
  SampleCall(Backend& backend, int32_t winner)
      : logits(OnDevice(backend, LogitsFor(winner))), sampled(Allocate(backend, sizeof(int32_t))) {}
  static std::vector<float> LogitsFor(int32_t winner) {
    std::vector<float> values(50, 0.0f);
    values[static_cast<size_t>(winner)] = 9.0f;
    return values;
  }
  void Submit(Backend& backend) {
    result = {.token_id = -1, .top = top};
    const SampleParams params = {.temperature = 0.0f, .num_logprobs = 2};
    backend.Sample(TensorView(DType::kF32, logits.data(), 1, 50), {&params, 1},
                   {sampled.as<int32_t>(), 1}, {&result, 1});
  }

  Buffer logits, sampled;
  TokenLogprob top[2];
  SampleResult result;
};

TEST(CudaTickets, ResultsComeWithTheirOwnStepAndNoLater) {
  const auto backend = on_device::MakeBackend();
  SampleCall a(*backend, 7), b(*backend, 31);
  a.Submit(*backend);
  const uint64_t first = backend->Record();
  b.Submit(*backend);
  const uint64_t second = backend->Record();
  EXPECT_EQ(a.result.token_id, -1) << "nothing has run";
  ASSERT_TRUE(backend->Wait(first).ok());
  EXPECT_EQ(a.result.token_id, 7);
  EXPECT_EQ(a.result.top.size(), 2u);
  EXPECT_EQ(a.result.top[0].token_id, 7);
  EXPECT_FLOAT_EQ(a.result.logprob, a.result.top[0].logprob);
  EXPECT_EQ(b.result.token_id, -1) << "the second step was not waited for";
  ASSERT_TRUE(backend->Wait(second).ok());
  EXPECT_EQ(b.result.token_id, 31);
}

TEST(CudaTickets, SynchronizeWaitsForAllAndOldTicketsStayValid) {
  const auto backend = on_device::MakeBackend();
  SampleCall a(*backend, 3);
  a.Submit(*backend);
  const uint64_t first = backend->Record();
  for (int i = 0; i < 20; ++i) backend->Record();
  ASSERT_TRUE(backend->Wait(first).ok());
  EXPECT_EQ(a.result.token_id, 3);
  SampleCall b(*backend, 4);
  b.Submit(*backend);
  ASSERT_TRUE(backend->Synchronize().ok());
  EXPECT_EQ(b.result.token_id, 4);
}

// ---- graphs

// A step that adds 1 to each id through memory at fixed addresses: ids[0] = samples[source[0]].
struct GraphStep {
  explicit GraphStep(Backend& backend)
      : b(backend),
        ids(OnDevice(backend, std::vector<int32_t>{-1})),
        source(OnDevice(backend, std::vector<int32_t>{0})),
        samples(OnDevice(backend, std::vector<int32_t>{0})) {}
  // Runs the step with `value` in samples; what arrives in ids.
  int32_t Run(const StepKey& key, int32_t value) {
    b.Upload(&value, sizeof(value), samples.data());
    b.Run(key, [this] {
      b.FeedBackTokens({ids.as<int32_t>(), 1}, {source.as<int32_t>(), 1},
                       {samples.as<int32_t>(), 1});
    });
    return Read<int32_t>(b, ids.data(), 1)[0];
  }

  Backend& b;
  Buffer ids, source, samples;
};

constexpr StepKey kKey = {
    1, {.rows = 1, .seqs = 1, .logits = 1, .max_blocks = 1, .decode_only = true}};

TEST(CudaGraphs, RunOnceThenCaptureThenReplayOnNewValues) {
  const auto backend = on_device::MakeBackend();
  GraphStep step(*backend);
  for (int32_t i = 10; i < 15; ++i) EXPECT_EQ(step.Run(kKey, i), i);
  const StepCounts counts = backend->step_counts();
  EXPECT_EQ(counts.eager, 1);
  EXPECT_EQ(counts.captured, 1);
  EXPECT_EQ(counts.replayed, 3);
}

TEST(CudaGraphs, AreMadeOfDecodeStepsOfAnOwnerAndOnlyWhenAskedFor) {
  StepKey prefill = kKey, nobody = kKey, wide = kKey;
  prefill.shape.decode_only = false;
  nobody.owner = 0;
  wide.shape.rows = 200;
  const auto backend = on_device::MakeBackend(),
             without = on_device::MakeBackend({.graphs = false});
  GraphStep step(*backend), step_without(*without);
  for (int i = 0; i < 3; ++i) {
    for (const StepKey& key : {prefill, nobody, wide}) step.Run(key, i);
    step_without.Run(kKey, i);
  }
  EXPECT_EQ(backend->step_counts().eager, 9);
  EXPECT_EQ(backend->step_counts().captured, 0);
  EXPECT_EQ(without->step_counts().captured, 0);
}

TEST(CudaGraphs, OfAnOwnerAreForgottenWithIt) {
  const auto backend = on_device::MakeBackend();
  GraphStep step(*backend);
  StepKey other = kKey;
  other.owner = 2;
  for (int i = 0; i < 2; ++i) {
    step.Run(kKey, i);
    step.Run(other, i);
  }
  backend->ForgetSteps(1);
  step.Run(kKey, 5);
  step.Run(other, 6);
  EXPECT_EQ(backend->step_counts().eager, 3) << "the owner's step is unknown again";
  EXPECT_EQ(backend->step_counts().replayed, 1);
}

// A Linear of `rows` rows over int8 weights, whose scratch grows with the rows.
struct Int8Linear {
  explicit Int8Linear(Backend& backend, int64_t max_rows, int64_t k = 256, int64_t n = 32)
      : b(backend),
        x(Allocate(backend, static_cast<size_t>(max_rows * k) * 4)),
        y(Allocate(backend, static_cast<size_t>(max_rows * n) * 4)),
        k_(k),
        n_(n) {
    std::vector<float> values = on_device::Normal(static_cast<size_t>(n * k), 1);
    const QuantizedMatrix m =
        quantd::QuantizeInt8Rows(TensorView(DType::kF32, values.data(), n, k));
    auto made = b.CreatePacked(m.format, k, {{"w", 0, n}}, MemoryComponent::kWeights);
    EXPECT_TRUE(made.ok()) << made.status();
    w = std::move(*made);
    EXPECT_TRUE(b.PackRows(*w, 0, m).ok());
    const auto xs = on_device::Normal(static_cast<size_t>(max_rows * k), 2);
    b.Upload(xs.data(), xs.size() * 4, x.data());
  }
  void Submit(int64_t rows) {
    b.Linear(*w, {ActivationQuant::Kind::kInt8Outlier, 6.0f, ActivationQuant::OutlierScope::kRow},
             TensorView(DType::kF32, x.data(), rows, k_), nullptr,
             TensorView(DType::kF32, y.data(), rows, n_));
  }
  std::vector<float> Result(int64_t rows) {
    return Read<float>(b, y.data(), static_cast<size_t>(rows * n_));
  }

  Backend& b;
  Buffer x, y;
  std::unique_ptr<PackedWeight> w;
  int64_t k_, n_;
};

TEST(CudaGraphs, SurviveScratchThatGrows) {
  const auto backend = on_device::MakeBackend();
  Int8Linear linear(*backend, 64);
  const auto step = [&] {
    backend->Run(kKey, [&] { linear.Submit(1); });
    return linear.Result(1);
  };
  const std::vector<float> expected = step();
  EXPECT_EQ(step(), expected);
  EXPECT_EQ(step(), expected);
  EXPECT_EQ(backend->step_counts().replayed, 1);
  linear.Submit(64);  // scratch moves
  EXPECT_EQ(step(), expected);
  EXPECT_EQ(backend->step_counts().captured, 2) << "captured anew";
  EXPECT_EQ(step(), expected);
  EXPECT_EQ(backend->step_counts().replayed, 2);
}

TEST(CudaGraphs, PaddingIsToBucketsAndPowersOfTwoForDecodeOnly) {
  const StepShape shape = {.rows = 5, .seqs = 5, .logits = 5, .max_blocks = 9, .decode_only = true};
  const StepShape padded = PaddedStepShape(shape);
  EXPECT_EQ(padded, (StepShape{8, 8, 8, 16, true}));
  EXPECT_EQ(PaddedStepShape(padded), padded);
  StepShape prefill = shape;
  prefill.decode_only = false;
  EXPECT_EQ(PaddedStepShape(prefill), prefill);
  StepShape wide = shape;
  wide.rows = wide.seqs = wide.logits = 129;
  EXPECT_EQ(PaddedStepShape(wide), wide);
  const auto without = on_device::MakeBackend({.graphs = false});
  EXPECT_EQ(without->PaddedShape(shape), shape);
}

// ---- lack of memory, failure

TEST(CudaMemory, AWeightThatDoesNotFitIsRefusedAndTheBackendGoesOn) {
  const auto backend = on_device::MakeBackend({.memory_limit = 300000});
  auto large = backend->CreatePacked(QuantFormat::Plain(DType::kBF16), 1024, {{"w", 0, 1024}},
                                     MemoryComponent::kWeights);
  EXPECT_EQ(large.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(large.status().message()),
              AllOf(HasSubstr("2097152 bytes of weights"), HasSubstr("of 300000 bytes are free")));
  EXPECT_EQ(backend->memory().Total(), 0);
  Int8Linear linear(*backend, 2);
  linear.Submit(2);
  EXPECT_TRUE(backend->Synchronize().ok());
}

TEST(CudaMemory, AStepThatLacksScratchFailsAloneAndTheNextGoesOn) {
  // Enough for the arrays and a step of 1 row, not for the scratch of 512 rows.
  const auto backend = on_device::MakeBackend({.memory_limit = 900000});
  Int8Linear linear(*backend, 512);
  linear.Submit(1);
  const uint64_t good = backend->Record();
  linear.Submit(512);
  const uint64_t bad = backend->Record();
  linear.Submit(1);
  const uint64_t after = backend->Record();
  EXPECT_TRUE(backend->Wait(good).ok());
  const absl::Status lacked = backend->Wait(bad);
  EXPECT_EQ(lacked.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(lacked.message()), HasSubstr("bytes of workspace"));
  EXPECT_TRUE(backend->Wait(after).ok());
  EXPECT_TRUE(backend->Synchronize().ok());
}

TEST(CudaFailure, IsReportedByEveryWaitFromThenOn) {
  {
    const auto backend = on_device::MakeBackend();
    SampleCall a(*backend, 7);
    a.Submit(*backend);
    const uint64_t ticket = backend->Record();
    InjectDeviceFailure("unspecified launch failure");
    for (int i = 0; i < 2; ++i) {
      const absl::Status status = backend->Wait(ticket);
      EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
      EXPECT_THAT(std::string(status.message()), HasSubstr("unspecified launch failure"));
    }
    EXPECT_EQ(backend->Synchronize().code(), absl::StatusCode::kUnavailable);
    EXPECT_EQ(a.result.token_id, -1) << "no result of a failed device is handed out";
    EXPECT_EQ(CreateBackend({}).status().code(), absl::StatusCode::kUnavailable);
  }
  ClearDeviceFailures();
}

TEST(CudaFailure, ADeviceThatIsNotThereIsUnavailable) {
  EXPECT_EQ(CreateBackend({.device = 3}).status().code(), absl::StatusCode::kUnavailable);
}

// ---- quantization on load

TEST(CudaQuantizeRows, GivesTheBytesOfTheHost) {
  const auto backend = on_device::MakeBackend();
  for (const char* text :
       {"nf4.flat64.f32", "nf4.flat64.nested", "fp4.flat64.f32", "fp4.flat64.nested",
        "nf4.flat32.nested", "fp4.flat128.f32", "int8.row.absmax", "bf16", "f32"}) {
    const QuantFormat format = *QuantFormat::Parse(text);
    for (const DType dtype : {DType::kBF16, DType::kF16, DType::kF32}) {
      if (!backend->QuantizesRows(format, dtype)) {
        EXPECT_TRUE(IsPlain(format.codec)) << text;
        continue;
      }
      for (const int64_t k : {256, 200}) {
        const std::vector<int64_t> rows = {17, 40};
        std::vector<RowSegment> segments = {{"a", 0, 17}, {"b", 17, 40}};
        auto on_device = backend->CreatePacked(format, k, segments, MemoryComponent::kWeights);
        ASSERT_TRUE(on_device.ok()) << on_device.status();
        for (size_t s = 0; s < rows.size(); ++s) {
          std::vector<float> floats =
              on_device::Normal(static_cast<size_t>(rows[s] * k), static_cast<uint32_t>(s + 1));
          std::fill_n(floats.begin() + k, k, 0.0f);  // a block without a scale
          const TensorView f32(DType::kF32, floats.data(), rows[s], k);
          QuantizedMatrix rounded = PlainMatrix(f32, dtype);
          const TensorView values(dtype, rounded.codes.data(), rows[s], k);
          QuantizedMatrix expected;
          if (IsPlain(format.codec)) {
            expected = rounded;
          } else if (format.codec == Codec::kInt8) {
            expected = quantd::QuantizeInt8Rows(values);
          } else {
            expected = quantd::QuantizeBlock4(values, format.codec, format.block.size);
            if (format.scale == ScaleType::kNested) NestScales(expected);
          }
          ASSERT_TRUE(backend->QuantizeRows(**on_device, s, values).ok());
          const QuantizedMatrix actual =
              static_cast<CudaPackedWeight&>(**on_device)
                  .Unpack(s, [&](const void* device, size_t bytes, void* host) {
                    backend->Download(device, bytes, host);
                  });
          const std::string what =
              fmt::format("{} {} k {} segment {}", text, ToString(dtype), k, s);
          EXPECT_EQ(actual.codes, expected.codes) << what;
          EXPECT_EQ(actual.scales, expected.scales) << what;
          EXPECT_EQ(actual.nested_codes, expected.nested_codes) << what;
          EXPECT_EQ(actual.nested_absmax, expected.nested_absmax) << what;
          EXPECT_EQ(actual.nested_map, expected.nested_map) << what;
          EXPECT_EQ(actual.nested_offset, expected.nested_offset) << what;
        }
      }
    }
  }
}

}  // namespace
}  // namespace quantd::cuda_emulated
