// Decoding of tensors: what is taken, and a table of what is refused, by name.
#include "server/kserve/tensors.h"

#include <gtest/gtest.h>

#include <functional>

#include "server/grpc/error_details.h"
#include "tests/server/kserve/infer_request.h"

namespace quantd::kserve {
namespace {

using inference::ModelInferRequest;
using test::AddBool;
using test::AddNumber;
using test::AddRaw;
using test::AddText;

ModelInferRequest Prompt() {
  ModelInferRequest request;
  AddText(request, "text_input", "h\xc3\xa9llo");
  return request;
}

TEST(Tensors, EveryTypeIsTakenRaw) {
  ModelInferRequest request = Prompt();
  AddBool(request, "stream", true);
  AddNumber(request, "max_tokens", "INT32", int32_t{-7});
  AddNumber(request, "random_seed", "UINT64", ~uint64_t{0});
  AddNumber(request, "temperature", "FP32", 0.5f);
  AddRaw(request, "stop_words", "BYTES", EncodeBytes("a") + EncodeBytes("") + EncodeBytes("b"));
  request.mutable_inputs(5)->set_shape(0, 1);
  request.mutable_inputs(5)->add_shape(3);
  request.mutable_inputs(0)->add_shape(1);  // [1, 1]
  request.add_outputs()->set_name("text_output");
  const auto values = DecodeTensors(request);
  ASSERT_TRUE(values.ok()) << values.status();
  EXPECT_EQ(std::get<std::vector<std::string>>(values->at("text_input")),
            std::vector<std::string>{"h\xc3\xa9llo"});
  EXPECT_TRUE(std::get<bool>(values->at("stream")));
  EXPECT_EQ(std::get<int32_t>(values->at("max_tokens")), -7);
  EXPECT_EQ(std::get<uint64_t>(values->at("random_seed")), ~uint64_t{0});
  EXPECT_EQ(std::get<float>(values->at("temperature")), 0.5f);
  EXPECT_EQ(std::get<std::vector<std::string>>(values->at("stop_words")),
            (std::vector<std::string>{"a", "", "b"}));
}

TEST(Tensors, EveryTypeIsTakenTyped) {
  ModelInferRequest request = Prompt();
  AddBool(request, "stream", false);
  AddNumber(request, "max_tokens", "INT32", 0);
  AddNumber(request, "seed", "UINT64", uint64_t{0});
  AddNumber(request, "top_p", "FP32", 0.0f);
  request.clear_raw_input_contents();
  request.mutable_inputs(0)->mutable_contents()->add_bytes_contents("typed");
  request.mutable_inputs(1)->mutable_contents()->add_bool_contents(true);
  request.mutable_inputs(2)->mutable_contents()->add_int_contents(9);
  request.mutable_inputs(3)->mutable_contents()->add_uint64_contents(10);
  request.mutable_inputs(4)->mutable_contents()->add_fp32_contents(0.25f);
  const auto values = DecodeTensors(request);
  ASSERT_TRUE(values.ok()) << values.status();
  EXPECT_EQ(std::get<std::vector<std::string>>(values->at("text_input")).at(0), "typed");
  EXPECT_TRUE(std::get<bool>(values->at("stream")));
  EXPECT_EQ(std::get<int32_t>(values->at("max_tokens")), 9);
  EXPECT_EQ(std::get<uint64_t>(values->at("seed")), 10u);
  EXPECT_EQ(std::get<float>(values->at("top_p")), 0.25f);
}

TEST(Tensors, AListMayBeEmpty) {
  ModelInferRequest request = Prompt();
  AddRaw(request, "bad_words", "BYTES", "");
  request.mutable_inputs(1)->set_shape(0, 0);
  const auto values = DecodeTensors(request);
  ASSERT_TRUE(values.ok()) << values.status();
  EXPECT_TRUE(std::get<std::vector<std::string>>(values->at("bad_words")).empty());
}

struct BadRow {
  const char* name;
  std::function<void(ModelInferRequest&)> spoil;
  std::string field;
  std::string message;  // a part of it
};

std::vector<BadRow> BadRows() {
  const auto input = [](ModelInferRequest& r, int i) { return r.mutable_inputs(i); };
  return {
      {"no inputs", [](auto& r) { r.Clear(); }, "text_input", "missing"},
      {"no text_input",
       [](auto& r) {
         r.Clear();
         AddBool(r, "stream", true);
       },
       "text_input", "missing"},
      {"10,000 inputs",
       [](auto& r) {
         for (int i = 0; i < 10000; ++i) AddText(r, "x", "");
       },
       "inputs", "10001 tensors, allowed: at most 64"},
      {"10,000 outputs",
       [](auto& r) {
         for (int i = 0; i < 10000; ++i) r.add_outputs()->set_name("text_output");
       },
       "outputs", "10000 tensors"},
      {"unknown input", [](auto& r) { AddText(r, "prompt", ""); }, "inputs[1].name",
       "\"prompt\" is not known, allowed: text_input, stream"},
      {"an input with a name of 1 MB", [](auto& r) { AddText(r, std::string(1 << 20, 'n'), ""); },
       "inputs[1].name", "nnn...\""},
      {"duplicate input", [](auto& r) { AddText(r, "text_input", "twice"); }, "text_input",
       "given twice"},
      {"unknown output", [](auto& r) { r.add_outputs()->set_name("logits"); }, "outputs[0].name",
       "\"logits\" is not known, allowed: text_output"},
      {"datatype of another width",
       [](auto& r) { AddNumber(r, "max_tokens", "INT64", int64_t{1}); }, "max_tokens",
       "datatype is \"INT64\", allowed: INT32"},
      {"no datatype", [=](auto& r) { input(r, 0)->clear_datatype(); }, "text_input",
       "datatype is \"\""},
      {"no shape", [=](auto& r) { input(r, 0)->clear_shape(); }, "text_input", "shape is []"},
      {"shape of 2^40", [=](auto& r) { input(r, 0)->set_shape(0, int64_t{1} << 40); }, "text_input",
       "shape is [1099511627776], allowed: [1] or [1, 1]"},
      {"shape of 2^32 x 2^32",
       [=](auto& r) {
         input(r, 0)->set_shape(0, int64_t{1} << 32);
         input(r, 0)->add_shape(int64_t{1} << 32);
       },
       "text_input", "shape is [4294967296, 4294967296]"},
      {"negative shape", [=](auto& r) { input(r, 0)->set_shape(0, -1); }, "text_input",
       "shape is [-1]"},
      {"two negative extents",
       [=](auto& r) {
         input(r, 0)->set_shape(0, -1);
         input(r, 0)->add_shape(-1);
       },
       "text_input", "shape is [-1, -1]"},
      {"shape of 0", [=](auto& r) { input(r, 0)->set_shape(0, 0); }, "text_input", "shape is [0]"},
      {"100,000 dimensions",
       [=](auto& r) {
         for (int i = 0; i < 100000; ++i) input(r, 0)->add_shape(1);
       },
       "text_input", "1, ...]"},
      {"two prompts",
       [=](auto& r) {
         input(r, 0)->set_shape(0, 2);
         r.set_raw_input_contents(0, EncodeBytes("a") + EncodeBytes("b"));
       },
       "text_input", "shape is [2]"},
      {"10,000 stop words",
       [=](auto& r) {
         AddText(r, "stop_words", "");
         input(r, 1)->set_shape(0, 10000);
       },
       "stop_words", "n at most 16"},
      {"too few raw contents",
       [](auto& r) {
         AddBool(r, "stream", true);
         r.mutable_raw_input_contents()->RemoveLast();
       },
       "raw_input_contents", "1 entries for 2 inputs"},
      {"too many raw contents", [](auto& r) { r.add_raw_input_contents("x"); },
       "raw_input_contents", "2 entries for 1 inputs"},
      {"neither raw nor typed", [](auto& r) { r.clear_raw_input_contents(); }, "text_input",
       "0 elements of BYTES"},
      {"raw and typed", [=](auto& r) { input(r, 0)->mutable_contents()->add_bytes_contents("x"); },
       "text_input", "allowed: one"},
      {"typed with another type's elements",
       [=](auto& r) {
         r.clear_raw_input_contents();
         input(r, 0)->mutable_contents()->add_bytes_contents("x");
         input(r, 0)->mutable_contents()->add_int64_contents(1);
       },
       "text_input", "1 elements of BYTES and 1 of other types"},
      {"two typed elements for one",
       [=](auto& r) {
         r.clear_raw_input_contents();
         input(r, 0)->mutable_contents()->add_bytes_contents("x");
         input(r, 0)->mutable_contents()->add_bytes_contents("y");
       },
       "text_input", "2 elements of BYTES"},
      {"a number of 3 bytes", [](auto& r) { AddRaw(r, "max_tokens", "INT32", "abc"); },
       "max_tokens", "3 bytes in raw_input_contents, a INT32 has 4"},
      {"a number of 8 bytes", [](auto& r) { AddRaw(r, "temperature", "FP32", "abcdefgh"); },
       "temperature", "8 bytes"},
      {"a boolean of 2", [](auto& r) { AddRaw(r, "stream", "BOOL", "\2"); }, "stream", "0 or 1"},
      {"an empty boolean", [](auto& r) { AddRaw(r, "stream", "BOOL", ""); }, "stream", "0 or 1"},
      {"bytes without a length", [](auto& r) { r.set_raw_input_contents(0, "abc"); }, "text_input",
       "end before the length of element 0"},
      {"a length beyond the bytes",
       [](auto& r) { r.set_raw_input_contents(0, std::string("\x09\0\0\0hello", 9)); },
       "text_input", "element 0 is said to have 9 bytes, 5 are left"},
      {"a length of 2^32 - 1",
       [](auto& r) { r.set_raw_input_contents(0, "\xff\xff\xff\xffhello"); }, "text_input",
       "4294967295 bytes"},
      {"bytes after the last element",
       [](auto& r) { r.set_raw_input_contents(0, EncodeBytes("hello") + "x"); }, "text_input",
       "10 bytes in raw_input_contents, its 1 elements have 9"},
      {"invalid UTF-8", [](auto& r) { r.set_raw_input_contents(0, EncodeBytes("ab\xff")); },
       "text_input", "not UTF-8 at byte 2"},
      {"invalid UTF-8, typed",
       [=](auto& r) {
         r.clear_raw_input_contents();
         input(r, 0)->mutable_contents()->add_bytes_contents("\xed\xa0\x80");
       },
       "text_input", "not UTF-8 at byte 0"},
      {"an unknown parameter of an input",
       [=](auto& r) { (*input(r, 0)->mutable_parameters())["classification"]; },
       "text_input.parameters", "\"classification\" is not known"},
  };
}

TEST(Tensors, WhatIsWrongIsNamed) {
  for (const BadRow& row : BadRows()) {
    ModelInferRequest request = Prompt();
    row.spoil(request);
    const absl::Status status = DecodeTensors(request).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << row.name << ": " << status;
    EXPECT_EQ(FieldIn(status).value_or("none"), row.field) << row.name;
    EXPECT_TRUE(Message(status).starts_with(row.field + ": ")) << row.name << ": " << status;
    EXPECT_NE(Message(status).find(row.message), std::string::npos)
        << row.name << ": " << status << " lacks " << row.message;
    EXPECT_LT(status.message().size(), 600u) << row.name;
  }
}

TEST(Tensors, SharedMemoryIsUnimplemented) {
  for (const bool output : {false, true}) {
    ModelInferRequest request = Prompt();
    auto* parameters = output ? request.add_outputs()->mutable_parameters()
                              : request.mutable_inputs(0)->mutable_parameters();
    if (output) request.mutable_outputs(0)->set_name("text_output");
    (*parameters)["shared_memory_region"].set_string_param("region");
    const absl::Status status = DecodeTensors(request).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnimplemented) << status;
    EXPECT_NE(Message(status).find("shared_memory_region"), std::string::npos) << status;
  }
}

}  // namespace
}  // namespace quantd::kserve
