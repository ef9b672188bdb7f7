#!/usr/bin/env bash
# Runs a main on this machine: as one process, or as N that are joined over loopback.
#
#   launch/local.sh [N] ddpm_jax.train --config configs/digits.py ...
#
# One process has all CUDA GPUs, and several an equal share each; without GPUs, each has
# DEVICES fake CPU devices. One is faster: it converts nothing to share its state.
# When one process fails, the others are told to stop, and its exit code is returned.
# SIGTERM and Ctrl-C are passed on; the processes save, and then this script ends.
#
# Environment:
#   DEVICES=1        fake devices of each process
#   PORT             of process 0; a free one is taken if it is not set
#   GRACE=60         seconds from being told to stop until killed
#   MAX_RESTARTS=0   times to go on from the last checkpoint after a crash
#   DRY_RUN=1        only print the commands

set -euo pipefail
. "$(dirname "$0")/contract.sh"

case ${1:-} in -h | --help) usage && exit ;; esac
num=1
if [[ ${1:-} =~ ^[1-9][0-9]*$ ]]; then
  num=$1
  shift
fi
[[ ${1:-} == *.* ]] || wrong_use "give a main, such as ddpm_jax.train"
need_bash 5 1 # wait -n -p
MAX_RESTARTS=${MAX_RESTARTS:-0}

gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU') || true # none, without a driver
if [ "$gpus" -gt 0 ] && [ "$gpus" -lt "$num" ]; then
  die "$num processes need $num GPUs, there are $gpus"
fi

# Each process is its own group: Ctrl-C reaches this script alone, which passes it on
# once (a second one makes a main give up saving), and a kill reaches all below it.
set -m
pids=()
killer=
stopped=
# Its groups may be others' by then.
trap '[ -z "$killer" ] || kill -s KILL -- "-$killer" 2>/dev/null' EXIT

# Passes a signal on. What waits for the others in a collective cannot answer: that is
# ended after GRACE seconds.
stop() {
  [ ${#pids[@]} -gt 0 ] || return 0
  kill -s "$1" "${pids[@]}" 2>/dev/null || true
  if [ -z "$killer" ]; then
    (sleep "${GRACE:-60}" && kill -s KILL "${pids[@]/#/-}") 2>/dev/null &
    killer=$!
  fi
}
trap 'stopped=1; stop TERM' TERM HUP
trap 'stopped=1; stop INT' INT

start() {
  local i device flags joined=() port=${PORT:-} share=$((gpus / num))
  if [ -z "$port" ] && [ "$num" -gt 1 ]; then
    port=$(python -c 'if True:
      import socket
      with socket.socket() as s:
        s.bind(("localhost", 0))
        print(s.getsockname()[1])')
  fi
  for ((i = 0; i < num; i++)); do
    device=()
    if [ "$num" -gt 1 ]; then
      joined=(--coordinator "localhost:$port" --num_processes "$num" --process_id "$i")
    fi
    if [ "$gpus" -gt 0 ] && [ "$num" -gt 1 ]; then
      device=("CUDA_VISIBLE_DEVICES=$(seq -s, $((i * share)) $(((i + 1) * share - 1)))")
    elif [ "$gpus" -eq 0 ]; then
      flags="--xla_force_host_platform_device_count=${DEVICES:-1} ${XLA_FLAGS:-}"
      device=("JAX_PLATFORMS=cpu" "XLA_FLAGS=$flags")
    fi
    set -- env "${device[@]}" python -m "${main[@]}" "${joined[@]}"
    if dry; then
      run "$@"
    else
      "$@" &
      pids+=($!)
    fi
  done
}

# Waits for all processes; leaves the code of the first that failed in `code`.
finish() {
  local ended i status
  while [ ${#pids[@]} -gt 0 ]; do
    status=0 ended=
    wait -n -p ended "${pids[@]}" || status=$?
    [ -n "${ended:-}" ] || continue # it was a signal, and its trap has run
    for i in "${!pids[@]}"; do
      if [ "${pids[i]}" = "$ended" ]; then unset 'pids[i]'; fi
    done
    if [ "$status" -ne 0 ] && [ "$code" -eq 0 ]; then
      code=$status
      if [ -z "$stopped" ] && [ ${#pids[@]} -gt 0 ]; then
        say "a process ended with code $code: stopping the others"
        stop TERM
      fi
    fi
  done
  if [ -n "$killer" ]; then
    kill -s KILL -- "-$killer" 2>/dev/null || true
    wait "$killer" 2>/dev/null || true
    killer=
  fi
}

main=("$@")
for ((restarts = 0; ; restarts++)); do
  code=0
  start
  if [ -n "$stopped" ]; then stop TERM; fi # it came while they were being started
  finish
  # Nobody preempts on one's own machine: what was told to stop is not started again.
  if [ -n "$stopped" ] || [ "$code" -eq 143 ]; then break; fi
  if [ "$MAX_RESTARTS" -eq 0 ] || ! again "$code" "$restarts"; then break; fi
done
exit "$code"
