#!/usr/bin/env bash
# Runs a main as N processes on this machine, joined over loopback.
#
#   launch/local.sh N ddpm_jax.train --config configs/digits.py ...
#
# With CUDA GPUs, process i sees GPU i; without, each has DEVICES fake CPU devices.
# Environment: PORT (default 12355), DEVICES (default 1), DRY_RUN=1 only prints.
# When one process fails, the others are stopped, and its exit code is returned.
set -euo pipefail

if [ $# -lt 2 ] || ! [[ $1 =~ ^[1-9][0-9]*$ ]]; then
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
num=$1
shift
coordinator="localhost:${PORT:-12355}"
pids=()
stop() { [ ${#pids[@]} -eq 0 ] || kill -s "${1:-TERM}" "${pids[@]}" 2>/dev/null || true; }
trap stop INT TERM

gpus=0
if command -v nvidia-smi >/dev/null; then gpus=$(nvidia-smi -L | wc -l); fi
if [ "$gpus" -gt 0 ] && [ "$gpus" -lt "$num" ]; then
  echo "error: $num processes need $num GPUs, there are $gpus" >&2
  exit 1
fi

for ((i = 0; i < num; i++)); do
  if [ "$gpus" -gt 0 ]; then
    device=("CUDA_VISIBLE_DEVICES=$i")
  else
    flags="--xla_force_host_platform_device_count=${DEVICES:-1} ${XLA_FLAGS:-}"
    device=("JAX_PLATFORMS=cpu" "XLA_FLAGS=$flags")
  fi
  run=(env "${device[@]}" python -m "$@"
    --coordinator "$coordinator" --num_processes "$num" --process_id "$i")
  if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "${run[@]}"
    echo
  else
    "${run[@]}" &
    pids+=($!)
  fi
done

code=0
for _ in "${pids[@]}"; do
  status=0
  wait -n || status=$?
  if [ "$status" -ne 0 ]; then
    if [ "$code" -eq 0 ]; then
      code=$status
      echo "a process ended with code $code: stopping the others" >&2
      stop
      # One that waits for the others in a collective cannot answer: end it.
      (sleep 15 && stop KILL) &
      killer=$!
    fi
  fi
done
[ -z "${killer:-}" ] || kill "$killer" 2>/dev/null || true
exit "$code"
