// Every quant_method of transformers that quantd does not read, with what works instead: a user who
// points at such a checkpoint learns what to do, never gets garbage.
//
// The names are the keys of AUTO_QUANTIZER_MAPPING of transformers 5.23 (with the method names
// older writers used); refused_test.cc holds the list and finds each one here or in the registry.
#include "engine/weights/methods/method.h"
#include "kernels/status.h"

namespace quantd {
namespace {

struct Refused {
  std::string_view method;
  std::string_view what;     // it is
  std::string_view instead;  // what to load
};

constexpr std::string_view kFloatsOnLoad =
    "load the full-precision checkpoint with one of quantd's profiles (nf4, int8, fp8, ...)";

constexpr Refused kRefused[] = {
    {"aqlm", "additive codebooks",
     "a GPTQ or AWQ checkpoint of the model, or the full-precision "
     "one with profile nf4-dq"},
    {"quanto", "optimum-quanto's tensors, which have no format of their own", kFloatsOnLoad},
    {"quark", "AMD Quark's export", "a compressed-tensors or fp8 export of the model"},
    {"fouroversix", "nvfp4 with adaptive block scales",
     "a compressed-tensors nvfp4 export, or the full-precision checkpoint with profile nf4"},
    {"fp_quant", "nvfp4 or mxfp4 behind a Hadamard transform",
     "a compressed-tensors nvfp4 export, or the full-precision checkpoint with profile nf4"},
    {"eetq", "int8 in CUTLASS's interleaved layout",
     "the full-precision checkpoint with profile int8"},
    {"higgs", "vector codebooks behind a Hadamard transform",
     "the full-precision checkpoint with profile nf4"},
    {"fbgemm_fp8", "fp8 rows with FBGEMM's activation bound",
     "a compressed-tensors fp8 export, or the full-precision checkpoint with profile fp8"},
    {"bitnet", "ternary weights of a model trained for them", "another model"},
    {"vptq", "vector codebooks", "a GPTQ or AWQ checkpoint of the model"},
    {"spqr", "sparse outliers beside 3-bit blocks", "a GPTQ or AWQ checkpoint of the model"},
    {"gguf", "llama.cpp's file format",
     "the model's safetensors folder with one of quantd's profiles"},
    {"nvfp4", "nvfp4 with quantized activations",
     "a compressed-tensors nvfp4 weight-only export, or the full-precision checkpoint with "
     "profile nf4"},
    {"mxfp8", "fp8 with a scale per 32",
     "an fp8 export with blocks of 128, or the "
     "full-precision checkpoint with profile fp8"},
    {"mxfp4", "fp4 with a scale per 32", kFloatsOnLoad},
    {"sinq", "dual-scaled 4-bit blocks", "the full-precision checkpoint with profile hqq4"},
    {"gemma", "Gemma's quantization-aware checkpoints", kFloatsOnLoad},
    {"modelopt", "NVIDIA Model Optimizer's export", "a compressed-tensors or fp8 export"},
    {"exl2", "ExLlamaV2's packing", "a GPTQ or AWQ checkpoint of the model"},
    {"exl3", "ExLlamaV3's packing", "a GPTQ or AWQ checkpoint of the model"},
    {"marlin", "GPTQ repacked for one kernel", "the GPTQ checkpoint it was made from"},
};

/// Names that a reader may try, in one line.
std::string Supported() {
  std::string names;
  for (const Method* m : Methods()) {
    if (m->name() == "none") continue;
    names += fmt::format("{}{}", names.empty() ? "" : ", ", m->name());
  }
  return names;
}

}  // namespace

absl::Status RefuseMethod(std::string_view quant_method) {
  for (const Refused& r : kRefused) {
    if (r.method != quant_method) continue;
    return Unimplemented("\"{}\" ({}) is not supported; instead: {}", r.method, r.what, r.instead);
  }
  return Unimplemented("\"{}\" is not supported; supported: {}", quant_method, Supported());
}

}  // namespace quantd
