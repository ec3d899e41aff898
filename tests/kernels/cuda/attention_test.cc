// Paged attention's kernels under emulation: close to a plain loop in double at every head shape,
// and the same bits however rows are batched.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kernels/cuda/emulation/testing.h"
#include "tests/kernels/cuda/attention_on_device.h"

namespace quantd::cuda_emulated {
namespace {

using namespace attention_testing;  // NOLINT: the helper of this file

class AttentionDecode : public ::testing::TestWithParam<Shape> {};

TEST_P(AttentionDecode, IsSoftmaxAttentionAtEveryContextNearATileOrChunk) {
  Model model(GetParam());
  const std::vector<Row> rows = LastRows(EdgeContexts());
  ExpectIsAttention(model, rows, Attend(model, rows));
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, AttentionDecode,
    ::testing::Values(Shape{2, 2, 32, kBF16, kBF16, 16}, Shape{2, 1, 32, kF16, kF16, 4},
                      Shape{4, 1, 64, kBF16, kBF16, 16}, Shape{7, 1, 64, kF16, kF16, 5},
                      Shape{8, 1, 128, kBF16, kBF16, 16}, Shape{14, 2, 32, kBF16, kBF16, 5},
                      Shape{3, 3, 96, kF16, kF16, 16}, Shape{20, 1, 32, kBF16, kBF16, 16},
                      Shape{2, 2, 96, kBF16, kBF16, 16}, Shape{2, 1, 128, kF16, kF16, 16},
                      Shape{2, 2, 80, kBF16, kBF16, 16}, Shape{4, 2, 40, kF32, kF32, 5},
                      Shape{2, 1, 40, kF16, kF16, 16}, Shape{2, 1, 64, kF32, kBF16, 4},
                      Shape{2, 1, 64, kBF16, kF32, 16}, Shape{2, 1, 64, kF16, kBF16, 16}));

INSTANTIATE_TEST_SUITE_P(
    Int8Shapes, AttentionDecode,
    ::testing::Values(Shape{2, 2, 32, kBF16, kBF16, 16, true}, Shape{2, 1, 32, kF16, kF16, 4, true},
                      Shape{4, 1, 64, kBF16, kBF16, 16, true}, Shape{7, 1, 64, kF16, kF16, 5, true},
                      Shape{3, 3, 96, kBF16, kBF16, 16, true},
                      Shape{3, 1, 96, kF16, kF16, 16, true},
                      Shape{8, 1, 128, kBF16, kBF16, 16, true},
                      Shape{2, 1, 128, kF16, kF16, 16, true},
                      Shape{2, 2, 80, kBF16, kBF16, 16, true},
                      Shape{2, 1, 40, kF16, kF16, 16, true}, Shape{4, 2, 64, kF32, kF32, 5, true}));

TEST(AttentionTest, IsSoftmaxAttentionAtHeadDim256) {
  for (const FloatType type : {kBF16, kF16}) {
    Model model({2, 1, 256, type, type, 16});
    const std::vector<Row> rows = LastRows({1, 17, 65, 257});
    ExpectIsAttention(model, rows, Attend(model, rows));
  }
}

TEST(AttentionTest, IsSoftmaxAttentionAtHeadDim256OverInt8) {
  for (const FloatType type : {kBF16, kF16}) {
    Model model({2, 1, 256, type, type, 16, true});
    const std::vector<Row> rows = LastRows({1, 17, 65, 257});
    ExpectIsAttention(model, rows, Attend(model, rows));
  }
}

TEST(AttentionTest, IsSoftmaxAttentionWhenChunksAreMerged) {
  for (const Shape& shape : {Shape{8, 2, 64, kBF16, kBF16, 16}, Shape{4, 4, 32, kF16, kF16, 5},
                             Shape{8, 2, 64, kBF16, kBF16, 16, true}}) {
    Model model(shape);
    const std::vector<Row> rows = LastRows({600, 3, 513, 512});
    ExpectIsAttention(model, rows, Attend(model, rows, {.spare_entries = 70}));
  }
}

Shape With(Shape shape, int window, float softcap) {
  shape.window = window;
  shape.softcap = softcap;
  return shape;
}

INSTANTIATE_TEST_SUITE_P(WindowsAndCaps, AttentionDecode,
                         ::testing::Values(With({4, 1, 64, kBF16, kBF16, 16}, 10, 0.0f),
                                           With({2, 1, 32, kF16, kF16, 4}, 1, 1.5f),
                                           With({7, 1, 64, kF16, kF16, 5}, 64, 0.0f),
                                           With({8, 1, 128, kBF16, kBF16, 16}, 65, 3.0f),
                                           With({3, 3, 96, kF16, kF16, 16}, 200, 0.0f),
                                           With({2, 2, 80, kBF16, kBF16, 16}, 130, 2.0f),
                                           With({4, 2, 40, kF32, kF32, 5}, 3, 0.5f),
                                           With({8, 1, 128, kBF16, kBF16, 16, true}, 70, 2.0f),
                                           With({2, 1, 96, kF16, kF16, 16, true}, 9, 0.0f)));

// Contexts of three chunks, of which the first ones lie before the window, and windows that begin
// in each tile of a chunk; a row alone, rows of a prompt whose chunks are split, and of a batch.
TEST(AttentionTest, WindowsBeginInAnyTileOfAnyChunk) {
  for (const Shape& base : {Shape{4, 2, 32, kBF16, kBF16, 16}, Shape{2, 1, 64, kF16, kF16, 5, true},
                            Shape{2, 2, 80, kBF16, kBF16, 16}}) {
    for (const int window : {7, 60, 100, 290, 400, 600}) {
      Model model(With(base, window, window == 100 ? 2.0f : 0.0f));
      const std::vector<Row> prompt = Range(0, 550, 566);
      const std::vector<float> whole = Attend(model, prompt);
      ExpectIsAttention(model, prompt, whole);
      const std::vector<Row> batch = Concat({LastRows({301, 560, 100, 513}), Range(4, 250, 262)});
      const std::vector<float> mixed = Attend(model, batch, {.num_seqs = 6});
      ExpectIsAttention(model, batch, mixed);
      const std::string what = model.shape().Name();
      ExpectSameRows(Attend(model, {{0, 557}}), whole, {7}, what + ": alone");
      ExpectSameRows(Attend(model, Range(0, 560, 563)), whole, {10, 11, 12}, what + ": part");
      ExpectSameRows(Attend(model, {{3, 512}}, {.spare_entries = 40}), mixed, {3}, what);
      ExpectSameRows(Attend(model, {{4, 257}}), mixed, {11}, what);
    }
  }
}

struct Prompt {
  Shape shape;
  int length;  // enough rows for the layout in which tiles share K and V
};

class AttentionPrompt : public ::testing::TestWithParam<Prompt> {};

TEST_P(AttentionPrompt, IsSoftmaxAttentionAndTheSameBitsRowByRowAndInChunks) {
  const auto& [shape, length] = GetParam();
  Model model(shape);
  const std::vector<Row> rows = Range(0, 0, length);
  const std::vector<float> whole = Attend(model, rows);
  ExpectIsAttention(model, rows, whole);
  for (int position : {0, 1, length / 2, length - 1}) {
    ExpectSameRows(Attend(model, {{0, position}}, {.spare_entries = 3, .seed = 7}), whole,
                   {static_cast<size_t>(position)}, shape.Name() + ": alone");
  }
  for (int first = 0; first < length; first += 45) {
    const int end = std::min(first + 45, length);
    ExpectSameRows(Attend(model, Range(0, first, end), {.seed = static_cast<uint32_t>(first)}),
                   whole, Indices(static_cast<size_t>(first), static_cast<size_t>(end - first)),
                   shape.Name() + ": in chunks");
  }
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, AttentionPrompt,
    ::testing::Values(
        Prompt{{33, 33, 32, kBF16, kBF16, 16}, 70}, Prompt{{63, 9, 32, kF16, kF16, 5}, 70},
        Prompt{{32, 8, 64, kBF16, kBF16, 16}, 80}, Prompt{{32, 8, 64, kF16, kF16, 16}, 80},
        Prompt{{33, 33, 96, kBF16, kBF16, 16}, 70}, Prompt{{16, 8, 96, kF16, kF16, 16}, 130},
        Prompt{{33, 33, 128, kF16, kF16, 5}, 70}, Prompt{{17, 17, 256, kF16, kF16, 16}, 40},
        Prompt{{16, 4, 128, kBF16, kBF16, 16}, 131}, Prompt{{17, 17, 256, kBF16, kBF16, 16}, 40},
        Prompt{{20, 1, 32, kBF16, kBF16, 16}, 70}, Prompt{{4, 1, 80, kBF16, kBF16, 16}, 50}));
INSTANTIATE_TEST_SUITE_P(
    WindowsAndCaps, AttentionPrompt,
    ::testing::Values(Prompt{With({32, 8, 64, kBF16, kBF16, 16}, 9, 0.0f), 80},
                      Prompt{With({16, 8, 96, kF16, kF16, 16}, 50, 2.0f), 130},
                      Prompt{With({16, 4, 128, kBF16, kBF16, 16}, 66, 0.0f), 131},
                      Prompt{With({17, 17, 256, kBF16, kBF16, 16}, 20, 5.0f), 40},
                      Prompt{With({32, 8, 64, kBF16, kBF16, 16, true}, 17, 1.0f), 80},
                      Prompt{With({4, 1, 80, kBF16, kBF16, 16}, 12, 0.0f), 50}));
INSTANTIATE_TEST_SUITE_P(Int8Shapes, AttentionPrompt,
                         ::testing::Values(Prompt{{33, 33, 32, kBF16, kBF16, 16, true}, 70},
                                           Prompt{{63, 9, 32, kF16, kF16, 5, true}, 70},
                                           Prompt{{32, 8, 64, kBF16, kBF16, 16, true}, 80},
                                           Prompt{{32, 8, 64, kF16, kF16, 16, true}, 80},
                                           Prompt{{33, 33, 96, kBF16, kBF16, 16, true}, 70},
                                           Prompt{{33, 33, 96, kF16, kF16, 16, true}, 70},
                                           Prompt{{16, 4, 128, kBF16, kBF16, 16, true}, 131},
                                           Prompt{{33, 33, 128, kF16, kF16, 5, true}, 70},
                                           Prompt{{17, 17, 256, kBF16, kBF16, 16, true}, 40},
                                           Prompt{{17, 17, 256, kF16, kF16, 16, true}, 40},
                                           Prompt{{4, 1, 80, kBF16, kBF16, 16, true}, 50}));

TEST(AttentionTest, TheEndOfALongPromptHasTheBitsOfDecodeSteps) {
  // 33 heads: the 33 blocks of the prompt's layout each take three chunks; alone each chunk is a
  // block.
  Model model({33, 33, 32, kBF16, kBF16, 16});
  const std::vector<Row> rows = Range(0, 550, 600);
  const std::vector<float> whole = Attend(model, rows);
  ExpectIsAttention(model, {rows.back()}, {whole.end() - 33 * 32, whole.end()});
  for (size_t r : {size_t{0}, size_t{49}}) {
    ExpectSameRows(Attend(model, {rows[r]}), whole, {r}, "alone");
  }
}

TEST(AttentionTest, ManyDecodeRowsHaveTheBitsOfFew) {
  // 18 rows of 32 kv heads are more blocks than are worth splitting: each takes all chunks.
  Model model({32, 32, 32, kBF16, kBF16, 16});
  std::vector<Row> rows;
  for (int s = 0; s < 18; ++s) rows.push_back({s, s == 4 ? 300 : 5 * s});
  const std::vector<float> whole = Attend(model, rows);
  ExpectIsAttention(model, rows, whole);
  ExpectSameRows(Attend(model, {rows[4], rows[17]}), whole, {4, 17}, "alone");
}

TEST(AttentionTest, DecodeRowsAmongPromptsHaveTheBitsOfRowsAlone) {
  // Kept together and apart: prompts long and short, between and next to rows of other sequences.
  const auto expect_mixed = [](const Shape& shape, int prompt) {
    Model model(shape);
    const std::vector<std::vector<Row>> parts = {{{0, 300}}, {{1, 4}}, Range(2, 0, prompt),
                                                 {{3, 64}},  {{4, 0}}, Range(5, 254, 259),
                                                 {{6, 63}}};
    std::vector<Row> rows;
    for (const auto& part : parts) rows.insert(rows.end(), part.begin(), part.end());
    const std::vector<float> mixed = Attend(model, rows);
    ExpectIsAttention(model, rows, mixed);
    size_t first = 0;
    for (const auto& part : parts) {
      ExpectSameRows(Attend(model, part), mixed, Indices(first, part.size()), shape.Name());
      first += part.size();
    }
  };
  expect_mixed({4, 1, 64, kBF16, kBF16, 16}, 9);  // one tile a block
  // Tiles side by side, single rows apart; the last, then the first row of a sequence alone in a
  // block.
  for (int prompt : {63, 59}) expect_mixed({17, 17, 32, kF16, kF16, 16}, prompt);
  expect_mixed({2, 1, 80, kBF16, kBF16, 5}, 9);  // generic
}

class AttentionOfNotFinite : public ::testing::TestWithParam<bool> {};

TEST_P(AttentionOfNotFinite, StaysInItsSequence) {
  Model model({4, 1, 32, kBF16, kBF16, 16, GetParam()});
  const std::vector<Row> rows = Concat({Range(0, 0, 3), Range(1, 5, 8), {{2, 30}}});
  const std::vector<float> whole = Attend(model, rows);
  model.SetValue(1, 2, INFINITY);
  const std::vector<float> broken = Attend(model, rows);
  const size_t cols = 4 * 32;
  for (size_t r = 0; r < rows.size(); ++r) {
    const bool same = std::memcmp(&whole[r * cols], &broken[r * cols], cols * sizeof(float)) == 0;
    EXPECT_EQ(same, rows[r].seq != 1) << "row " << r;
    EXPECT_EQ(std::isfinite(broken[r * cols]), rows[r].seq != 1) << "row " << r;
  }
}

INSTANTIATE_TEST_SUITE_P(Int8, AttentionOfNotFinite, ::testing::Bool());

TEST(AttentionTest, RowsOfAnyStrideAreTheSame) {
  for (const Shape& shape :
       {Shape{8, 2, 32, kBF16, kBF16, 16}, Shape{33, 33, 32, kF16, kF16, 16},
        Shape{2, 1, 40, kF32, kF16, 16}, Shape{8, 2, 32, kBF16, kBF16, 16, true}}) {
    Model model(shape);
    const std::vector<Row> rows = Concat({Range(0, 0, 5), {{1, 257}}});
    const std::vector<float> even = Attend(model, rows, {.gap = 8});
    ExpectSameRows(Attend(model, rows, {.gap = 3}), even, Indices(0, rows.size()), shape.Name());
    ExpectSameRows(Attend(model, rows, {.gap = 0}), even, Indices(0, rows.size()), shape.Name());
  }
}

TEST(AttentionTest, SpareSequencesAndBlockTableEntriesDoNotMatter) {
  Model model({8, 2, 32, kBF16, kBF16, 16});
  const std::vector<Row> rows = Concat({Range(0, 10, 14), {{1, 270}}});
  const std::vector<float> out = Attend(model, rows);
  ExpectSameRows(Attend(model, rows, {.num_seqs = 9, .spare_entries = 40, .seed = 3}), out,
                 Indices(0, rows.size()), "spare");
}

TEST(AttentionTest, OneScoreThatDominatesLeavesItsValue) {
  Model model({2, 1, 32, kBF16, kBF16, 16}, 3000.0f);
  const std::vector<Row> rows = {{0, 299}};
  const std::vector<float> out = Attend(model, rows);
  ExpectIsAttention(model, rows, out);
  for (float value : out) EXPECT_TRUE(std::isfinite(value));
}

TEST(AttentionTest, TheOrderInWhichBlocksAndThreadsRunDoesNotMatter) {
  Model model({17, 17, 32, kBF16, kBF16, 16});
  const std::vector<Row> rows = Concat({Range(0, 0, 66), {{1, 300}}, {{2, 513}}});
  const ScheduleOrder before = GetScheduleOrder();
  SetScheduleOrder({ScheduleOrder::Kind::kForward});
  const std::vector<float> forward = Attend(model, rows);
  for (const ScheduleOrder& order : {ScheduleOrder{ScheduleOrder::Kind::kReverse},
                                     ScheduleOrder{ScheduleOrder::Kind::kRandom, 1},
                                     ScheduleOrder{ScheduleOrder::Kind::kRandom, 2}}) {
    SetScheduleOrder(order);
    ExpectSameRows(Attend(model, rows), forward, Indices(0, rows.size()), "another order");
  }
  SetScheduleOrder(before);
}

// Heads of 256 in 16 bits do not fit 99 KiB, those of int8 and all smaller ones do.
TEST(AttentionTest, DevicesWithLittleSharedMemoryTakeTheGenericKernelWhereTheyMust) {
  constexpr size_t kLittle = 99 * 1024;
  SetSharedMemory(kLittle);
  for (const bool int8 : {false, true}) {
    for (const int32_t d : {128, 256}) {
      const bool same = int8 || d < 256;
      Model model({2, 1, d, kBF16, kBF16, 16, int8});
      const std::vector<Row> rows = Concat({Range(0, 0, 5), {{1, 70}}});
      const std::vector<float> out = Attend(model, rows, {.shared_memory = kLittle});
      ExpectIsAttention(model, rows, out);
      SetSharedMemory(kAllSharedMemory);
      EXPECT_EQ(out == Attend(model, rows), same) << d << (int8 ? " int8" : "");
      SetSharedMemory(kLittle);
    }
  }
  SetSharedMemory(kAllSharedMemory);
}

TEST(AttentionTest, NoRowsIsNoLaunch) {
  Matrix none{kBF16, nullptr, 0, 64, 64};
  const Stream stream = CreateStream();
  Attention(none, {2, 1, 32, 1.0f}, {}, {kBF16, nullptr, nullptr, 1, 16}, none, {}, {}, stream);
  EXPECT_TRUE(Synchronize(stream).ok());
  DestroyStream(stream);
}

}  // namespace
}  // namespace quantd::cuda_emulated
