#!/usr/bin/env bash
# The GPU round in one call of at most ten minutes: numbers first, then speed, and tables of all of it under demo/bench/results/ with
# card, driver, versions and commands.
#
#   demo/bench/gpu.sh [--model qwen3-30b-a3b] [--type Q4_K_M] [--layers N] [--file MODEL.gguf]...
#                     [--device NAME] [-p 512] [-n 64] [-r 3] [--name NAME] [--seconds 600]
#                     [--llama-server PROGRAM | --llama-bench PROGRAM]
#
# The model is random weights in a real model's sizes, so nothing is downloaded; --layers makes a shorter one where memory is
# small. MOERAY names a program that is built already; without it, it is built first, which does not count as time.
#
# 1. numbers: logits of the demo model and of the measured files, of a prompt, of few tokens and of one at a time, against the CPU's.
#    Where they differ nothing is measured.
# 2. a cold start, and one with compiled shaders at hand; memory that the card has in use
# 3. speed of prompts, of few tokens, of generation at several depths, of several sequences; each way to multiply tiles
# 4. what each kernel reaches of the device's bandwidth, at depth 0 and 8192
# 5. experts of all layers, and of as many as half the file's memory leaves, on the processor; all of the model there; experts in memory of
#    the host that kernels read, past slots (--expert-slots 1) and with slots for 25, 50 and 100 % of each layer. Hits are those of random
#    weights where no --file is named: real routing hits more often.
# 6. llama.cpp on the same file, where one of its programs is named
set -euo pipefail
cd "$(dirname "$0")/../.."

model=qwen3-30b-a3b type=Q4_K_M layers=() files=() device=() prompt=512 gen=64 rounds=3 name=gpu llama=() seconds=600
while [ $# -gt 0 ]; do
  case "$1" in
    --llama-server | --llama-bench) llama=("$1" "$2") ;;
    --model) model=$2 ;;
    --type) type=$2 ;;
    --layers) layers=(--layers "$2") ;;
    --file) files+=("$2") ;;
    --device) device=(--device "$2") ;;
    -p) prompt=$2 ;;
    -n) gen=$2 ;;
    -r) rounds=$2 ;;
    --name) name=$2 ;;
    --seconds) seconds=$2 ;;
    *) echo "unknown: $1 (see the head of this file)" >&2; exit 2 ;;
  esac
  shift 2
done

moeray=${MOERAY:-}
if [ -z "$moeray" ]; then
  cargo build --release --quiet
  moeray=target/release/moeray
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
SECONDS=0
# At most so long, and never beyond the end of the round.
within() {
  local most=$1 left=$((seconds - SECONDS))
  shift
  if [ $left -le 5 ]; then
    echo "(left out: the round's time is over)"
    return 0
  fi
  timeout $((most < left ? most : left)) "$@" || echo "(stopped or failed: $*)"
}
gpu=(--backend wgpu "${device[@]}")

# Mean squared difference of two files of logits over the mean square of the second.
cat >"$work/differ.py" <<'END'
import json, math, struct, sys
def logits(path):
    data = open(path, "rb").read()
    n = struct.unpack("<Q", data[:8])[0]
    entry = json.loads(data[8 : 8 + n])["logits"]
    begin, end = (8 + n + o for o in entry["data_offsets"])
    return struct.unpack(f"<{(end - begin) // 4}f", data[begin:end])
a, b = logits(sys.argv[1]), logits(sys.argv[2])
nmse = sum((x - y) ** 2 for x, y in zip(a, b)) / sum(y * y for y in b) if len(a) == len(b) else math.inf
print(f"{sys.argv[3]}: normalised mean squared error {nmse:.2e}" + ("" if nmse < float(sys.argv[4]) else ", WRONG"))
END
ids() { python3 -c "print(','.join(str((i * 7919 + 13) % 300) for i in range($1)))"; }
numbers() {
  local what=$1
  shift
  for n in 1 7 300; do
    "$moeray" logits "$@" --ids "$(ids $n)" --backend cpu --activations int16 -q -o "$work/cpu.safetensors"
    for how in f32 int8; do
      "$moeray" logits "$@" --ids "$(ids $n)" "${gpu[@]}" --tiles $how -q -o "$work/gpu.safetensors"
      # Tiles of bytes round activations, and a rounded one may choose another expert.
      python3 "$work/differ.py" "$work/gpu.safetensors" "$work/cpu.safetensors" "$what, $n tokens, $how tiles" \
        "$([ $how = f32 ] && echo 1e-4 || echo 2e-2)"
    done
  done
}
{
  numbers "the demo model"
  for shape in "$model" gpt-oss-20b; do
    "$moeray" bench --synthetic "$shape" --layers 2 --type Q4_K_M --write "$work/two-layers.gguf" >/dev/null
    numbers "two layers of $shape" -m "$work/two-layers.gguf"
    rm "$work/two-layers.gguf"
  done
} | tee "$work/numbers.txt"
if grep -q WRONG "$work/numbers.txt" || [ "$(grep -c 'mean squared' "$work/numbers.txt")" != 18 ]; then
  echo "the numbers are wrong: nothing is measured" >&2
  exit 1
fi

if [ ${#files[@]} -eq 0 ]; then
  "$moeray" bench --synthetic "$model" --type "$type" "${layers[@]}" --write "$work/$model-$type.gguf"
  files=("$work/$model-$type.gguf")
fi
file=${files[0]}

start() {
  local begin
  begin=$(date +%s%N)
  XDG_CACHE_HOME=$work/cache MESA_SHADER_CACHE_DIR=$work/cache __GL_SHADER_DISK_CACHE_PATH=$work/cache \
    "$moeray" run "${gpu[@]}" -p "To be" -n 1 -q >/dev/null
  echo "$1: $((($(date +%s%N) - begin) / 1000000)) ms to the first token of the demo model"
}
memory() {
  command -v nvidia-smi >/dev/null || return 0
  "$moeray" bench -m "$file" "${gpu[@]}" -p 0 -n 512 -r 1 -q >/dev/null &
  local pid=$! most=0 now
  while kill -0 $pid 2>/dev/null; do
    now=$(nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | head -1)
    most=$((now > most ? now : most))
    sleep 0.5
  done
  wait $pid || true
  echo "memory in use: $most MiB at most, for a file of $(($(stat -c %s "$file") >> 20)) MiB"
}

out=demo/bench/results/$(date +%Y-%m)-$name.md
section() { printf '\n## %s\n\n```\n' "$1"; }
{
  echo "# $name"
  echo
  echo '```'
  "$moeray" devices
  "$moeray" --version
  echo "demo/bench/gpu.sh --model $model --type $type ${layers[*]} -p $prompt -n $gen -r $rounds"
  echo '```'
  section "Numbers against the CPU's"
  cat "$work/numbers.txt"
  echo '```'
  section "Start and memory"
  mkdir -p "$work/cache"
  start "nothing compiled before"
  start "compiled shaders at hand"
  memory
  echo '```'
  section "Speed: $(basename "$file")"
  within 150 "$moeray" bench -m "$file" "${gpu[@]}" -p "4,$prompt" -n "$gen" -d 0,512,8192 -r "$rounds" -q
  within 60 "$moeray" bench -m "$file" "${gpu[@]}" -p 0 -n "$gen" --sequences 8 -d 0,1024 -r "$rounds" -q
  for tiles in f32 f16 int8; do
    echo "tiles $tiles"
    within 40 "$moeray" bench -m "$file" "${gpu[@]}" --tiles $tiles -p "$prompt" -n 0 -r "$rounds" -q
  done
  echo "tiles coop16, experimental"
  within 40 "$moeray" bench -m "$file" "${gpu[@]}" --experimental --tiles coop16 -p "$prompt" -n 0 -r "$rounds" -q
  echo '```'
  for depth in 0 8192; do
    section "Kernels at depth $depth"
    within 60 "$moeray" bench -m "$file" "${gpu[@]}" -p "$prompt" -n 16 -d $depth -r 1 --profile -q
    echo '```'
  done
  section "Experts on the processor, and in slots"
  half=$(($(stat -c %s "$file") / 2))
  within 30 "$moeray" inspect --memory -m "$file" "${gpu[@]}" --cpu-moe
  within 30 "$moeray" inspect --memory -m "$file" "${gpu[@]}" --vram $half
  within 30 "$moeray" inspect --memory -m "$file" "${gpu[@]}" --expert-slots auto --vram $half
  for where in "--cpu-moe" "--vram $half" "--expert-slots 1" "--expert-slots 25%" "--expert-slots 50%" "--expert-slots 100%"; do
    echo "$where"
    # shellcheck disable=SC2086 # an option and its value
    within 60 "$moeray" bench -m "$file" "${gpu[@]}" $where -p "$prompt" -n 32 -r 2 -q
  done
  echo "kernels with slots for 25 %"
  within 60 "$moeray" bench -m "$file" "${gpu[@]}" --expert-slots 25% -p 0 -n 16 -r 1 --profile -q
  within 60 "$moeray" bench -m "$file" --backend cpu -p "$prompt" -n 32 -r 2 -q
  echo '```'
  if [ ${#llama[@]} -gt 0 ]; then
    printf '\n## Against llama.cpp\n\n'
    within 240 python3 demo/bench/compare.py "${files[@]}" --backend wgpu "${device[@]}" "${llama[@]}" \
      -p "$prompt" -n "$gen" -r "$rounds"
  fi
  echo
  echo "The round took $SECONDS seconds."
} >"$out"
echo "written: $out"
