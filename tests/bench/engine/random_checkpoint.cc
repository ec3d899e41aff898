// RandomCheckpoint: config.json and one streamed safetensors file. See random_checkpoint.h.
#include "tests/bench/engine/random_checkpoint.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <random>
#include <thread>

#include <nlohmann/json.hpp>

#include "kernels/status.h"

namespace quantd {
namespace {

using nlohmann::json;

struct TensorPlan {
  std::string name;
  std::vector<int64_t> shape;
  bool ones = false;  // a norm
};

std::vector<TensorPlan> Plan(const BenchShape& s) {
  const int64_t head_dim = s.hidden / s.heads;
  std::vector<TensorPlan> plan = {{"model.embed_tokens.weight", {s.vocab, s.hidden}}};
  for (int64_t i = 0; i < s.layers; ++i) {
    const std::string layer = fmt::format("model.layers.{}.", i);
    plan.push_back({layer + "self_attn.q_proj.weight", {s.hidden, s.hidden}});
    plan.push_back({layer + "self_attn.k_proj.weight", {s.kv_heads * head_dim, s.hidden}});
    plan.push_back({layer + "self_attn.v_proj.weight", {s.kv_heads * head_dim, s.hidden}});
    plan.push_back({layer + "self_attn.o_proj.weight", {s.hidden, s.hidden}});
    plan.push_back({layer + "mlp.gate_proj.weight", {s.intermediate, s.hidden}});
    plan.push_back({layer + "mlp.up_proj.weight", {s.intermediate, s.hidden}});
    plan.push_back({layer + "mlp.down_proj.weight", {s.hidden, s.intermediate}});
    plan.push_back({layer + "input_layernorm.weight", {s.hidden}, true});
    plan.push_back({layer + "post_attention_layernorm.weight", {s.hidden}, true});
  }
  plan.push_back({"model.norm.weight", {s.hidden}, true});
  plan.push_back({"lm_head.weight", {s.vocab, s.hidden}});
  return plan;
}

int64_t Elements(const TensorPlan& t) {
  int64_t count = 1;
  for (const int64_t n : t.shape) count *= n;
  return count;
}

uint16_t ToBf16(float x) {
  return static_cast<uint16_t>((std::bit_cast<uint32_t>(x) + 0x8000u) >> 16);
}

// What one thread fills and writes at once; each has a random sequence of its own, so the file does
// not depend on how many threads there are.
struct Piece {
  int64_t offset = 0;    // in the file
  int64_t elements = 0;  // at most kPieceElements
  bool ones = false;
};
constexpr int64_t kPieceElements = int64_t{1} << 22;

/// Drawing from a table of 65536 normal values takes a 64-bit random number for four weights.
std::vector<uint16_t> NormalValues() {
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  std::vector<uint16_t> table(65536);
  for (uint16_t& v : table) v = ToBf16(normal(random));
  return table;
}

void Fill(const Piece& piece, const std::vector<uint16_t>& table, std::vector<uint16_t>& values) {
  uint64_t state = 0x9e3779b97f4a7c15u * static_cast<uint64_t>(piece.offset + 1);
  values.resize(static_cast<size_t>(piece.elements));
  for (size_t i = 0; i < values.size(); i += 4) {
    state ^= state << 13;  // xorshift64
    state ^= state >> 7;
    state ^= state << 17;
    for (size_t j = i; j < std::min(i + 4, values.size()); ++j) {
      values[j] = piece.ones ? ToBf16(1.0f) : table[(state >> (16 * (j - i))) & 0xFFFF];
    }
  }
}

bool WriteAt(int file, const void* data, size_t bytes, int64_t offset) {
  const auto* from = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t written = pwrite(file, from, bytes, offset);
    if (written <= 0) return false;
    from += written;
    offset += written;
    bytes -= static_cast<size_t>(written);
  }
  return true;
}

absl::Status WriteWeights(const BenchShape& shape, const std::filesystem::path& path) {
  const std::vector<TensorPlan> plan = Plan(shape);
  json header;
  int64_t offset = 0;
  for (const TensorPlan& t : plan) {
    const int64_t bytes = 2 * Elements(t);
    header[t.name] = {
        {"dtype", "BF16"}, {"shape", t.shape}, {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  std::string text = header.dump();
  text.append((8 - text.size() % 8) % 8, ' ');
  const uint64_t length = text.size();
  std::vector<Piece> pieces;
  offset = static_cast<int64_t>(sizeof(length) + text.size());
  for (const TensorPlan& t : plan) {
    for (int64_t left = Elements(t); left > 0; left -= pieces.back().elements) {
      pieces.push_back({offset, std::min(left, kPieceElements), t.ones});
      offset += 2 * pieces.back().elements;
    }
  }

  const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file < 0) return Unavailable("{}: {}", path.string(), std::strerror(errno));
  std::atomic<bool> failed = !WriteAt(file, &length, sizeof(length), 0) ||
                             !WriteAt(file, text.data(), text.size(), sizeof(length));
  std::atomic<size_t> next = 0;
  const std::vector<uint16_t> table = NormalValues();
  const auto work = [&] {
    std::vector<uint16_t> values;
    for (size_t i; !failed && (i = next++) < pieces.size();) {
      Fill(pieces[i], table, values);
      if (!WriteAt(file, values.data(), 2 * values.size(), pieces[i].offset)) failed = true;
    }
  };
  std::vector<std::thread> threads;
  for (unsigned i = 1; i < std::thread::hardware_concurrency(); ++i) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  if (close(file) != 0) failed = true;
  if (failed) return Unavailable("{}: could not be written", path.string());
  return absl::OkStatus();
}

}  // namespace

const std::vector<BenchShape>& BenchShapes() {
  static const std::vector<BenchShape> shapes = {
      {"tl11", 2048, 5632, 22, 32, 4, 32000},
      {"m160", 768, 2048, 12, 12, 12, 32000},
  };
  return shapes;
}

absl::StatusOr<std::filesystem::path> RandomCheckpoint(const BenchShape& shape,
                                                       const std::filesystem::path& root) {
  const std::filesystem::path dir = root / shape.name;
  // config.json is written last: a folder without it is one whose writing was cut short.
  if (std::filesystem::exists(dir / "config.json")) return dir;
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  if (error) return Unavailable("{}: {}", dir.string(), error.message());
  fmt::print(stderr, "writing random weights of shape {} to {}\n", shape.name, dir.string());
  RETURN_IF_ERROR(WriteWeights(shape, dir / "model.safetensors"));
  const json config = {{"architectures", {"LlamaForCausalLM"}},
                       {"model_type", "llama"},
                       {"hidden_size", shape.hidden},
                       {"intermediate_size", shape.intermediate},
                       {"num_hidden_layers", shape.layers},
                       {"num_attention_heads", shape.heads},
                       {"num_key_value_heads", shape.kv_heads},
                       {"vocab_size", shape.vocab},
                       {"max_position_embeddings", shape.context},
                       {"rms_norm_eps", 1e-5},
                       {"rope_theta", 10000.0},
                       {"hidden_act", "silu"},
                       {"tie_word_embeddings", false},
                       {"torch_dtype", "bfloat16"},
                       {"bos_token_id", 1},
                       {"eos_token_id", 2}};
  std::ofstream out(dir / "config.json");
  out << config.dump(2) << "\n";
  out.close();
  if (!out) return Unavailable("{}: could not be written", (dir / "config.json").string());
  return dir;
}

}  // namespace quantd
