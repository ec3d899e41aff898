// The safetensors container: every rule of the format, shards, files that are not files, and
// writing.
#include "engine/weights/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include "kernels/status.h"
#include "tests/engine/models/tiny_model.h"

namespace quantd {
namespace {

using ::testing::HasSubstr;
using testing_support::OwnedTensors;
using testing_support::ReadFile;
using testing_support::TempDir;
using testing_support::WriteFile;
using testing_support::WriteTensors;

// A file of `header` and `data_bytes` zero bytes.
std::string File(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header +
         std::string(data_bytes, '\0');
}

absl::StatusOr<SafetensorsHeader> Parse(const std::string& file) {
  return ParseSafetensors(std::as_bytes(std::span(file.data(), file.size())), "f.safetensors");
}

std::string Entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

TEST(Safetensors, ReadsTensorsMetadataAndScalars) {
  const auto header = Parse(File(
      R"({"__metadata__":{"format":"pt"},"a":)" + Entry("BF16", "[2, 3]", "[0, 12]") + R"(,"s":)" +
          Entry("U8", "[]", "[12, 13]") + R"(,"e":)" + Entry("F32", "[0, 4]", "[13, 13]") + "}  ",
      13));
  ASSERT_TRUE(header.ok()) << header.status();
  EXPECT_EQ(header->metadata.at("format"), "pt");
  EXPECT_EQ(header->tensors.at("a").dtype, StoredDType::kBF16);
  EXPECT_EQ(header->tensors.at("a").shape, (std::vector<int64_t>{2, 3}));
  EXPECT_TRUE(header->tensors.at("s").shape.empty());
  EXPECT_EQ(header->tensors.at("e").begin, header->tensors.at("e").end);
}

TEST(Safetensors, NamesEveryDType) {
  for (const char* name : {"BOOL",    "F4",      "F6_E2M3", "F6_E3M2", "U8",  "I8",   "F8_E5M2",
                           "F8_E4M3", "F8_E8M0", "I16",     "U16",     "F16", "BF16", "I32",
                           "U32",     "F32",     "C64",     "F64",     "I64", "U64"}) {
    const auto dtype = ParseStoredDType(name);
    ASSERT_TRUE(dtype.has_value()) << name;
    EXPECT_EQ(ToString(*dtype), name);
  }
  EXPECT_FALSE(ParseStoredDType("bf16").has_value());
}

struct BadFile {
  const char* what;
  std::string file;
  const char* message;
};

TEST(Safetensors, RefusesEveryBrokenFileNamingTheFault) {
  const std::string ok = Entry("F32", "[2]", "[0, 8]");
  const auto one = [](const std::string& entry) { return R"({"a":)" + entry + "}"; };
  std::string huge_length = File("{}", 0), beyond = File("{}", 0), limit = File("{}", 0);
  const uint64_t n63 = uint64_t{1} << 63, n_beyond = 1000, n_limit = 100'000'001;
  std::memcpy(huge_length.data(), &n63, 8);
  std::memcpy(beyond.data(), &n_beyond, 8);
  std::memcpy(limit.data(), &n_limit, 8);
  const std::vector<BadFile> table = {
      {"empty", "", "too short"},
      {"seven bytes", "1234567", "too short"},
      {"header length 2^63", huge_length, "above the limit"},
      {"header length beyond the limit", limit, "100000001 is above the limit of 100000000"},
      {"header longer than the file", beyond, "beyond the file's 10 bytes"},
      {"not JSON", File("{\"a\":", 0), "not valid JSON"},
      {"text after the JSON", File("{} x", 0), "not valid JSON"},
      {"not an object", File("[]", 0), "a list"},
      {"not UTF-8", File("{\"\xff\xfe\":" + ok + "}", 8), "not valid JSON"},
      {"a tensor twice", File(R"({"a":)" + ok + R"(,"a":)" + ok + "}", 8), "\"a\" occurs twice"},
      {"a field twice", File(R"({"a":{"dtype":"F32","dtype":"F32"}})", 0),
       "\"dtype\" occurs twice"},
      {"metadata twice", File(R"({"__metadata__":{},"__metadata__":{}})", 0),
       "\"__metadata__\" occurs twice"},
      {"metadata that is not text", File(R"({"__metadata__":{"a":1}})", 0), "a is 1"},
      {"unknown field", File(R"({"a":{"dtype":"F32","shape":[],"data_offsets":[0,4],"x":1}})", 4),
       "unknown key \"x\""},
      {"deep nesting", File(R"({"a":{"shape":[[[[)", 0), "a list"},
      {"missing field", File(R"({"a":{"dtype":"F32","shape":[2]}})", 8), "is missing"},
      {"unknown dtype", File(one(Entry("F128", "[2]", "[0, 8]")), 8), "dtype \"F128\" is unknown"},
      {"negative dimension", File(one(Entry("F32", "[-2]", "[0, 8]")), 8), "shape is -2"},
      {"fractional dimension", File(one(Entry("F32", "[2.0]", "[0, 8]")), 8), "shape is 2.0"},
      {"dimension 2^63", File(one(Entry("U8", "[9223372036854775808]", "[0, 8]")), 8),
       "beyond 2^63 - 1"},
      {"shape product overflows",
       File(one(Entry("F32", "[4294967296, 4294967296, 4]", "[0, 8]")), 8), "below 2^64"},
      {"bytes overflow", File(one(Entry("F64", "[2305843009213693952]", "[0, 8]")), 8),
       "below 2^64"},
      {"half a byte", File(one(Entry("F4", "[3]", "[0, 2]")), 2), "whole number of bytes"},
      {"three offsets", File(one(Entry("F32", "[2]", "[0, 8, 8]")), 8), "3 numbers, not 2"},
      {"size contradicts offsets", File(one(Entry("F32", "[3]", "[0, 8]")), 8),
       "takes 12 bytes, data_offsets give 8"},
      {"offsets backwards", File(one(Entry("F32", "[2]", "[8, 0]")), 8), "run backwards"},
      {"beyond the end", File(one(ok), 4), "truncated"},
      {"hole at the start", File(one(Entry("F32", "[1]", "[4, 8]")), 8), "leaving a hole"},
      {"hole", File(R"({"a":)" + ok + R"(,"b":)" + Entry("F32", "[1]", "[12, 16]") + "}", 16),
       "leaving a hole"},
      {"overlap", File(R"({"a":)" + ok + R"(,"b":)" + Entry("F32", "[2]", "[4, 12]") + "}", 12),
       "overlapping"},
      {"trailing bytes", File(one(ok), 9), "1 bytes follow the last tensor"},
  };
  for (const BadFile& bad : table) {
    const auto header = Parse(bad.file);
    EXPECT_TRUE(absl::IsDataLoss(header.status())) << bad.what << ": " << header.status();
    EXPECT_THAT(Message(header.status()), HasSubstr(bad.message)) << bad.what;
    EXPECT_THAT(Message(header.status()), HasSubstr("f.safetensors")) << bad.what;
  }
}

TEST(Safetensors, EveryTruncationAndByteChangeIsRefusedOrRead) {
  TempDir dir;
  OwnedTensors tensors;
  tensors["w"] = testing_support::FloatTensor({1, 2, 3, 4}, {2, 2}, DType::kF32);
  tensors["b"] = testing_support::FloatTensor({5, 6}, {2}, DType::kBF16);
  WriteTensors(dir.path() / "m.safetensors", tensors);
  const std::string good = ReadFile(dir.path() / "m.safetensors");
  ASSERT_TRUE(Parse(good).ok());
  for (size_t n = 0; n < good.size(); ++n)
    EXPECT_FALSE(Parse(good.substr(0, n)).ok()) << n << " bytes";
  for (size_t i = 0; i < good.size(); ++i) {
    for (const char c : {'\0', '\x7f', '\xff', '"', '{', '9'}) {
      std::string changed = good;
      changed[i] = c;
      const auto header = Parse(changed);  // must not crash; what is accepted lies within the file
      if (!header.ok()) continue;
      for (const auto& [name, entry] : header->tensors) EXPECT_LE(entry.end, changed.size());
    }
  }
}

TEST(Safetensors, WritingAndReadingGiveTheSameTensors) {
  TempDir dir;
  OwnedTensors tensors;
  tensors["z.bytes"] = {StoredDType::kU8, {3}, "abc"};
  tensors["a \"quoted\" name"] = testing_support::FloatTensor({1.5f, -2.0f}, {1, 2}, DType::kF32);
  tensors["h"] = testing_support::FloatTensor({0.25f}, {}, DType::kF16);
  WriteTensors(dir.path() / "m.safetensors", tensors);
  auto read = Checkpoint::OpenFile(dir.path() / "m.safetensors");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ((*read)->metadata(0).at("format"), "pt");
  ASSERT_EQ((*read)->tensors().size(), 3u);
  for (const auto& [name, t] : tensors) {
    const StoredTensor* stored = (*read)->Find(name);
    ASSERT_NE(stored, nullptr) << name;
    EXPECT_EQ(stored->dtype, t.dtype);
    EXPECT_EQ(stored->shape, t.shape);
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(stored->data.data()), stored->data.size()),
              t.bytes);
  }
  EXPECT_EQ((*read)->total_bytes(), 3 + 8 + 2);
  EXPECT_EQ((*read)->Find("none"), nullptr);
}

TEST(Safetensors, WritingRefusesContradictions) {
  TempDir dir;
  const std::string four(4, '\0');
  const auto bytes = std::as_bytes(std::span(four.data(), four.size()));
  const auto write = [&](const std::vector<NamedTensor>& t) {
    return WriteSafetensors(dir.path() / "m", t);
  };
  EXPECT_TRUE(absl::IsInvalidArgument(write({{"a", StoredDType::kF32, {2}, bytes}})));
  EXPECT_TRUE(absl::IsInvalidArgument(write({{"a", StoredDType::kF32, {-1}, bytes}})));
  EXPECT_TRUE(absl::IsInvalidArgument(
      write({{"a", StoredDType::kF32, {1}, bytes}, {"a", StoredDType::kF32, {1}, bytes}})));
  EXPECT_FALSE(std::filesystem::exists(dir.path() / "m"));
  EXPECT_TRUE(
      absl::IsUnavailable(WriteSafetensors(dir.path() / "no" / "m", std::vector<NamedTensor>{})));
}

// Two shards, each with one tensor, and their index.
void WriteShards(const std::filesystem::path& dir, const std::string& index) {
  OwnedTensors first, second;
  first["a"] = testing_support::FloatTensor({1, 2}, {2}, DType::kF32);
  second["b"] = testing_support::FloatTensor({3}, {1}, DType::kF32);
  WriteTensors(dir / "one.safetensors", first);
  WriteTensors(dir / "two.safetensors", second);
  WriteFile(dir / "model.safetensors.index.json", index);
}

TEST(Checkpoint, MergesTheShardsOfAnIndex) {
  TempDir dir;
  WriteShards(dir.path(),
              R"({"metadata":{},"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->num_files(), 2u);
  ASSERT_NE((*checkpoint)->Find("b"), nullptr);
  EXPECT_EQ((*checkpoint)->file_name((*checkpoint)->Find("b")->file), "two.safetensors");
  const StoredTensor& a = *(*checkpoint)->Find("a");
  (*checkpoint)->DropPages(a);
  float value = 0;
  std::memcpy(&value, a.data.data() + 4, 4);
  EXPECT_EQ(value, 2.0f);  // still readable
}

TEST(Checkpoint, RefusesIndexesThatContradictTheirShards) {
  struct Case {
    const char* what;
    std::string index;
    const char* message;
  };
  const std::vector<Case> table = {
      {"missing shard", R"({"weight_map":{"a":"one.safetensors","b":"gone.safetensors"}})",
       "gone.safetensors"},
      {"path upwards", R"({"weight_map":{"a":"../one.safetensors"}})", "not the name of a file"},
      {"dots", R"({"weight_map":{"a":".."}})", "not the name of a file"},
      {"absolute path", R"({"weight_map":{"a":"/etc/passwd"}})", "not the name of a file"},
      {"tensor in the other shard",
       R"({"weight_map":{"a":"two.safetensors","b":"two.safetensors"}})", "\"a\" is not in"},
      {"tensor that is nowhere", R"({"weight_map":{"a":"one.safetensors","c":"two.safetensors"}})",
       "\"c\" is not in"},
      {"no map", R"({"metadata":{}})", "no weight_map"},
      {"empty map", R"({"weight_map":{}})", "is empty"},
      {"number", R"({"weight_map":{"a":1}})", "is not a string"},
      {"key twice", R"({"weight_map":{"a":"one.safetensors","a":"two.safetensors"}})",
       "occurs twice"},
      {"not JSON", "{", "not valid JSON"},
  };
  for (const Case& c : table) {
    TempDir dir;
    WriteShards(dir.path(), c.index);
    const auto checkpoint = Checkpoint::Open(dir.path());
    EXPECT_TRUE(absl::IsDataLoss(checkpoint.status())) << c.what << ": " << checkpoint.status();
    EXPECT_THAT(Message(checkpoint.status()), HasSubstr(c.message)) << c.what;
  }
}

TEST(Checkpoint, RefusesATensorThatIsInTwoFiles) {
  TempDir dir;
  WriteShards(dir.path(), R"({"weight_map":{"a":"one.safetensors","b":"two.safetensors"}})");
  OwnedTensors both;
  both["a"] = both["b"] = testing_support::FloatTensor({3}, {1}, DType::kF32);
  WriteTensors(dir.path() / "two.safetensors", both);
  const auto checkpoint = Checkpoint::Open(dir.path());
  EXPECT_TRUE(absl::IsDataLoss(checkpoint.status()));
  EXPECT_THAT(Message(checkpoint.status()),
              HasSubstr("in two files: one.safetensors and two.safetensors"));
}

TEST(Checkpoint, RefusesATensorTheIndexDoesNotName) {
  TempDir dir;
  WriteShards(dir.path(), R"({"weight_map":{"b":"two.safetensors"}})");
  OwnedTensors more;
  more["b"] = more["c"] = testing_support::FloatTensor({3}, {1}, DType::kF32);
  WriteTensors(dir.path() / "two.safetensors", more);
  const auto checkpoint = Checkpoint::Open(dir.path());
  EXPECT_TRUE(absl::IsDataLoss(checkpoint.status()));
  EXPECT_THAT(Message(checkpoint.status()),
              HasSubstr("does not name tensor \"c\" of two.safetensors"));
}

TEST(Checkpoint, FollowsLinksToFilesAndRefusesWhatIsNotAFile) {
  TempDir dir;
  std::filesystem::create_directories(dir.path() / "blobs");
  std::filesystem::create_directories(dir.path() / "snapshot");
  OwnedTensors tensors;
  tensors["a"] = testing_support::FloatTensor({1}, {1}, DType::kF32);
  WriteTensors(dir.path() / "blobs" / "hash", tensors);
  const auto link = dir.path() / "snapshot" / "model.safetensors";
  std::filesystem::create_symlink("../blobs/hash", link);  // as Hugging Face's cache does
  EXPECT_TRUE(Checkpoint::Open(dir.path() / "snapshot").ok());

  const auto expect_not_regular = [&](const char* what) {
    const auto opened = Checkpoint::Open(dir.path() / "snapshot");
    EXPECT_TRUE(absl::IsDataLoss(opened.status())) << what << ": " << opened.status();
    EXPECT_THAT(Message(opened.status()), HasSubstr("not a regular file")) << what;
    std::filesystem::remove(link);
  };
  std::filesystem::remove(link);
  ASSERT_EQ(::mkfifo(link.c_str(), 0600), 0);
  expect_not_regular("FIFO");
  std::filesystem::create_symlink("/dev/zero", link);
  expect_not_regular("device");
  std::filesystem::create_directory(link);
  expect_not_regular("folder");
  std::filesystem::create_symlink("../blobs/gone", link);
  EXPECT_TRUE(absl::IsNotFound(Checkpoint::Open(dir.path() / "snapshot").status()));
}

TEST(Checkpoint, NamesWhatIsMissing) {
  TempDir dir;
  EXPECT_TRUE(absl::IsNotFound(Checkpoint::Open(dir.path() / "gone").status()));
  const auto message_with = [&](const char* file) {
    if (*file != '\0') WriteFile(dir.path() / file, "x");
    const absl::Status status = Checkpoint::Open(dir.path()).status();
    EXPECT_TRUE(absl::IsNotFound(status)) << status;
    if (*file != '\0') std::filesystem::remove(dir.path() / file);
    return Message(status);
  };
  EXPECT_THAT(message_with(""),
              ::testing::EndsWith(": neither model.safetensors nor model.safetensors.index.json"));
  EXPECT_THAT(message_with("config.json"), ::testing::EndsWith("model.safetensors.index.json"));
  for (const char* pickle : {"pytorch_model.bin", "pytorch_model-00001-of-00002.bin",
                             "pytorch_model.bin.index.json", "consolidated.00.pth", "model.pt"}) {
    EXPECT_THAT(message_with(pickle),
                HasSubstr(fmt::format("index.json; {} is not read, since a pickle can run code: "
                                      "convert it with transformers, AutoModelForCausalLM",
                                      pickle)));
  }
  EXPECT_THAT(message_with("llama-q4_0.gguf"),
              HasSubstr("; llama-q4_0.gguf is not read: take the safetensors folder it was made"));
  EXPECT_THAT(message_with("gptq_model-4bit-128g.safetensors"),
              HasSubstr("; there is gptq_model-4bit-128g.safetensors: name it model.safetensors"));
}

}  // namespace
}  // namespace quantd
