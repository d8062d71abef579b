#!/usr/bin/env bash
# Starts a run on all hosts of a Cloud TPU slice, and restarts it after preemption or the loss of a host. The hosts share
# no disk: put --workdir, data and cache on gs:// or a mounted file system. After a Spot slice is preempted, you or your
# tooling must create it again under the same name and install the repository; this script waits for it.
#
#   TPU=my-slice ZONE=us-east5-a launch/tpu_pod.sh --config configs/omnivinci_9b.py --workdir gs://bucket/runs/9b ...
#
# Every host needs the repository in ~/omnivinci, installed in its .venv with `pip install -e '.[tpu]'`.
set -euo pipefail
: "${TPU:?set TPU to the name of the slice}" "${ZONE:?set ZONE to its zone}"
# Quoted twice: a shell on each host parses it again. JAX finds the other hosts by itself.
command="cd ~/omnivinci && . launch/xla_flags.sh tpu && exec .venv/bin/omnivinci train --distributed$(printf ' %q' "$@")"

for ((restarts = 0; restarts <= ${MAX_RESTARTS:-20}; restarts++)); do
  code=0
  gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all --command "$command" || code=$?
  # Restart on 75 and above 128 (a process was killed; 255: a host could not be reached).
  ((code == 75 || code > 128)) || exit "$code"
  until [[ $(gcloud compute tpus tpu-vm describe "$TPU" --zone "$ZONE" --format 'value(state)') == READY ]]; do
    echo "launch/tpu_pod.sh: $TPU is not ready, checking again in a minute" >&2
    sleep 60
  done
done
exit "$code"
