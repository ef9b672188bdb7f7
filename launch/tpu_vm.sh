#!/usr/bin/env bash
# Runs a main on one Cloud TPU VM, a slice of a single host.
#
#   launch/tpu_vm.sh up ddpm_jax.train --config configs/cifar.py --workdir gs://bucket/runs/cifar
#
# All of launch/tpu_pod.sh (see its --help) with other defaults:
#
# Environment:
#   ACCELERATOR=v5litepod-8
#   NAME=ddpm-jax-vm

set -euo pipefail
export ACCELERATOR=${ACCELERATOR:-v5litepod-8} NAME=${NAME:-ddpm-jax-vm}
. "$(dirname "$0")/tpu_pod.sh"
