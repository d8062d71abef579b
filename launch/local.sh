#!/usr/bin/env bash
# Trains with several processes on this machine, as if each were a host of a pod. Restarts the run after preemption or
# the loss of a process.
#
#   launch/local.sh 2 --config configs/tiny.py --workdir runs/tiny --config.data.groups=2
#
# HARDWARE (cpu, gpu or tpu; default cpu) selects the flags of xla_flags.sh. MAX_RESTARTS (default 20) stops a run that
# always fails. On SIGTERM the run saves and exits with 75; a scheduler should then start this script again.
set -euo pipefail
usage="usage: launch/local.sh PROCESSES ARGUMENTS OF omnivinci train"
processes=${1:?$usage}
shift
# shellcheck source=launch/xla_flags.sh
. "$(dirname "$0")/xla_flags.sh" "${HARDWARE:-cpu}"

stop_requested=
trap 'stop_requested=yes; kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
trap 'kill -KILL "${pids[@]}" 2>/dev/null || true' EXIT

for ((restarts = 0; ; restarts++)); do
  port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
  pids=()
  for ((process = 0; process < processes; process++)); do
    JAX_COORDINATOR_ADDRESS=localhost:$port JAX_NUM_PROCESSES=$processes JAX_PROCESS_ID=$process \
      omnivinci train --distributed "$@" &
    pids+=($!)
  done

  code=0
  for ((left = processes; left > 0; )); do
    ended=0
    wait -n -p pid "${pids[@]}" || ended=$?
    [[ -n ${pid:-} ]] || continue # a signal arrived; no process ended
    left=$((left - 1))
    mapfile -t pids < <(printf '%s\n' "${pids[@]}" | grep -vx "$pid")
    if ((ended && !code)); then
      code=$ended
      # The others cannot continue without this process. Give them time to notice and save, then kill them.
      (sleep "${GRACE_SECONDS:-60}" && kill -KILL "${pids[@]}" 2>/dev/null) &
      grace=$!
    fi
  done
  [[ -z ${grace:-} ]] || kill "$grace" 2>/dev/null || true
  grace=

  ((code)) || exit 0
  [[ -z $stop_requested ]] || exit "$code"
  # Restart on 75 and above 128 (a process was killed). Anything else is an error for the user to fix.
  ((code == 75 || code > 128)) || exit "$code"
  ((restarts < ${MAX_RESTARTS:-20})) || exit "$code"
  echo "launch/local.sh: exited with $code, starting again" >&2
done
