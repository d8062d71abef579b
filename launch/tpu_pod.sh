#!/usr/bin/env bash
# Starts a run on every host of a Cloud TPU slice, and again when it was preempted or a host was lost. The hosts share no
# disk: --workdir, the data and their cache are on gs:// or a mounted file system. A Spot slice that was taken away has to
# be created and installed again under its name, by you or by what does it for you; this waits for it.
#
#   TPU=my-slice ZONE=us-east5-a launch/tpu_pod.sh --config configs/omnivinci_9b.py --workdir gs://bucket/runs/9b ...
#
# The repository is in ~/omnivinci on every host, installed with `pip install -e '.[tpu]'`.
set -euo pipefail
: "${TPU:?set TPU to the name of the slice}" "${ZONE:?set ZONE to its zone}"
# Quoted twice, since a shell on each host reads it again. jax finds the other hosts by itself.
command="cd ~/omnivinci && . launch/xla_flags.sh tpu && exec .venv/bin/omnivinci train --distributed$(printf ' %q' "$@")"

for ((restarts = 0; restarts <= ${MAX_RESTARTS:-20}; restarts++)); do
  code=0
  gcloud compute tpus tpu-vm ssh "$TPU" --zone "$ZONE" --worker=all --command "$command" || code=$?
  # 75 asks to be started again; above 128 a process was killed, or (255) a host could not be reached any more.
  ((code == 75 || code > 128)) || exit "$code"
  until [[ $(gcloud compute tpus tpu-vm describe "$TPU" --zone "$ZONE" --format 'value(state)') == READY ]]; do
    echo "launch/tpu_pod.sh: $TPU is not ready, asking again in a minute" >&2
    sleep 60
  done
done
exit "$code"
