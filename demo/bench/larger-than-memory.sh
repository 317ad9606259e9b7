#!/usr/bin/env bash
# A model under a memory limit below its file's size: the text, and how much was read from the disk for it. Needs root and cgroups.
#
#     demo/bench/larger-than-memory.sh MODEL.gguf LIMIT_MIB [TOKENS]     MOERAY=path of the program
set -euo pipefail
model=$1 limit=$(($2 << 20)) tokens=${3:-64}
moeray=${MOERAY:-target/release/moeray}
if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
    group=/sys/fs/cgroup/moeray-$$ file=memory.max peak=memory.peak
else
    group=/sys/fs/cgroup/memory/moeray-$$ file=memory.limit_in_bytes peak=memory.max_usage_in_bytes
fi
mkdir "$group"
trap 'rmdir "$group" 2>/dev/null || true' EXIT
echo "$limit" > "$group/$file"
# What earlier runs have left of the file in memory is dropped.
python3 -c 'import os, sys; f = os.open(sys.argv[1], 0); os.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED)' "$model"
out=$(mktemp)
(
    echo "$BASHPID" > "$group/cgroup.procs"
    exec "$moeray" run "$model" --backend cpu --ram "$((limit / 2))" -n "$tokens" --ctx 256 --temp 0 --ignore-eos -q \
        -p "Once upon a time" > "$out"
) &
pid=$!
read_bytes=0
while kill -0 "$pid" 2>/dev/null; do
    now=$(sed -n 's/^read_bytes: //p' "/proc/$pid/io" 2>/dev/null || true)
    read_bytes=${now:-$read_bytes}
    sleep 0.05
done
status=0
wait "$pid" || status=$?
cat "$out"
rm -f "$out"
echo "status $status, limit $((limit >> 20)) MiB of a file of $(($(stat -c %s "$model") >> 20)) MiB," \
    "peak $(($(cat "$group/$peak") >> 20)) MiB, read $((read_bytes >> 20)) MiB"
