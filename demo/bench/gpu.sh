#!/usr/bin/env bash
# The GPU round in one call: builds moeray, makes a synthetic model file, measures both programs in turn on this machine's GPU,
# and writes tables under demo/bench/results/ with card, driver, versions and commands.
#
#   demo/bench/gpu.sh --llama-server PROGRAM | --llama-bench PROGRAM
#                     [--model qwen3-30b-a3b] [--type Q4_K_M] [--layers N] [--file MODEL.gguf]...
#                     [--device NAME] [-p 512] [-n 128] [-r 3] [--name NAME]
#
# The model is random weights in a real model's sizes, so nothing is downloaded; --layers makes a shorter one where memory is
# small. Both programs read the same file. What moeray's kernels reach of the device's bandwidth (`moeray bench --profile`)
# goes below the table.
set -euo pipefail
cd "$(dirname "$0")/../.."

model=qwen3-30b-a3b type=Q4_K_M layers=() files=() device=() prompt=512 gen=128 rounds=3 name=gpu llama=()
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
    *) echo "unknown: $1 (see the head of this file)" >&2; exit 2 ;;
  esac
  shift 2
done
[ ${#llama[@]} -gt 0 ] || { echo "name llama.cpp's program: --llama-server PROGRAM or --llama-bench PROGRAM" >&2; exit 2; }

cargo build --release --quiet
moeray=target/release/moeray
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
if [ ${#files[@]} -eq 0 ]; then
  "$moeray" bench --synthetic "$model" --type "$type" "${layers[@]}" --write "$work/$model-$type.gguf"
  files=("$work/$model-$type.gguf")
fi

out=demo/bench/results/$(date +%Y-%m)-$name.md
python3 demo/bench/compare.py "${files[@]}" --backend wgpu "${device[@]}" "${llama[@]}" \
  -p "$prompt" -n "$gen" -r "$rounds" --out "$work/table.md"
{
  echo "# $name"
  echo
  echo '```'
  "$moeray" devices
  "$moeray" --version
  "${llama[1]}" --version 2>&1 | grep -i version || true
  echo "demo/bench/gpu.sh --model $model --type $type ${layers[*]} -p $prompt -n $gen -r $rounds"
  echo '```'
  echo
  cat "$work/table.md"
  for file in "${files[@]}"; do
    echo
    echo "## Kernels: $(basename "$file")"
    echo
    echo '```'
    "$moeray" bench -m "$file" --backend wgpu "${device[@]}" -p "$prompt" -n 16 -r 1 --profile -q || true
    echo '```'
  done
} >"$out"
echo "written: $out"
