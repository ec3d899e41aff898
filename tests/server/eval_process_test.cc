// `quantd eval` as a process: its outputs, what it goes on with after it was killed, its faults;
// and `quantd plan` with what it measured.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "tests/engine/models/tiny_model.h"
#include "tests/server/guarded_server.h"
#include "tests/server/process.h"

namespace quantd::test {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using testing_support::ReadFile;
using testing_support::TempDir;
using testing_support::WriteFile;

class EvalCommand : public ::testing::Test {
 protected:
  std::string Path(const std::string& name) const { return (dir_.path() / name).string(); }
  // Of the demo model, with few tokens; `more` may say otherwise.
  std::vector<std::string> Arguments(const std::vector<std::string>& more) const {
    std::vector<std::string> all = {"eval", "--json"};
    const std::pair<std::string, std::string> defaults[] = {{"--model", DemoModel()},
                                                            {"--text", kValidation},
                                                            {"--context", "128"},
                                                            {"--max-tokens", "600"}};
    for (const auto& [flag, value] : defaults) {
      if (std::find(more.begin(), more.end(), flag) != more.end()) continue;
      all.insert(all.end(), {flag, value});
    }
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }
  static json Parsed(const std::string& text) {
    return json::parse(text, nullptr, /*allow_exceptions=*/false);
  }
  // What does not depend on how fast it was measured.
  static json Figures(json report) {
    for (json& p : report["profiles"]) {
      for (const char* key :
           {"load_seconds", "prefill_tokens_per_second", "decode_tokens_per_second"}) {
        p.erase(key);
      }
    }
    return report;
  }

  const std::string kValidation = QUANTD_SOURCE_DIR "/demo/validation.txt";
  TempDir dir_;
};

TEST_F(EvalCommand, MeasuresWhatEachProfileKeeps) {
  const Finished run = RunQuantd(Arguments({"--profiles", "bf16,int8,nf4,hqq2", "--report",
                                            Path("a.json"), "--report", Path("a.html")}));
  ASSERT_EQ(run.code, 0) << run.err;
  EXPECT_THAT(run.err, HasSubstr("[4/4] hqq2: window 4 of 4"));
  const json report = Parsed(run.out);
  EXPECT_EQ(report, Parsed(ReadFile(Path("a.json"))));
  EXPECT_EQ(report["reference"], "bf16");
  EXPECT_EQ(report["tokens"], 4 * 127);
  ASSERT_EQ(report["profiles"].size(), 4u);
  double bytes = 1e9, kl = -1;
  for (const json& p : report["profiles"]) {  // largest first, and here the closest too
    EXPECT_LT(p["resident_bytes"], bytes) << p["name"];
    EXPECT_GT(p["kl"]["mean"], kl) << p["name"];
    bytes = p["resident_bytes"];
    kl = p["kl"]["mean"];
    EXPECT_GE(p["kl"]["max"], p["kl"]["p99"]);
    EXPECT_EQ(p["linears"].size(), 6 * 7 + 1u);
    EXPECT_EQ(p["greedy_lengths"].size(), 4u);
  }
  const json& same = report["profiles"][0];
  EXPECT_EQ(same["kl"]["max"], 0);
  EXPECT_EQ(same["top1"], 1);
  EXPECT_EQ(same["retention"]["value"], 1);
  EXPECT_TRUE(report["profiles"][1]["linears"][0].contains("outlier_share"));
  EXPECT_LT(report["profiles"][3]["retention"]["value"], 0.97);
  EXPECT_THAT(ReadFile(Path("a.html")), AllOf(HasSubstr("<svg"), HasSubstr("hqq2")));

  // A report can be shown again without measuring.
  const Finished again = RunQuantd({"eval", "--from", Path("a.json"), "--report", Path("b.html")});
  EXPECT_EQ(again.code, 0) << again.err;
  EXPECT_EQ(ReadFile(Path("b.html")), ReadFile(Path("a.html")));
  EXPECT_THAT(again.out, AllOf(HasSubstr("hqq2"), HasSubstr("100.00%")));
}

TEST_F(EvalCommand, GoesOnWhereItWasKilled) {
  const auto arguments =
      Arguments({"--profiles", "nf4,int8", "--max-tokens", "1300", "--resume", Path("journal")});
  const auto lines = [&] {
    std::ifstream file(Path("journal"));
    return std::count(std::istreambuf_iterator<char>(file), {}, '\n');
  };
  {
    Process killed(arguments);
    ASSERT_TRUE(Eventually([&] { return lines() >= 4; }, 60));
    killed.Signal(SIGKILL);
    EXPECT_EQ(killed.Wait(), 128 + SIGKILL);
  }
  const auto kept = lines();
  const std::string before = ReadFile(Path("journal"));
  const Finished resumed = RunQuantd(arguments);
  ASSERT_EQ(resumed.code, 0) << resumed.err;
  EXPECT_EQ(lines(), 1 + 2 * (10 + 1)) << "a name, and of two profiles ten windows and the facts";
  EXPECT_LT(kept, lines());
  const std::string whole_lines = before.substr(0, before.rfind('\n'));
  EXPECT_THAT(ReadFile(Path("journal")), ::testing::StartsWith(whole_lines));
  // Nothing is measured any more, and nothing is lost.
  const Finished third = RunQuantd(arguments);
  EXPECT_EQ(third.out, resumed.out);
  const Finished at_once = RunQuantd(Arguments({"--profiles", "nf4,int8", "--max-tokens", "1300"}));
  EXPECT_EQ(Figures(Parsed(at_once.out)), Figures(Parsed(resumed.out)));

  // Another one, by its text, or by what is in its reference.
  const Finished other = RunQuantd(Arguments({"--profiles", "nf4", "--resume", Path("journal")}));
  EXPECT_EQ(other.code, 1);
  EXPECT_THAT(other.err, HasSubstr("is of another evaluation: text was"));
}

TEST_F(EvalCommand, ReferenceIsWhatIsInItAndNotItsName) {
  const auto arguments =
      Arguments({"--profiles", "nf4", "--max-tokens", "120", "--reference", Path("ref.yaml"),
                 "--resume", Path("journal"), "--report", Path("r.json")});
  WriteFile(Path("ref.yaml"), "dtype: bfloat16\n");
  ASSERT_EQ(RunQuantd(arguments).code, 0);
  WriteFile(Path("ref.yaml"), "dtype: float32\n");
  const Finished changed = RunQuantd(arguments);
  EXPECT_EQ(changed.code, 1);
  EXPECT_THAT(changed.err, HasSubstr("is of another evaluation: reference profile was"));
  // And it is not taken for full precision.
  const Finished plan = RunQuantd({"plan", DemoModel(), "--quality", Path("r.json")});
  EXPECT_EQ(plan.code, 1);
  EXPECT_THAT(plan.err, HasSubstr("ref.yaml, not with full precision"));
}

// A down projection so large that its products leave float16.
TEST_F(EvalCommand, ModelThatOverflowsIsRefusedAndTheJournalStaysReadable) {
  std::filesystem::copy(DemoModel(), Path("model"), std::filesystem::copy_options::recursive);
  auto tensors = testing_support::ReadTensors(dir_.path() / "model" / "model.safetensors");
  std::string& bytes = tensors["model.layers.2.mlp.down_proj.weight"].bytes;
  for (size_t i = 0; i < bytes.size(); i += 2) {
    bytes[i] = 0x6a;  // 60000 in bfloat16
    bytes[i + 1] = 0x47;
  }
  testing_support::WriteTensors(dir_.path() / "model" / "model.safetensors", tensors);
  const auto run = [&](std::vector<std::string> more) {
    more.insert(more.end(), {"--model", Path("model"), "--max-tokens", "120"});
    return RunQuantd(Arguments(more));
  };
  for (int again = 0; again < 2; ++again) {
    const Finished both = run({"--profiles", "bf16,fp16", "--resume", Path("journal")});
    EXPECT_EQ(both.code, 1);
    EXPECT_THAT(both.err, HasSubstr("1 of 2 profiles could not be measured: fp16: the logits are "
                                    "not finite at token"));
  }
  const Finished reference = run({"--profiles", "nf4", "--reference", "fp16"});
  EXPECT_EQ(reference.code, 1);
  EXPECT_THAT(reference.err, HasSubstr("the reference's logits are not finite"));
}

TEST_F(EvalCommand, ProfilesAreMeasuredOnceAndByTheirNames) {
  const Finished run =
      RunQuantd(Arguments({"--profiles", "auto,nf4,nf4,int8", "--max-tokens", "120"}));
  ASSERT_EQ(run.code, 0) << run.err;
  const json report = Parsed(run.out);
  ASSERT_EQ(report["profiles"].size(), 2u);
  EXPECT_EQ(report["profiles"][0]["name"], "int8") << "what the planner chooses here";
}

TEST_F(EvalCommand, ProfileThatCannotBeLoadedIsReportedAndTheOthersAreMeasured) {
  WriteFile(Path("broken.yaml"), "quantization: {quant_method: hqq, nbits: 4, group_size: 80}\n");
  const Finished run = RunQuantd(Arguments({"--profiles", "int8," + Path("broken.yaml")}));
  EXPECT_EQ(run.code, 1);
  EXPECT_THAT(run.err, HasSubstr("1 of 2 profiles could not be measured"));
  const json report = Parsed(run.out);
  EXPECT_GT(report["profiles"][0]["perplexity"], 1);
  EXPECT_THAT(report["profiles"][1]["refusal"].get<std::string>(),
              HasSubstr("not a multiple of group_size 80"));
}

// A tokenizer of letters and the space, for fixtures, which have none and 64 tokens.
std::string LetterTokenizer() {
  json vocab = {{"\u0120", 0}};  // the space, as byte-level tokenizers write it
  for (char c = 'a'; c <= 'z'; ++c) vocab[std::string(1, c)] = 1 + c - 'a';
  return json{
      {"version", "1.0"},
      {"added_tokens", json::array()},
      {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", false}}},
      {"decoder", {{"type", "ByteLevel"}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", json::array()}}}}
      .dump();
}

TEST_F(EvalCommand, QuantizedCheckpointIsMeasuredBesideItsOriginal) {
  for (const char* name : {"bnb_nf4", "llama_bf16"}) {
    std::filesystem::copy(std::filesystem::path(QUANTD_TEST_DATA) / "models" / name,
                          dir_.path() / name);
    WriteFile(dir_.path() / name / "tokenizer.json", LetterTokenizer());
  }
  std::string text;
  for (int i = 0; i < 200; ++i) text += i % 6 == 5 ? ' ' : static_cast<char>('a' + i * i % 26);
  WriteFile(Path("letters.txt"), text);
  const auto eval = [&](const std::string& model, std::vector<std::string> more) {
    more.insert(more.begin(),
                {"eval", "--model", Path(model), "--text", Path("letters.txt"), "--context", "64",
                 "--max-tokens", "130", "--backend", "ref", "--json"});
    const Finished run = RunQuantd(more);
    EXPECT_EQ(run.code, 0) << run.err;
    return Parsed(run.out);
  };
  const json alone = eval("bnb_nf4", {});
  EXPECT_TRUE(alone["reference"].is_null()) << "there is no original to compare with";
  EXPECT_EQ(alone["profiles"][0]["name"], "checkpoint");
  EXPECT_GT(alone["profiles"][0]["perplexity"], 1);
  EXPECT_FALSE(alone["profiles"][0].contains("kl"));
  // Quantized by its makers or while loading: the same weights, so the same divergence.
  const json stored = eval("bnb_nf4", {"--reference-model", Path("llama_bf16")});
  const json on_load = eval("llama_bf16", {"--profiles", "nf4"});
  EXPECT_EQ(stored["reference_model"], Path("llama_bf16"));
  EXPECT_GT(stored["profiles"][0]["kl"]["mean"], 0);
  EXPECT_EQ(stored["profiles"][0]["kl"], on_load["profiles"][0]["kl"]);
  EXPECT_EQ(stored["profiles"][0]["perplexity"], on_load["profiles"][0]["perplexity"]);
}

// To be made again when the page changes: quantd eval --from demo/model/quantd-eval.json --report
// docs/eval/demo.html
TEST_F(EvalCommand, CommittedPageIsOfTheCommittedFigures) {
  const Finished run = RunQuantd(
      {"eval", "--from", DemoModel() + "/quantd-eval.json", "--report", Path("demo.html")});
  EXPECT_EQ(run.code, 0) << run.err;
  EXPECT_TRUE(ReadFile(Path("demo.html")) == ReadFile(QUANTD_SOURCE_DIR "/docs/eval/demo.html"));
  const Finished plan = RunQuantd({"plan", DemoModel(), "--memory", "1GB", "--json"});
  EXPECT_THAT(plan.out, HasSubstr("measured on demo/validation.txt"))
      << "the figures are of another checkpoint, or of other profiles";
}

TEST_F(EvalCommand, FaultsAreOneLine) {
  std::filesystem::copy(QUANTD_TEST_DATA "/models/llama_bf16", Path("small"));
  std::filesystem::copy(DemoModel() + "/tokenizer.json", Path("small"));
  std::filesystem::create_directory(Path("folder.html"));
  WriteFile(Path("bad.jsonl"), "{\"text\": 1}\n");
  WriteFile(Path("latin1.txt"), "caf\xe9 and more\n");
  const std::pair<std::vector<std::string>, const char*> table[] = {
      {{"--text", "/no/such.txt"}, "/no/such.txt"},
      {{"--text", Path("bad.jsonl")}, "bad.jsonl: line 1"},
      {{"--text", Path("latin1.txt")}, "UTF-8"},
      {{"--context", "513"}, "context is 513, allowed: at most the model's 512"},
      {{"--context", "1"}, "context is 1"},
      {{"--stride", "129"}, "stride is 129, allowed: 1 to the context of 128"},
      {{"--model", Path("small")},
       "the tokenizer has ids up to 4095, but config.json's vocab_size"},
      {{"--reference", "nf5"}, "nf5"},
      {{"--reference-model", "/no/such"}, "/no/such is not a folder"},
      {{"--model", "/no/such"}, "/no/such is not a folder"},
      {{"--report", Path("a.pdf")}, "must end in .html or .json"},
      {{"--report", Path("folder.html")}, "folder.html: not a regular file"},
      {{"--profiles", "nf5,int8,/no/such.yaml"}, "/no/such.yaml"},
      {{"--reference", "none", "--reference-backend", "cpu"}, "reference is none, and"},
      {{"--report", "/no/such/a.html"}, "--report /no/such/a.html: cannot be written: No such"},
      {{"--profiles", ""}, "one of them has no name"},
      {{"--resume", "/tmp"}, "/tmp"},
      {{"--resume", "/no/such/journal"}, "/no/such/journal: cannot be written"},
  };
  for (const auto& [flags, message] : table) {
    const Finished run = RunQuantd(Arguments(flags));
    EXPECT_EQ(run.code, 1) << message;
    EXPECT_THAT(run.err, HasSubstr(message));
    EXPECT_EQ(std::count(run.err.begin(), run.err.end(), '\n'), 1) << run.err;
  }
  EXPECT_EQ(RunQuantd({"eval", "--text", kValidation}).code, 2) << "no model";
  EXPECT_EQ(RunQuantd(Arguments({"--max-tokens", "-5"})).code, 2);
  EXPECT_EQ(RunQuantd(Arguments({"--context", "99999999999999999999"})).code, 1);
  EXPECT_EQ(RunQuantd({"eval", "--from", Path("a.json"), "--max-tokens", "3"}).code, 2)
      << "nothing is measured then";
  WriteFile(Path("no.json"), "{}");
  const Finished none = RunQuantd({"eval", "--from", Path("no.json")});
  EXPECT_EQ(none.code, 1);
  EXPECT_THAT(none.err, HasSubstr("no.json: quantd: missing"));
}

TEST_F(EvalCommand, PlanSaysWhatWasMeasured) {
  // A copy of the model's folder by links, so that a report can lie in it.
  for (const auto& entry : std::filesystem::directory_iterator(DemoModel())) {
    if (entry.path().extension() == ".safetensors" || entry.path().stem() == "config") {
      std::filesystem::create_symlink(entry.path(), dir_.path() / entry.path().filename());
    }
  }
  ASSERT_EQ(RunQuantd(Arguments({"--profiles", "nf4,int8", "--report", Path("report.json")})).code,
            0);
  const auto plan = [&](std::vector<std::string> more) {
    more.insert(more.begin(), {"plan", "--model", dir_.path().string(), "--memory", "1GB",
                               "--backend", "ref", "--json"});
    return RunQuantd(more);
  };
  const auto quality = [&](const json& of, const std::string& name) {
    for (const json& p : of["profiles"]) {
      if (p["name"] == name) return p["quality"];
    }
    return json();
  };
  const json claimed = Parsed(plan({}).out);
  EXPECT_EQ(quality(claimed, "nf4")["measured"], false);
  const json named = Parsed(plan({"--quality", Path("report.json")}).out);
  std::filesystem::rename(Path("report.json"), Path("quantd-eval.json"));
  const json found = Parsed(plan({}).out);
  const json report = Parsed(ReadFile(Path("quantd-eval.json")));
  for (const json& measured : {named, found}) {
    EXPECT_EQ(quality(measured, "int8")["measured"], true);
    EXPECT_EQ(quality(measured, "int8")["retention"], report["profiles"][0]["retention"]["value"]);
    EXPECT_EQ(quality(measured, "fp4")["measured"], false) << "not in the report";
    EXPECT_THAT(measured["reasons"].dump(), HasSubstr("of 16-bit quality, measured on"));
  }
  // One of another checkpoint: left out when it was found, refused when it was named.
  json other = report;
  other["fingerprint"] = "0000000000000000";
  WriteFile(Path("quantd-eval.json"), other.dump());
  const json without = Parsed(plan({}).out);
  EXPECT_EQ(quality(without, "int8")["measured"], false);
  EXPECT_THAT(without["reasons"].dump(), HasSubstr("it is of the checkpoint 0000"));
  const Finished refused = plan({"--quality", Path("quantd-eval.json")});
  EXPECT_EQ(refused.code, 1);
  EXPECT_THAT(refused.err, HasSubstr("it is of the checkpoint 0000000000000000"));
  EXPECT_THAT(plan({"--quality", "/no/such.json"}).err, HasSubstr("/no/such.json"));
  WriteFile(Path("quantd-eval.json"), "[]");
  EXPECT_THAT(plan({}).out, HasSubstr("not a report of quantd eval"));
  EXPECT_THAT(plan({"--quality", Path("quantd-eval.json")}).err,
              HasSubstr("not a report of quantd eval"));
}

}  // namespace
}  // namespace quantd::test
