// Broken model folders from disk, given to `quantd serve` and `quantd generate` as processes: each
// ends both with exit code 1 and the same one line, which names the file and what is wrong with it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>

#include "engine/text/utf8.h"
#include "server/validate.h"
#include "tests/engine/models/tiny_model.h"
#include "tests/server/guarded_server.h"

namespace quantd {
namespace {

namespace fs = std::filesystem;
namespace tiny = testing_support;
using nlohmann::json;
using test::Finished;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr char kWeights[] = "model.safetensors";
constexpr char kIndex[] = "model.safetensors.index.json";
constexpr char kFirstShard[] = "model-00001-of-00002.safetensors";
constexpr char kSecondShard[] = "model-00002-of-00002.safetensors";
constexpr char kGate[] = "model.layers.0.mlp.gate_proj.weight";
constexpr char kUp[] = "model.layers.1.mlp.up_proj.weight";

using Damage = std::function<void(const fs::path&)>;

// A model of 300 KB with the demo model's tokenizer.
void WriteGood(const fs::path& dir) {
  tiny::TinyModelOptions options;
  options.vocab_size = 4096;
  tiny::WriteTinyModel(dir, options);
  for (const char* file : {"tokenizer.json", "tokenizer_config.json", "generation_config.json"})
    fs::copy_file(fs::path(test::DemoModel()) / file, dir / file);
}

// ---- damages

Damage Replace(const std::string& file, const std::string& from, const std::string& to) {
  return [=](const fs::path& d) {
    std::string text = tiny::ReadFile(d / file);
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    tiny::WriteFile(d / file, text.replace(at, from.size(), to));
  };
}

Damage Resize(const std::string& file, int64_t by) {
  return [=](const fs::path& d) {
    fs::resize_file(d / file,
                    static_cast<uintmax_t>(static_cast<int64_t>(fs::file_size(d / file)) + by));
  };
}

// The eight bytes in front of the header, and the file's size if it is not 0.
Damage HeaderLength(uint64_t length, uintmax_t file_size = 0) {
  return [=](const fs::path& d) {
    std::string file = tiny::ReadFile(d / kWeights);
    std::memcpy(file.data(), &length, sizeof(length));
    tiny::WriteFile(d / kWeights, file);
    if (file_size > 0) fs::resize_file(d / kWeights, file_size);  // sparse
  };
}

void WriteContainer(const fs::path& file, const std::string& header, const std::string& data) {
  const uint64_t length = header.size();
  tiny::WriteFile(
      file, std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + header + data);
}

// Changes the header's text and the bytes after it.
Damage Container(const std::function<void(std::string& header, std::string& data)>& change) {
  return [=](const fs::path& d) {
    const std::string file = tiny::ReadFile(d / kWeights);
    uint64_t length = 0;
    std::memcpy(&length, file.data(), sizeof(length));
    std::string header = file.substr(sizeof(length), length);
    std::string data = file.substr(sizeof(length) + length);
    change(header, data);
    WriteContainer(d / kWeights, header, data);
  };
}

// Changes the entry of the tensor that ends the file, and the bytes.
Damage LastTensor(const std::function<void(json& entry, std::string& data)>& change) {
  return Container([=](std::string& header, std::string& data) {
    json tree = json::parse(header);
    json* last = nullptr;
    for (auto& [name, entry] : tree.items()) {
      if (name == "__metadata__") continue;
      if (last == nullptr || entry["data_offsets"][1] > (*last)["data_offsets"][1]) last = &entry;
    }
    ASSERT_NE(last, nullptr);
    change(*last, data);
    header = tree.dump();
  });
}

Damage Offsets(int64_t begin_by, int64_t end_by, int64_t data_by) {
  return LastTensor([=](json& entry, std::string& data) {
    json& offsets = entry["data_offsets"];
    offsets = {offsets[0].get<int64_t>() + begin_by, offsets[1].get<int64_t>() + end_by};
    data.resize(static_cast<size_t>(static_cast<int64_t>(data.size()) + data_by));
  });
}

Damage Tensors(const std::string& file, const std::function<void(tiny::OwnedTensors&)>& change) {
  return [=](const fs::path& d) {
    tiny::OwnedTensors tensors = tiny::ReadTensors(d / file);
    change(tensors);
    tiny::WriteTensors(d / file, tensors);
  };
}

// The same model in two shards and an index; then `damage`.
Damage Sharded(const Damage& damage) {
  return [=](const fs::path& d) {
    tiny::OwnedTensors first = tiny::ReadTensors(d / kWeights);
    tiny::OwnedTensors second;
    json index;
    for (const auto& [name, tensor] : first)
      index["weight_map"][name] = name < kUp ? kFirstShard : kSecondShard;
    for (auto it = first.lower_bound(kUp); it != first.end();) second.insert(first.extract(it++));
    tiny::WriteTensors(d / kFirstShard, first);
    tiny::WriteTensors(d / kSecondShard, second);
    tiny::WriteFile(d / kIndex, index.dump());
    fs::remove(d / kWeights);
    damage(d);
  };
}

Damage Remove(const std::string& file) {
  return [=](const fs::path& d) { ASSERT_TRUE(fs::remove(d / file)); };
}

Damage Fifo(const std::string& file) {
  return [=](const fs::path& d) {
    fs::remove(d / file);
    ASSERT_EQ(mkfifo((d / file).c_str(), 0600), 0);
  };
}

Damage Link(const std::string& file, const std::string& target) {
  return [=](const fs::path& d) {
    fs::remove(d / file);
    fs::create_symlink(target, d / file);
  };
}

Damage Merge(const std::string& left) {
  return [=](const fs::path& d) {
    json tokenizer = json::parse(tiny::ReadFile(d / "tokenizer.json"));
    tokenizer["model"]["merges"][3] = {left, "e"};
    tiny::WriteFile(d / "tokenizer.json", tokenizer.dump());
  };
}

// ---- what becomes of them

struct Broken {
  const char* what;
  Damage damage;
  std::vector<std::string> messages;  // parts of the line
};

std::vector<std::string> GenerateFrom(const fs::path& dir) {
  return {"generate", "--model", dir, "--prompt", "x", "--max-tokens", "1"};
}

// `quantd validate` says it, too, where headers show it, with what to do about it.
void ExpectFindings(const fs::path& dir, const std::string& what) {
  ValidateOptions options;
  options.overrides = {"model=" + dir.string(), "backend=ref"};
  for (const Finding& finding : Validate(options)) {
    EXPECT_NE(finding.what, "") << what;
    EXPECT_NE(finding.fix, "") << what << ": " << finding.what;
  }
}

void ExpectRefused(const std::vector<Broken>& table) {
  tiny::TempDir good;
  WriteGood(good.path());
  ASSERT_EQ(test::RunQuantd(GenerateFrom(good.path())).code, 0);
  for (const Broken& broken : table) {
    tiny::TempDir dir;
    fs::copy(good.path(), dir.path());
    broken.damage(dir.path());
    const auto start = std::chrono::steady_clock::now();
    const Finished generate = test::RunQuantd(GenerateFrom(dir.path()));
    const Finished serve =
        test::RunQuantd({"serve", "--model", dir.path(), "--listen", "127.0.0.1:0", "--http",
                         "127.0.0.1:0", "--set", "log.level=off"});
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(30)) << broken.what;
    for (const Finished& run : {generate, serve}) {
      EXPECT_EQ(run.code, 1) << broken.what << ": " << run.err;
      EXPECT_EQ(run.out, "") << broken.what;
      EXPECT_THAT(run.err, StartsWith("quantd: " + dir.path().string())) << broken.what;
      for (const std::string& message : broken.messages)
        EXPECT_THAT(run.err, HasSubstr(message)) << broken.what;
      EXPECT_THAT(run.err, EndsWith("\n")) << broken.what;
      const auto is_control = [](char c) { return static_cast<unsigned char>(c) < 0x20; };
      EXPECT_EQ(std::count_if(run.err.begin(), run.err.end(), is_control), 1)
          << broken.what << ": more than one line of text: " << run.err;
      EXPECT_EQ(ValidUtf8Prefix(run.err), run.err.size()) << broken.what;
      EXPECT_LT(run.err.size(), 8000u) << broken.what;
    }
    EXPECT_EQ(generate.err, serve.err) << broken.what;
    ExpectFindings(dir.path(), broken.what);
  }
}

TEST(BrokenModel, ContainerOfWeightsIsOneLine) {
  const std::string name = "\"model.norm.weight\"";
  const auto header = [](const std::string& from, const std::string& to) {
    return Container([=](std::string& text, std::string&) {
      const size_t at = text.find(from);
      ASSERT_NE(at, std::string::npos) << from;
      text.replace(at, from.size(), to);
    });
  };
  const auto only = [](const std::string& text) {
    return [=](const fs::path& d) { WriteContainer(d / kWeights, text, ""); };
  };
  ExpectRefused({
      {"empty file",
       [](const fs::path& d) { tiny::WriteFile(d / kWeights, ""); },
       {"model.safetensors: 0 bytes, too short"}},
      {"header longer than the file",
       HeaderLength(90'000'000),
       {"model.safetensors: header length 90000000 is beyond the file's"}},
      {"header length 2^63",
       HeaderLength(uint64_t{1} << 63),
       {"model.safetensors: header length 9223372036854775808 is above the limit of 100000000"}},
      {"header of more than 100 MB, all there",
       HeaderLength(100'000'001, 100'100'000),
       {"model.safetensors: header length 100000001 is above the limit of 100000000"}},
      {"header not UTF-8",
       header(name, "\"model.\xff\xfe\""),
       {"model.safetensors: the header is not valid JSON at byte", "ill-formed UTF-8 byte"}},
      {"header not JSON", header("{", "["), {"model.safetensors: the header holds a list"}},
      {"header with a key twice",
       header("{", "{" + name + R"(:{"dtype":"F32","shape":[0],"data_offsets":[0,0]},)"),
       {"model.safetensors: key " + name + " occurs twice"}},
      {"unknown dtype",
       LastTensor([](json& t, std::string&) { t["dtype"] = "F128"; }),
       {"model.safetensors: tensor ", ": dtype \"F128\" is unknown"}},
      {"product of the shape overflows",
       LastTensor([](json& t, std::string&) {
         t["shape"] = {int64_t{1} << 32, int64_t{1} << 32, 4};
       }),
       {"model.safetensors: tensor ",
        "[4294967296, 4294967296, 4] is not a whole number of bytes below 2^64"}},
      {"offsets that overlap",
       Offsets(-2, -2, -2),
       {"model.safetensors: tensor ", "overlapping the tensor before it"}},
      {"offsets with a hole",
       Offsets(2, 2, 2),
       {"model.safetensors: tensor ", "leaving a hole after the tensor before it"}},
      {"offsets backwards",
       LastTensor(
           [](json& t, std::string&) { std::swap(t["data_offsets"][0], t["data_offsets"][1]); }),
       {"model.safetensors: tensor ", "run backwards"}},
      {"offsets beyond the file",
       Offsets(1 << 20, 1 << 20, 0),
       {"model.safetensors: tensor ", "data_offsets end at", "(truncated?)"}},
      {"bytes after the last tensor",
       Container([](std::string&, std::string& data) { data += "PK\x03\x04"; }),
       {"model.safetensors: 4 bytes follow the last tensor"}},
      {"cut", Resize(kWeights, -1), {"model.safetensors: tensor ", "(truncated?)"}},
      // What a message quotes stays one line of readable length.
      {"names with line ends and a terminal's commands",
       header(name, R"("x\ny\u001b[31m\u007f")"),
       {"model.safetensors: tensor \"x\\x0ay\\x1b[31m\\x7f\" (BF16 [32]) is not part of the "
        "model"}},
      {"a name of 20 MB",
       only("{\"" + std::string(20 << 20, 'a') + "\":{\"dtype\":\"F99\"}}"),
       {"model.safetensors: tensor \"aaa", "aaa\": dtype \"F99\" is unknown"}},
      {"a name of 20 MB that is not UTF-8",
       only("{\"" + std::string(20 << 20, 'a') + "\xff\":1}"),
       {"model.safetensors: the header is not valid JSON at byte 20971523"}},
  });
}

TEST(BrokenModel, ShardsAreOneLine) {
  const std::string second = kSecondShard;
  const auto in_index = [](const std::string& from, const std::string& to) {
    return Sharded(Replace(kIndex, from, to));
  };
  ExpectRefused({
      {"a shard that is missing",
       Sharded(Remove(kSecondShard)),
       {"model.safetensors.index.json: names \"" + second + "\", which does not exist"}},
      {"a shard outside of the folder",
       in_index(second, "../" + second),
       {"model.safetensors.index.json: weight_map",
        "\"../" + second + "\", not the name of a file"}},
      {"a shard by its whole path",
       in_index(second, "/etc/passwd"),
       {"model.safetensors.index.json: weight_map", "\"/etc/passwd\", not the name of a file"}},
      {"a shard that is cut",
       Sharded(Resize(kSecondShard, -1)),
       {second + ": tensor ", "(truncated?)"}},
      {"a shard with a NaN",
       Sharded(Tensors(kSecondShard,
                       [](tiny::OwnedTensors& t) {
                         t.at(kUp).bytes.replace(2 * (32 * 3 + 5), 2, "\xc0\x7f");
                       })),
       {second + ": tensor " + kUp + ": element [3, 5] is NaN or infinite"}},
      {"a shard that is a FIFO", Sharded(Fifo(kSecondShard)), {second + ": not a regular file"}},
      {"an index that is a FIFO",
       Sharded(Fifo(kIndex)),
       {"model.safetensors.index.json: not a regular file"}},
      {"an index that is not UTF-8",
       in_index(kGate, "\xff"),
       {"model.safetensors.index.json: not valid JSON at byte"}},
      {"an index with a key twice",
       in_index("{", "{\"weight_map\":{},"),
       {"model.safetensors.index.json: key \"weight_map\" occurs twice"}},
      {"an index that names no tensors",
       in_index("weight_map", "weights"),
       {"model.safetensors.index.json: no weight_map"}},
      {"a shard's name with a line end",
       in_index(second, R"(a\nb)"),
       {"model.safetensors.index.json: names \"a\\x0ab\", which does not exist"}},
  });
  tiny::TempDir dir;  // shards are not what is refused
  WriteGood(dir.path());
  Sharded([](const fs::path&) {})(dir.path());
  const Finished run = test::RunQuantd(GenerateFrom(dir.path()));
  EXPECT_EQ(run.code, 0) << run.err;
}

TEST(BrokenModel, TensorsConfigAndTokenizerThatDisagreeAreOneLine) {
  const auto config = [](const std::string& from, const std::string& to) {
    return Replace("config.json", from, to);
  };
  ExpectRefused({
      {"shape",
       Tensors(kWeights,
               [](tiny::OwnedTensors& t) {
                 t.at(kGate).shape = {32, 48};
               }),
       {std::string("model.safetensors: tensor ") + kGate +
        ": shape [32, 48], config.json says [48, 32]"}},
      {"NaN",
       Tensors(kWeights,
               [](tiny::OwnedTensors& t) { t.at(kGate).bytes.replace(0, 2, "\xc0\x7f"); }),
       {std::string("model.safetensors: tensor ") + kGate + ": element [0, 0] is NaN or infinite"}},
      {"NaN in a norm",
       Tensors(kWeights,
               [](tiny::OwnedTensors& t) {
                 t.at("model.norm.weight").bytes.replace(4, 2, "\xc0\x7f");
               }),
       {"model.safetensors: tensor model.norm.weight: element [0, 2] is NaN or infinite"}},
      {"hidden_size 0",
       config("\"hidden_size\": 32", "\"hidden_size\": 0"),
       {"config.json: hidden_size: 0 must be positive"}},
      {"heads that do not divide",
       config("\"num_attention_heads\": 4", "\"num_attention_heads\": 5"),
       {"config.json: num_attention_heads: 5 is not a multiple of num_key_value_heads 2"}},
      {"vocabulary of another size than the embedding's",
       config("\"vocab_size\": 4096", "\"vocab_size\": 4095"),
       {"model.safetensors: tensor model.embed_tokens.weight: shape [4096, 32], config.json says "
        "[4095, 32]"}},
      {"vocabulary smaller than the tokenizer's",
       [](const fs::path& d) {
         tiny::TinyModelOptions options;
         options.vocab_size = 4000;
         tiny::WriteTinyModel(d, options);
       },
       {"the tokenizer has ids up to 4095, but config.json's vocab_size is 4000"}},
      {"config not UTF-8", config("\"silu\"", "\"\xff\""), {"config.json: not valid JSON at byte"}},
      {"config with a key twice",
       config("{", "{\"vocab_size\": 64, "),
       {"config.json: key \"vocab_size\" occurs twice"}},
      {"config nested 100,000 deep",
       [](const fs::path& d) { tiny::WriteFile(d / "config.json", std::string(100000, '[')); },
       {"config.json: nested deeper than"}},
      {"an architecture with line ends",
       config("LlamaForCausalLM", R"(a\nb)"),
       {"config.json: architecture \"a\\x0ab\" is not supported"}},
      {"merges of an unknown token",
       Merge("no such token"),
       {"tokenizer.json: model.merges[3]: \"no such token\" is not in model.vocab"}},
      {"tokenizer not UTF-8",
       Replace("tokenizer.json", "\"version\"", "\"\xff\""),
       {"tokenizer.json: not valid JSON"}},
      {"no tokenizer", Remove("tokenizer.json"), {"tokenizer.json"}},
  });
}

TEST(BrokenModel, WhatIsNotAFileIsOneLineAndWaitsForNobody) {
  std::vector<Broken> table;
  for (const char* file : {kWeights, "config.json", "tokenizer.json", "tokenizer_config.json",
                           "generation_config.json"}) {
    const std::string name = std::string("/") + file;
    table.push_back({"FIFO", Fifo(file), {name + ": not a regular file"}});
    table.push_back({"device", Link(file, "/dev/zero"), {name + ": not a regular file"}});
  }
  for (const char* file : {kWeights, "config.json", "tokenizer.json"}) {
    const std::string name = std::string("/") + file;
    table.push_back({"folder", Link(file, "/tmp"), {name + ": not a regular file"}});
    table.push_back({"link to nothing", Link(file, "../gone"), {name + ": no such file"}});
    table.push_back({"link to itself", Link(file, file), {name + ": "}});
  }
  ExpectRefused(table);
}

TEST(BrokenModel, LinksOutOfTheFolderAreFollowedToFiles) {
  tiny::TempDir dir;  // as Hugging Face's cache lays models out
  fs::create_directories(dir.path() / "blobs");
  fs::create_directories(dir.path() / "snapshot");
  WriteGood(dir.path() / "blobs");
  for (const auto& file : fs::directory_iterator(dir.path() / "blobs")) {
    fs::create_symlink(fs::path("../blobs") / file.path().filename(),
                       dir.path() / "snapshot" / file.path().filename());
  }
  const Finished run = test::RunQuantd(GenerateFrom(dir.path() / "snapshot"));
  EXPECT_EQ(run.code, 0) << run.err;
}

// After loading, files are not read any more.
TEST(BrokenModel, FilesThatAreCutWhileItIsServedHarmNobody) {
  tiny::TempDir dir;
  fs::copy(test::DemoModel(), dir.path());
  test::Guarded guarded({"model=" + dir.path().string()});
  ASSERT_TRUE(guarded.ready()) << guarded.server().process().err();
  guarded.WarmUp();
  for (const auto& file : fs::directory_iterator(dir.path())) fs::resize_file(file.path(), 10);
  guarded.ExpectUnharmed("files cut to ten bytes");
  fs::remove_all(dir.path());
  guarded.ExpectUnharmed("a folder that is gone");
}

}  // namespace
}  // namespace quantd
