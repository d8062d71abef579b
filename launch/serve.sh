#!/usr/bin/env bash
# Serves a model on several accelerators of this host; each holds a part of every layer.
#
#   HARDWARE=gpu launch/serve.sh 4 --model DIR --host 0.0.0.0
#
# HARDWARE (cpu, gpu or tpu; default gpu) selects the flags of xla_flags.sh. MESH (default data=1,tensor=DEVICES) may
# shard the batch as well: MESH=data=2,tensor=4.
set -euo pipefail
devices=${1:?usage: launch/serve.sh DEVICES ARGUMENTS OF omnivinci serve}
shift
# shellcheck source=launch/xla_flags.sh
. "$(dirname "$0")/xla_flags.sh" "${HARDWARE:-gpu}"
exec omnivinci serve --mesh "${MESH:-data=1,tensor=$devices}" "$@"
