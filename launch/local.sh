#!/usr/bin/env bash
# One run as several processes of this machine, each as a host is on a pod; started again when it was preempted or a
# process was lost.
#
#   launch/local.sh 2 --config configs/tiny.py --workdir runs/tiny --config.data.groups=2
#
# HARDWARE (cpu, gpu or tpu; default cpu) chooses the flags of xla_flags.sh. MAX_RESTARTS (default 20) ends a run that
# always fails. SIGTERM saves the run and ends it with 75, on which a scheduler is to start this script again.
set -euo pipefail
usage="usage: launch/local.sh PROCESSES ARGUMENTS OF omnivinci train"
processes=${1:?$usage}
shift
# shellcheck source=launch/xla_flags.sh
. "$(dirname "$0")/xla_flags.sh" "${HARDWARE:-cpu}"

told_to_end=
trap 'told_to_end=yes; kill -TERM "${pids[@]}" 2>/dev/null || true' TERM INT
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
    [[ -n ${pid:-} ]] || continue # a signal came, and no process ended
    left=$((left - 1))
    mapfile -t pids < <(printf '%s\n' "${pids[@]}" | grep -vx "$pid")
    if ((ended && !code)); then
      code=$ended
      # The others cannot go on without it. They notice by themselves and some still save; then they are ended.
      (sleep "${GRACE_SECONDS:-60}" && kill -KILL "${pids[@]}" 2>/dev/null) &
      grace=$!
    fi
  done
  [[ -z ${grace:-} ]] || kill "$grace" 2>/dev/null || true
  grace=

  ((code)) || exit 0
  [[ -z $told_to_end ]] || exit "$code"
  # 75 asks for it; above 128 a process was killed. Everything else is for the user to mend.
  ((code == 75 || code > 128)) || exit "$code"
  ((restarts < ${MAX_RESTARTS:-20})) || exit "$code"
  echo "launch/local.sh: ended with $code, starting again" >&2
done
