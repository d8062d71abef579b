#!/usr/bin/env bash
# Runs all stages of a curriculum in order, each from the model of the previous one.
#
#   launch/curriculum.sh configs/stages/tiny.py runs/stages [--config.key=value ...]
#
# Stage NAME runs in runs/stages/NAME. If stopped or killed, the same command resumes: it skips finished stages, and
# stage_0 if that is a model directory. On SIGTERM the stage saves and the script exits with 75; a scheduler should then
# start it again. TRAIN (default "omnivinci train") runs a stage; for two processes, set TRAIN="launch/local.sh 2" and an
# even number of groups.
set -euo pipefail
usage="usage: launch/curriculum.sh CONFIG DIRECTORY [--config.key=value ...]"
config=${1:?$usage}
root=${2:?$usage}
shift 2
read -ra train <<<"${TRAIN:-omnivinci train}"

exists() { # on disk or in a bucket
  if [[ $1 == gs://* ]]; then gcloud storage ls "$1" >/dev/null 2>&1; else [[ -e $1 ]]; fi
}

stages=(stage_0 vision_1 vision_2 vision_3 vision_4 vision_5 audio_1 audio_2 omni)
child=
stop_requested=
trap 'stop_requested=yes; signalled=yes; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM INT

previous=
for stage in "${stages[@]}"; do
  directory=$root/$stage
  if ! exists "$directory/report.md" && ! exists "$directory/params"; then
    [[ -z $stop_requested ]] || exit 75
    echo "launch/curriculum.sh: $stage" >&2
    "${train[@]}" --config "$config:$stage" --workdir "$directory" \
      ${previous:+--config.start_from="$root/$previous"} "$@" &
    child=$!
    signalled=yes
    while [[ -n $signalled ]]; do # a signal interrupts the wait; the stage still has to save
      signalled=
      code=0
      wait "$child" || code=$?
    done
    ((!code)) || exit "$code"
  fi
  previous=$stage
done
