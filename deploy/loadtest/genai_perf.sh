#!/usr/bin/env bash
# genai-perf (NVIDIA's benchmark of language models) on a server that speaks the KServe protocol with Triton's streaming
# extension.
#
#   deploy/loadtest/genai_perf.sh HOST:PORT MODEL TOKENIZER_DIR [CONCURRENCY [REQUESTS [INPUT_TOKENS [OUTPUT_TOKENS]]]] [-- ...]
#
# What follows -- goes to perf_analyzer, for a server with TLS: -- --ssl-grpc-use-ssl --ssl-grpc-root-certifications-file ca.pem
# $QUANTD_API_KEY, an administrator's (it reads the model's statistics), is sent where it is set.
# MODEL is the served name, TOKENIZER_DIR the model's folder (tokenizer.json). Results go to ./genai-perf-artifacts, or to
# $GENAI_PERF_ARTIFACTS; $GENAI_PERF_BACKEND is vllm (the default) or tensorrtllm: how the inputs are named. quantd takes both.
# To be run on Linux with Python 3.10 or later, and PyPI the first time; no GPU is needed. genai-perf works through perf_analyzer,
# of which the wheel of tritonclient 2.51.0 has the newest that runs with Debian 12's C library; it links the CUDA runtime.
# quantd.v1.Inference, quantd's own protocol on the same port, is measured by `quantd bench serve`.
set -euo pipefail
arguments=() more=()
while [ $# -gt 0 ]; do
  if [ "$1" = -- ]; then
    shift
    more=("$@")
    break
  fi
  arguments+=("$1")
  shift
done
set -- "${arguments[@]}"
[ -z "${QUANTD_API_KEY:-}" ] || more+=(-H "authorization:Bearer $QUANTD_API_KEY")  # without a space, which would be sent
[ ${#more[@]} -eq 0 ] || more=(-- "${more[@]}")
[ $# -ge 3 ] || { sed -n '2,/^set/p' "$0" | sed 's/^# \{0,1\}//; /^set/d'; exit 2; }
target=$1 model=$2 tokenizer=$3 concurrency=${4:-4} requests=${5:-100} input=${6:-128} output=${7:-64}
tools=${GENAI_PERF_TOOLS:-$HOME/.cache/quantd-genai-perf}

if [ ! -x "$tools/bin/perf_analyzer" ]; then
  if ! ldconfig -p | grep -q 'libb64\.so'; then
    echo "perf_analyzer needs libb64: apt-get install libb64-0d" >&2
    exit 1
  fi
  mkdir -p "$tools/bin"
  python3 -m venv "$tools/venv"
  "$tools/venv/bin/pip" install -q genai-perf==0.0.16
  "$tools/venv/bin/pip" install -q --no-deps --target "$tools/cuda" nvidia-cuda-runtime-cu12
  "$tools/venv/bin/pip" download -q --no-deps -d "$tools" tritonclient==2.51.0
  # The wheel is a zip archive.
  python3 - "$tools" <<'PY'
import pathlib, shutil, sys, zipfile
tools = pathlib.Path(sys.argv[1])
wheel = zipfile.ZipFile(next(tools.glob("tritonclient-2.51.0-*.whl")))
name = next(n for n in wheel.namelist() if n.endswith("/bin/perf_analyzer"))
with wheel.open(name) as source, open(tools / "perf_analyzer.part", "wb") as target:
    shutil.copyfileobj(source, target)
PY
  chmod +x "$tools/perf_analyzer.part"
  mv "$tools/perf_analyzer.part" "$tools/bin/perf_analyzer"
fi
export LD_LIBRARY_PATH="$tools/cuda/nvidia/cuda_runtime/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
export PATH="$tools/bin:$PATH"
exec "$tools/venv/bin/genai-perf" profile -m "$model" --endpoint-type kserve --backend "${GENAI_PERF_BACKEND:-vllm}" --streaming -u "$target" \
  --tokenizer "$tokenizer" --isl "$input" --osl "$output" --output-tokens-mean-deterministic \
  --concurrency "$concurrency" --request-count "$requests" --num-prompts 10 \
  --artifact-dir "${GENAI_PERF_ARTIFACTS:-genai-perf-artifacts}" "${more[@]}"
