#include "engine/weights/fingerprint.h"

#include <gtest/gtest.h>

#include <functional>

#include "tests/engine/models/tiny_model.h"

namespace quantd {
namespace {

using testing_support::OwnedTensors;
using testing_support::ReadTensors;
using testing_support::TempDir;
using testing_support::TinyModelOptions;
using testing_support::WriteTensors;
using testing_support::WriteTinyModel;

std::string Fingerprint(const std::filesystem::path& file) {
  const auto checkpoint = Checkpoint::OpenFile(file);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  return checkpoint.ok() ? CheckpointFingerprint(**checkpoint) : "";
}

TEST(CheckpointFingerprint, IsOfTheTensorsAndNotOfTheirFile) {
  TempDir dir;
  WriteTinyModel(dir.path());
  const std::filesystem::path file = dir.path() / "model.safetensors";
  const OwnedTensors tensors = ReadTensors(file);
  const std::string original = Fingerprint(file);
  EXPECT_EQ(original.size(), 16u);
  const auto with = [&](const std::function<void(OwnedTensors&)>& change) {
    OwnedTensors changed = tensors;
    change(changed);
    WriteTensors(dir.path() / "other.safetensors", changed, {{"made by", "someone else"}});
    return Fingerprint(dir.path() / "other.safetensors");
  };
  EXPECT_EQ(with([](OwnedTensors&) {}), original) << "a copy with other metadata";
  EXPECT_NE(with([](OwnedTensors& t) { t["model.norm.weight"].bytes[0] ^= 1; }), original);
  EXPECT_NE(with([](OwnedTensors& t) { t.erase("model.norm.weight"); }), original);
  EXPECT_NE(with([](OwnedTensors& t) {
              auto& shape = t["model.norm.weight"].shape;
              shape.insert(shape.begin(), 1);
            }),
            original);
  EXPECT_NE(with([](OwnedTensors& t) { t["x"] = t["model.norm.weight"]; }), original);
}

TEST(CheckpointFingerprint, TellsAFineTuneOfTheSameShape) {
  TempDir one, two;
  TinyModelOptions options;
  WriteTinyModel(one.path(), options);
  options.seed = 2;
  WriteTinyModel(two.path(), options);
  EXPECT_NE(Fingerprint(one.path() / "model.safetensors"),
            Fingerprint(two.path() / "model.safetensors"));
}

}  // namespace
}  // namespace quantd
